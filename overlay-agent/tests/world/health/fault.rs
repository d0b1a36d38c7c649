//! What goes wrong on hosts and between them: a script that does it, one that undoes it, and the words by which
//! whoever is asked must name it.

/// Where a script runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Where {
    Host,
    /// What is between the hosts.
    Switch,
}

/// Something that goes wrong.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    pub(super) name: &'static str,
    pub(super) place: Where,
    pub(super) make: &'static str,
    pub(super) undo: &'static str,
    /// One of these is in what `status` or `doctor` says.
    pub(super) words: &'static [&'static str],
}

const fn host(
    name: &'static str,
    make: &'static str,
    undo: &'static str,
    words: &'static [&'static str],
) -> Fault {
    Fault { name, place: Where::Host, make, undo, words }
}

const fn switch(
    name: &'static str,
    make: &'static str,
    undo: &'static str,
    words: &'static [&'static str],
) -> Fault {
    Fault { name, place: Where::Switch, make, undo, words }
}

/// Whoever is not there, or cannot be reached, is said not to answer.
const SILENT: &[&str] = &["$PEER_ADDRESS, which leases"];
const PORT: &[&str] = &["UDP port 8472"];
/// Whoever lets no ICMP in cannot be told from one that is gone.
const PORT_OR_SILENT: &[&str] = &["UDP port 8472", "$PEER_ADDRESS, which leases"];

