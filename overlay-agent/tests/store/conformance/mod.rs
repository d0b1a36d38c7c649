//! flannel's lease protocol, section by section of its reference, against a real etcd: 3.4 of Debian 12, and 3.5.

mod section_1_1_keys;
mod section_1_2_values;
mod section_1_3_acquire;
mod section_1_3_keep;
mod section_1_4_watches;
mod section_2_3_subnet_choice;
mod section_2_network_config;
