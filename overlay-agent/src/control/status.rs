//! What the running agent says about itself.

use std::{path::PathBuf, time::Instant};

use anyhow::Result;
use overlay_common::Feature;
use overlay_lease::wire::Lease;
use tokio::sync::oneshot;

use super::{ControlLoop, joining::Purpose};
use crate::{
    admin::{
        Answered, Census, FeatureStatus, LeaseStatus, OverlayStatus, PeerStatus, PolicyRuleStatus,
        ProgramStatus, RulesStatus, Status, UplinkStatus,
    },
    certificate::ends_soon,
    kernel::{
        datapath::{DropRing, DropWatch, Readings},
        firewall::Scrutiny,
        netlink, repairs,
    },
};

/// Half of the leases that are named.
const IGNORED: usize = 5;

impl ControlLoop {
    /// Answers a question. What takes long where there are many peers is left to a task of its own, so that the
    /// loop goes on.
    pub(super) async fn answer(&self, answer: oneshot::Sender<Status>) {
        let mut status = self.status().await;
        let peers: Vec<_> = self.dataplane.peers().leases().copied().collect();
        let answered = self.presence.answered(Instant::now());
        tokio::task::spawn_blocking(move || {
            if let Some(overlay) = &mut status.overlay {
                let status = |lease| peer_status(lease, answered.get(&lease.public_ip).copied());
                overlay.peers = peers.iter().map(status).collect();
            }
            // Whoever asked may have gone.
            answer.send(status).ok();
        });
    }

    /// What only this loop knows, for metrics.
    pub(super) fn census(&self) -> Census {
        let dataplane = &self.dataplane;
        Census {
            peers: dataplane.peers().count(),
            refused_leases: dataplane.peers().refused(),
            endpoints: dataplane.endpoints(),
            verifications: dataplane.verifications(),
        }
    }

    /// Handles to the maps for who reads them without asking this loop.
    pub(super) fn readings(&self) -> Result<Readings> {
        Readings::of(self.dataplane.tables())
    }

    /// The ring of dropped packets, for who reads it without asking this loop.
    pub(super) fn drop_ring(&self) -> Result<(DropRing, DropWatch)> {
        DropRing::of(self.dataplane.tables())
    }

