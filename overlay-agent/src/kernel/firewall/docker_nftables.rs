//! Docker's nftables backend (version 29, `--firewall-backend=nftables`): its table drops what comes to a container
//! otherwise than over its bridge, as its chains of iptables do since version 28. What drops in one table, accepting in
//! another does not undo, so ours stand in Docker's own chains, in front; Docker makes the table anew when it starts, and
//! they are put back. An operator's rules are in tables of their own, where a drop holds.

use std::io::ErrorKind;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::process::Command;

use super::{Scene, nft};

/// Its table, of family ip (moby, `daemon/libnetwork/drivers/bridge/internal/nftabler`).
pub(super) const TABLE: &str = "docker-bridges";

/// Where it drops: what is not published, and what addresses a published container past its port.
const CHAINS: [&str; 2] = ["filter-FORWARD", "raw-PREROUTING"];

/// In the comments of its rules for `--internal` networks, which are to hold.
const INTERNAL: &str = "INTERNAL NETWORK";

/// A rule, as much of it as matters here.
#[derive(Debug, PartialEq, Eq)]
struct Rule {
    chain: String,
    handle: u64,
    comment: String,
}

/// Keeps Docker's table from dropping what has come out of the tunnel, or plain from a peer on the same link.
pub(super) async fn ensure(scene: &Scene) -> Result<()> {
    let Some(rules) = list().await? else { return Ok(()) };
    change(&changes(&rules, &scene.tunnel, |chain| wanted(&rules, chain, scene))).await
}

/// Removes the rules. Returns whether there were any.
pub(super) async fn remove(device: &str) -> Result<bool> {
    let Some(rules) = list().await? else { return Ok(false) };
    let lines = changes(&rules, device, |_| Vec::new());
    change(&lines).await?;
    Ok(!lines.is_empty())
}

/// By comment: rules are known by it, so it says all that they do.
fn wanted(rules: &[Rule], chain: &str, scene: &Scene) -> Vec<(String, String)> {
    let Scene { network, subnet, tunnel, uplink, direct, bridges, .. } = scene;
    let of = |bridge: &str| {
        let incoming = format!("filter-forward-in__{bridge}");
        rules.iter().filter(move |rule| rule.chain == incoming)
    };
    let dockers = bridges.iter().filter(|bridge| of(bridge).next().is_some());
    let (internal, open): (Vec<_>, Vec<_>) =
        dockers.partition(|bridge| of(bridge).any(|rule| rule.comment.contains(INTERNAL)));
    if open.is_empty() {
        return Vec::new();
    }
    // In `raw` nothing is known of where it goes, nor has Docker anything there for internal networks.
    let (but, except) = if internal.is_empty() || chain != CHAINS[0] {
        (String::new(), String::new())
    } else {
        let names: Vec<_> = internal.iter().map(|name| name.as_str()).collect();
        (
            format!(" oifname != {{ \"{}\" }}", names.join("\", \"")),
            format!(", not {}", names.join(" ")),
        )
    };
    // Whose addresses come out of the tunnel, `from_tunnel` has checked.
    let by_tunnel = format!("iifname \"{tunnel}\"{but} ip daddr {subnet}");
    let by_link = format!("iifname \"{uplink}\"{but} ip saddr {network} ip daddr {subnet}");
    [Some((format!("{tunnel} to {subnet}{except}"), by_tunnel))]
        .into_iter()
        .chain([direct
            .then(|| (format!("{tunnel} by {uplink}, {network} to {subnet}{except}"), by_link))])
        .flatten()
        .collect()
}

/// Lines that put these rules, and no others of ours, in front of both chains; nothing where it is so.
fn changes(
    rules: &[Rule],
    device: &str,
    wanted: impl Fn(&str) -> Vec<(String, String)>,
) -> Vec<String> {
    let prefix = format!("{device} ");
    let mut lines = Vec::new();
    for chain in CHAINS {
        let wanted = wanted(chain);
        let there: Vec<_> = rules.iter().filter(|rule| rule.chain == chain).collect();
        let is_ours = |rule: &&&Rule| rule.comment.starts_with(&prefix);
        let in_front = there.iter().zip(&wanted);
        let is_well = there.iter().filter(is_ours).count() == wanted.len()
            && in_front.filter(|(rule, (comment, _))| rule.comment == *comment).count()
                == wanted.len();
        if is_well {
            continue;
        }
        let gone = there.iter().filter(is_ours);
        lines.extend(
            gone.map(|rule| format!("delete rule ip {TABLE} {chain} handle {}", rule.handle)),
        );
        // Each is put in front of the one before.
        lines.extend(wanted.iter().rev().map(|(comment, tests)| {
            format!("insert rule ip {TABLE} {chain} {tests} accept comment \"{comment}\"")
        }));
    }
    lines
}

