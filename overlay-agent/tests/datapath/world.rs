//! A host 10.1.15.0/24 at 192.168.33.10 with two containers behind a bridge and one behind another, and one peer 10.1.20.0/24
//! at 192.168.33.11: loaded programs and filled maps, in a network namespace of the test's own.

use std::process::Command;

use aya::{
    maps::{Map, MapData, MapInfo},
    programs::{SchedClassifier, TestRun, TestRunOptions},
};
use nix::sched::{CloneFlags, unshare};
use overlay_agent::kernel::datapath::{CounterRow, Maps, Programs, read_counters};
use overlay_common::{
    Class, Hook, MacAddr, Prefix, Reason,
    tables::{
        ABI_VERSION, Bridge, BridgeKey, Endpoint, EndpointKey, HostConfig, Peer, PeerKey, Port,
        PortKey, Vtep, VtepKey, Way,
    },
};

pub(crate) const CONTAINER: [u8; 4] = [10, 1, 15, 2];
pub(crate) const GATEWAY: [u8; 4] = [10, 1, 15, 1];
pub(crate) const NEIGHBOUR: [u8; 4] = [10, 1, 15, 3];
pub(crate) const NEIGHBOUR_MAC: MacAddr = MacAddr([2, 0x42, 10, 1, 15, 0x33]);
/// Behind the second bridge.
pub(crate) const SECOND: [u8; 4] = [10, 1, 15, 130];
pub(crate) const SECOND_MAC: MacAddr = MacAddr([2, 0x42, 10, 1, 15, 130]);
pub(crate) const SECOND_BRIDGE_MAC: MacAddr = MacAddr([2, 0x42, 0, 0, 0, 2]);
pub(crate) const UNKNOWN_CONTAINER: [u8; 4] = [10, 1, 15, 77];
pub(crate) const REMOTE: [u8; 4] = [10, 1, 20, 2];
pub(crate) const PUBLIC: [u8; 4] = [192, 168, 33, 10];
pub(crate) const PEER_PUBLIC: [u8; 4] = [192, 168, 33, 11];
pub(crate) const VTEP_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 10]);
pub(crate) const PEER_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 11]);
/// That of the loopback here, by which all packets come in.
pub(crate) const UPLINK_MAC: MacAddr = BRIDGE_MAC;
pub(crate) const BRIDGE_MAC: MacAddr = MacAddr([2, 0x42, 0, 0, 0, 1]);
pub(crate) const CONTAINER_MAC: MacAddr = MacAddr([2, 0x42, 10, 1, 15, 2]);
pub(crate) const PORT: u16 = 8472;

const PEER_SUBNET: Prefix = Prefix { address: [10, 1, 20, 0], length: 24 };
const PEER: Peer = Peer {
    public_address: PEER_PUBLIC,
    next_hop: [0; 4],
    vtep_mac: PEER_MAC.0,
    way: Way::Vxlan as u8,
    reserved: 0,
};

/// Where the neighbour is.
pub(crate) const NEIGHBOUR_PORT: u32 = 77;
/// The second bridge, and where its container is.
pub(crate) const SECOND_BRIDGE: u32 = 78;
pub(crate) const SECOND_PORT: u32 = 79;
/// The tunnel device, which is not there.
pub(crate) const TUNNEL_IFINDEX: u32 = 99;

/// `TC_ACT_*` as the programs return them.
const NEXT: i32 = -1;
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;

pub(crate) struct World {
    pub(crate) programs: Programs,
    pub(crate) tables: Maps,
    host: HostConfig,
    bridge: Bridge,
    /// The counters after the last packet: reading them takes longer than all else, most of all in a virtual machine.
    counted: Vec<CounterRow>,
}

/// What became of a packet.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) reason: Reason,
    pub(crate) packet: Vec<u8>,
}

/// The fields of `struct __sk_buff` that tests set.
#[derive(Clone, Copy, Default)]
pub(crate) struct Context {
    pub(crate) ifindex: u32,
    pub(crate) segment_size: u32,
    /// The interface that the packet came to the host by.
    pub(crate) ingress_ifindex: u32,
}

