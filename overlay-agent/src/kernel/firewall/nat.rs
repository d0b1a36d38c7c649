use std::io::ErrorKind;

use anyhow::{Context, Result, bail};
use ipnetwork::Ipv4Network;
use tokio::process::Command;

use super::{Scene, forward, nft};

/// Whose addresses are changed on their way, on one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nat {
    /// The whole overlay.
    pub network: Ipv4Network,
    /// This host's lease.
    pub subnet: Ipv4Network,
    /// The device that leads to all other hosts; none where some are reached without it.
    pub device: Option<String>,
    /// The rules of `--ip-masq`.
    pub masquerade: Option<Masquerade>,
}

/// Containers get the host's address towards the outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// Whether source ports are chosen at random, which spares parallel flows from colliding.
    pub random: bool,
}

impl Nat {
    /// A table of our own that takes the place of the one before in a single transaction.
    ///
    /// Inside the overlay nobody's address changes, whatever others want: a flow has one translation, and the first
    /// chain that decides makes it, so ours stands before Docker's (`srcnat`, of `iptables` too) and firewalld's, and
    /// translates to the address that is there. What the fast path declines would else come from another address
    /// than the rest of its flow. A packet that kube-proxy marks for masquerading is left to it.
    ///
    /// The rules of `--ip-masq` are flannel's in iptables mode, in the same order.
    fn script(&self, scene: &Scene, guard: bool) -> String {
        let table = &scene.tunnel;
        let guard = if guard { self.guard(scene) } else { String::new() };
        let Self { network, subnet, device, masquerade } = self;
        // Flannel's rules return from POSTROUTING itself, so that Docker's behind them are not met, by whatever device a
        // packet leaves.
        let out = device.as_ref().filter(|_| masquerade.is_none());
        let out = out.map_or_else(String::new, |device| format!("oifname \"{device}\" "));
        let to_itself = if masquerade.is_some() {
            format!("    oifname \"lo\" ip saddr {subnet} ip daddr {network} snat to ip saddr\n")
        } else {
            String::new()
        };
        let masquerading = masquerade.map_or_else(String::new, |Masquerade { random }| {
            let masquerade = if random { "masquerade fully-random" } else { "masquerade" };
            format!(
                "  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    meta mark and 0x4000 == 0x4000 return
    ip saddr {subnet} ip daddr {network} return
    ip saddr {network} ip daddr {subnet} return
    ip saddr != {network} ip daddr {subnet} return
    ip saddr {network} ip daddr != 224.0.0.0/4 {masquerade}
    ip saddr != {network} ip daddr {network} {masquerade}
  }}
"
            )
        });
        format!(
            "add table ip {table}
delete table ip {table}
table ip {table} {{
  chain inside {{
    type nat hook postrouting priority srcnat - 1; policy accept;
    meta mark and 0x4000 == 0x4000 return
    {out}ip saddr {subnet} ip daddr {network} ip daddr != {subnet} snat to ip saddr
    ip saddr {network} ip saddr != {subnet} ip daddr {subnet} snat to ip saddr
{to_itself}  }}
{masquerading}{guard}}}
"
        )
    }

    /// For the host's own sockets: overlay packets of other hosts that come by an interface which has no program of
    /// ours yet, since what has one does not come this far. Containers are guarded on their side. (Where some come
    /// without a tunnel, their routes do not tell.)
    fn guard(&self, scene: &Scene) -> String {
        let Self { network, device, .. } = self;
        let Some(device) = device else { return String::new() };
        let known = ["lo", device, &scene.uplink]
            .into_iter()
            .chain(scene.bridges.iter().map(String::as_str));
        let known: Vec<_> = known.map(|name| format!("\"{name}\"")).collect();
        format!(
            "  chain strangers {{
    type filter hook input priority raw; policy accept;
    iifname != {{ {} }} ip saddr {network} ip daddr {network} fib saddr oifname \"{device}\" drop
  }}
