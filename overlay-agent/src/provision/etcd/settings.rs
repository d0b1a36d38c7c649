//! What this host's etcd is started with.

use std::{fmt::Write as _, net::Ipv4Addr, path::Path};

use anyhow::Result;

use super::{
    super::{ETCD_DATA, ETCD_DROP_IN, ETCD_ENV, endpoint},
    PEER_PORT,
};
use crate::{
    authority::pki_file,
    dotenv,
    files::{self, Readers},
};

const DROP_IN: &str = include_str!("../../../../packaging/systemd/etcd.conf");

/// What the first member calls itself.
const FIRST: &str = "overlay";

/// A member's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// What it calls itself; it must not change.
    pub(super) name: String,
    /// Where others reach it.
    pub(super) address: Ipv4Addr,
    /// Whether it asks who its clients are.
    pub(super) tls: bool,
    /// The members of the cluster that it joins at its first start, itself included; the first one joins nobody.
    pub(super) joins: Option<String>,
}

impl Settings {
    /// The first member's.
    pub(super) fn first(address: Ipv4Addr, tls: bool) -> Self {
        Self { name: FIRST.to_owned(), address, tls, joins: None }
    }

    /// Those of the member at this address, whoever else there is.
    pub(super) fn another(address: Ipv4Addr, tls: bool, others: &[(String, String)]) -> Self {
        let name = format!("{FIRST}-{address}");
        let own = (name.clone(), peer_url(address, tls));
        let members = others.iter().chain([&own]).map(|(name, url)| format!("{name}={url}"));
        Self { name, address, tls, joins: Some(members.collect::<Vec<_>>().join(",")) }
    }

    /// Those that are written down.
    pub(super) fn read() -> Result<Option<Self>> {
        Ok(files::read(Path::new(ETCD_ENV))?.as_deref().and_then(Self::parse))
    }

    fn parse(text: &str) -> Option<Self> {
        let value = |wanted| {
            dotenv::assignments(text).find(|(name, _)| *name == wanted).map(|found| found.1)
        };
        let (scheme, rest) = value("ETCD_ADVERTISE_CLIENT_URLS")?.split_once("://")?;
        let joins = (value("ETCD_INITIAL_CLUSTER_STATE") == Some("existing"))
            .then(|| value("ETCD_INITIAL_CLUSTER").map(str::to_owned))
            .flatten();
        Some(Self {
            name: value("ETCD_NAME")?.to_owned(),
            address: rest.split(':').next()?.parse().ok()?,
            tls: scheme == "https",
            joins,
        })
    }

    /// Has etcd started with them. Returns whether it was not.
    pub(super) fn write(&self) -> Result<bool> {
        let changed = files::write(Path::new(ETCD_ENV), &self.to_text(), Readers::All)?;
        Ok(changed | files::write(Path::new(ETCD_DROP_IN), DROP_IN, Readers::All)?)
    }

    /// Where other members reach it.
    pub(super) fn peer_url(&self) -> String {
        peer_url(self.address, self.tls)
    }

    fn to_text(&self) -> String {
        let Self { name, address, tls, joins } = self;
        let client = endpoint(*address, *tls);
        let local = endpoint(Ipv4Addr::LOCALHOST, *tls);
        let peer = self.peer_url();
        let (cluster, state) = match joins {
            Some(members) => (members.clone(), "existing"),
            None => (format!("{name}={peer}"), "new"),
        };
        let mut text = format!(
            "# Written by `overlay-agent`, removed by `overlay-agent leave`.\n\
             ETCD_NAME={name}\n\
             ETCD_DATA_DIR={ETCD_DATA}\n\
             ETCD_LISTEN_CLIENT_URLS={client},{local}\n\
             ETCD_ADVERTISE_CLIENT_URLS={client}\n\
             ETCD_LISTEN_PEER_URLS={peer}\n\
             ETCD_INITIAL_ADVERTISE_PEER_URLS={peer}\n\
             ETCD_INITIAL_CLUSTER={cluster}\n\
             ETCD_INITIAL_CLUSTER_STATE={state}\n\
             ETCD_AUTO_COMPACTION_RETENTION=1h\n"
        );
        if *tls {
            for role in ["", "PEER_"] {
                for (name, file) in [
                    ("TRUSTED_CA_FILE", "ca.pem"),
                    ("CERT_FILE", "server.pem"),
                    ("KEY_FILE", "server-key.pem"),
                ] {
                    // Writing to a string cannot fail.
                    writeln!(text, "ETCD_{role}{name}={}", pki_file(file).display()).ok();
                }
                writeln!(text, "ETCD_{role}CLIENT_CERT_AUTH=true").ok();
            }
        }
        text
    }
}

/// Where other members reach the one at this address.
pub(super) fn peer_url(address: Ipv4Addr, tls: bool) -> String {
    let scheme = if tls { "https" } else { "http" };
    format!("{scheme}://{address}:{PEER_PORT}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    #[test]
    fn with_tls_etcd_asks_everybody_for_a_certificate() {
        let text = Settings::first(ADDRESS, true).to_text();
        let settings: std::collections::BTreeMap<_, _> = dotenv::assignments(&text).collect();
        assert_eq!(
            settings["ETCD_LISTEN_CLIENT_URLS"],
            "https://192.0.2.1:2379,https://127.0.0.1:2379"
        );
        assert_eq!(settings["ETCD_CLIENT_CERT_AUTH"], "true");
        assert_eq!(settings["ETCD_PEER_CLIENT_CERT_AUTH"], "true");
        assert!(settings.values().all(|value| !value.contains("http://")));
    }

    #[test]
    fn settings_are_read_as_they_were_written() {
        let first = Settings::first(ADDRESS, true);
        let others = [("overlay".to_owned(), first.peer_url())];
        let another = Settings::another(Ipv4Addr::new(192, 0, 2, 2), true, &others);
        assert_eq!(
            another.joins.as_deref(),
            Some("overlay=https://192.0.2.1:2380,overlay-192.0.2.2=https://192.0.2.2:2380")
        );
        for settings in [first, another, Settings::first(ADDRESS, false)] {
            assert_eq!(Settings::parse(&settings.to_text()).as_ref(), Some(&settings));
        }
    }
}
