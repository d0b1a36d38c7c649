//! Docker's service: started after the agent, with the subnet that this host leases.

use std::{net::Ipv4Addr, path::Path};

use anyhow::{Context as _, Result, anyhow};
use ipnetwork::Ipv4Network;
use serde_json::{Map, Value};

use super::{
    DOCKER_DROP_IN,
    containers::{self, Ends},
    report::Report,
    systemd,
};
use crate::{
    address_pools::{AddressPools, PoolSize},
    dotenv,
    exit::{Exit, WithExit as _},
    files::{self, Readers},
    kernel::netlink,
    subnet_env::{self, bridge_address},
};

/// Docker's own bridge.
pub const BRIDGE: &str = "docker0";

/// What address it had before, for `leave`.
const OWN_ADDRESS: &str = "/etc/overlay/docker-bridge";
/// What address it has on a host of which nothing else is known.
const USUAL_ADDRESS: &str = "172.17.0.1/16";

const UNIT: &str = "docker.service";
const SOCKET: &str = "docker.socket";
const DAEMON_JSON: &str = "/etc/docker/daemon.json";
const DEFAULTS: &str = "/etc/default/docker";
/// The flag of `docker-opts` in our drop-in.
const ADDRESS_POOLS: &str = "--address-pools";
const TEMPLATE: &str = include_str!("../../../packaging/systemd/docker.conf");

/// Docker's service, on which nothing is in our way.
#[derive(Debug)]
pub(super) struct Docker {
    drop_in: String,
    address_pools: Option<PoolSize>,
}

/// Fails where there is no Docker, or where somebody else has told it which bridge to use. Where nothing is said of
/// address pools, what was said before holds.
pub(super) async fn check(address_pools: Option<PoolSize>) -> Result<Docker> {
    let address_pools = match address_pools {
        None => address_pools_before()?,
        said => said,
    };
    let unit = systemd::files_of(UNIT)
        .await?
        .with_context(|| {
            format!("there is no {UNIT}: install Docker first, `apt install docker.io`")
        })
        .exit(Exit::Unavailable)?;
    let theirs = without_ours(&unit);
    let command = start_command(&theirs)
        .with_context(|| format!("{UNIT} has no ExecStart"))
        .exit(Exit::Unavailable)?;
    let defaults = files::read(Path::new(DEFAULTS))?.unwrap_or_default();
    let options: Vec<_> = dotenv::assignments(&defaults)
        .filter(|(name, _)| *name == "DOCKER_OPTS")
        .map(|(_, value)| value)
        .collect();
    let daemon = files::read(Path::new(DAEMON_JSON))?.unwrap_or_default();
    let found = daemon_json_conflict(&daemon, address_pools.is_some())?
        .map(|key| (DAEMON_JSON, key))
        .or_else(|| option_conflict(&options.join(" ")).map(|option| (DEFAULTS, option)))
        .or_else(|| option_conflict(&command).map(|option| (UNIT, option)));
    if let Some((place, setting)) = found {
        return Err(anyhow!(
            "{place} sets {setting}, and the overlay has to: it tells Docker the subnet that this host \
             leases. Remove it there, and run this again"
        ))
        .exit(Exit::Conflict);
    }
    Ok(Docker { drop_in: drop_in(&command, address_pools), address_pools })
}

impl Docker {
    /// Has Docker wait for the agent and take its options.
    pub(super) async fn configure(&self, report: &mut Report) -> Result<()> {
        if !Path::new(DOCKER_DROP_IN).exists()
            && let Some(address) = bridge_address_now().await?
        {
            files::write(Path::new(OWN_ADDRESS), &format!("{address}\n"), Readers::All)?;
        }
        let mut changed = files::write(Path::new(DOCKER_DROP_IN), &self.drop_in, Readers::All)?;
        if changed {
            systemd::reload().await?;
        }
        changed |= systemd::enable(UNIT).await?;
        report.step(changed, "docker", &format!("starts after the agent ({DOCKER_DROP_IN})"))
    }

