//! What the command line, the network config, the uplink and the lease make of each part's settings.

use overlay_lease::{
    config::{NetworkConfig, RulesMode},
    wire::Lease,
};

use crate::{
    control::run_config::RunConfig,
    dataplane::DataplaneSpec,
    kernel::{
        datapath::Attachment,
        firewall::{self, Masquerade, Nat, Scene, Scrutiny},
        netlink::{self, TunnelSpec},
        uplink::Uplink,
    },
};

/// What rules of this host's firewall mean for the overlay: as the host was told, else as all hosts are.
pub(super) fn rules_mode(config: &RunConfig, network: &NetworkConfig) -> RulesMode {
    config.rules.or(network.rules).unwrap_or_default()
}

/// What the overlay looks like to the firewall, as long as nobody has seen its bridges.
pub(super) fn scene(
    config: &RunConfig,
    network: &NetworkConfig,
    uplink: &Uplink,
    lease: Lease,
) -> Scene {
    Scene {
        network: network.network,
        subnet: lease.subnet,
        bridges: config.bridges.clone(),
        tunnel: netlink::tunnel_name(network.vni),
        uplink: uplink.name.clone(),
        direct: network.direct_routing,
        port: network.port,
        peers: Vec::new(),
    }
}

pub(super) fn firewall_spec(
    config: &RunConfig,
    network: &NetworkConfig,
    scene: Scene,
) -> firewall::Spec {
    let nat = Nat {
        network: scene.network,
        subnet: scene.subnet,
        device: (!network.direct_routing).then(|| scene.tunnel.clone()),
        masquerade: config.ip_masq.then_some(Masquerade { random: config.masquerade_random }),
    };
    let mode = rules_mode(config, network);
    let (forward, period) = (config.forward_rules, config.iptables_resync);
    firewall::Spec { scene, mode, forward, nat, period }
}

pub(super) fn overlay_mtu(network: &NetworkConfig, uplink: &Uplink) -> u16 {
    network.overlay_mtu(uplink.mtu)
}

pub(super) fn dataplane_spec(
    config: &RunConfig,
    network: &NetworkConfig,
    uplink: &Uplink,
    lease: Lease,
    scrutiny: Scrutiny,
) -> DataplaneSpec {
    DataplaneSpec {
        tunnel: TunnelSpec {
            lower: None,
            vni: network.vni,
            port: network.port,
            mac: lease.vtep_mac,
            mtu: overlay_mtu(network, uplink).into(),
            subnet: lease.subnet,
            network: network.network,
            replace_flannel: config.replace_flannel,
            gbp: network.gbp,
        },
        uplink: Attachment { ifindex: uplink.ifindex, interface: uplink.name.clone() },
        uplink_address: uplink.address,
        uplink_has_address: uplink.has_address,
        public_address: uplink.public_ip,
        bridges: config.bridges.clone(),
        fast_path: config.fast_path,
        scrutiny,
        direct_routing: network.direct_routing,
        source_check: config.source_check.clone(),
        blackhole: config.blackhole,
        policy: network.policy.clone(),
    }
}
