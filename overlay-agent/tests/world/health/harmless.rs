//! What hosts have and nobody minds: none of it is a fault, so none of it is to be named.

/// Something that a host may have, and the script that makes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Harmless {
    pub(super) name: &'static str,
    pub(super) make: &'static str,
}

const fn harmless(name: &'static str, make: &'static str) -> Harmless {
    Harmless { name, make }
}

/// In scripts, `$PEER_ADDRESS` and its like stand for what they say: see `Ward::fill`.
pub(super) const ALL: [Harmless; 27] = [
    // Firewalls that let in what has to come in.
    harmless("no-icmp", "iptables -A INPUT -i eth0 -p icmp --icmp-type echo-request -j DROP"),
    harmless(
        "input-by-port",
        "iptables -A INPUT -i lo -j ACCEPT; iptables -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; \
         iptables -A INPUT -p icmp -j ACCEPT; iptables -A INPUT -p tcp -j ACCEPT; \
         iptables -A INPUT -p udp --dport 8472 -j ACCEPT; iptables -A INPUT -i $TUNNEL -j ACCEPT; iptables -P INPUT DROP",
    ),
    harmless(
        "input-by-address",
        "iptables -A INPUT -i lo -j ACCEPT; iptables -A INPUT -s 192.168.33.0/24 -j ACCEPT; \
         iptables -A INPUT -s 10.1.0.0/16 -j ACCEPT; iptables -P INPUT DROP",
    ),
    harmless(
        "input-nftables",
        "nft 'add table inet f; add chain inet f in { type filter hook input priority 0; policy drop; }; \
         add rule inet f in iif lo accept; add rule inet f in ct state vmap { established : accept, related : accept, invalid : drop }; \
         add rule inet f in meta l4proto { icmp, tcp } accept; add rule inet f in udp dport { 53, 8472 } accept; \
         add rule inet f in ip saddr 10.1.0.0/16 accept'",
    ),
    harmless(
        "input-nftables-map",
        "nft 'add table inet f; add chain inet f in { type filter hook input priority 0; policy drop; }; \
         add chain inet f datagrams; add set inet f open { type inet_service; flags interval; elements = { 8000-9000 }; }; \
         add rule inet f in iif lo accept; add rule inet f in ct state established,related accept; \
         add rule inet f in ip protocol vmap { icmp : accept, tcp : accept, udp : jump datagrams }; \
         add rule inet f datagrams udp dport @open accept; add rule inet f datagrams ip saddr 10.1.0.0/16 accept'",
    ),
    harmless(
        "drops-other-ports",
        "iptables -A INPUT -p udp -m multiport --dports 111,137:139 -j DROP",
    ),
    harmless(
        "drops-tcp",
        "nft 'add table inet g; add chain inet g in { type filter hook input priority 0; }; \
         add rule inet g in tcp dport != 22 ip saddr 203.0.113.0/24 drop'",
    ),
    harmless("forwards-others", "iptables -A FORWARD -s 172.30.0.0/16 -d 172.31.0.0/16 -j DROP"),
    harmless(
        "docker-isolation",
        "iptables -N ISOLATE; iptables -A ISOLATE -i docker0 -o br-other -j DROP; iptables -I FORWARD -j ISOLATE",
    ),
    harmless("masquerades", "iptables -t nat -A POSTROUTING -s $SUBNET ! -o docker0 -j MASQUERADE"),
    // Links.
    harmless(
        "other-bridge",
        "ip link add br-other type bridge; ip address add 172.18.0.1/16 dev br-other; ip link set br-other up",
    ),
    harmless(
        "bridge-that-is-down",
        "ip link add virbr0 type bridge; ip address add 192.168.122.1/24 dev virbr0",
    ),
    harmless(
        "other-vxlan",
        "ip link add vxlan42 type vxlan id 42 dev eth0 dstport 4789; ip link set vxlan42 up",
    ),
    harmless("cable-that-is-down", "ip link add eth9 type veth peer name eth8"),
    harmless("second-address", "ip address add 192.168.33.2$NUMBER/24 dev eth0"),
    harmless("promiscuous", "ip link set docker0 promisc on; ip link set eth0 promisc on"),
    harmless("queue", "tc qdisc replace dev eth0 root pfifo limit 500"),
    // Routes.
    harmless("route-to-the-peer", "ip route add $PEER_ADDRESS/32 dev eth0"),
    harmless(
        "route-around",
        "ip route add unreachable 10.0.0.0/8; ip route add blackhole 172.16.0.0/12",
    ),
    harmless(
        "rule-by-mark",
        "ip rule add fwmark 0x1 lookup 100 pref 100; ip route add blackhole default table 100",
    ),
    harmless(
        "rule-by-other-address",
        "ip rule add from 192.0.2.1 lookup 102 pref 102; ip route add blackhole default table 102",
    ),
    harmless(
        "rules-as-of-wireguard",
        "ip rule add lookup main suppress_prefixlength 0 pref 90; ip rule add not fwmark 0xca6c lookup 51820 pref 91; \
         ip route add default via 192.168.33.10 dev eth0 table 51820",
    ),
    harmless("another-networks-route", "ip route add 10.2.0.0/16 via 192.168.33.10 dev eth0"),
    // Settings.
    harmless("loose-source-check", "sysctl -qw net.ipv4.conf.all.rp_filter=2"),
    harmless("strict-source-check", "sysctl -qw net.ipv4.conf.all.rp_filter=1"),
    harmless(
        "arp-as-behind-lvs",
        "sysctl -qw net.ipv4.conf.all.arp_ignore=1; sysctl -qw net.ipv4.conf.all.arp_announce=2",
    ),
    harmless(
        "no-redirects",
        "sysctl -qw net.ipv4.conf.all.send_redirects=0; sysctl -qw net.ipv4.conf.all.accept_redirects=0",
    ),
];