    /// Has Docker use this subnet, by starting it anew unless it does.
    pub(super) async fn bring_up(&self, subnet: Ipv4Network, report: &mut Report) -> Result<()> {
        let wanted = own_bridge(subnet, self.address_pools)?;
        let changed = !systemd::is_active(UNIT).await? || !bridge_has(wanted).await?;
        if changed {
            restart_on_new_bridge().await?;
        }
        report.step(
            changed,
            "docker",
            &format!("runs with its bridge at {}/{}", wanted.0, wanted.1),
        )?;
        run_again(report).await
    }
}

/// Gives Docker back its own bridge, and returns the address of that, if Docker had ours.
///
/// Docker remembers the last address of its bridge whatever becomes of the bridge, so it is started once with
/// the one from before; that it remembers, too.
pub(super) async fn release(report: &mut Report) -> Result<Option<String>> {
    let path = Path::new(DOCKER_DROP_IN);
    if !path.exists() {
        return Ok(None);
    }
    let recorded = files::read(Path::new(OWN_ADDRESS))?;
    let address = recorded.as_deref().map_or(USUAL_ADDRESS, str::trim).to_owned();
    if let Some(command) = systemd::files_of(UNIT).await?.as_deref().and_then(start_command) {
        let command = command.replace("$DOCKER_OPTS", "");
        let once =
            format!("[Service]\nExecStart=\nExecStart={command} $DOCKER_OPTS --bip={address}\n");
        files::write(path, &once, Readers::All)?;
        systemd::reload().await?;
        restart_on_new_bridge().await?;
    }
    files::remove(path)?;
    // Others may have settings there.
    path.parent().map(std::fs::remove_dir);
    systemd::reload().await?;
    run_again(report).await?;
    Ok(Some(address))
}

/// The address that Docker's bridge has, if it is there.
async fn bridge_address_now() -> Result<Option<String>> {
    let observed = netlink::observe(&netlink::connect()?).await?;
    let bridge = observed.links.values().find(|link| link.name == BRIDGE);
    Ok(bridge.and_then(|link| {
        let mut addresses = observed.addresses.iter().filter(|(index, ..)| *index == link.index);
        addresses.next().map(|(_, address, length)| format!("{address}/{length}"))
    }))
}

/// What ends when Docker is given another bridge. Where it has the one with this host's subnet, that is where it is
/// going to be already.
pub(super) async fn restart_ends(leaving: bool) -> Ends {
    match running_on_another(leaving).await {
        Ok(running) if running.is_empty() => Ends::Nothing,
        Ok(running) => Ends::Containers(running),
        Err(error) => Ends::Unknown(error),
    }
}

async fn running_on_another(leaving: bool) -> Result<Vec<containers::Running>> {
    let stays = if leaving {
        !Path::new(DOCKER_DROP_IN).exists()
    } else {
        match subnet_env::read_subnet(Path::new(subnet_env::DEFAULT_PATH))? {
            Some(subnet) => bridge_has(own_bridge(subnet, address_pools_before()?)?).await?,
            None => false,
        }
    };
    if stays || !systemd::is_active(UNIT).await? {
        Ok(Vec::new())
    } else {
        containers::running().await
    }
}

/// Docker keeps the address that it finds on its bridge, so the bridge has to go.
async fn restart_on_new_bridge() -> Result<()> {
    if systemd::is_active(UNIT).await? {
        match containers::running().await {
            Ok(running) => containers::remember(&running)?,
            Err(error) => tracing::warn!("which containers run cannot be told: {error:#}"),
        }
    }
    // The socket would start the daemon again.
    let socket = systemd::files_of(SOCKET).await?.map(|_| SOCKET);
    let units: Vec<_> = socket.into_iter().chain([UNIT]).collect();
    systemd::stop(&units).await?;
    let handle = netlink::connect()?;
    let observed = netlink::observe(&handle).await?;
    if let Some(bridge) = observed.links.values().find(|link| link.name == BRIDGE) {
        handle
            .link()
            .del(bridge.index)
            .execute()
            .await
            .with_context(|| format!("cannot remove {BRIDGE}, which has another subnet"))?;
    }
    systemd::start(UNIT).await.exit(Exit::Unavailable)
}

