//! Who hosts are to etcd, and who says so: the hosts with a share in etcd, which have the key of its authority. They give each
//! host a certificate of its own, by which etcd knows it as a user who may write its own lease and nothing else.

mod access;
pub mod certificates;
pub mod pki;
mod places;
mod records;
mod requests;
mod rotate;
mod seat;
mod sessions;
mod subnets;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(crate) use self::places::pki_file;
pub use self::{
    access::{
        Newcomer, admit, establish, expel, expel_sharers, forget, lets_sharers_in, open_token,
        readmit,
    },
    places::{as_root, ca_file, ca_key_file, host_identity, next_authority_file, root_identity},
    records::{Registration, Rotation, Step, TokenRecord, hosts, rotation, shared_key, token},
    requests::{Office, serve},
    rotate::{begin, drive},
    seat::{Seat, next_authority},
    sessions::{end_all as end_sessions, end_at as end_sessions_at},
};

/// What this host is called.
pub fn host_name() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Seconds since 1970 at this time from now.
pub fn seconds_at(from_now: Duration) -> u64 {
    let at = SystemTime::now() + from_now;
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
