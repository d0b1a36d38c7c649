//! Hosts, wires, etcd and Docker in network namespaces: shared by the tests, the lab and the demo.
