use std::process::Stdio;

use anyhow::{Context, Result, bail};
use ipnetwork::Ipv4Network;
use tokio::{io::AsyncWriteExt, process::Command};

/// The masquerading rules of one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// The whole overlay.
    pub network: Ipv4Network,
    /// This host's lease.
    pub subnet: Ipv4Network,
    /// Whether source ports are chosen at random, which spares parallel flows from colliding.
    pub random: bool,
}

impl Masquerade {
    /// The rules as flannel has them in iptables mode, in the same order, in a table of our own that takes
    /// the place of the one before in a single transaction.
    fn script(&self, table: &str) -> String {
        let Self { network, subnet, random } = self;
        let masquerade = if *random { "masquerade fully-random" } else { "masquerade" };
        format!(
            "add table ip {table}
delete table ip {table}
table ip {table} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    meta mark and 0x4000 == 0x4000 return
    ip saddr {subnet} ip daddr {network} return
    ip saddr {network} ip daddr {subnet} return
    ip saddr != {network} ip daddr {subnet} return
    ip saddr {network} ip daddr != 224.0.0.0/4 {masquerade}
    ip saddr != {network} ip daddr {network} {masquerade}
  }}
}}
"
        )
    }

    /// Makes the rules.
    pub(super) async fn apply(&self, table: &str) -> Result<()> {
        let script = self.script(table);
        let mut nft = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("running nft for --ip-masq")?;
        let mut input = nft.stdin.take().context("nft has no standard input")?;
        input.write_all(script.as_bytes()).await.context("handing nft its rules")?;
        drop(input);
        let output = nft.wait_with_output().await.context("waiting for nft")?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr);
            bail!("making table ip {table} for --ip-masq: {}", reason.trim());
        }
        Ok(())
    }
}

/// Our table as `nft` shows it; nothing where it is not there, or where there is no `nft`.
pub(super) async fn list(table: &str) -> Result<Option<String>> {
    let output = Command::new("nft").args(["-s", "list", "table", "ip", table]).output().await;
    match output {
        Ok(output) if output.status.success() => {
            Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
        }
        Ok(_) => Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("running nft"),
    }
}

/// Removes our table.
pub(super) async fn remove(table: &str) -> Result<()> {
    let output = Command::new("nft")
        .args(["delete", "table", "ip", table])
        .output()
        .await
        .context("running nft")?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        bail!("removing table ip {table}: {}", reason.trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_come_in_flannels_order() {
        let script = Masquerade {
            network: "10.1.0.0/16".parse().unwrap(),
            subnet: "10.1.15.0/24".parse().unwrap(),
            random: true,
        }
        .script("overlay.1");
        let rules: Vec<_> = script.lines().skip(5).take(6).map(str::trim).collect();
        assert_eq!(
            rules,
            [
                "meta mark and 0x4000 == 0x4000 return",
                "ip saddr 10.1.15.0/24 ip daddr 10.1.0.0/16 return",
                "ip saddr 10.1.0.0/16 ip daddr 10.1.15.0/24 return",
                "ip saddr != 10.1.0.0/16 ip daddr 10.1.15.0/24 return",
                "ip saddr 10.1.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random",
                "ip saddr != 10.1.0.0/16 ip daddr 10.1.0.0/16 masquerade fully-random",
            ]
        );
    }
}
