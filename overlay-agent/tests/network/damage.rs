//! What somebody may do to a host that an agent keeps, and how to see whether it has been mended.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use overlay_lab::{Agent, BRIDGE, Container, Host, UPLINK, eventually};
use serde_json::Value;

/// What is deleted or changed is right again within this time.
pub(crate) const MENDED: Duration = Duration::from_secs(1);

/// The host that is damaged.
pub(crate) struct Target<'a> {
    pub(crate) host: &'a Host,
    /// Its container.
    pub(crate) container: &'a Container,
    /// Another host.
    pub(crate) peer: &'a Host,
}

/// One kind of damage.
pub(crate) struct Act {
    pub(crate) what: &'static str,
    pub(crate) does: fn(&Target<'_>) -> Result<()>,
}

const fn act(what: &'static str, does: fn(&Target<'_>) -> Result<()>) -> Act {
    Act { what, does }
}

pub(crate) const ACTS: [Act; 33] = [
    act("the device is deleted", |on| on.ip("link del overlay.1")),
    act("the device is down", |on| on.ip("link set overlay.1 down")),
    act("the device has another MTU", |on| on.ip("link set overlay.1 mtu 1300")),
    act("the device has another MAC", |on| on.ip("link set overlay.1 address 02:00:00:00:00:77")),
    act("the address is deleted", |on| on.ip("address flush dev overlay.1")),
    act("the route is deleted", |on| on.ip("route flush dev overlay.1")),
    act("a program is detached from the uplink", |on| on.unpin_link("from_uplink")),
    act("programs are detached from the bridge", |on| {
        on.unpin_link("from_bridge")?;
        on.unpin_link("to_bridge")
    }),
    act("a program is detached from the container", |on| on.unpin_link("from_container")),
    act("programs are detached from the device", |on| {
        on.unpin_link("to_tunnel")?;
        on.unpin_link("from_tunnel")
    }),
    act("the directory of links is removed", |on| on.remove("links")),
    act("the pin path is removed", |on| on.remove("")),
    act("a peer is deleted", |on| on.delete("peers", &on.peer_key()?)),
    act("a peer is added", |on| on.write("peers", &[10, 1, 250, 0, 24, 0, 0, 0], 7)),
    act("a peer is forged", |on| on.write("peers", &on.peer_key()?, 7)),
    act("a VTEP is deleted", |on| on.delete("vteps", &on.peer.address().octets())),
    act("a container is deleted", |on| on.delete("endpoints", &on.container.address().octets())),
    act("a container is forged", |on| on.write("endpoints", &on.container.address().octets(), 7)),
    act("a bridge is deleted", |on| on.delete("bridges", &on.bridge_key()?)),
    act("a bridge is forged", |on| on.write("bridges", &on.bridge_key()?, 7)),
    act("the settings are overwritten", |on| on.write("config", &on.settings_key()?, 0)),
    act("other settings are in force", |on| on.write("config_slot", &[0; 4], 1)),
    act("a map is unpinned", |on| on.unpin("peers")),
    act("all maps are unpinned", |on| {
        ["config", "peers", "vteps", "bridges", "endpoints", "counters", "drops"]
            .into_iter()
            .try_for_each(|name| on.unpin(name))
    }),
    act("neighbours are forgotten", |on| on.ip(&format!("neighbour flush dev {BRIDGE}"))),
    act("the host forwards nothing", |on| on.host.namespace().sysctl("net.ipv4.ip_forward", "0")),
    act("the uplink goes down and up", |on| {
        on.ip(&format!("link set {UPLINK} down"))?;
        on.ip(&format!("link set {UPLINK} up"))
    }),
    act("the uplink has another MTU for a moment", |on| {
        on.ip(&format!("link set {UPLINK} mtu 1400"))?;
        on.ip(&format!("link set {UPLINK} mtu 1500"))
    }),
    act("the uplink is without its address for a moment", |on| {
        let address = format!("{}/24", on.host.address());
        on.ip(&format!("address del {address} dev {UPLINK}"))?;
        on.ip(&format!("address add {address} dev {UPLINK}"))
    }),
    act("the container's forwarding entry is deleted", delete_forwarding_entry),
    act("the container's cable is taken out of the bridge and put back", |on| {
        on.ip(&format!("link set {} nomaster", on.container.veth()))?;
        on.plug_in()
    }),
    act("the bridge is made anew", make_bridge_anew),
    act("a rule of the firewall is deleted", delete_rule),
];

/// The second time there is none, unless the container has sent something that its bridge saw.
fn delete_forwarding_entry(on: &Target<'_>) -> Result<()> {
    let bridge = |arguments: &[&str]| on.host.command("bridge").arg("fdb").args(arguments).read();
    let (mac, veth) = (on.container.namespace().mac("eth0")?, on.container.veth());
    if bridge(&["show", "dev", veth])?.contains(&mac) {
        bridge(&["del", &mac, "dev", veth, "master"])?;
    }
    Ok(())
}