async fn change(lines: &[String]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    crate::kernel::repairs::made(TABLE);
    let output = nft::carry_out(&lines.join("\n")).await.context("running nft")?;
    let reason = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "changing table ip {TABLE} of Docker's: {}", reason.trim());
    Ok(())
}

/// Its rules; nothing where it is not there, or where there is no `nft`.
async fn list() -> Result<Option<Vec<Rule>>> {
    let output = Command::new("nft").args(["-j", "list", "table", "ip", TABLE]).output().await;
    match output {
        Ok(output) if output.status.success() => parse(&output.stdout).map(Some),
        Ok(output) => {
            // One that crashes has not said that there is no such table.
            ensure!(
                output.status.code().is_some(),
                "listing table ip {TABLE}: nft {}",
                output.status
            );
            Ok(None)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("running nft"),
    }
}

fn parse(listing: &[u8]) -> Result<Vec<Rule>> {
    let listing: Value = serde_json::from_slice(listing)
        .with_context(|| format!("reading table ip {TABLE} of Docker's"))?;
    let objects = listing["nftables"].as_array().map_or(&[][..], Vec::as_slice);
    let rules = objects
        .iter()
        .filter_map(|object| object.get("rule"))
        .filter(|rule| rule["table"] == TABLE);
    Ok(rules
        .map(|rule| Rule {
            chain: rule["chain"].as_str().unwrap_or_default().to_owned(),
            handle: rule["handle"].as_u64().unwrap_or_default(),
            comment: rule["comment"].as_str().unwrap_or_default().to_owned(),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = include_str!("rules/tests/listings/docker-29.json");

    fn listing() -> Vec<Rule> {
        parse(LISTING.as_bytes()).unwrap()
    }

    fn lines(rules: &[Rule], scene: &Scene) -> Vec<String> {
        changes(rules, &scene.tunnel, |chain| wanted(rules, chain, scene))
    }

    fn insert(chain: &str, rule: &str) -> String {
        format!("insert rule ip docker-bridges {chain} {rule}")
    }

    const BY_TUNNEL: &str =
        "iifname \"overlay.1\" ip daddr 10.1.15.0/24 accept comment \"overlay.1 to 10.1.15.0/24\"";
    const BY_LINK: &str = "iifname \"eth0\" ip saddr 10.1.0.0/16 ip daddr 10.1.15.0/24 accept comment \
                           \"overlay.1 by eth0, 10.1.0.0/16 to 10.1.15.0/24\"";

    #[test]
    fn ours_stand_in_front_in_both_of_dockers_chains() {
        let scene = Scene { direct: true, ..Scene::example() };
        let expected: Vec<_> = CHAINS
            .iter()
            .flat_map(|chain| [BY_LINK, BY_TUNNEL].map(|rule| insert(chain, rule)))
            .collect();
        assert_eq!(lines(&listing(), &scene), expected);
    }

    #[test]
    fn what_is_right_stays_and_what_is_not_is_put_right() {
        let scene = Scene::example();
        let rule = |chain: &str, comment: &str| Rule {
            chain: chain.to_owned(),
            handle: 100,
            comment: comment.to_owned(),
        };
        let mut rules = listing();
        for chain in CHAINS {
            rules.insert(0, rule(chain, "overlay.1 to 10.1.15.0/24"));
        }
        assert_eq!(lines(&rules, &scene), Vec::<String>::new());
        // Docker has put another in front.
        rules.insert(0, rule("filter-FORWARD", "Docker's"));
        let delete = "delete rule ip docker-bridges filter-FORWARD handle 100".to_owned();
        assert_eq!(lines(&rules, &scene), [delete, insert("filter-FORWARD", BY_TUNNEL)]);
        let removed = changes(&rules, &scene.tunnel, |_| Vec::new());
        assert_eq!(removed.len(), 2, "{removed:?}");
        assert!(removed.iter().all(|line| line.starts_with("delete rule")), "{removed:?}");
    }

    #[test]
    fn an_internal_network_is_left_alone() {
        for bridge in ["br-1", "of nobody"] {
            let scene = Scene { bridges: vec![bridge.to_owned()], ..Scene::example() };
            assert_eq!(lines(&listing(), &scene), Vec::<String>::new());
        }
    }

    #[test]
    fn beside_others_an_internal_network_stays_internal() {
        let bridges = ["docker0", "br-1"].map(str::to_owned).to_vec();
        let forward = "iifname \"overlay.1\" oifname != { \"br-1\" } ip daddr 10.1.15.0/24 accept comment \
                       \"overlay.1 to 10.1.15.0/24, not br-1\"";
        assert_eq!(
            lines(&listing(), &Scene { bridges, ..Scene::example() }),
            [insert(CHAINS[0], forward), insert(CHAINS[1], BY_TUNNEL)]
        );
    }
}