",
            known.join(", ")
        )
    }

    /// Makes the rules. Returns how many things there are now, the table, its chains and rules; `None` where there are none: a
    /// host without tools for rules has none of others' either.
    pub(super) async fn apply(&self, scene: &Scene) -> Result<Option<usize>> {
        match self.make(scene, true).await {
            // Not every kernel has what the guard asks for (CONFIG_NFT_FIB_IPV4).
            Err(error) if self.device.is_some() => {
                let made = self.make(scene, false).await?;
                tracing::warn!(
                    "what comes by an interface before its program is there is not guarded: {error:#}"
                );
                Ok(made)
            }
            outcome => outcome,
        }
    }

    async fn make(&self, scene: &Scene, guard: bool) -> Result<Option<usize>> {
        let script = self.script(scene, guard);
        let output = match nft::carry_out(&script).await {
            Err(error)
                if error.kind() == ErrorKind::NotFound
                    && self.masquerade.is_none()
                    && !forward::can_filter().await? =>
            {
                return Ok(None);
            }
            outcome => outcome.context(match self.masquerade {
                Some(_) => {
                    "running nft, which --ip-masq needs: nothing is masqueraded, and containers do not reach the \
                     outside"
                }
                None => {
                    "running nft: containers' packets to other hosts may be masqueraded by Docker"
                }
            })?,
        };
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr);
            bail!("making table ip {}: {}", scene.tunnel, reason.trim());
        }
        Ok(Some(things(&script)))
    }
}

/// How many things a script makes, of which `nft` gives each a handle: a line for each.
fn things(script: &str) -> usize {
    let no_thing = ["", "}", "add table", "delete table", "type "];
    let is_thing = |line: &&str| {
        let line = line.trim();
        !no_thing.iter().any(|no| line == *no || !no.is_empty() && line.starts_with(no))
    };
    script.lines().filter(is_thing).count()
}

/// How many things a listing shows.
pub(super) fn shown(listing: &str) -> usize {
    listing.matches("# handle ").count()
}

/// Our table as `nft` shows it, each thing with its handle; nothing where it is not there, or where there is no `nft`.
pub(super) async fn list(table: &str) -> Result<Option<String>> {
    let output =
        Command::new("nft").args(["-a", "-s", "list", "table", "ip", table]).output().await;
    match output {
        Ok(output) if output.status.success() => {
            Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
        }
        Ok(_) => Ok(None),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
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

    fn rules(device: Option<&str>, masquerade: Option<Masquerade>) -> Vec<String> {
        let script = Nat {
            network: "10.1.0.0/16".parse().unwrap(),
            subnet: "10.1.15.0/24".parse().unwrap(),
            device: device.map(str::to_owned),
            masquerade,
        }
        .script(&Scene::example(), true);
        let is_rule = |line: &&str| {
            ["meta", "ip ", "oifname", "iifname"].iter().any(|word| line.starts_with(word))
        };
        script.lines().map(str::trim).filter(is_rule).map(str::to_owned).collect()
    }

    #[test]
    fn rules_of_ip_masq_come_in_flannels_order() {
        assert_eq!(
            rules(None, Some(Masquerade { random: true }))[4..],
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

    #[test]
    fn inside_the_overlay_addresses_stay_whatever_the_flags() {
        let into =
            "ip saddr 10.1.0.0/16 ip saddr != 10.1.15.0/24 ip daddr 10.1.15.0/24 snat to ip saddr";
        let out =
            "ip saddr 10.1.15.0/24 ip daddr 10.1.0.0/16 ip daddr != 10.1.15.0/24 snat to ip saddr";
        assert_eq!(rules(None, None)[1..], [out, into]);
        let by_tunnel = format!("oifname \"overlay.1\" {out}");
        let strangers = "iifname != { \"lo\", \"overlay.1\", \"eth0\", \"docker0\" } ip saddr 10.1.0.0/16 ip daddr \
                         10.1.0.0/16 fib saddr oifname \"overlay.1\" drop";
        assert_eq!(rules(Some("overlay.1"), None)[1..], [&by_tunnel, into, strangers]);
        let masquerading = rules(Some("overlay.1"), Some(Masquerade { random: false }));
        assert_eq!(masquerading[1..3], [out, into], "by whatever device, as with flannel");
    }
}
