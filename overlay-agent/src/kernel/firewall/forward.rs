//! What the host is to forward: what goes through the tunnel device, and, as flannel has it, everything from and to
//! the overlay's addresses. So containers keep the outside where the policy is DROP and Docker makes no rules, and
//! peers on the same link, which with direct routing come by no tunnel, are let in. Not so what goes from one bridge of
//! this host to another: that is Docker's to refuse, and the operator's.
//!
//! Docker from 28 on drops what comes to a container otherwise than over its bridge: in `raw` what is for one with a
//! published port, in FORWARD everything. Ours stand in front of Docker's, and behind whatever the operator has put in
//! front of those, the chain DOCKER-USER above all.

use std::{io::ErrorKind, net::Ipv4Addr, process::Stdio};

use anyhow::{Context, Result, anyhow, ensure};
use tokio::{io::AsyncWriteExt, process::Command};

use super::Scene;

/// Rules of one chain, as `iptables -S` lists them, without the chain.
type Rules = Vec<String>;

/// A built-in chain with rules of ours.
#[derive(Clone, Copy)]
struct Chain {
    table: &'static str,
    name: &'static str,
}

const FORWARD: Chain = Chain { table: "filter", name: "FORWARD" };
const PREROUTING: Chain = Chain { table: "raw", name: "PREROUTING" };

/// Where Docker's own decisions begin since version 28; before, none of them is in the way.
const DOCKERS: &str = "-j DOCKER-FORWARD";

/// Where it closes its internal networks, in one of its versions or the other.
const INTERNAL: [&str; 2] = ["DOCKER-INTERNAL", "DOCKER-ISOLATION-STAGE-1"];

/// What the comments of rules about single bridges end with.
const WITHIN: &str = "within";
const OPEN: &str = "open";

/// Comment of the rules by device: one for each direction.
const BY_DEVICE: &str = "\"overlay forward\"";

/// Rules by address, which need not be today's, are known by a comment that begins with this, whatever version made
/// them. `iptables` would list a comment with dots in quotes.
fn comments_of(device: &str) -> String {
    format!("{}-", device.replace('.', "-"))
}

/// What comes out of the device has been checked by `from_tunnel`.
fn device_rules(device: &str) -> Rules {
    let rule = |way| format!("{way} {device} -m comment --comment {BY_DEVICE} -j ACCEPT");
    ["-i", "-o"].map(rule).to_vec()
}

fn forward_rules(scene: &Scene) -> Rules {
    let Scene { network, subnet, tunnel, .. } = scene;
    let comment = format!("{}network", comments_of(tunnel));
    let by_address = [format!("-s {network} ! -d {subnet}"), format!("! -s {subnet} -d {network}")];
    let by_address =
        by_address.map(|tests| format!("{tests} -m comment --comment {comment} -j ACCEPT"));
    device_rules(tunnel).into_iter().chain(by_address).collect()
}

/// Where the kernel asks about what stays on a bridge, too.
fn within_rules(scene: &Scene) -> Rules {
    let comment = format!("{}{WITHIN}", comments_of(&scene.tunnel));
    let subnet = scene.subnet;
    let rule = |bridge| {
        format!(
            "-s {subnet} -d {subnet} -i {bridge} -o {bridge} -m comment --comment {comment} -j ACCEPT"
        )
    };
    scene.bridges.iter().map(rule).collect()
}

/// Lets in to these bridges alone what the rules for all would.
fn open_rules(scene: &Scene, bridges: &[&String]) -> Rules {
    let comment = format!("{}{OPEN}", comments_of(&scene.tunnel));
    let Scene { network, subnet, tunnel, uplink, direct, .. } = scene;
    let rules = bridges.iter().flat_map(|bridge| {
        let by_tunnel = format!("-i {tunnel} -o {bridge}");
        let by_link = direct.then(|| format!("-s {network} -d {subnet} -i {uplink} -o {bridge}"));
        [Some(by_tunnel), by_link].into_iter().flatten()
    });
    rules.map(|tests| format!("{tests} -m comment --comment {comment} -j ACCEPT")).collect()
}

