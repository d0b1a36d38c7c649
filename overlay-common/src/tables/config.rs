use crate::{Prefix, abi::map_type};

/// Name of the map and of its pin: settings, of which one of the entries is in force. Another is written while that is
/// read, so that no packet meets half of what was before.
pub const CONFIG_MAP: &str = "config";

/// Entries of that map.
pub const CONFIG_SLOTS: usize = 2;

/// Name of the map, and of its pin, whose only entry is the number of the entry in force.
pub const CONFIG_SLOT_MAP: &str = "config_slot";

/// How many different lease lengths one network may hold at a time. One is the rule; more appear
/// while leases from before a change of `SubnetLen` are still alive.
pub const PEER_PREFIX_LENGTHS: usize = 4;

map_type! {
    /// This host's settings.
    pub struct HostConfig[56] {
        /// [`ABI_VERSION`](super::ABI_VERSION) of the agent that wrote the maps; 0 until it has.
        pub abi_version: u32,
        /// Bits `FAST_PATH`, …
        pub flags: u32,
        /// VXLAN network identifier, 24 bits.
        pub vni: u32,
        /// Interface that carries the encapsulated packets.
        pub uplink_ifindex: u32,
        /// The kernel's VXLAN device.
        pub tunnel_ifindex: u32,
        /// The whole overlay network.
        pub network: [u8; 4],
        /// This host's lease in it.
        pub subnet: [u8; 4],
        /// The uplink's address: outer source of what we send, outer destination of what we accept. Behind
        /// NAT, peers know us by another.
        pub uplink_address: [u8; 4],
        /// Prefix length of `network`.
        pub network_length: u8,
        /// Prefix length of `subnet`.
        pub subnet_length: u8,
        /// UDP destination port of VXLAN.
        pub port: u16,
        /// Largest inner IPv4 packet, in bytes.
        pub mtu: u16,
        /// Remembered flows that are one container's share; 0 for one.
        pub flow_share: u16,
        /// Inner MAC that peers address us by: `VtepMAC` of our lease.
        pub vtep_mac: [u8; 6],
        /// Padding, zero.
        pub reserved: [u8; 2],
        /// Prefix lengths of the leases in `peers`, longest first, 0 where unused.
        pub peer_lengths: [u8; PEER_PREFIX_LENGTHS],
        /// Number of the policy in force, which goes up with each; its lowest bit is the bank that the policy is in.
        pub policy: u32,
    }
}

impl HostConfig {
    /// Bit of `flags`: encapsulate and decapsulate in BPF wherever that is possible.
    pub const FAST_PATH: u32 = 1;
    /// Bit of `flags`: a container may use no address but those that the host knows as its own.
    pub const SOURCE_STRICT: u32 = 2;
    /// Bit of `flags`: containers may use any source address.
    pub const SOURCE_ANY: u32 = 4;
    /// Bit of `flags`: all leases are in the maps, so that an address of the network in none of them is nobody's.
    pub const LEASES_LISTED: u32 = 8;

    /// Bit of `flags`: the fast path carries only what netfilter has let through.
    pub const HONOUR_RULES: u32 = 16;
    /// Bit of `flags`, beside `HONOUR_RULES`: netfilter is to see every packet.
    pub const EVERY_PACKET: u32 = 32;

    /// Bit of `flags`: the network has a policy.
    pub const POLICY: u32 = 64;
    /// Bit of `flags`: packets' marks are carried to other hosts as their group (`Backend.GBP`).
    pub const GROUP_POLICY: u32 = 128;

    /// Bit of `flags`: what comes by the uplink begins with the IP header (`WireGuard`, TUN, ipip).
    pub const NO_ETHERNET: u32 = 256;

    /// Whether the fast path is on.
    #[inline(always)]
    pub const fn fast_path(&self) -> bool {
        self.flags & Self::FAST_PATH != 0
    }

    /// Whether a container may use no address but its own.
    #[inline(always)]
    pub const fn source_strict(&self) -> bool {
        self.flags & Self::SOURCE_STRICT != 0
    }

    /// Whether containers may use any source address.
    #[inline(always)]
    pub const fn source_any(&self) -> bool {
        self.flags & Self::SOURCE_ANY != 0
    }

    /// Whether netfilter decides what the fast path may carry.
    #[inline(always)]
    pub const fn honours_rules(&self) -> bool {
        self.flags & Self::HONOUR_RULES != 0
    }

    /// Whether netfilter is to see every packet.
    #[inline(always)]
    pub const fn every_packet(&self) -> bool {
        self.flags & Self::EVERY_PACKET != 0
    }

    /// Whether the network has a policy.
    #[inline(always)]
    pub const fn has_policy(&self) -> bool {
        self.flags & Self::POLICY != 0
    }

    /// Whether packets' marks are carried to other hosts.
    #[inline(always)]
    pub const fn carries_groups(&self) -> bool {
        self.flags & Self::GROUP_POLICY != 0
    }

    /// Whether what comes by the uplink has no Ethernet header.
    #[inline(always)]
    pub const fn has_no_ethernet(&self) -> bool {
        self.flags & Self::NO_ETHERNET != 0
    }

    /// Whether an address of the network in no lease is known to be nobody's.
    #[inline(always)]
    pub const fn leases_listed(&self) -> bool {
        self.flags & Self::LEASES_LISTED != 0
    }

    /// The whole overlay network.
    #[inline(always)]
    pub const fn network(&self) -> Prefix {
        Prefix { address: self.network, length: self.network_length }
    }

    /// This host's lease.
    #[inline(always)]
    pub const fn subnet(&self) -> Prefix {
        Prefix { address: self.subnet, length: self.subnet_length }
    }
}
