//! What keys and values amount to.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::{Duration, Instant},
};

use tracing::warn;

use super::{claim::LeaseClaim, update::LeaseUpdate};
use crate::{
    store::{Change, Entry, Listing, Revision},
    trouble::Troubles,
    wire::{
        Lease,
        key::{KeyPrefix, SubnetKey},
        value::{Backend, LARGEST_VALUE, LeaseValue},
    },
};

/// So many lines about keys that are no leases, and then none for as long as [`QUIET`].
const LINES: u32 = 10;
const QUIET: Duration = Duration::from_mins(1);

/// Makes leases of keys and values, and remembers which of them it has complained about.
#[derive(Debug)]
pub(super) struct Reader {
    prefix: KeyPrefix,
    troubles: Troubles,
    /// The revision of each key that is no lease of ours, as of when that was said.
    reported: HashMap<Vec<u8>, Revision>,
    lines: Lines,
}

/// What a key and its value amount to.
enum Read {
    LeaseClaim(LeaseClaim),
    /// The subnet of a host that we cannot reach.
    Foreign(SubnetKey),
    Malformed,
}

impl Reader {
    /// For keys below `prefix`. Those that are no leases are told to `troubles`.
    pub(super) fn new(prefix: KeyPrefix, troubles: Troubles) -> Self {
        Self { prefix, troubles, reported: HashMap::new(), lines: Lines::default() }
    }

    /// The leases of a listing, in order of their keys.
    pub(super) fn snapshot(&mut self, listing: Listing) -> Vec<LeaseClaim> {
        let known: HashMap<_, _> = std::mem::take(&mut self.reported);
        self.troubles.ignore_none();
        let mut claims = BTreeMap::new();
        for entry in listing.entries {
            // Complaints about keys that are gone are forgotten with them.
            if let Some((key, revision)) = known.get_key_value(&entry.key) {
                self.reported.insert(key.clone(), *revision);
            }
            if let Read::LeaseClaim(claim) = self.read(&entry) {
                claims.insert(claim.key, claim);
            }
        }
        claims.into_values().collect()
    }

    /// What a change means, if anything.
    pub(super) fn update(&mut self, change: &Change) -> Option<LeaseUpdate> {
        let entry = match change {
            Change::Put(entry) => entry,
            Change::Deleted { key, .. } => {
                self.forget(key);
                let key = self.prefix.parse_subnet_key(key).ok()?;
                return Some(LeaseUpdate::Removed(key));
            }
        };
        match self.read(entry) {
            Read::LeaseClaim(claim) => Some(LeaseUpdate::Put(claim)),
            Read::Foreign(key) => Some(LeaseUpdate::Removed(key)),
            // It says nothing about where the subnet's host is, so what we knew stays.
            Read::Malformed => None,
        }
    }

    fn read(&mut self, entry: &Entry) -> Read {
        let key = match self.prefix.parse_subnet_key(&entry.key) {
            Ok(key) => key,
            Err(error) => {
                self.report(entry, &error);
                return Read::Malformed;
            }
        };
        if entry.value.len() > LARGEST_VALUE {
            self.report(entry, &format_args!("its value is longer than {LARGEST_VALUE} bytes"));
            return Read::Malformed;
        }
        let value = match LeaseValue::decode(&entry.value) {
            Ok(value) => value,
            Err(error) => {
                self.report(entry, &error);
                return Read::Malformed;
            }
        };
        if let Some(lease) = Lease::from_parts(key.subnet, &value) {
            self.forget(&entry.key);
            return Read::LeaseClaim(LeaseClaim {
                key,
                lease,
                created: entry.create_revision,
                written: entry.mod_revision,
                kept: entry.etcd_lease.is_some(),
                doubtful: false,
            });
        }
        if let Backend::Other(name) = &value.backend {
            self.report(entry, &format_args!("its backend is {name:?}, not \"vxlan\""));
        }
        Read::Foreign(key)
    }

    /// A key that is gone, or is as it should be now.
    fn forget(&mut self, key: &[u8]) {
        // Nearly always there is nothing to forget.
        if self.reported.remove(key).is_some() {
            self.troubles.heed(&String::from_utf8_lossy(key));
        }
    }

    /// Once for each version of a key.
    fn report(&mut self, entry: &Entry, reason: &dyn fmt::Display) {
        let key = String::from_utf8_lossy(&entry.key);
        let said = self.reported.insert(entry.key.clone(), entry.mod_revision);
        if said != Some(entry.mod_revision) {
            match self.lines.next(Instant::now()) {
                Line::Usual => warn!("ignoring {key}: {reason}"),
                Line::Last => {
                    warn!("ignoring {key}: {reason}; and more, which `status` counts");
                }
                Line::None => {}
            }
        }
        self.troubles.ignore(&key, reason);
    }
}