/// Lets what has come out of the device, or plain from a peer on the same link, past Docker's rules for published ports.
fn raw_rules(scene: &Scene) -> Rules {
    let comment = format!("{}arrives", comments_of(&scene.tunnel));
    let Scene { network, subnet, tunnel, uplink, direct, .. } = scene;
    // A peer itself may send from its public address.
    let by_tunnel = format!("-d {subnet} -i {tunnel}");
    let by_link = direct.then(|| format!("-s {network} -d {subnet} -i {uplink}"));
    let rule = |tests| format!("{tests} -m comment --comment {comment} -j ACCEPT");
    [Some(by_tunnel), by_link].into_iter().flatten().map(rule).collect()
}

/// Whether a rule of `raw` is Docker's for a container of ours with a published port.
fn is_for_published_port(rule: &str, scene: &Scene) -> bool {
    let Some(rest) = rule.strip_prefix("-d ") else { return false };
    let Some((address, rest)) = rest.split_once("/32 ") else { return false };
    let is_ours = address.parse().is_ok_and(|address: Ipv4Addr| scene.subnet.contains(address));
    is_ours && scene.bridges.iter().any(|bridge| rest == format!("! -i {bridge} -j DROP"))
}

/// Whether Docker keeps a containers' bridge from the outside (`--internal`): its rules are to hold.
fn is_internal(rules: &Rules, bridge: &str) -> bool {
    rules.iter().any(|rule| {
        let mut words = rule.split(' ');
        rule.ends_with("-j DROP") && words.any(|word| word == bridge)
    })
}

/// Where in a chain rules of ours belong.
#[derive(Clone, Copy)]
enum Place {
    /// Wherever they are, and else at the end.
    Anywhere,
    /// In front of this rule, counted from 0.
    Before(usize),
    /// Somewhere behind it.
    Behind(usize),
}

impl Place {
    const fn has(self, rule: usize) -> bool {
        match self {
            Self::Anywhere => true,
            Self::Before(other) => rule < other,
            Self::Behind(other) => rule > other,
        }
    }
}

/// Which rules of ours a chain lacks, has too many or in the wrong place: lines for `iptables-restore`.
fn changes(
    chain: Chain,
    found: &Rules,
    wanted: &Rules,
    is_ours: impl Fn(&str) -> bool,
    place: Place,
) -> Rules {
    let is_well = |rule: &String| {
        let mut places = found.iter().enumerate().filter(|(_, there)| *there == rule);
        match (places.next(), places.next()) {
            (Some((rule, _)), None) => place.has(rule),
            _ => false,
        }
    };
    let (well, missing): (Vec<_>, Vec<_>) = wanted.iter().partition(|rule| is_well(rule));
    let name = chain.name;
    let gone = found.iter().enumerate().filter(|(_, rule)| is_ours(rule) && !well.contains(rule));
    let (places, mut lines): (Vec<_>, Rules) =
        gone.map(|(place, rule)| (place, format!("-D {name} {rule}"))).unzip();
    // Rules are numbered from 1, by what is left of those in front.
    let number = match place {
        Place::Before(before) => {
            Some(before + 1 - places.iter().filter(|place| **place < before).count())
        }
        Place::Anywhere | Place::Behind(_) => None,
    };
    let place = number.map_or_else(|| format!("-A {name}"), |number| format!("-I {name} {number}"));
    let mut added: Rules = missing.iter().map(|rule| format!("{place} {rule}")).collect();
    if number.is_some() {
        // Each is put in front of the one before.
        added.reverse();
    }
    lines.extend(added);
    lines
}

