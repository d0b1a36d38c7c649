//! Which rules of the host's firewall could change what becomes of the overlay's packets, which the fast path
//! carries past all of them.
//!
//! Rules are read as `iptables-save` and `nft` show them, and followed with packets of which only addresses and
//! interfaces are known. What is not understood may match, and what cannot be read counts as a rule. So one may be
//! named that concerns nothing, but none is overlooked, with these exceptions, which are meant:
//!
//! - rules that only match packets of state INVALID, or packets for the host itself (but see below)
//! - rules about the packets that the tunnel's are carried in, other than on devices and in bridges
//! - what Docker, ufw and Kubernetes have everywhere for their own purposes (`plumbing`)
//! - what happens to addresses after routing: see `firewall/nat.rs`
//!
//! Of each is known whether it is enough that some packets of a flow meet it, now and then, because its answer is the
//! same for all of them. What begins or ends a flow meets it anyway. What is not understood is not of that kind.

//!
//! Beside that, rules are found by which the host drops all packets that the tunnel's are carried in. These do not
//! concern what the fast path carries; whatever takes the stack is lost.

mod begin;
mod ebtables;
mod iptables;
mod nft;
mod nft_iptables;
mod nft_match;
mod nft_tables;
mod nft_text;
mod packet;
mod plumbing;
mod table;
mod walk;

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    fmt, fs,
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddrV4},
};

use ipnetwork::Ipv4Network;
use tokio::process::Command;

use self::table::Table;

/// What rules are called that no `iptables` has made.
const NFTABLES: &str = "nftables";

/// What the overlay's packets look like to the firewall when they are forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scene {
    /// The whole overlay.
    pub network: Ipv4Network,
    /// This host's lease.
    pub subnet: Ipv4Network,
    /// The containers' bridges; none as long as none is known.
    pub bridges: Vec<String>,
    /// The tunnel device, after which our own table is named.
    pub tunnel: String,
    /// The device that leads to other hosts.
    pub uplink: String,
    /// Whether some of them are reached by it without a tunnel.
    pub direct: bool,
    /// The UDP port of the packets that the tunnel's are carried in.
    pub port: u16,
    /// Public addresses and subnets of peers, [`Scene::PEERS`] at most.
    pub peers: Vec<(Ipv4Addr, Ipv4Network)>,
}

impl Scene {
    /// Of so many is asked whether nothing can begin between them and this host.
    pub const PEERS: usize = 16;
}

#[cfg(test)]
impl Scene {
    /// A host of the tests'.
    pub(super) fn example() -> Self {
        Self {
            network: "10.1.0.0/16".parse().expect("a network"),
            subnet: "10.1.15.0/24".parse().expect("a subnet"),
            bridges: vec!["docker0".to_owned()],
            tunnel: "overlay.1".to_owned(),
            uplink: "eth0".to_owned(),
            direct: false,
            port: 8472,
            peers: Vec::new(),
        }
    }
}

/// A rule that may concern the overlay's packets, or what kept us from reading some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Concern {
    /// One line, by which an operator recognises it.
    pub text: String,
    /// Whether it is about single packets, not whole flows: how long or how many they are, or what is in them.
    pub each_packet: bool,
    /// Whether it refuses whatever begins between containers here and on another host, one way at least.
    pub refuses: bool,
}

impl Concern {
    const fn of_flows(text: String) -> Self {
        Self { text, each_packet: false, refuses: false }
    }

    /// What was not understood, and may be about anything.
    fn unclear(text: String) -> Self {
        Self { each_packet: true, ..Self::of_flows(text) }
    }
}

/// What the host's firewall has for the overlay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Every rule that may concern the overlay's packets, each once.
    pub concerns: Vec<Concern>,
    /// Rules by which all packets that a peer's are carried in are dropped, one way at least, each once.
    pub closing: Vec<String>,
}

impl Rules {
    /// Reads them.
    pub async fn read(scene: &Scene) -> Self {
        Sources::read().await.rules(scene)
    }

    /// Reads them, and returns for each of these services the rules that drop all that others send to it.
    pub async fn closing(
        scene: &Scene,
        services: &[ServicePort],
    ) -> Vec<(ServicePort, Vec<String>)> {
        let tables = Sources::read().await.tables(&scene.tunnel);
        services.iter().map(|service| (*service, tables.closing(scene, *service))).collect()
    }

    /// Reads them, and counts for each by its text how many of these flows meet it, as far as is known.
    pub async fn met_by(scene: &Scene, flows: &[Flow]) -> HashMap<String, usize> {
        let tables = Sources::read().await.tables(&scene.tunnel);
        let mut met = HashMap::new();
        for flow in flows {
            for concern in tables.met_by(scene, flow) {
                *met.entry(concern.text).or_default() += 1;
            }
        }
        met
    }
}

