//! A host that takes part: it takes a lease, keeps it, and follows everybody else's.
//!
//! [`network`] waits for the network config and reports its changes; [`acquire`](mod@acquire) takes a lease, of which `survey` says
//! whether it was ours before; [`keeper`] keeps it, and [`incident`] is what befell it. [`follow`] turns a listing and a
//! watch into [`LeaseUpdate`](update::LeaseUpdate)s, whose [`claim`]s are leases with what the store knows about them.
//! The store being away is no error for any of these: they say so and go on trying. What hosts that are absent afterwards
//! mean, [`grace`] decides. [`fixed`] follows a file instead, and [`registry`] is whichever of the two it is.

pub mod acquire;
pub mod claim;
pub mod fixed;
pub mod follow;
pub mod grace;
pub mod incident;
pub mod keeper;
pub mod network;
mod reader;
pub mod registry;
pub mod request;
mod survey;
pub mod update;
