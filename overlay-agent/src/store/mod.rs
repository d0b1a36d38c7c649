//! etcd: the connection, the network config, and everybody's leases.
//!
//! [`etcd`] knows transactions and revisions but not what they are for; [`config`] waits for the
//! network config; [`follow`] turns a listing and a watch into [`LeaseUpdate`]s. etcd being away is
//! no error for any of the latter two: they say so and go on trying, as [`outage`] describes.

pub mod config;
mod connect;
pub mod etcd;
pub mod follow;
pub mod grace;
pub mod outage;
pub mod trouble;
pub mod watch;

pub use self::{
    etcd::{Entry, Etcd, Listing, StoreError},
    follow::{Follower, LeaseUpdate},
};