    /// Everything but the peers and the counters.
    async fn status(&self) -> Status {
        let dataplane = &self.dataplane;
        let spec = dataplane.spec();
        let problems = self.problems().await;
        let overlay = OverlayStatus {
            network: spec.tunnel.network,
            vni: spec.tunnel.vni.get(),
            port: spec.tunnel.port,
            mtu: spec.tunnel.mtu,
            fast_path: spec.fast_path,
            rules: self.rules(),
            policy: dataplane.denials().map(PolicyRuleStatus::from).collect(),
            source_check: spec.source_check.describe(),
            lease: LeaseStatus {
                subnet: self.lease.subnet,
                public_ip: self.lease.public_ip,
                vtep_mac: self.lease.vtep_mac.to_string(),
            },
            uplink: UplinkStatus {
                name: spec.uplink.interface.clone(),
                ifindex: spec.uplink.ifindex,
            },
            kernel: dataplane.features().release().to_owned(),
            attached_by: dataplane.attachments().mechanism().name().to_owned(),
            features: Feature::ALL
                .iter()
                .map(|&feature| FeatureStatus::new(feature, dataplane.features().has(feature)))
                .collect(),
            tunnel: dataplane.tunnel().name.clone(),
            bridge: dataplane.bridge_names().into_iter().next(),
            bridges: dataplane.bridge_names(),
            endpoints: dataplane.endpoints(),
            verifications: dataplane.verifications(),
            repairs: repairs::count(),
            peers: Vec::new(),
            programs: dataplane
                .attachments()
                .iter()
                .map(|(hook, place)| ProgramStatus {
                    hook: hook.to_owned(),
                    interface: place.interface.clone(),
                })
                .collect(),
            // The maps have them, for whoever answers to read.
            counters: Vec::new(),
        };
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: dataplane.synced(),
            waiting_for: None,
            problems,
            overlay: Some(overlay),
        }
    }

    pub(super) async fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.dataplane.synced() {
            problems.push("The leases have not been listed yet.".to_owned());
        }
        if let Some(moving) = &self.moving {
            let (subnet, address) = (self.lease.subnet, self.uplink.public_ip);
            problems.push(match moving.purpose {
                Purpose::Confirmation => format!(
                    "Etcd did not answer when the agent started: this host runs on {subnet} and the peers that it \
                     knew last."
                ),
                Purpose::AnotherAddress(_) => format!(
                    "This host's address is {address} now, and the lease of {subnet} does not say so yet."
                ),
                Purpose::AnotherSubnet => format!(
                    "Our subnet {subnet} belongs to another host now, and another one is being taken."
                ),
            });
        }
        let there = self.dataplane.bridge_names();
        let missing = self.config.bridges.iter().filter(|name| !there.contains(name));
        problems.extend(
            missing.map(|name| format!("There is no bridge {name}, which --bridge names.")),
        );
        if there.is_empty() && self.config.bridges.is_empty() {
            problems.push(format!(
                "No bridge has an address in {}: start Docker with the options that `overlay-agent docker-opts` makes of {}.",
                self.lease.subnet,
                self.config.subnet_file.display()
            ));
        }
        problems.extend(self.dataplane.contested().iter().map(ToString::to_string));
        match netlink::observe(&self.netlink).await {
            Ok(observed) => {
                problems.extend(self.host_problems(&observed).await);
                let claims = self.dataplane.claims();
                problems.extend(claims.sentences(&observed.links, Instant::now()));
            }
            Err(error) => problems.push(format!("The kernel does not answer: {error:#}.")),
        }
        problems.extend(self.store.troubles().sentences());
        problems.extend(self.certificates_that_end());
        let ignored = self.store.troubles().ignored(IGNORED);
        problems.extend(self.dataplane.peers().problems(ignored, |key| self.store.name_of(key)));
        let port = self.dataplane.spec().tunnel.port;
        problems.extend(self.presence.problems(port, Instant::now()));
        problems.extend(self.incidents.sentences(Instant::now()));
        problems.extend(self.config_problems.iter().cloned());
        problems.extend(self.faults.values().chain(&self.lost_address).cloned());
        problems.extend(self.firewall.fault());
        problems.extend(self.refusals().into_iter().map(|rule| {
            format!(
                "The firewall refuses what containers of other hosts begin with containers here, or these with them: \
                 {rule}. `overlay-agent doctor` says how to let it pass."
            )
        }));
        problems.extend(self.firewall.rules().closing.into_iter().map(|rule| {
            format!(
                "The firewall drops UDP port {port}, in whose packets other hosts' come or go: {rule}. What does not take \
                 the fast path is lost; `overlay-agent doctor` says how to let it pass."
            )
        }));
        problems
    }

    /// Of the certificates by which etcd and this host know each other, those that end soon.
    fn certificates_that_end(&self) -> Vec<String> {
        let etcd = &self.config.etcd;
        if self.config.peers.is_some() {
            return Vec::new();
        }
        let own = etcd.identity.as_ref().map(|identity| &identity.cert_file);
        let sentence = |file: &PathBuf| {
            // One that cannot be read is trouble of etcd's, as soon as it is needed.
            let when = ends_soon(file).ok()??;
            Some(format!(
                "The certificate {} {when}: etcd and this host do not know each other without it. `overlay-agent doctor` \
                 says what makes a new one.",
                file.display()
            ))
        };
        own.into_iter().chain(&etcd.ca_file).filter_map(sentence).collect()
    }

    fn rules(&self) -> RulesStatus {
        let spec = self.dataplane.spec();
        let rules = self.firewall.rules();
        RulesStatus {
            mode: self.rules_mode().name().to_owned(),
            set_by: match (self.config.rules, self.network.config.rules) {
                (Some(_), _) => "--rules",
                (None, Some(_)) => "network config",
                (None, None) => "default",
            }
            .to_owned(),
            // Without the fast path, netfilter sees everything.
            honoured: spec.scrutiny != Scrutiny::None || !spec.fast_path,
            every_packet: spec.scrutiny == Scrutiny::EachPacket || !spec.fast_path,
            concerns: rules.concerns.into_iter().map(|rule| rule.text).collect(),
            refusals: self.refusals(),
            closing: rules.closing,
        }
    }

    /// Rules that are asked, and by which nothing can begin between containers here and elsewhere.
    fn refusals(&self) -> Vec<String> {
        let spec = self.dataplane.spec();
        let are_asked = spec.scrutiny != Scrutiny::None || !spec.fast_path;
        let concerns = self.firewall.rules().concerns.into_iter();
        concerns.filter(|rule| are_asked && rule.refuses).map(|rule| rule.text).collect()
    }
}

fn peer_status(lease: &Lease, answered: Option<Answered>) -> PeerStatus {
    PeerStatus {
        subnet: lease.subnet,
        public_ip: lease.public_ip,
        vtep_mac: lease.vtep_mac.to_string(),
        answered,
    }
}
