use std::{ffi::OsStr, process::Output};

use anyhow::{Context, Result, ensure};
use ipnetwork::Ipv4Network;
use tokio::process::Command;

/// What the host is to forward.
#[derive(Debug)]
pub struct Forward {
    /// With direct routing, also what comes in by this interface for our subnet.
    pub direct: Option<(String, Ipv4Network)>,
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

/// By which rules for direct routing are known, because neither interface nor subnet need be those of today.
/// `iptables` would list a comment with dots in quotes.
fn direct_comment(device: &str) -> String {
    format!("{}-direct-routing", device.replace('.', "-"))
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
        let comment = direct_comment(device);
        let wanted = self.direct.as_ref().map(|(uplink, subnet)| {
            let subnet = subnet.to_string();
            let of = ["-d", &subnet, "-i", uplink, "-m", "comment", "--comment", &comment];
            rule(&[&of[..], &["-j", "ACCEPT"]].concat())
        });
        let mut missing = wanted.as_ref();
        for found in direct_rules(&comment).await? {
            if Some(&found) == missing {
                missing = None;
            } else {
                change("-D", &found).await?;
            }
        }
        match missing {
            Some(rule) => add(rule).await,
            None => Ok(()),
        }
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

/// The rules with this comment, as `iptables` writes them. None of their words has a space in it.
async fn direct_rules(comment: &str) -> Result<Vec<Rule>> {
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
        .filter(|rule| rule.iter().any(|word| word == comment))
        .collect())
}

/// Removes the rules. Returns whether there were any.
pub(super) async fn remove(device: &str) -> Result<bool> {
    let mut removed = false;
    // Where nothing can be listed, nothing of ours can have been made, and the rest is to go all the same.
    let direct = direct_rules(&direct_comment(device)).await.unwrap_or_default();
    let all = rules(device).into_iter().chain(direct);
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