/// A port at which others reach this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServicePort {
    /// Of TCP
    Tcp(u16),
    /// Of UDP
    Udp(u16),
}

impl ServicePort {
    /// The protocol's name, in small letters, and the number.
    pub const fn parts(self) -> (&'static str, u16) {
        match self {
            Self::Tcp(port) => ("tcp", port),
            Self::Udp(port) => ("udp", port),
        }
    }
}

impl fmt::Display for ServicePort {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (protocol, port) = self.parts();
        write!(out, "{} port {port}", protocol.to_uppercase())
    }
}

/// What a container here and another one elsewhere send each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// The container's end.
    pub local: SocketAddrV4,
    /// The other end.
    pub remote: SocketAddrV4,
    /// What IP carries, by its number.
    pub protocol: u8,
}

/// What `iptables-save` says.
#[derive(Debug)]
struct Saved {
    tool: &'static str,
    /// Whether its rules are tables of nftables too.
    is_nft: bool,
    text: String,
}

/// What the tools say.
#[derive(Debug, Default)]
struct Sources {
    saved: Vec<Saved>,
    nft: Option<String>,
    /// The chains of devices in words: `nft` 1.0.6 leaves the device out of its JSON.
    of_devices: Option<String>,
    /// What the older `ebtables-save` says, which knows nothing of nftables.
    ebtables: Option<String>,
    /// The tables of nftables, where nothing says what is in them.
    unlisted: Vec<String>,
    /// What could not be read, and why.
    unread: Vec<String>,
}

impl Sources {
    async fn read() -> Self {
        let mut sources = Self::default();
        sources.nft = sources.run("nft", &["-j", "list", "ruleset"]).await;
        let has_devices = |text: &String| text.contains("\"netdev\"");
        if sources.nft.as_ref().is_some_and(has_devices) {
            sources.of_devices = sources.run("nft", &["list", "ruleset", "netdev"]).await;
        }
        let is_nft = sources
            .run("iptables", &["-V"])
            .await
            .is_some_and(|version| version.contains("nf_tables"));
        let found = sources.save("iptables-save", "iptables", is_nft).await;
        let legacy = sources.legacy_tables();
        if !legacy.is_empty() && (is_nft || !found) {
            let found = sources.save("iptables-legacy-save", "iptables-legacy", false).await;
            if !found {
                let tables = legacy.replace('\n', ", ");
                sources.unread.push(format!(
                    "iptables-legacy {tables}: rules cannot be listed without iptables-legacy-save"
                ));
            }
        }
        if !is_nft {
            // Only spares us from guessing: `nft` shows these too, without what they ask.
            if let Ok(Some(text)) = run("iptables-nft-save", &[]).await {
                sources.saved.push(Saved { tool: "iptables-nft", is_nft: true, text });
            }
        }
        sources.read_ebtables().await;
        sources.unlisted = sources.unlisted_tables();
        sources
    }

    /// Without `nft` there may be tables that no other program shows.
    fn unlisted_tables(&mut self) -> Vec<String> {
        if self.nft.is_some() {
            return Vec::new();
        }
        nft_tables::list().unwrap_or_else(|error| {
            self.unread.push(format!("{NFTABLES}: which tables there are is not known: {error}"));
            Vec::new()
        })
    }

    /// The newer `ebtables` makes tables of nftables. The older has a module for each table.
    async fn read_ebtables(&mut self) {
        if !fs::read_to_string("/proc/modules").is_ok_and(|modules| ebtables::is_used(&modules)) {
            return;
        }
        for program in ["ebtables-legacy-save", "ebtables-save"] {
            match run(program, &[]).await {
                Ok(Some(text)) => self.ebtables = Some(text),
                Ok(None) => continue,
                Err(reason) => self.unread.push(reason),
            }
            return;
        }
        let reason = "ebtables: rules cannot be listed without ebtables-legacy-save";
        self.unread.push(reason.to_owned());
    }

    /// Adds what a variant of `iptables-save` says. Returns whether there is such a tool.
    async fn save(&mut self, program: &str, tool: &'static str, is_nft: bool) -> bool {
        match run(program, &[]).await {
            Ok(Some(text)) => self.saved.push(Saved { tool, is_nft, text }),
            Ok(None) => return false,
            Err(reason) => self.unread.push(reason),
        }
        true
    }

    async fn run(&mut self, program: &str, arguments: &[&str]) -> Option<String> {
        run(program, arguments).await.unwrap_or_else(|reason| {
            self.unread.push(reason);
            None
        })
    }