/// What ran before Docker was stopped, by this command or by one that was interrupted.
async fn run_again(report: &mut Report) -> Result<()> {
    let started = containers::start_again().await?;
    if started.is_empty() {
        return Ok(());
    }
    report.done("docker", &format!("runs {} again", started.join(", ")))
}

/// The address of Docker's own bridge in this host's subnet.
fn own_bridge(subnet: Ipv4Network, pools: Option<PoolSize>) -> Result<(Ipv4Addr, u8)> {
    let length = match pools {
        None => subnet.prefix(),
        Some(size) => AddressPools::of(subnet, size).exit(Exit::Config)?.size,
    };
    Ok((bridge_address(subnet), length))
}

/// What our drop-in says of address pools.
fn address_pools_before() -> Result<Option<PoolSize>> {
    Ok(files::read(Path::new(DOCKER_DROP_IN))?.as_deref().and_then(address_pools_of))
}

fn address_pools_of(drop_in: &str) -> Option<PoolSize> {
    let words = drop_in.lines().filter(|line| line.starts_with("ExecStartPre="));
    let word =
        words.flat_map(str::split_whitespace).find(|word| word.starts_with(ADDRESS_POOLS))?;
    match word.strip_prefix(ADDRESS_POOLS)?.strip_prefix('=') {
        None => Some(PoolSize::Usual),
        Some(size) => size.parse().ok(),
    }
}

async fn bridge_has((address, length): (Ipv4Addr, u8)) -> Result<bool> {
    let observed = netlink::observe(&netlink::connect()?).await?;
    let bridge = observed.links.values().find(|link| link.name == BRIDGE);
    Ok(bridge.is_some_and(|link| observed.addresses.contains(&(link.index, address, length))))
}