/// Adds the rules that are missing, in front of Docker's where those would be in the way, else to the end of the chain.
/// Docker sets the policy of FORWARD to DROP, so the exception has to stand in the same chain. On a host without
/// `iptables` nothing filters, and nothing is done.
pub(super) async fn ensure(scene: &Scene) -> Result<()> {
    let mut dockers = None;
    for _ in 0..=PARTS {
        let Some(found) = list(FORWARD.table, FORWARD.name).await? else { return Ok(()) };
        dockers = found.iter().position(|rule| rule == DOCKERS);
        let mut internal = Rules::new();
        for chain in INTERNAL.into_iter().filter(|_| dockers.is_some()) {
            internal.extend(list(FORWARD.table, chain).await?.unwrap_or_default());
        }
        let lines = forward_changes(&found, dockers, &internal, scene);
        if lines.is_empty() {
            break;
        }
        change(FORWARD, &lines).await?;
    }
    let is_ours = |rule: &str| is_of(&scene.tunnel, rule);
    if dockers.is_none() {
        // Looking alone would make that table, where there is none and `iptables` is the legacy one.
        return Ok(());
    }
    let found = list(PREROUTING.table, PREROUTING.name).await?.unwrap_or_default();
    let before = found.iter().position(|rule| is_for_published_port(rule, scene));
    let (place, wanted) = match before {
        Some(before) => (Place::Before(before), raw_rules(scene)),
        None => (Place::Anywhere, Rules::new()),
    };
    change(PREROUTING, &changes(PREROUTING, &found, &wanted, is_ours, place)).await
}

/// Parts of ours in FORWARD.
const PARTS: usize = 3;

/// Lines for the first part of ours that is not as it should be in FORWARD as it was `found`, with Docker's decisions at
/// `dockers` and those for its internal networks. Where there are such among the containers' bridges, ours for all stand
/// behind Docker's, and those in front name the others.
fn forward_changes(
    found: &Rules,
    dockers: Option<usize>,
    internal: &Rules,
    scene: &Scene,
) -> Rules {
    let (closed, open): (Vec<_>, Vec<_>) =
        scene.bridges.iter().partition(|bridge| is_internal(internal, bridge));
    let (front, back) = match dockers {
        Some(rule) => (Place::Before(rule), Place::Behind(rule)),
        None => (Place::Anywhere, Place::Anywhere),
    };
    let (place, open) =
        if closed.is_empty() { (front, Rules::new()) } else { (back, open_rules(scene, &open)) };
    let device = &scene.tunnel;
    let is_open = |rule: &str| has_comment(rule, &format!("{}{OPEN}", comments_of(device)));
    let is_within = |rule: &str| has_comment(rule, &format!("{}{WITHIN}", comments_of(device)));
    let is_other = |rule: &str| is_of(device, rule) && !is_open(rule) && !is_within(rule);
    let parts: [Rules; PARTS] = [
        changes(FORWARD, found, &forward_rules(scene), is_other, place),
        changes(FORWARD, found, &open, is_open, front),
        changes(FORWARD, found, &within_rules(scene), is_within, back),
    ];
    parts.into_iter().find(|part| !part.is_empty()).unwrap_or_default()
}

fn has_comment(rule: &str, comment: &str) -> bool {
    rule.split(' ').any(|word| word == comment)
}

fn is_of(device: &str, rule: &str) -> bool {
    let comments = comments_of(device);
    let mut words = rule.split(' ');
    device_rules(device).iter().any(|ours| ours == rule)
        || words.any(|word| word.starts_with(&comments))
}

/// Whether this host has a tool for rules.
pub(super) async fn can_filter() -> Result<bool> {
    Ok(list(FORWARD.table, FORWARD.name).await?.is_some())
}

/// Removes the rules. Returns whether there were any.
pub(super) async fn remove(device: &str) -> Result<bool> {
    let mut removed = false;
    for chain in [FORWARD, PREROUTING] {
        let found = match list(chain.table, chain.name).await {
            Ok(found) => found.unwrap_or_default(),
            Err(Unlisted::Busy(error)) => return Err(error),
            // Where nothing can be listed, nothing of ours can have been made, and the rest is to go all the same.
            Err(Unlisted::Impossible(_)) => Rules::new(),
        };
        let lines =
            changes(chain, &found, &Rules::new(), |rule| is_of(device, rule), Place::Anywhere);
        removed |= !lines.is_empty();
        change(chain, &lines).await?;
    }
    Ok(removed)
}

/// Why rules could not be listed.
enum Unlisted {
    /// Somebody holds the lock, or there is no memory: there may be rules, of ours too.
    Busy(anyhow::Error),
    /// There can be none.
    Impossible(anyhow::Error),
}

