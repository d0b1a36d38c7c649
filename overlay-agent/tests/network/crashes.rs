//! The agent dies at every step of its start.