impl Context {
    pub(crate) fn bytes(self) -> [u8; 192] {
        // Offsets in include/uapi/linux/bpf.h.
        const INGRESS_IFINDEX: usize = 36;
        const IFINDEX: usize = 40;
        const GSO_SEGS: usize = 164;
        const GSO_SIZE: usize = 176;
        let mut bytes = [0; 192];
        bytes[INGRESS_IFINDEX..][..4].copy_from_slice(&self.ingress_ifindex.to_ne_bytes());
        bytes[IFINDEX..][..4].copy_from_slice(&self.ifindex.to_ne_bytes());
        if self.segment_size != 0 {
            bytes[GSO_SEGS..][..4].copy_from_slice(&2_u32.to_ne_bytes());
            bytes[GSO_SIZE..][..4].copy_from_slice(&self.segment_size.to_ne_bytes());
        }
        bytes
    }
}

/// Runs a command in the namespace of this thread, which is its world's.
pub(crate) fn run(command: &str) {
    let mut words = command.split(' ');
    let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
    assert!(status.success(), "{command}");
}

impl World {
    pub(crate) fn new() -> Self {
        // The thread that runs this test, and nothing else, moves into a namespace that goes with it.
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        for command in [
            // Where packets come in: their MAC is its own.
            "ip link set lo address 02:42:00:00:00:01 up",
            "ip link add bridge0 type bridge",
            "ip address add 10.1.15.1/24 dev bridge0",
            "ip link set bridge0 up",
            "ip link add neighbour0 index 77 type bridge",
            "ip link add bridge1 index 78 type bridge",
            "ip address add 10.1.15.129/25 dev bridge1",
            "ip link set bridge1 up",
            "ip link add second0 index 79 type bridge",
            "sysctl -q -w net.ipv4.ip_forward=1",
        ] {
            run(command);
        }
        let bridge_ifindex = nix::net::if_::if_nametoindex("bridge0").unwrap();
        let mut programs = Programs::on_demand().unwrap();
        let mut tables = programs.take_tables().unwrap();
        tables.peers.insert(&PeerKey::new(PEER_SUBNET), &PEER).unwrap();
        let key = VtepKey { public_address: PEER_PUBLIC };
        tables.vteps.insert(&key, &Vtep::new(PEER_SUBNET)).unwrap();
        let bridge = Bridge {
            ifindex: bridge_ifindex,
            mtu: 1500,
            subnet: [10, 1, 15, 0],
            mac: BRIDGE_MAC.0,
            subnet_length: 24,
            reserved: 0,
        };
        let second = Bridge {
            ifindex: SECOND_BRIDGE,
            mtu: 1400,
            subnet: [10, 1, 15, 128],
            mac: SECOND_BRIDGE_MAC.0,
            subnet_length: 25,
            reserved: 0,
        };
        for (address, MacAddr(mac), ifindex, bridge) in [
            (CONTAINER, CONTAINER_MAC, 1, bridge),
            (NEIGHBOUR, NEIGHBOUR_MAC, NEIGHBOUR_PORT, bridge),
            (SECOND, SECOND_MAC, SECOND_PORT, second),
        ] {
            let Bridge { ifindex: number, mtu, mac: gateway, .. } = bridge;
            let endpoint = Endpoint { ifindex, bridge: number, mtu, mac, gateway };
            tables.endpoints.insert(&EndpointKey { address }, &endpoint).unwrap();
            tables.ports.insert(&PortKey::new(number, mac), &Port { ifindex, flags: 0 }).unwrap();
            for ifindex in [ifindex, number] {
                tables.bridges.insert(&BridgeKey { ifindex }, &bridge).unwrap();
            }
        }
        let gateway = EndpointKey { address: GATEWAY };
        tables.endpoints.insert(&gateway, &Endpoint::HOST).unwrap();
        let host = HostConfig {
            abi_version: ABI_VERSION,
            flags: HostConfig::FAST_PATH | HostConfig::LEASES_LISTED,
            vni: 1,
            uplink_ifindex: 1,
            tunnel_ifindex: TUNNEL_IFINDEX,
            network: [10, 1, 0, 0],
            network_length: 16,
            subnet: [10, 1, 15, 0],
            subnet_length: 24,
            uplink_address: PUBLIC,
            port: PORT,
            mtu: 1450,
            vtep_mac: VTEP_MAC.0,
            peer_lengths: [24, 0, 0, 0],
            flow_share: tables.flow_share,
            ..HostConfig::default()
        };
        let mut world = Self { programs, tables, host, bridge, counted: Vec::new() };
        world.configure(|_| ());
        world
    }