impl From<Unlisted> for anyhow::Error {
    fn from(unlisted: Unlisted) -> Self {
        let (Unlisted::Busy(error) | Unlisted::Impossible(error)) = unlisted;
        error
    }
}

/// `RESOURCE_PROBLEM` of iptables (`include/xtables.h`): nothing that others hold says what there is.
const RESOURCE_PROBLEM: i32 = 4;

/// The rules of a chain; nothing where there is no tool, or no such chain.
async fn list(table: &str, chain: &str) -> Result<Option<Rules>, Unlisted> {
    let output =
        Command::new("iptables").args(["-w", "5", "-t", table, "-S", chain]).output().await;
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(Unlisted::Busy(anyhow::Error::new(error).context("running iptables")));
        }
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let error = anyhow!("listing the rules of {chain}: {}", said.trim());
        return match output.status.code() {
            Some(RESOURCE_PROBLEM) | None => Err(Unlisted::Busy(error)),
            Some(_) if chain == FORWARD.name => Err(Unlisted::Impossible(error)),
            // A kernel without that table, too.
            Some(_) => Ok(None),
        };
    }
    let listing = String::from_utf8_lossy(&output.stdout);
    let prefix = format!("-A {chain} ");
    Ok(Some(
        listing.lines().filter_map(|line| line.strip_prefix(&prefix)).map(str::to_owned).collect(),
    ))
}

