//! The wire: one bridge in a namespace of its own, one cable to every host.

use std::{net::Ipv4Addr, sync::Mutex, sync::PoisonError};

use anyhow::{Result, ensure};

use crate::{command::Cmd, ledger::Ledger, namespace::Namespace};

/// The name of every host's end of its cable.
pub const UPLINK: &str = "eth0";

/// Set where the kernel has every kind of interface that an uplink may be: a test that makes them must leave none out.
pub const EVERY_KIND_VARIABLE: &str = "OVERLAY_EVERY_KIND";

/// Length of the wire's prefix.
pub const PREFIX_LENGTH: u8 = 24;

/// What a network card of a real wire does not do for tunnels: with these on, veth hands over whole
/// super-packets, which flatters every overlay.
const SEND_OFFLOADS: [&str; 7] = [
    "tso",
    "gso",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "tx-gso-partial",
    "tx-udp-segmentation",
    "tx-gso-list",
];

/// A network segment.
#[derive(Debug)]
pub struct Wire {
    switch: Namespace,
    mtu: u32,
    /// The namespaces of the plugged hosts.
    plugged: Mutex<Vec<String>>,
    ledger: Ledger,
}

impl Wire {
    /// Lays a wire that carries packets of this size.
    pub fn new(ledger: &Ledger, mtu: u32) -> Result<Self> {
        let switch = Namespace::create(ledger, "wire")?;
        let mtu_text = mtu.to_string();
        switch.ip(["link", "add", "switch", "mtu", &mtu_text, "type", "bridge"])?;
        // Nothing here may answer or learn its way around what the hosts say to each other.
        switch.sysctl("net.ipv6.conf.all.disable_ipv6", "1")?;
        switch.ip(["link", "set", "switch", "up"])?;
        Ok(Self { switch, mtu, plugged: Mutex::new(Vec::new()), ledger: ledger.clone() })
    }

    /// The namespace of the switch: the place to capture what all hosts send.
    pub fn switch(&self) -> &Namespace {
        &self.switch
    }

    /// The largest packet it carries.
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// Connects a namespace: device [`UPLINK`] with this address, up.
    pub fn plug(&self, namespace: &Namespace, address: Ipv4Addr) -> Result<()> {
        let port = self.port(namespace);
        let mtu = self.mtu.to_string();
        let cidr = format!("{address}/{PREFIX_LENGTH}");
        self.switch.ip([
            "link",
            "add",
            &port,
            "mtu",
            &mtu,
            "type",
            "veth",
            "peer",
            "name",
            UPLINK,
            "mtu",
            &mtu,
            "netns",
            namespace.name(),
        ])?;
        self.switch.ip(["link", "set", &port, "master", "switch", "up"])?;
        namespace.ip(["address", "add", &cidr, "dev", UPLINK])?;
        namespace.ip(["link", "set", UPLINK, "up"])?;
        self.plugged().push(namespace.name().to_owned());
        Ok(())
    }

    /// Pulls a host's cable, or puts it back.
    pub fn set_connected(&self, namespace: &Namespace, connected: bool) -> Result<()> {
        let port = self.port(namespace);
        let state = if connected { "up" } else { "down" };
        self.switch.ip(["link", "set", &port, state])?;
        Ok(())
    }

    /// Makes every uplink behave like a network card on a real wire (packets no larger than the MTU
    /// on it, aggregated again where they arrive), or like veth again.
    pub fn imitate(&self, real: bool) -> Result<()> {
        let plugged = self.plugged().clone();
        ensure!(!plugged.is_empty(), "there is no host on the wire yet");
        let (send, receive) = if real { ("off", "on") } else { ("on", "off") };
        for name in plugged {
            let namespace = crate::namespace::path(&name);
            let uplink = Self::offloads(UPLINK, send).args(["gro", receive]);
            crate::namespace::enter(&namespace, uplink).run()?;
            // The last one to send decides too: veth aggregates only what came from a device that could
            // not have sent it whole.
            self.switch.wrap(Self::offloads(&self.port_of(&name), send)).run()?;
        }
        Ok(())
    }

    /// Switches everything that sends more than the MTU at a time.
    fn offloads(device: &str, state: &str) -> Cmd {
        let switches = SEND_OFFLOADS.iter().flat_map(|offload| [offload, state]);
        Cmd::new("ethtool").args(["-K", device]).args(switches)
    }

    /// The switch's end of a host's cable; short, because of the 15 characters of a device name.
    fn port(&self, namespace: &Namespace) -> String {
        self.port_of(namespace.name())
    }

    /// The same by the name of the host's namespace.
    fn port_of(&self, namespace: &str) -> String {
        let lab = format!("{}-", self.ledger.name());
        let short = namespace.trim_start_matches(&lab);
        format!("p-{}", short.trim_start_matches("host-").chars().take(12).collect::<String>())
    }

    fn plugged(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.plugged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