fn delete_rule(on: &Target<'_>) -> Result<()> {
    on.host
        .command("iptables")
        .args(["-w", "-D", "FORWARD", "-i", "overlay.1", "-m", "comment", "--comment"])
        .args(["overlay forward", "-j", "ACCEPT"])
        .run()
        .map(drop)
}

impl Target<'_> {
    fn ip(&self, command: &str) -> Result<()> {
        self.host.ip(command.split(' ')).map(drop)
    }

    fn unpin(&self, name: &str) -> Result<()> {
        let path = self.host.pins().join(name);
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))
    }

    fn unpin_link(&self, hook: &str) -> Result<()> {
        let names = fs::read_dir(self.host.pins().join("links"))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<Vec<String>>>()?;
        let prefix = format!("{hook}-");
        let name = names.iter().find(|name| name.starts_with(&prefix)).context("no such link")?;
        self.unpin(&format!("links/{name}"))
    }

    fn remove(&self, directory: &str) -> Result<()> {
        let path = self.host.pins().join(directory);
        fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))
    }

    fn map(&self, action: &str, map: &str, key: &[u8], value: &[u8]) -> Result<()> {
        let bytes = |bytes: &[u8]| bytes.iter().map(u8::to_string).collect::<Vec<_>>();
        let mut command = self
            .host
            .command("bpftool")
            .args(["map", action, "pinned"])
            .arg(self.host.pins().join(map))
            .arg("key")
            .args(bytes(key));
        if !value.is_empty() {
            command = command.arg("value").args(bytes(value));
        }
        command.run().map(drop)
    }

    fn delete(&self, map: &str, key: &[u8]) -> Result<()> {
        self.map("delete", map, key, &[])
    }

    /// Writes a value in which every byte is `filler`.
    fn write(&self, map: &str, key: &[u8], filler: u8) -> Result<()> {
        let path = self.host.pins().join(map);
        let shown =
            self.host.command("bpftool").args(["-j", "map", "show", "pinned"]).arg(path).read()?;
        let shown: Value = serde_json::from_str(&shown)?;
        let length = shown["bytes_value"].as_u64().context("a map without values")?;
        self.map("update", map, key, &vec![filler; usize::try_from(length)?])
    }

    /// Of the bridge itself.
    fn bridge_key(&self) -> Result<[u8; 4]> {
        let shown = self.host.ip(["-o", "link", "show", "dev", BRIDGE])?;
        let number = shown.split(':').next().unwrap_or_default();
        let number: u32 = number.parse().with_context(|| format!("no number in {shown}"))?;
        Ok(number.to_ne_bytes())
    }

    /// Of the settings in force, whatever else somebody has written there.
    fn settings_key(&self) -> Result<[u8; 4]> {
        let path = self.host.pins().join("config_slot");
        let dump = self.host.command("bpftool").args(["-j", "map", "dump", "pinned"]).arg(path);
        let dump: Value = serde_json::from_str(&dump.read()?)?;
        let slot = dump[0]["formatted"]["value"].as_u64().context("no number")?;
        Ok(u32::try_from(slot & 1)?.to_ne_bytes())
    }

    fn peer_key(&self) -> Result<[u8; 8]> {
        let [a, b, c, d] = self.peer.subnet()?.gateway.octets();
        ensure!(d == 1, "not a /24");
        Ok([a, b, c, 0, 24, 0, 0, 0])
    }

    /// The host learns where a container is when that says something.
    fn plug_in(&self) -> Result<()> {
        self.ip(&format!("link set {} master {BRIDGE}", self.container.veth()))?;
        let gateway = self.host.subnet()?.gateway;
        // A bridge that had lost its only port sends nothing until the kernel has noticed the new one.
        eventually(Duration::from_secs(10), "the gateway to answer", || {
            self.container.ping(gateway)
        })
    }
}

/// With the same MAC, which containers know.
fn make_bridge_anew(on: &Target<'_>) -> Result<()> {
    let mac = on.host.namespace().mac(BRIDGE)?;
    let address = on.host.subnet()?.gateway_cidr();
    on.ip(&format!("link del {BRIDGE}"))?;
    on.ip(&format!("link add {BRIDGE} address {mac} mtu 1450 type bridge"))?;
    on.ip(&format!("address add {address} dev {BRIDGE}"))?;
    on.ip(&format!("link set {BRIDGE} up"))?;
    on.plug_in()
}

/// What there is of ours on a host, without the numbers that change when things are made anew.
pub(crate) type State = BTreeMap<String, String>;