/// Changes a chain in one transaction, if there is anything to change.
async fn change(chain: Chain, lines: &Rules) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    crate::kernel::repairs::made(chain.name);
    let script = format!("*{}\n{}\nCOMMIT\n", chain.table, lines.join("\n"));
    let mut restore = Command::new("iptables-restore")
        // Wait for the lock: Docker changes rules too.
        .args(["-w", "5", "--noflush"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("running iptables-restore")?;
    let mut input = restore.stdin.take().context("iptables-restore has no standard input")?;
    input.write_all(script.as_bytes()).await.context("handing iptables-restore its rules")?;
    drop(input);
    let output = restore.wait_with_output().await.context("waiting for iptables-restore")?;
    ensure!(
        output.status.success(),
        "changing {} of table {} ({}): {}",
        chain.name,
        chain.table,
        lines.join("; "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(lines: &[&str]) -> Rules {
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    /// What `iptables-restore` makes of lines.
    fn play(mut chain: Rules, lines: &Rules) -> Rules {
        for line in lines {
            let mut words = line.splitn(3, ' ');
            let (action, rest) = (words.next().unwrap(), words.nth(1).unwrap());
            match action {
                "-D" => {
                    let place = chain.iter().position(|rule| rule == rest).unwrap();
                    chain.remove(place);
                }
                "-A" => chain.push(rest.to_owned()),
                _ => {
                    let (number, rule) = rest.split_once(' ').unwrap();
                    chain.insert(number.parse::<usize>().unwrap() - 1, rule.to_owned());
                }
            }
        }
        chain
    }

    fn ours() -> Rules {
        forward_rules(&Scene::example())
    }

    fn within() -> Rules {
        rules(&["-s 10.1.15.0/24 -d 10.1.15.0/24 -i docker0 -o docker0 -m comment --comment \
                 overlay-1-within -j ACCEPT"])
    }

    fn ensured_with(found: &Rules, internal: &Rules, scene: &Scene) -> Rules {
        let mut chain = found.clone();
        for _ in 0..PARTS {
            let dockers = chain.iter().position(|rule| rule == DOCKERS);
            chain = play(chain.clone(), &forward_changes(&chain, dockers, internal, scene));
        }
        let dockers = chain.iter().position(|rule| rule == DOCKERS);
        let again = forward_changes(&chain, dockers, internal, scene);
        assert_eq!(again, Rules::new(), "{chain:?}");
        chain
    }

    fn ensured(found: &Rules) -> Rules {
        ensured_with(found, &Rules::new(), &Scene::example())
    }

    #[test]
    fn ours_stand_behind_the_operators_and_in_front_of_dockers() {
        let docker = rules(&["-j DOCKER-USER", DOCKERS, "-s 10.9.0.0/16 -j ACCEPT"]);
        let mut wanted = docker.clone();
        wanted.splice(1..1, ours());
        wanted.extend(within());
        assert_eq!(ensured(&docker), wanted);
        // Docker was started later, and has put its own in front.
        assert_eq!(ensured(&[docker, ours(), within()].concat()), wanted);
        // Some were there, in front of what Docker puts in front of all.
        let mut moved = ours();
        moved.splice(2..2, rules(&["-j DOCKER-USER", DOCKERS]));
        let mut expected = rules(&["-j DOCKER-USER", DOCKERS]);
        expected.splice(1..1, ours()[2..].to_vec());
        assert_eq!(ensured(&moved), [ours()[..2].to_vec(), expected, within()].concat());
    }

    #[test]
    fn where_nobody_is_in_the_way_ours_are_the_last() {
        let before = rules(&["-j DOCKER-USER", "-o docker0 -j DOCKER"]);
        assert_eq!(ensured(&before), [before, ours(), within()].concat());
        let of_another_network = ours()[2].replace("10.1.0.0/16", "10.7.0.0/16");
        assert_eq!(ensured(&vec![of_another_network, ours()[0].clone()]), {
            let mut all = ours();
            all.truncate(1);
            [all, ours()[1..].to_vec(), within()].concat()
        });
    }

    #[test]
    fn what_goes_from_bridge_to_bridge_is_not_let_through() {
        let bridges = ["docker0", "br-1"].map(str::to_owned).to_vec();
        let scene = Scene { bridges, ..Scene::example() };
        for rule in forward_rules(&scene).iter().filter(|rule| rule.contains("10.1.0.0/16")) {
            assert!(
                rule.contains("! -d 10.1.15.0/24") || rule.contains("! -s 10.1.15.0/24"),
                "{rule}"
            );
        }
        assert_eq!(within_rules(&scene).len(), 2);
    }

    #[test]
    fn an_internal_network_beside_others_is_docker_s_to_close() {
        let bridges = ["docker0", "br-1"].map(str::to_owned).to_vec();
        let scene = Scene { bridges, direct: true, ..Scene::example() };
        let docker = rules(&["-j DOCKER-USER", DOCKERS]);
        let internal = rules(&["! -s 10.1.15.128/25 -o br-1 -j DROP"]);
        let open = rules(&[
            "-i overlay.1 -o docker0 -m comment --comment overlay-1-open -j ACCEPT",
            "-s 10.1.0.0/16 -d 10.1.15.0/24 -i eth0 -o docker0 -m comment --comment overlay-1-open -j ACCEPT",
        ]);
        let mut wanted = docker.clone();
        wanted.splice(1..1, open);
        wanted.extend(forward_rules(&scene));
        wanted.extend(within_rules(&scene));
        assert_eq!(ensured_with(&docker, &internal, &scene), wanted);
        // It comes, and goes.
        let without = ensured_with(&docker, &Rules::new(), &scene);
        assert_eq!(ensured_with(&without, &internal, &scene).len(), wanted.len());
        let gone = ensured_with(&wanted, &Rules::new(), &scene);
        assert_eq!(gone.len(), without.len());
        let place = |rule: &str| gone.iter().position(|found| found == rule);
        assert!(place(&ours()[2]) < place(DOCKERS), "{gone:?}");
    }

    #[test]
    fn dockers_rules_for_published_ports_are_known() {
        let scene = Scene::example();
        let is_one = |rule| is_for_published_port(rule, &scene);
        assert!(is_one("-d 10.1.15.2/32 ! -i docker0 -j DROP"));
        assert!(!is_one("-d 172.18.0.2/32 ! -i br-1 -j DROP"));
        assert!(!is_one("-d 10.1.15.2/32 -j DROP"), "somebody's own");
        assert!(is_internal(&rules(&["! -s 10.1.15.0/24 -o docker0 -j DROP"]), "docker0"));
        assert!(!is_internal(&rules(&["! -s 10.2.15.0/24 -o docker1 -j DROP"]), "docker0"));
        let open = "-i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2";
        assert!(!is_internal(&rules(&[open]), "docker0"));
    }
}
