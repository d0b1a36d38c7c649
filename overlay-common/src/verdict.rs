//! Why a packet left a hook, and what that does to it.

/// The programs, by where they are attached.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// TC ingress of each container's host-side veth: packets that it sends.
    FromContainer,
    /// TC ingress of the containers' bridge: checks what comes from ports that have no program of their own.
    FromBridge,
    /// TC egress of the containers' bridge: what the stack sends to containers.
    ToBridge,
    /// TC ingress of the uplink: packets from the wire.
    FromUplink,
    /// TC egress of the tunnel device: packets that the host's stack sends into the overlay.
    ToTunnel,
    /// TC ingress of the tunnel device: packets that the kernel has decapsulated.
    FromTunnel,
    /// TC ingress of every other interface of the host: nothing of the overlay comes that way.
    FromInterface,
    /// TC egress of the uplink: nobody but this host speaks VXLAN with its address.
    ToWire,
}

impl Hook {
    /// Every hook, in the order of its number.
    pub const ALL: [Self; 8] = [
        Self::FromContainer,
        Self::FromBridge,
        Self::ToBridge,
        Self::FromUplink,
        Self::ToTunnel,
        Self::FromTunnel,
        Self::FromInterface,
        Self::ToWire,
    ];
    /// How many there are.
    pub const COUNT: u32 = Self::ALL.len() as u32;

    /// The program's name in the object file and under the pin path.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromContainer => "from_container",
            Self::FromBridge => "from_bridge",
            Self::ToBridge => "to_bridge",
            Self::FromUplink => "from_uplink",
            Self::ToTunnel => "to_tunnel",
            Self::FromTunnel => "from_tunnel",
            Self::FromInterface => "from_interface",
            Self::ToWire => "to_wire",
        }
    }
}

/// What a reason does to its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Sent on by a redirect of ours: the fast path, or delivery past the host's netfilter.
    Forwarded,
    /// Checked or prepared by us; the kernel carries it on.
    Passed,
    /// Not ours, or not for the fast path: the kernel does what it would have done without us.
    Declined,
    /// Refused.
    Dropped,
}

macro_rules! reasons {
    ($($class:ident { $($name:ident = $text:literal, $doc:literal;)+ })+) => {
        /// Why a packet left a hook. Each reason has one [`Class`], so what became of a packet can be
        /// read off its counter.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[doc = $doc] $name,)+)+
        }

        impl Reason {
            /// Every reason, in the order of its number.
            pub const ALL: &'static [Self] = &[$($(Self::$name,)+)+];
            /// How many there are.
            pub const COUNT: u32 = Self::ALL.len() as u32;

            /// What it does to a packet.
            #[inline(always)]
            pub const fn class(self) -> Class {
                match self { $($(Self::$name)|+ => Class::$class,)+ }
            }

            /// Its name in counters, metrics and on the command line.
            pub const fn name(self) -> &'static str {
                match self { $($(Self::$name => $text,)+)+ }
            }

            /// One sentence for people.
            pub const fn describe(self) -> &'static str {
                match self { $($(Self::$name => $doc,)+)+ }
            }
        }
    };
}