/// Keeps whoever writes nonsense by the thousands out of the log.
#[derive(Debug, Default)]
struct Lines {
    since: Option<Instant>,
    count: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Line {
    Usual,
    Last,
    None,
}

impl Lines {
    fn next(&mut self, now: Instant) -> Line {
        if self.since.is_none_or(|since| now.duration_since(since) >= QUIET) {
            (self.since, self.count) = (Some(now), 0);
        }
        self.count = self.count.saturating_add(1);
        match self.count {
            ..LINES => Line::Usual,
            LINES => Line::Last,
            _ => Line::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use overlay_lab::corpus;

    use super::*;

    fn reader() -> Reader {
        Reader::new(KeyPrefix::new("/n"), Troubles::default())
    }

    fn entry(name: &str, value: &str, revision: i64) -> Entry {
        Entry {
            key: format!("/n/subnets/{name}").into_bytes(),
            value: value.as_bytes().to_vec(),
            create_revision: Revision::new(revision),
            mod_revision: Revision::new(revision),
            etcd_lease: None,
        }
    }

    fn vxlan(ip: &str) -> String {
        format!(
            r#"{{"PublicIP":"{ip}","BackendType":"vxlan","BackendData":{{"VtepMAC":"02:00:00:00:00:01"}}}}"#
        )
    }

    #[test]
    fn a_snapshot_holds_the_leases_and_nothing_else() {
        let mut reader = reader();
        let long = vxlan("192.0.2.6") + &" ".repeat(LARGEST_VALUE);
        let entries = vec![
            entry("10.5.2.0-24", &vxlan("192.0.2.2"), 1),
            entry("10.5.1.0-24&fd00::-64", &vxlan("192.0.2.1"), 2),
            entry("nonsense", &vxlan("192.0.2.3"), 3),
            entry("10.5.3.0-24", "nonsense", 4),
            entry("10.5.4.0-24", r#"{"PublicIP":"192.0.2.4","BackendType":"host-gw"}"#, 5),
            entry("10.5.6.0-24", &long, 6),
        ];
        let snapshot = reader.snapshot(Listing { cluster: 1, revision: Revision::new(6), entries });
        let subnets: Vec<_> = snapshot.iter().map(|claim| claim.lease.subnet.to_string()).collect();
        assert_eq!(subnets, ["10.5.1.0/24", "10.5.2.0/24"]);
        let (ignored, all) = reader.troubles.ignored(2);
        assert_eq!((reader.reported.len(), ignored.len(), all), (4, 2, 4));
        let (ignored, _) = reader.troubles.ignored(10);
        let of = |name: &str| ignored.iter().find(|line| line.contains(name)).cloned();
        assert_eq!(
            of("10.5.6.0-24").unwrap(),
            "/n/subnets/10.5.6.0-24 is ignored: its value is longer than 4096 bytes"
        );
    }

    /// Keys, and what is behind them, that were taken for what they are not, or could be.
    #[test]
    fn every_key_of_the_corpus_is_read_as_its_file_says() {
        let differences = corpus::differences("keys", |case| {
            let (name, value) = case.body.split_once('\n').unwrap();
            let mut reader = reader();
            let entries = vec![entry(name, value, 1)];
            let listing = Listing { cluster: 1, revision: Revision::new(1), entries };
            let claims = reader.snapshot(listing);
            let (ignored, _) = reader.troubles.ignored(1);
            match (&claims[..], &ignored[..]) {
                ([claim], []) => ("lease", claim.lease.to_string()),
                ([], [sentence]) => {
                    let (_, reason) = sentence.split_once(" is ignored: ").unwrap();
                    ("ignored", reason.to_owned())
                }
                other => panic!("{}: {other:?}", case.name),
            }
        });
        assert_eq!(differences.unwrap(), [""; 0]);
    }

    #[test]
    fn complaints_are_kept_for_as_long_as_their_keys() {
        let mut reader = reader();
        let bad = |name: &str| entry(name, "nonsense", 7);
        let listing = |entries| Listing { cluster: 1, revision: Revision::new(9), entries };
        reader.snapshot(listing(vec![bad("10.5.1.0-24"), bad("10.5.2.0-24")]));
        assert_eq!(reader.reported.len(), 2);
        reader.snapshot(listing(vec![bad("10.5.2.0-24")]));
        let keys: Vec<_> = reader.reported.keys().cloned().collect();
        assert_eq!(keys, [bad("10.5.2.0-24").key]);
        assert_eq!(reader.troubles.ignored(10).1, 1);
        reader.snapshot(listing(vec![entry("10.5.2.0-24", &vxlan("192.0.2.2"), 8)]));
        assert_eq!((reader.reported.len(), reader.troubles.ignored(10).1), (0, 0));
    }

    #[test]
    fn a_flood_of_nonsense_is_ten_lines_a_minute() {
        let mut lines = Lines::default();
        let start = Instant::now();
        let said =
            |lines: &mut Lines, now| (0..1000).filter(|_| lines.next(now) != Line::None).count();
        assert_eq!(said(&mut lines, start), 10);
        assert_eq!(said(&mut lines, start + Duration::from_secs(59)), 0);
        assert_eq!(said(&mut lines, start + QUIET), 10);
    }
}
