//! What there is to say about a key below `<prefix>/subnets/`.

use std::{fmt::Write as _, net::Ipv4Addr};

use comfy_table::{Table, presets::NOTHING};
use ipnetwork::Ipv4Network;
use overlay_common::Vni;
use overlay_lease::{
    store::Entry,
    wire::{
        key::KeyPrefix,
        value::{Backend, LeaseValue},
    },
};
use serde::Serialize;

/// A key, its value, and what they amount to. The JSON form is stable: fields are added, not renamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct LeaseReport {
    /// The whole key.
    pub(super) key: String,
    /// The subnet that it names.
    subnet: Option<Ipv4Network>,
    /// The host that has it.
    pub(super) public_ip: Option<Ipv4Addr>,
    /// How the host carries packets.
    backend: Option<String>,
    /// The MAC of its tunnel device.
    pub(super) vtep_mac: Option<String>,
    vni: Option<u32>,
    /// Whether it stays until it is deleted.
    reserved: bool,
    /// The etcd lease that it hangs on, in hexadecimal as etcdctl has it.
    etcd_lease: Option<String>,
    /// Seconds until it expires if nobody renews it; only `show` asks for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) expires_in: Option<i64>,
    /// Seconds that it was granted for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ttl: Option<i64>,
    /// The revision it was last written at.
    revision: i64,
    /// Why it is no lease that we could follow.
    pub(super) problem: Option<String>,
}

impl LeaseReport {
    pub(super) fn new(prefix: &KeyPrefix, entry: &Entry) -> Self {
        let mut report = Self {
            key: String::from_utf8_lossy(&entry.key).into_owned(),
            subnet: None,
            public_ip: None,
            backend: None,
            vtep_mac: None,
            vni: None,
            reserved: entry.etcd_lease.is_none(),
            etcd_lease: entry.etcd_lease.map(|id| format!("{id:x}")),
            expires_in: None,
            ttl: None,
            revision: entry.mod_revision.number(),
            problem: None,
        };
        match prefix.parse_subnet_key(&entry.key) {
            Ok(key) => report.subnet = Some(key.subnet),
            Err(error) => report.problem = Some(error.to_string()),
        }
        match LeaseValue::decode(&entry.value) {
            Ok(value) => report.take(value),
            Err(error) => {
                report.problem.get_or_insert_with(|| error.to_string());
            }
        }
        report
    }

    fn take(&mut self, value: LeaseValue) {
        self.public_ip = Some(value.public_ip);
        match value.backend {
            Backend::Vxlan { vni, vtep_mac } => {
                self.backend = Some("vxlan".to_owned());
                self.vtep_mac = Some(vtep_mac.to_string());
                self.vni = vni.map(Vni::get);
            }
            Backend::Other(name) => {
                self.problem.get_or_insert_with(|| {
                    "its host carries packets in a way that we do not".to_owned()
                });
                self.backend = Some(name);
            }
        }
    }

    pub(super) fn subnet_text(&self) -> String {
        self.subnet.map_or_else(|| self.key.clone(), |subnet| subnet.to_string())
    }

    fn kind(&self) -> String {
        match &self.problem {
            Some(problem) => format!("ignored: {problem}"),
            None if self.reserved => "reserved".to_owned(),
            None => String::new(),
        }
    }

    /// Everything, a line each.
    pub(super) fn to_text(&self) -> String {
        let lasts = match (self.reserved, self.expires_in, self.ttl) {
            (true, ..) => "until it is deleted (reserved)".to_owned(),
            (false, Some(left), Some(ttl)) => format!("{left} s of {ttl} s, unless it is renewed"),
            (false, ..) => "it has just expired".to_owned(),
        };
        let lines = [
            ("Subnet", Some(self.subnet_text())),
            ("Host", self.public_ip.map(|ip| ip.to_string())),
            ("Backend", self.backend.clone()),
            ("VTEP MAC", self.vtep_mac.clone()),
            ("VNI", self.vni.map(|vni| vni.to_string())),
            ("Lasts", Some(lasts)),
            ("Lease", self.etcd_lease.clone()),
            ("Revision", Some(self.revision.to_string())),
            ("Key", Some(self.key.clone())),
            ("Problem", self.problem.clone()),
        ];
        lines.into_iter().fold(String::new(), |mut text, (name, value)| {
            if let Some(value) = value {
                // Writing to a string cannot fail.
                writeln!(text, "{name:<9} {value}").ok();
            }
            text
        })
    }
}

/// A line for each, and their number.
pub(super) fn table(reports: &[LeaseReport]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    for report in reports {
        table.add_row([
            report.subnet_text(),
            report.public_ip.map_or_else(|| "-".to_owned(), |ip| format!("of {ip}")),
            report.vtep_mac.clone().unwrap_or_default(),
            report.kind(),
        ]);
    }
    match reports.len() {
        0 => "There are no leases.\n".to_owned(),
        count => format!("{table}\n\n{count} in all\n"),
    }
}