/// The unit's files except our own.
fn without_ours(unit: &str) -> String {
    let mut ours = false;
    let mut text = String::new();
    for line in unit.lines() {
        // `systemctl cat` puts every file's name before its text.
        if let Some(file) = line.strip_prefix("# /") {
            ours = file == DOCKER_DROP_IN.trim_start_matches('/');
        }
        if !ours {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// What the unit starts: the last `ExecStart` counts.
fn start_command(unit: &str) -> Option<String> {
    let joined = unit.replace("\\\n", " ");
    let commands = joined.lines().filter_map(|line| line.trim().strip_prefix("ExecStart="));
    commands.map(str::trim).rfind(|command| !command.is_empty()).map(str::to_owned)
}

/// Our drop-in, for a service that starts this. Debian's takes `$DOCKER_OPTS`; to others it is added.
fn drop_in(command: &str, address_pools: Option<PoolSize>) -> String {
    let flag = match address_pools {
        None => String::new(),
        Some(PoolSize::Usual) => format!("{ADDRESS_POOLS} "),
        Some(PoolSize::Length(size)) => format!("{ADDRESS_POOLS}={size} "),
    };
    let text = TEMPLATE.replace("docker-opts ", &format!("docker-opts {flag}"));
    if command.contains("$DOCKER_OPTS") {
        return text;
    }
    format!("{text}ExecStart=\nExecStart={command} $DOCKER_OPTS\n")
}

/// The setting in `daemon.json` that Docker refuses beside our options.
fn daemon_json_conflict(text: &str, pools: bool) -> Result<Option<&'static str>> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    let settings: Map<String, Value> = serde_json::from_str(text)
        .with_context(|| format!("{DAEMON_JSON} is malformed: Docker could not start"))
        .exit(Exit::Conflict)?;
    let ours = ["bip", "bridge", "mtu", "ip-masq"];
    let mut ours = ours.into_iter().chain(pools.then_some("default-address-pools"));
    Ok(ours.find(|key| settings.contains_key(*key)))
}

/// The option on a command line that says what our options say.
fn option_conflict(command: &str) -> Option<&'static str> {
    let ours = ["--bip", "--bridge", "-b", "--mtu"];
    command
        .split_whitespace()
        .map(|word| word.split_once('=').map_or(word, |(option, _)| option))
        .find_map(|option| ours.into_iter().find(|ours| *ours == option))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "# /lib/systemd/system/docker.service\n[Service]\nType=notify\n\
        ExecStart=/usr/sbin/dockerd -H fd:// $DOCKER_OPTS\nExecReload=/bin/kill -s HUP $MAINPID\n";

    #[test]
    fn debians_service_takes_our_options_and_others_are_given_them() {
        let command = start_command(DEBIAN).unwrap();
        assert_eq!(command, "/usr/sbin/dockerd -H fd:// $DOCKER_OPTS");
        assert_eq!(drop_in(&command, None), TEMPLATE);
        let text = drop_in("/usr/bin/dockerd -H fd://", None);
        assert!(text.ends_with("ExecStart=\nExecStart=/usr/bin/dockerd -H fd:// $DOCKER_OPTS\n"));
    }

    #[test]
    fn the_last_command_counts_and_may_be_longer_than_a_line() {
        let unit = format!(
            "{DEBIAN}# /etc/x.conf\n[Service]\nExecStart=\nExecStart=dockerd \\\n  --mtu=9\n"
        );
        let command = start_command(&unit).unwrap();
        assert_eq!(option_conflict(&command), Some("--mtu"));
    }

    #[test]
    fn address_pools_are_in_the_drop_in_and_found_there_again() {
        for pools in [None, Some(PoolSize::Usual), Some(PoolSize::Length(27))] {
            assert_eq!(address_pools_of(&drop_in("dockerd", pools)), pools);
        }
        let text = drop_in("dockerd $DOCKER_OPTS", Some(PoolSize::Length(27)));
        assert!(
            text.contains("ExecStartPre=overlay-agent docker-opts --address-pools=27 "),
            "{text}"
        );
        let theirs = "{\"default-address-pools\": []}";
        assert_eq!(daemon_json_conflict(theirs, false).unwrap(), None);
        assert_eq!(daemon_json_conflict(theirs, true).unwrap(), Some("default-address-pools"));
        let subnet = "10.1.2.0/24".parse().unwrap();
        assert_eq!(own_bridge(subnet, Some(PoolSize::Usual)).unwrap(), ([10, 1, 2, 1].into(), 28));
    }

    #[test]
    fn what_we_have_written_ourselves_is_not_in_the_way() {
        let ours = drop_in("dockerd --bip=10.1.2.1/24", None);
        let unit = format!("{DEBIAN}\n# {DOCKER_DROP_IN}\n{ours}");
        assert_eq!(start_command(&without_ours(&unit)), start_command(DEBIAN));
    }

    #[test]
    fn a_bridge_of_somebody_elses_is_named() {
        assert_eq!(daemon_json_conflict("{\"bip\": \"10.9.0.1/24\"}", false).unwrap(), Some("bip"));
        assert_eq!(daemon_json_conflict("{\"log-level\": \"warn\"}", false).unwrap(), None);
        assert_eq!(daemon_json_conflict("", false).unwrap(), None);
        assert!(daemon_json_conflict("{", false).is_err());
        assert_eq!(option_conflict("--debug --bip 10.9.0.1/24"), Some("--bip"));
        assert_eq!(option_conflict("dockerd -b br0"), Some("-b"));
        assert_eq!(option_conflict("dockerd --bip-not=1 -bb"), None);
    }
}