    /// Puts the peer on the same link (`DirectRouting`).
    pub(crate) fn put_peer_on_link(&mut self) {
        let key = PeerKey::new(PEER_SUBNET);
        self.tables.peers.insert(&key, &Peer { way: Way::Direct as u8, ..PEER }).unwrap();
    }

    /// Changes the host's settings.
    pub(crate) fn configure(&mut self, edit: impl FnOnce(&mut HostConfig)) {
        edit(&mut self.host);
        self.tables.settings.set(self.host).unwrap();
    }

    pub(crate) const fn bridge_ifindex(&self) -> u32 {
        self.bridge.ifindex
    }

    /// Gives the first bridge another MTU.
    pub(crate) fn set_bridge_mtu(&mut self, mtu: u32) {
        let key = BridgeKey { ifindex: self.bridge.ifindex };
        self.tables.bridges.insert(&key, &Bridge { mtu, ..self.bridge }).unwrap();
        let key = EndpointKey { address: CONTAINER };
        let endpoint = self.tables.endpoints.entries().unwrap()[&key];
        self.tables.endpoints.insert(&key, &Endpoint { mtu, ..endpoint }).unwrap();
    }

    /// Has the first bridge be none of the containers'.
    pub(crate) fn forget_bridge(&mut self) {
        let key = BridgeKey { ifindex: self.bridge.ifindex };
        self.tables.bridges.remove(&key).unwrap();
    }

    /// The program of a hook, for a thread of its own.
    pub(crate) fn handle(&mut self, hook: Hook) -> SchedClassifier {
        let info = self.programs.get(hook).unwrap().info().unwrap();
        SchedClassifier::from_program_info(info, hook.name().into()).unwrap()
    }

    /// A map that the programs use.
    pub(crate) fn map(&mut self, name: &str) -> Map {
        let info = self.programs.get(Hook::ToBridge).unwrap().info().unwrap();
        let ids = info.map_ids().unwrap().unwrap();
        let id = ids.into_iter().find(|id| {
            MapInfo::from_id(*id).unwrap().name_as_str().is_some_and(|found| found == name)
        });
        Map::from_map_data(MapData::from_id(id.unwrap()).unwrap()).unwrap()
    }

    pub(crate) fn run(&mut self, hook: Hook, packet: &[u8]) -> Outcome {
        self.run_with(hook, packet, Context { ifindex: 1, ..Context::default() })
    }

    /// Runs a program over a packet. Exactly one counter must have risen, by one packet and the
    /// packet's bytes, and the verdict must be that of the counted reason.
    pub(crate) fn run_with(&mut self, hook: Hook, packet: &[u8], context: Context) -> Outcome {
        let mut out = vec![0; packet.len() + 256];
        let context = context.bytes();
        let result = self
            .programs
            .get(hook)
            .unwrap()
            .test_run(TestRunOptions {
                data_in: Some(packet),
                data_out: Some(&mut out),
                ctx_in: Some(&context),
                ..TestRunOptions::new()
            })
            .unwrap_or_else(|error| panic!("{hook:?} over {packet:02x?}: {error:?}"));
        out.truncate(usize::try_from(result.data_size_out).unwrap());
        let counted = read_counters(&self.tables.counters).unwrap();
        let before = std::mem::replace(&mut self.counted, counted);
        let risen: Vec<_> = self
            .counted
            .iter()
            .filter(|row| !before.contains(row))
            .map(|row| {
                let old = before
                    .iter()
                    .find(|old| (old.hook, old.reason) == (row.hook, row.reason))
                    .map_or((0, 0), |old| (old.packets, old.bytes));
                (row.hook, row.reason, row.packets - old.0, row.bytes - old.1)
            })
            .collect();
        let [(counted_at, reason, packets, bytes)] = risen[..] else {
            panic!("exactly one counter rises, but these did: {risen:?}");
        };
        assert_eq!((counted_at, packets, bytes), (hook, 1, packet.len() as u64), "{reason:?}");
        let verdict = match reason.class() {
            Class::Forwarded => REDIRECT,
            Class::Passed | Class::Declined => NEXT,
            Class::Dropped => SHOT,
        };
        assert_eq!(result.return_value.cast_signed(), verdict, "{reason:?}");
        Outcome { reason, packet: out }
    }
}
