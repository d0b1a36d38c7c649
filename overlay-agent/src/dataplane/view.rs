//! What the dataplane says of itself.

use std::collections::BTreeSet;

use overlay_lease::config::policy::Rule;

use super::{Dataplane, DataplaneSpec};
use crate::{
    dataplane::{
        claims::Claims,
        containers::{Contested, CutOff},
        peers::Peers,
    },
    kernel::{
        datapath::{Attachments, Features, Maps},
        netlink::{Link, Tunnel, Vrf},
        policy::Denials,
    },
};

impl Dataplane {
    /// What it should be.
    pub const fn spec(&self) -> &DataplaneSpec {
        &self.spec
    }

    /// Handles to the maps.
    pub const fn tables(&self) -> &Maps {
        &self.tables
    }

    /// Where the programs are attached.
    pub const fn attachments(&self) -> &Attachments {
        &self.attachments
    }

    /// What the kernel gives us.
    pub const fn features(&self) -> &Features {
        &self.features
    }

    /// The containers' bridges that are there.
    pub fn bridges(&self) -> &[Link] {
        &self.bridges
    }

    /// Their names.
    pub fn bridge_names(&self) -> Vec<String> {
        self.bridges.iter().map(|link| link.name.clone()).collect()
    }

    /// The tunnel device.
    pub const fn tunnel(&self) -> &Tunnel {
        &self.tunnel
    }

    /// The VRF that the uplink is in, if it is in one.
    pub const fn vrf(&self) -> Option<Vrf> {
        self.underlay.vrf()
    }

    /// The uplink's MTU when it was last looked at; none where it was not there.
    pub fn uplink_mtu(&self) -> Option<u32> {
        self.uplink.map(|uplink| uplink.mtu)
    }

    /// Whether packets have no Ethernet header on the uplink.
    pub(super) fn has_no_ethernet(&self) -> bool {
        self.uplink.is_some_and(|uplink| !uplink.ethernet)
    }

    /// Whether the uplink, if it exists, has the address that outer packets are sent from.
    pub fn uplink_has_address(&self) -> bool {
        self.uplink.is_none_or(|uplink| uplink.has_address)
    }

    /// Containers that their bridge lets nothing pass to.
    pub const fn cut_off(&self) -> &CutOff {
        &self.cut_off
    }

    /// Whether the uplink exists.
    pub const fn uplink_is_there(&self) -> bool {
        self.uplink.is_some()
    }

    /// Whether every lease that the store knows has been programmed.
    pub const fn synced(&self) -> bool {
        self.synced
    }

    /// Everybody else's leases.
    pub const fn peers(&self) -> &Peers {
        &self.peers
    }

    /// How many local containers can be delivered to directly.
    pub fn endpoints(&self) -> usize {
        self.containers.identities().containers()
    }

    /// Which addresses containers claim that are others'.
    pub const fn claims(&self) -> &Claims {
        &self.claims
    }

    /// What each rule of the policy has denied.
    pub fn denials(&self) -> impl Iterator<Item = (&Rule, Denials)> {
        let tables = &self.tables.policy;
        self.spec.policy.iter().map(|rule| (rule, tables.denials(&rule.name)))
    }

    /// What two containers claim.
    pub const fn contested(&self) -> &BTreeSet<Contested> {
        &self.containers.identities().contested
    }

    /// How often everything was looked at.
    pub const fn verifications(&self) -> u32 {
        self.verifications
    }
}
