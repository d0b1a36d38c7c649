//! Hosts in network namespaces, made as a world says.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result};
use overlay_lab::{Agent, AgentOptions, BRIDGE, Host, Lab, Namespace, UPLINK};

use super::{
    Mode, agents,
    change::{self, Change},
    flannel,
};
use crate::{
    shape::{
        Element, Place, World, container, gateway, loopback_of_host, mac, second_of_container,
        second_of_host, second_wire, wire,
    },
    traffic::Ears,
};

/// Fields are dropped in order: what runs on the lab before the lab.
pub(crate) struct Site<'a> {
    pub(crate) world: &'a World,
    pub(crate) ears: Ears,
    mode: Mode,
    /// By host; none where there is no agent.
    agents: Vec<Agent>,
    options: Vec<AgentOptions>,
    containers: BTreeMap<(u8, u8), Namespace>,
    /// Hosts of which the second container has the second address.
    moved: Vec<u8>,
    _second_wire: Option<Namespace>,
    lab: Lab,
}

/// Errors are told as often as they happen, soon, and nobody is sent another way. Below `/proc/sys/net/ipv4`.
const SETTINGS: [(&str, &str); 9] = [
    ("icmp_ratelimit", "0"),
    ("icmp_ratemask", "0"),
    ("neigh/default/retrans_time_ms", "100"),
    ("conf/all/rp_filter", "0"),
    ("conf/default/rp_filter", "0"),
    ("conf/all/send_redirects", "0"),
    ("conf/default/send_redirects", "0"),
    ("conf/all/accept_redirects", "0"),
    ("conf/default/accept_redirects", "0"),
];

/// The same for the interface that is there already. Whoever has been found on the wire stays found: whether an entry is
/// still fresh is not to depend on how long a world takes.
const OF_UPLINK: [(&str, &str); 6] = [
    ("neigh/eth0/retrans_time_ms", "100"),
    ("neigh/eth0/base_reachable_time_ms", "3600000"),
    ("neigh/eth0/delay_first_probe_time", "3600"),
    ("conf/eth0/rp_filter", "0"),
    ("conf/eth0/send_redirects", "0"),
    ("conf/eth0/accept_redirects", "0"),
];

impl<'a> Site<'a> {
    pub(crate) fn new(world: &'a World, mode: Mode) -> Result<Self> {
        let lab = Lab::builder()
            .hosts(usize::from(world.hosts) + 1)
            .mtu(world.wire_mtu().into())
            .imitate_wire(world.has(Element::RealWire))
            .start()?;
        for host in lab.hosts() {
            quieten(host.namespace(), true)?;
        }
        let second_wire =
            if world.has(Element::SecondWire) { Some(lay_second_wire(world, &lab)?) } else { None };
        let options = agents::options(world, mode, &lab)?;
        let mut site = Self {
            world,
            ears: Ears::new(),
            mode,
            agents: Vec::new(),
            options,
            containers: BTreeMap::new(),
            moved: Vec::new(),
            _second_wire: second_wire,
            lab,
        };
        for host in 0..=world.hosts {
            site.furnish(host)?;
        }
        site.start_agents()?;
        Ok(site)
    }

    fn host(&self, host: u8) -> &Host {
        self.lab.host(host.into())
    }

    /// Everything but containers' cables and agents.
    fn furnish(&mut self, host: u8) -> Result<()> {
        let world = self.world;
        let mut change = Change::default();
        if host < world.hosts {
            let mtu = world.bridge_mtu(host);
            change.ip.extend([
                // With a MAC of its own it is not the lowest of its ports', which come and go.
                format!("link add {BRIDGE} address {} mtu {mtu} type bridge", mac(host, 255)),
                format!("address add {}/24 dev {BRIDGE}", gateway(host)),
                format!("link set {BRIDGE} up"),
            ]);
            if world.has(Element::SecondAddress { host }) {
                change.ip.push(format!("address add {}/24 dev {UPLINK}", second_of_host(host)));
            }
            if world.has(Element::LoopbackAddress { host }) {
                change.ip.push(format!("address add {}/32 dev lo", loopback_of_host(host)));
            }
            if self.mode == Mode::Flannel {
                change.extend(flannel::change(world, host));
            }
        }
        for of in (0..world.hosts).filter(|of| *of != host) {
            if world.has(Element::LoopbackAddress { host: of }) {
                let address = loopback_of_host(of);
                change
                    .ip
                    .push(format!("route add {address} via {} dev {UPLINK} metric 300", wire(of)));
            }
        }
        change.extend(change::base(world, host));
        for element in &world.elements {
            if let Some((of, more)) = change::of(world, self.mode, *element, true)
                && of == host
            {
                change.extend(more);
            }
        }
        apply(self.host(host), &change, true)?;
        let place = if host < world.hosts { Place::Host(host) } else { Place::Outside };
        if host < world.hosts {
            if self.mode == Mode::Flannel {
                flannel::add_forwarding(world, self.host(host), host)?;
            }
            for _ in 0..world.containers(host) {
                self.add_container(host)?;
            }
        }
        self.ears.add(place, self.lab.host(host.into()).namespace())
    }

