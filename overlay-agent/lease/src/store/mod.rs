//! Where it is agreed who has which subnet.
//!
//! [`etcd`] knows transactions and revisions, but not what they are for; [`operate`] is what operators do with it. In a
//! [`peers_file`] everything is written beforehand.

pub mod etcd;
pub mod operate;
pub mod peers_file;

pub use self::etcd::{Created, Entry, EtcdLease, Listing, StoreError};