    /// The names of tables that `iptables-legacy` has made, in lines.
    fn legacy_tables(&mut self) -> String {
        match fs::read_to_string("/proc/thread-self/net/ip_tables_names") {
            Ok(names) => names.trim().to_owned(),
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => {
                self.unread.push(format!("iptables-legacy: reading the names of tables: {error}"));
                String::new()
            }
        }
    }

    fn rules(&self, scene: &Scene) -> Rules {
        let tables = self.tables(&scene.tunnel);
        let of_scene = |find: fn(&Table, &Scene) -> _| move |table| find(table, scene);
        let found = tables.tables.iter().flat_map(of_scene(walk::concerns));
        let concerns = each_once(tables.unclear().chain(found));
        let closing = tables.closing(scene, ServicePort::Udp(scene.port));
        Rules { concerns, closing }
    }

    /// Every table, each once, but our own for this tunnel device.
    fn tables(&self, tunnel: &str) -> Tables {
        let mut unclear = self.unread.clone();
        let mut natives = self.natives(&mut unclear);
        natives.retain(|native| native.table.name != format!("ip {tunnel}"));
        let mut tables = Vec::new();
        let mut listed = HashSet::new();
        for Saved { tool, is_nft, text } in &self.saved {
            let mut listing = iptables::parse(tool, text);
            unclear.append(&mut listing.unread);
            for table in listing.tables {
                let name = format!("ip {}", table.name);
                let native = natives.iter().position(|native| *is_nft && native.table.name == name);
                let is_all = !listing.partly.contains(&table.name);
                if *is_nft && is_all {
                    listed.insert(name.clone());
                }
                match native {
                    Some(at) if is_all && natives[at].census.is_all_in(&table) => {
                        natives.remove(at);
                    }
                    // What `nft` shows of it is more.
                    Some(_) => continue,
                    None => {}
                }
                tables.push(table);
            }
        }
        tables.extend(natives.into_iter().map(|native| native.table));
        unclear.extend(self.ebtables.as_deref().map(ebtables::effects).unwrap_or_default());
        let unlisted = self.unlisted.iter().filter(|name| !listed.contains(*name));
        unclear.extend(
            unlisted.map(|name| format!("{NFTABLES} {name}: rules cannot be listed without nft")),
        );
        Tables { tables, unclear }
    }

    fn natives(&self, unclear: &mut Vec<String>) -> Vec<nft::Native> {
        let devices = nft_text::devices(self.of_devices.as_deref().unwrap_or_default());
        let natives = self.nft.as_deref().map_or(Ok(Vec::new()), |text| nft::parse(text, &devices));
        natives.unwrap_or_else(|error| {
            unclear.push(format!("{NFTABLES}: the ruleset cannot be read: {error:#}"));
            Vec::new()
        })
    }
}

/// What the tools have told.
#[derive(Debug)]
struct Tables {
    tables: Vec<Table>,
    /// What could not be read or understood.
    unclear: Vec<String>,
}

impl Tables {
    fn unclear(&self) -> impl Iterator<Item = Concern> {
        self.unclear.iter().cloned().map(Concern::unclear)
    }

    /// The rules that drop all that others send to this service, each once.
    fn closing(&self, scene: &Scene, service: ServicePort) -> Vec<String> {
        let mut told = HashSet::new();
        let found = self.tables.iter().flat_map(|table| walk::closing(table, scene, service));
        found.filter(|rule| told.insert(rule.clone())).collect()
    }

    /// What packets of this flow meet.
    fn met_by(&self, scene: &Scene, flow: &Flow) -> Vec<Concern> {
        let met = |table| walk::met(table, scene, |hook| scene.packets_of(hook, flow));
        each_once(self.unclear().chain(self.tables.iter().flat_map(met)))
    }
}

/// What was found in several ways is all that it is in one of them.
fn each_once(concerns: impl Iterator<Item = Concern>) -> Vec<Concern> {
    let mut places = HashMap::new();
    let mut found: Vec<Concern> = Vec::new();
    for concern in concerns {
        let at = *places.entry(concern.text.clone()).or_insert(found.len());
        match found.get_mut(at) {
            Some(same) => {
                same.each_packet |= concern.each_packet;
                same.refuses |= concern.refuses;
            }
            None => found.push(concern),
        }
    }
    found
}

/// What a program says; nothing where there is none.
///
/// # Errors
/// Why it says nothing, in one line.
async fn run(program: &str, arguments: &[&str]) -> Result<Option<String>, String> {
    match Command::new(program).args(arguments).output().await {
        Ok(output) if output.status.success() => {
            Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
        }
        Ok(output) => {
            let reason = String::from_utf8_lossy(&output.stderr);
            let reason = reason.trim().lines().next().unwrap_or_default();
            Err(format!("{program} failed ({}): {reason}", output.status))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("running {program}: {error}")),
    }
}