    fn start_agents(&mut self) -> Result<()> {
        if !self.mode.is_ours() {
            return Ok(());
        }
        let agents = self.lab.hosts().iter().zip(&self.options);
        self.agents =
            agents.map(|(host, options)| host.spawn_agent(options)).collect::<Result<_>>()?;
        self.settle()?;
        for host in 0..self.world.hosts {
            agents::wait_for_firewall(self.host(host))?;
        }
        Ok(())
    }

    /// Waits until what has just happened is known to those whom it concerns.
    pub(crate) fn settle(&mut self) -> Result<()> {
        for host in 0..self.agents.len() {
            let number = u8::try_from(host)?;
            let mut endpoints = self.containers_of(number).count() as u64;
            if self.world.has(Element::SecondContainerAddress { host: number })
                && self.containers.contains_key(&(number, self.has_second(number)))
            {
                endpoints += 1;
            }
            agents::settle(self.lab.host(host), self.agents.len() - 1, endpoints)
                .with_context(|| self.agents[host].log().unwrap_or_default())?;
        }
        Ok(())
    }

    fn containers_of(&self, host: u8) -> impl Iterator<Item = u8> + '_ {
        self.containers.keys().filter(move |(of, _)| *of == host).map(|(_, number)| *number)
    }

    pub(crate) fn add_container(&mut self, host: u8) -> Result<()> {
        let world = self.world;
        let number = self.containers_of(host).max().map_or(0, |number| number + 1);
        let node = self.lab.host(host.into());
        let namespace = Namespace::create(node.ledger(), &format!("c{host}{number}"))?;
        quieten(&namespace, false)?;
        let (mtu, veth) = (world.bridge_mtu(host), format!("veth{number}"));
        let there = namespace.name();
        batch(
            node.namespace(),
            &[
                format!(
                    "link add {veth} mtu {mtu} type veth peer name eth0 address {} mtu {mtu} netns {there}",
                    mac(host, number)
                ),
                format!("link set {veth} master {BRIDGE} up"),
            ],
        )?;
        let mut lines = vec![format!("address add {}/24 dev eth0", container(host, number))];
        if number == 0 && world.has(Element::SecondContainerAddress { host }) {
            lines.push(format!("address add {}/24 dev eth0", second_of_container(host)));
        }
        lines.push("link set eth0 up".to_owned());
        lines.push(format!("route add default via {}", gateway(host)));
        batch(&namespace, &lines)?;
        self.ears.add(Place::Container { host, number }, &namespace)?;
        self.containers.insert((host, number), namespace);
        Ok(())
    }

    pub(crate) fn remove_container(&mut self, host: u8) -> Result<()> {
        let Some(number) = self.containers_of(host).max() else { return Ok(()) };
        // The kernel takes its time over a namespace.
        self.host(host).ip(["link", "del", &format!("veth{number}")])?;
        self.ears.remove(Place::Container { host, number });
        self.containers.remove(&(host, number));
        self.forget_neighbours()
    }

    /// From the first container to the second, if there are both.
    pub(crate) fn move_second(&mut self, host: u8) -> Result<()> {
        let pair = [0, 1].map(|number| self.containers.get(&(host, number)));
        let [Some(first), Some(second)] = pair else { return Ok(()) };
        if self.world.has(Element::SecondContainerAddress { host }) && !self.moved.contains(&host) {
            let address = format!("{}/24", second_of_container(host));
            first.ip(["address", "del", &address, "dev", "eth0"])?;
            second.ip(["address", "add", &address, "dev", "eth0"])?;
            self.moved.push(host);
        }
        self.forget_neighbours()
    }

    /// Which container has the second address.
    fn has_second(&self, host: u8) -> u8 {
        u8::from(self.moved.contains(&host))
    }

    pub(crate) fn change(&mut self, element: Element, on: bool) -> Result<()> {
        if let (Element::Container { host }, true) = (element, on) {
            return self.add_container(host);
        }
        let Some((host, change)) = change::of(self.world, self.mode, element, on) else {
            return Ok(());
        };
        apply(self.host(host), &change, false)
    }

    /// Has `iptables-restore` read this, and leave what it does not name.
    pub(crate) fn restore(&self, host: u8, script: String) -> Result<()> {
        let restore = self.host(host).command("iptables-restore").args(["-w", "--noflush"]);
        restore.input(script).run().map(drop)
    }

    /// That of a host's first container.
    pub(crate) fn namespace(&self, host: u8) -> &Namespace {
        &self.containers[&(host, 0)]
    }

    /// How many packets our agents have counted there.
    pub(crate) fn packets(&self, hook: &str, reason: &str) -> Result<u64> {
        self.agents.iter().map(|agent| agent.packets(hook, reason)).sum()
    }

    pub(crate) fn set_uplink(&self, host: u8, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        self.host(host).ip(["link", "set", UPLINK, state])?;
        self.forget_neighbours()
    }

    /// How long a neighbour that is gone is still believed in is a matter of chance.
    fn forget_neighbours(&self) -> Result<()> {
        let hosts = self.lab.hosts().iter().map(Host::namespace);
        for namespace in hosts.chain(self.containers.values()) {
            namespace.ip(["neighbour", "flush", "all"])?;
        }
        Ok(())
    }

    pub(crate) fn restart(&mut self, host: u8, crash: bool) -> Result<()> {
        let Some(agent) = self.agents.get_mut(usize::from(host)) else { return Ok(()) };
        if crash {
            agent.kill()?;
        } else {
            agent.stop()?;
        }
        let node = self.lab.host(host.into());
        *agent = node.spawn_agent(&self.options[usize::from(host)])?;
        Ok(())
    }

    /// Of hosts whose first containers are there.
    pub(crate) fn pairs(&self) -> Vec<(u8, u8)> {
        let hosts =
            || (0..self.world.hosts).filter(|host| self.containers.contains_key(&(*host, 0)));
        hosts()
            .flat_map(|from| hosts().map(move |to| (from, to)))
            .filter(|(from, to)| from != to)
            .collect()
    }

    /// How many packets have taken a way that none takes without a route or rule that says so.
    pub(crate) fn ways(&self) -> Result<BTreeMap<String, u64>> {
        let router = self.host(self.world.hosts).namespace();
        Ok(BTreeMap::from([("by the router".to_owned(), router.within(forwarded)?)]))
    }

    pub(crate) fn problems(&self) -> Result<Vec<(u8, String)>> {
        let mut all = Vec::new();
        for host in 0..u8::try_from(self.agents.len())? {
            let status = agents::status(self.host(host))?;
            let problems = status["problems"].as_array().cloned().unwrap_or_default();
            all.extend(problems.iter().map(|problem| (host, problem.to_string())));
        }
        Ok(all)
    }
}

