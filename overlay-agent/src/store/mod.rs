//! Where it is agreed who has which subnet: etcd, or a file that is the same on all hosts.
//!
//! [`Store`] is one or the other. For etcd, [`etcd`] knows transactions and revisions but not what they
//! are for; [`config`] waits for the network config and reports its changes; [`follow`] turns a listing
//! and a watch into [`LeaseUpdate`]s. etcd being away is no error for any of the latter two: they say so
//! and go on trying, as [`outage`] describes, and [`trouble`] is where to see what fails. What hosts that
//! are absent afterwards mean, [`grace`] decides. [`fixed`] follows a file instead.

mod any;
pub mod config;
mod connect;
pub mod etcd;
pub mod fixed;
pub mod follow;
pub mod grace;
pub mod outage;
mod page;
pub mod peers_file;
mod reader;
pub mod trouble;
pub mod watch;

pub use self::{
    any::{Following, Joined, Store},
    etcd::{Entry, Etcd, Listing, StoreError},
    follow::{Follower, LeaseUpdate},
};
