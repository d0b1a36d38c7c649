//! The agent: leases a subnet, follows everybody else's leases, and keeps the kernel in step.