reasons! {
    Forwarded {
        Encapsulated = "encapsulated", "Encapsulated in BPF and sent straight to the peer.";
        Routed = "routed", "Sent to a peer on the same link as it is, without encapsulation.";
        ToEndpoint = "to_endpoint", "Delivered into the container through its veth, past the bridge.";
        Bridged = "bridged", "Delivered to the containers' bridge, past the host's netfilter.";
        ToNetfilter = "to_netfilter", "Decapsulated in BPF and handed to the stack by the tunnel device, for netfilter to decide about its flow.";
        Echoed = "echoed", "A peer's agent asks whether this host is there: sent back.";
    }
    Passed {
        TunnelKeySet = "tunnel_key_set", "Given its peer's address; the kernel encapsulates it.";
        ToStack = "to_stack", "Checked and handed to the host's stack.";
        FromStack = "from_stack", "A peer's packet that the stack takes to a container: the answers go through the stack too.";
        NotRewritten = "not_rewritten", "A peer's packet that the stack takes to a container as it came: the answers may take the fast path.";
        Delivered = "delivered", "Delivered to the bridge by a program of ours.";
        Checked = "checked", "Neither from an overlay address nor VXLAN in a peer's name: nothing to refuse.";
        SentByHost = "sent_by_host", "Sent by this host itself or by a program of ours.";
    }
    Declined {
        NotConfigured = "not_configured", "The agent has not written this host's settings yet.";
        FastPathOff = "fast_path_off", "The fast path is switched off.";
        NotIpv4 = "not_ipv4", "Not an IPv4 packet.";
        Tagged = "tagged", "An IPv4 packet with a priority tag, or by an uplink without Ethernet headers: checked like others, and left to the kernel.";
        OtherVlan = "other_vlan", "Tagged for a VLAN, whose own interface checks it.";
        OtherHost = "other_host", "For another MAC than its interface's: the kernel does not take it for itself.";
        NotVxlan = "not_vxlan", "Not a VXLAN packet for this host's address and port.";
        NotForGateway = "not_for_gateway", "Addressed to another container's MAC: the bridge carries it.";
        NotOverlay = "not_overlay", "Its destination is outside the overlay network.";
        LocalDestination = "local_destination", "Its destination is in this host's own subnet.";
        ForeignSource = "foreign_source", "Its source is outside this host's subnet: the stack may rewrite it.";
        NoPeer = "no_peer", "No lease covers its destination: the stack answers.";
        OtherWay = "other_way", "The kernel's way to its peer is not by the uplink: the stack takes it.";
        TtlExpired = "ttl_expired", "Its TTL ends here: the stack answers with time exceeded.";
        TooBig = "too_big", "Larger than the overlay's MTU, or the bridge's: the stack fragments it or answers.";
        Fragment = "fragment", "A fragment: the stack reassembles.";
        IpOptions = "ip_options", "Its IPv4 header has options.";
        BadOuterChecksum = "bad_outer_checksum", "The outer IPv4 header's checksum is wrong: the stack drops it.";
        BadOuterLength = "bad_outer_length", "The outer headers state other lengths than the packet has: the stack decides.";
        UdpChecksum = "udp_checksum", "It has a UDP checksum that nobody has verified yet: the stack does.";
        Aggregate = "aggregate", "An aggregate that is not TCP for a known container: the kernel device can take it apart.";
        HostDestination = "host_destination", "For an address of the host itself, or one the bridge does not carry.";
        Unmasqueraded = "unmasqueraded", "From a peer's container as it is, to an address outside the overlay: the stack takes it, as with flannel.";
        PublicSource = "public_source", "From the sender's own public address, which is answered past the overlay: the stack has to see it.";
        NotFromPeer = "not_from_peer", "Not from another host of the overlay.";
        StackFlow = "stack_flow", "An answer to a flow that went through the stack, which may have to be rewritten there.";
        AwaitsRules = "awaits_rules", "Netfilter has not let its flow through yet, or not lately: the stack asks it.";
        GroupPolicy = "group_policy", "It carries a group, which netfilter's rules may ask about as its mark: the stack takes it.";
        HelperDeclined = "helper_declined", "The kernel could not resize the packet, for one because it is encapsulated already.";
    }
    Dropped {
        Unencapsulated = "unencapsulated", "From an overlay address, but not encapsulated, and not from where such packets may come: forged.";
        MisplacedVtep = "misplaced_vtep", "VXLAN in a peer's name, by an interface that does not lead to it: forged.";
        WrongVtepAddress = "wrong_vtep_address", "VXLAN for an address of this host that is not its VTEP's.";
        VxlanTruncated = "vxlan_truncated", "The packet ends inside its outer or VXLAN header.";
        VxlanFlags = "vxlan_flags", "The VXLAN header carries no network identifier.";
        WrongVni = "wrong_vni", "The VXLAN network identifier is another one.";
        UnknownVtep = "unknown_vtep", "The outer source is not the address of any lease.";
        WrongInnerMac = "wrong_inner_mac", "The inner destination MAC is not this host's VTEP.";
        InnerNotIpv4 = "inner_not_ipv4", "The inner packet is not IPv4.";
        InnerIpv6 = "inner_ipv6", "The inner packet is IPv6, as of a network with `EnableIPv6`: this version carries none.";
        InnerTruncated = "inner_truncated", "The inner packet ends before its header says.";
        ForeignInnerSource = "foreign_inner_source", "The inner source is outside the sender's lease: forged.";
        ForeignInnerDestination = "foreign_inner_destination", "The inner destination is outside this host's subnet.";
        CongestionLost = "congestion_lost", "Congestion was marked on the wire, and the inner packet cannot carry the mark (RFC 6040).";
        ContainerVxlan = "container_vxlan", "A container sent VXLAN to the underlay: it could forge other hosts' traffic.";
        ForeignMac = "foreign_mac", "A container's frame has another container's MAC, or the bridge's, as its source.";
        SpoofedArp = "spoofed_arp", "A container claimed another's address or MAC by ARP.";
        TagsTooDeep = "tags_too_deep", "More VLAN tags than are read: what is behind them cannot be checked.";
        Unreadable = "unreadable", "It ends, or cannot be read, where a check depends on it.";
        SpoofedSource = "spoofed_source", "A container used another's address, or the stack one outside this host's subnet.";
        PolicyDenied = "policy_denied", "A rule of the network's policy denies it.";
        Unreachable = "unreachable", "No lease covers the destination.";
        HelperFailed = "helper_failed", "The kernel refused to go on with a packet that was already modified.";
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::tables::{counter_index, counter_slots};

    #[test]
    fn names_and_sentences_are_unique() {
        let names: HashSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        let texts: HashSet<_> = Reason::ALL.iter().map(|reason| reason.describe()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        assert_eq!(texts.len(), Reason::ALL.len());
        // Whoever reads a counter's line has to know which of the two a word is.
        assert!(Hook::ALL.iter().all(|hook| !names.contains(hook.name())));
    }

    #[test]
    fn every_hook_and_reason_has_a_counter_of_its_own() {
        let slots: HashSet<_> = Hook::ALL
            .into_iter()
            .flat_map(|hook| Reason::ALL.iter().map(move |&reason| counter_index(hook, reason)))
            .collect();
        assert_eq!(slots.len(), counter_slots() as usize);
        assert!(slots.into_iter().all(|slot| slot < counter_slots()));
    }
}