/// All of them. In scripts and words, `$PEER_ADDRESS` and its like stand for what they say: see `Ward::fill`.
pub(super) const ALL: [Fault; 42] = [
    // Links.
    host("uplink-down", "ip link set eth0 down", "ip link set eth0 up", &["uplink eth0 is down"]),
    host("uplink-arp-off", "ip link set eth0 arp off", "ip link set eth0 arp on", SILENT),
    host(
        "uplink-mtu",
        "ip link set eth0 mtu 1000",
        "ip link set eth0 mtu $MTU",
        &["MTU", "bytes at most"],
    ),
    host(
        "uplink-address",
        "ip address del $ADDRESS/24 dev eth0",
        "ip address add $ADDRESS/24 dev eth0",
        &["$ADDRESS"],
    ),
    host("bridge-down", "ip link set docker0 down", "ip link set docker0 up", &["docker0 is down"]),
    host(
        "bridge-address",
        "ip address del $GATEWAY/24 dev docker0",
        "ip address add $GATEWAY/24 dev docker0",
        &["No bridge has an address in"],
    ),
    host(
        "bridge-elsewhere",
        "ip address del $GATEWAY/24 dev docker0; ip address add 172.17.0.1/16 dev docker0",
        "ip address del 172.17.0.1/16 dev docker0; ip address add $GATEWAY/24 dev docker0",
        &["No bridge has an address in", "bridge has 172.17.0.1/16"],
    ),
    host(
        "bridge-vlan",
        "ip link set docker0 type bridge vlan_filtering 1; bridge vlan del dev $VETH vid 1",
        "bridge vlan add dev $VETH vid 1 pvid untagged; ip link set docker0 type bridge vlan_filtering 0",
        &["$VETH"],
    ),
    host("port-down", "ip link set $VETH down", "ip link set $VETH up", &["$VETH"]),
    host(
        "port-blocked",
        "bridge link set dev $VETH state 0",
        "bridge link set dev $VETH state 3",
        &["$VETH"],
    ),
    host(
        "tunnel-mtu",
        "ip link set $TUNNEL mtu 1000",
        "ip link set $TUNNEL mtu $OVERLAY_MTU",
        &["$TUNNEL"],
    ),
    host("tunnel-down", "ip link set $TUNNEL down", "ip link set $TUNNEL up", &["$TUNNEL is down"]),
    // Routes.
    host(
        "route-blackhole",
        "ip route add blackhole $PEER_ADDRESS",
        "ip route del blackhole $PEER_ADDRESS",
        &["$PEER_ADDRESS"],
    ),
    host(
        "route-unreachable",
        "ip route add unreachable $PEER_ADDRESS",
        "ip route del unreachable $PEER_ADDRESS",
        &["$PEER_ADDRESS"],
    ),
    host(
        "rule-prohibit",
        "ip rule add to $PEER_ADDRESS prohibit pref 10",
        "ip rule del to $PEER_ADDRESS prohibit pref 10",
        &["$PEER_ADDRESS"],
    ),
    host(
        "route-to-nobody",
        "ip route add $PEER_ADDRESS via 192.168.33.99 dev eth0",
        "ip route del $PEER_ADDRESS via 192.168.33.99 dev eth0",
        SILENT,
    ),
    host(
        "subnet-blackhole",
        "ip route add blackhole $PEER_HALF",
        "ip route del blackhole $PEER_HALF",
        &["$PEER_HALF"],
    ),
    host(
        "subnet-elsewhere",
        "ip route add $PEER_HALF via 192.168.33.10 dev eth0",
        "ip route del $PEER_HALF via 192.168.33.10 dev eth0",
        &["$PEER_HALF"],
    ),
    host(
        "subnet-rule",
        "ip rule add to $PEER_SUBNET prohibit pref 10",
        "ip rule del to $PEER_SUBNET prohibit pref 10",
        &["$PEER_SUBNET"],
    ),
    host(
        "neighbour",
        "ip neigh replace $PEER_ADDRESS lladdr 02:00:00:00:00:99 dev eth0 nud permanent",
        "ip neigh del $PEER_ADDRESS dev eth0",
        SILENT,
    ),
    // Settings.
    host(
        "forwarding",
        "sysctl -qw net.ipv4.ip_forward=0",
        "sysctl -qw net.ipv4.ip_forward=1",
        &["does not forward packets"],
    ),
    host(
        "forwarding-of-bridge",
        "sysctl -qw net.ipv4.conf.docker0.forwarding=0",
        "sysctl -qw net.ipv4.conf.docker0.forwarding=1",
        &["comes by docker0 is not forwarded"],
    ),
    host(
        "forwarding-of-tunnel",
        "sysctl -qw net/ipv4/conf/$TUNNEL/forwarding=0",
        "sysctl -qw net/ipv4/conf/$TUNNEL/forwarding=1",
        &["comes by $TUNNEL is not forwarded"],
    ),
    // Firewalls.
    host(
        "input-port",
        "iptables -I INPUT -p udp --dport 8472 -j DROP",
        "iptables -D INPUT -p udp --dport 8472 -j DROP",
        PORT,
    ),
    host(
        "input-nftables",
        "nft 'add table inet own; add chain inet own in { type filter hook input priority 0; policy drop; }; \
         add rule inet own in ct state established,related accept; add rule inet own in ip protocol icmp accept; \
         add rule inet own in tcp dport { 22, 2379 } accept'",
        "nft delete table inet own",
        PORT,
    ),
    host(
        "output-port",
        "iptables -I OUTPUT -p udp --dport 8472 -j DROP",
        "iptables -D OUTPUT -p udp --dport 8472 -j DROP",
        PORT,
    ),
    host(
        "raw-port",
        "iptables -t raw -I PREROUTING -p udp --dport 8472 -j DROP",
        "iptables -t raw -D PREROUTING -p udp --dport 8472 -j DROP",
        PORT,
    ),
    host(
        "forward-drops",
        "iptables -I FORWARD -j DROP",
        "iptables -D FORWARD -j DROP",
        &["FORWARD -j DROP"],
    ),
    host(
        "forward-nftables",
        "nft 'add table inet own; add chain inet own forward { type filter hook forward priority 0; policy drop; }'",
        "nft delete table inet own",
        &["inet own forward"],
    ),
    host(
        "forward-subnet",
        "iptables -I FORWARD -d $SUBNET -j DROP",
        "iptables -D FORWARD -d $SUBNET -j DROP",
        &["-d $SUBNET"],
    ),
    host(
        "input-from-others-only",
        "iptables -A INPUT -s 192.168.33.10 -j ACCEPT; iptables -A INPUT -p udp --dport 8472 -j DROP",
        "iptables -D INPUT -s 192.168.33.10 -j ACCEPT; iptables -D INPUT -p udp --dport 8472 -j DROP",
        PORT,
    ),
    host(
        "input-policy",
        "iptables -A INPUT -i lo -j ACCEPT; iptables -A INPUT -p icmp -j ACCEPT; iptables -A INPUT -p tcp -j ACCEPT; \
         iptables -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; iptables -P INPUT DROP",
        "iptables -P INPUT ACCEPT",
        PORT,
    ),
    host(
        "forward-one-peer",
        "iptables -I FORWARD -s $PEER_SUBNET -j DROP",
        "iptables -D FORWARD -s $PEER_SUBNET -j DROP",
        &["-s $PEER_SUBNET"],
    ),
    host(
        "forward-reject-new",
        "iptables -I FORWARD -i $TUNNEL -m conntrack --ctstate NEW -j REJECT",
        "iptables -D FORWARD -i $TUNNEL -m conntrack --ctstate NEW -j REJECT",
        &["--ctstate NEW"],
    ),
    host(
        "device-drops-out",
        "nft 'add table netdev own; add chain netdev own out { type filter hook egress device eth0 priority 0; }; \
         add rule netdev own out udp dport 8472 drop'",
        "nft delete table netdev own",
        PORT,
    ),
    host(
        "device-drops-in",
        "nft 'add table netdev own; add chain netdev own in { type filter hook ingress device eth0 priority 0; }; \
         add rule netdev own in udp dport 8472 drop'",
        "nft delete table netdev own",
        PORT,
    ),
    // Between.
    switch(
        "cable",
        "ip link set $PORT down",
        "ip link set $PORT up",
        &["eth0", "$PEER_ADDRESS, which"],
    ),
    switch(
        "host-cut-off",
        "nft 'add table bridge own; add chain bridge own cut { type filter hook forward priority 0; }; add rule bridge own cut iifname $PORT drop; add rule bridge own cut oifname $PORT drop'",
        "nft delete table bridge own",
        SILENT,
    ),
    switch(
        "port-cut-both-ways",
        "nft 'add table bridge own; add chain bridge own cut { type filter hook forward priority 0; }; add rule bridge own cut iifname $PORT udp dport 8472 drop; add rule bridge own cut oifname $PORT udp dport 8472 drop'",
        "nft delete table bridge own",
        PORT_OR_SILENT,
    ),
    switch(
        "port-cut-one-way",
        "nft 'add table bridge own; add chain bridge own cut { type filter hook forward priority 0; }; add rule bridge own cut iifname $PORT udp dport 8472 drop'",
        "nft delete table bridge own",
        PORT_OR_SILENT,
    ),
    switch(
        "small-underlay",
        "ip link set $PORT mtu 1000",
        "ip link set $PORT mtu $MTU",
        &["bytes at most"],
    ),
    switch(
        "port-goes-elsewhere",
        "ip link set $PORT nomaster",
        "ip link set $PORT master switch",
        SILENT,
    ),
];
