use std::{ffi::OsStr, process::Output};

use anyhow::{Context, Result, ensure};
use ipnetwork::Ipv4Network;
use tokio::process::Command;

/// What the host is to forward: what goes through the tunnel device, and, as flannel has it, everything from and to
/// the overlay's addresses. So containers keep the outside where the policy is DROP and Docker makes no rules, and
/// peers on the same link, which with direct routing come by no tunnel, are let in.
#[derive(Debug)]
pub struct Forward {
    /// The whole overlay.
    pub network: Ipv4Network,
}

type Rule = Vec<String>;

fn rule(words: &[&str]) -> Rule {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// One per direction. What comes out of the device has been checked by `from_tunnel`.
fn rules(device: &str) -> [Rule; 2] {
    ["-i", "-o"].map(|direction| {
        rule(&[direction, device, "-m", "comment", "--comment", "overlay forward", "-j", "ACCEPT"])
    })
}

/// Rules by address, which need not be today's, are known by a comment that begins with this, whatever version made
/// them. `iptables` would list a comment with dots in quotes.
fn comments_of(device: &str) -> String {
    format!("{}-", device.replace('.', "-"))
}

fn rules_by_address(device: &str, network: Ipv4Network) -> [Rule; 2] {
    let (network, comment) = (network.to_string(), format!("{}network", comments_of(device)));
    ["-s", "-d"]
        .map(|end| rule(&[end, &network, "-m", "comment", "--comment", &comment, "-j", "ACCEPT"]))
}

impl Forward {
    /// Adds the rules that are missing to the end of FORWARD, after everything that Docker puts in front.
    /// Docker sets that chain's policy to DROP, so the exception has to stand in the same chain. On a host
    /// without `iptables` nothing filters, and nothing is done.
    pub(super) async fn ensure(&self, device: &str) -> Result<()> {
        for rule in rules(device) {
            let Some(found) = iptables("-C", &rule).await? else {
                return Ok(());
            };
            if !found.status.success() {
                add(&rule).await?;
            }
        }
        let mut missing = rules_by_address(device, self.network).to_vec();
        for found in found_by_comment(device).await? {
            let before = missing.len();
            missing.retain(|rule| *rule != found);
            if missing.len() == before {
                change("-D", &found).await?;
            }
        }
        for rule in &missing {
            add(rule).await?;
        }
        Ok(())
    }
}

async fn add(rule: &Rule) -> Result<()> {
    crate::repairs::made("rule in FORWARD");
    change("-A", rule).await
}

async fn change(action: &str, rule: &Rule) -> Result<()> {
    let output = iptables(action, rule).await?.context("iptables has vanished")?;
    ensure!(
        output.status.success(),
        "iptables {action} FORWARD {}: {}",
        rule.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Our rules by address, as `iptables` writes them. None of their words has a space in it.
async fn found_by_comment(device: &str) -> Result<Vec<Rule>> {
    let comments = comments_of(device);
    let Some(listing) = iptables::<&str>("-S", &[]).await? else {
        return Ok(Vec::new());
    };
    ensure!(
        listing.status.success(),
        "listing the rules of FORWARD: {}",
        String::from_utf8_lossy(&listing.stderr).trim()
    );
    let listing = String::from_utf8_lossy(&listing.stdout);
    let words = listing.lines().map(|line| line.split(' ').skip(2).map(str::to_owned));
    Ok(words
        .map(Iterator::collect::<Rule>)
        .filter(|rule| rule.iter().any(|word| word.starts_with(&comments)))
        .collect())
}

/// Whether this host has a tool for rules.
pub(super) async fn can_filter() -> Result<bool> {
    Ok(iptables::<&str>("-S", &[]).await?.is_some())
}

/// Removes the rules. Returns whether there were any.
pub(super) async fn remove(device: &str) -> Result<bool> {
    let mut removed = false;
    // Where nothing can be listed, nothing of ours can have been made, and the rest is to go all the same.
    let by_address = found_by_comment(device).await.unwrap_or_default();
    let all = rules(device).into_iter().chain(by_address);
    for rule in all {
        while iptables("-D", &rule).await?.is_some_and(|output| output.status.success()) {
            removed = true;
        }
    }
    Ok(removed)
}

async fn iptables<S: AsRef<OsStr>>(action: &str, rule: &[S]) -> Result<Option<Output>> {
    let output = Command::new("iptables")
        // Wait for the lock: Docker changes rules too.
        .args(["-w", "5", action, "FORWARD"])
        .args(rule)
        .output()
        .await;
    match output {
        Ok(output) => Ok(Some(output)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("running iptables"),
    }
}