/// How many packets the namespace of this thread has forwarded.
fn forwarded() -> Result<u64> {
    let snmp = fs::read_to_string("/proc/thread-self/net/snmp")?;
    // A line of names, then one of numbers.
    let line = snmp.lines().filter(|line| line.starts_with("Ip:")).nth(1);
    let forwarded = line.and_then(|line| line.split(' ').nth(6)).context("no counters of IP")?;
    Ok(forwarded.parse()?)
}

/// A wire beside the first, with the second interface of every host on it.
fn lay_second_wire(world: &World, lab: &Lab) -> Result<Namespace> {
    let wire = Namespace::create(lab.ledger(), "wire2")?;
    quieten(&wire, false)?;
    let mtu = world.wire_mtu();
    let mut lines =
        vec![format!("link add switch mtu {mtu} type bridge"), "link set switch up".into()];
    for (number, host) in lab.hosts().iter().enumerate() {
        let there = host.namespace().name();
        lines.push(format!(
            "link add p{number} mtu {mtu} type veth peer name eth1 mtu {mtu} netns {there}"
        ));
        lines.push(format!("link set p{number} master switch up"));
    }
    batch(&wire, &lines)?;
    for (number, host) in (0..).zip(lab.hosts()) {
        let address = format!("address add {}/24 dev eth1", second_wire(number));
        batch(host.namespace(), &[address, "link set eth1 up".to_owned()])?;
    }
    Ok(wire)
}

/// Makes a change; where `strictly` is false, what is already so, or cannot be any more, is left.
fn apply(host: &Host, change: &Change, strictly: bool) -> Result<()> {
    let tolerate = |result: Result<()>| if strictly { result } else { Ok(()) };
    if !change.ip.is_empty() {
        tolerate(batch(host.namespace(), &change.ip))?;
    }
    let rules = change.rules();
    if !rules.is_empty() {
        let restore = host.command("iptables-restore").args(["-w", "--noflush"]);
        tolerate(restore.input(rules).run().map(drop))?;
    }
    if !change.settings.is_empty() {
        let settings = change.settings.clone();
        host.namespace().within(move || {
            for (file, value) in settings {
                set(&file, &value)?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Several commands of `ip` by one process.
fn batch(namespace: &Namespace, lines: &[String]) -> Result<()> {
    namespace.command("ip").args(["-batch", "-"]).input(lines.join("\n") + "\n").run().map(drop)
}

fn quieten(namespace: &Namespace, has_uplink: bool) -> Result<()> {
    namespace.within(move || {
        for (file, value) in SETTINGS {
            // Older kernels have some of them for all namespaces together.
            set(file, value).ok();
        }
        if has_uplink {
            for (file, value) in OF_UPLINK {
                set(file, value)?;
            }
        }
        for whose in ["all", "default"] {
            fs::write(format!("/proc/sys/net/ipv6/conf/{whose}/disable_ipv6"), "1").ok();
        }
        Ok(())
    })
}

fn set(file: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys/net/ipv4").join(file);
    fs::write(&path, value).with_context(|| format!("cannot write {}", path.display()))
}