/// Looks at everything at once: a shell for all takes a tenth of the time.
pub(crate) fn state(on: &Target<'_>) -> Result<State> {
    let host = on.host;
    let [slot, ..] = on.settings_key()?;
    let script = format!(
        "pins={pins}
echo '# device'; ip -details link show overlay.1 | sed 's/^[0-9]*: //'
echo '# address'; ip -4 -brief address show overlay.1
echo '# routes'; ip route show dev overlay.1
echo '# bridge'; ip -4 -brief address show {BRIDGE}; ip -brief link show master {BRIDGE}
echo '# uplink'; ip -4 -brief address show {UPLINK}; ip route show dev {UPLINK}
echo '# pins'; (cd $pins && find . | sed 's/-[0-9]*$//' | sort)
echo '# forwarding'; cat /proc/sys/net/ipv4/ip_forward; iptables -S FORWARD | sort
echo '# table'; nft list table ip overlay.1
echo '# config'; echo \"[$(bpftool -j map lookup pinned $pins/config key {slot} 0 0 0)]\"
for map in peers vteps bridges endpoints; do echo \"# $map\"; bpftool -j map dump pinned $pins/$map; done",
        pins = host.pins().display()
    );
    let text = host.command("sh").args(["-e", "-c", &script]).read()?;
    let mut state = State::new();
    for section in text.trim_start_matches("# ").split("\n# ") {
        let (name, body) = section.split_once('\n').unwrap_or((section, ""));
        let map = body.starts_with('[').then(|| entries(body)).transpose()?;
        state.insert(name.to_owned(), map.unwrap_or_else(|| body.trim().to_owned()));
    }
    state.insert("programs".to_owned(), programs(on)?);
    Ok(state)
}

/// Asked of the kernel: not every `bpftool` knows TCX.
fn programs(on: &Target<'_>) -> Result<String> {
    let interfaces = [UPLINK, "overlay.1", BRIDGE, on.container.veth()].map(str::to_owned);
    on.host.namespace().within(move || {
        let mut lines = Vec::new();
        for interface in interfaces {
            for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
                let (_, programs) = SchedClassifier::query_tcx(&interface, direction)
                    .with_context(|| format!("asking about {interface}"))?;
                for program in programs {
                    let name = program.name_as_str().unwrap_or_default();
                    lines.push(format!("{interface} {direction:?} {name}"));
                }
            }
        }
        Ok(lines.join("\n"))
    })
}

/// In an order of their own: that of a hash map changes.
fn entries(dump: &str) -> Result<String> {
    let dump: Vec<Value> = serde_json::from_str(dump)?;
    let mut lines: Vec<_> = dump
        .into_iter()
        .map(|mut entry| {
            let mut entry = entry["formatted"].take();
            // What is made anew has another number, and the settings another place.
            if let Some(config) = entry["value"].as_object_mut()
                && config.remove("tunnel_ifindex").is_some()
            {
                entry["key"].take();
            }
            let bridge = entry["value"]["ifindex"].clone();
            if let Some(endpoint) = entry["value"].as_object_mut()
                && endpoint.remove("bridge").is_none()
                && endpoint.contains_key("subnet_length")
            {
                endpoint.remove("ifindex");
                if entry["key"]["ifindex"] == bridge {
                    entry["key"].take();
                }
            }
            entry.to_string()
        })
        .collect();
    lines.sort_unstable();
    Ok(lines.join("\n"))
}

/// Waits until all is as `healthy`, and then for four more verifications, which must change nothing.
pub(crate) fn mended(
    on: &Target<'_>,
    agent: &Agent,
    healthy: &State,
    within: Duration,
    what: &str,
) -> Result<()> {
    eventually(within, &format!("{what}: it to be mended"), || same(healthy, &state(on)?))?;
    let numbers = || -> Result<(u64, u64)> {
        let status = agent.status()?;
        let number = |name: &str| status[name].as_u64().with_context(|| format!("no {name}"));
        Ok((number("verifications")?, number("repairs")?))
    };
    let (looked, repairs) = numbers()?;
    let after = eventually(within.max(Duration::from_secs(5)), "four verifications", || {
        let (now, after) = numbers()?;
        ensure!(now >= looked + 4, "{} so far", now - looked);
        Ok(after)
    })?;
    ensure!(after == repairs, "{what}: mended, and changed {} times after", after - repairs);
    same(healthy, &state(on)?).with_context(|| format!("{what}: four verifications later"))
}

fn same(healthy: &State, found: &State) -> Result<()> {
    for (name, wanted) in healthy {
        let found = found.get(name).map_or("", String::as_str);
        ensure!(found == wanted, "{name}:\n{found}\nis not\n{wanted}");
    }
    Ok(())
}

/// The state once it has come to rest.
pub(crate) fn healthy(on: &Target<'_>) -> Result<State> {
    eventually(Duration::from_secs(10), "everything to be there", || {
        let state = state(on)?;
        let known = state["endpoints"].matches("\"address\"").count();
        ensure!(known >= 2, "the container is not known yet: {}", state["endpoints"]);
        ensure!(state["programs"].lines().count() >= 7, "{}", state["programs"]);
        ensure!(state["forwarding"].contains("overlay"), "{}", state["forwarding"]);
        // Made once before Docker's bridge is there, and once more.
        ensure!(state["table"].contains(BRIDGE), "{}", state["table"]);
        Ok(state)
    })
}
