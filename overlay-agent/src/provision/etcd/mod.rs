//! `init`: the first host, with the etcd that all others use; and the hosts that have a share in that etcd.

mod cluster;
mod data;
mod invite;
mod service;
mod settings;
mod snapshot;
mod status;
mod take_part;

use std::{
    net::Ipv4Addr,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, anyhow};
use etcd_client::{Client, GetOptions};
use overlay_lease::{
    config::NetworkConfig,
    store::{
        Store as _,
        etcd::{EtcdConfig, EtcdStore},
        operate::set_config,
    },
    wire::key::KeyPrefix,
};

use self::settings::Settings;
pub use self::{
    cluster::{Remove, TakePart, add, remove},
    snapshot::{Backup, Restore, backup, restore},
    status::{ClusterStatus, MemberState, status},
};
pub(super) use self::{
    cluster::{others, part_with},
    service::stop_serving,
    snapshot::disable_timer,
    take_part::{check_invitation, others_of, take_part},
};
use super::{
    DEFAULT_NETWORK, ETCD_DROP_IN, ETCD_PORT, ETCD_UNIT, Init, MEMBER_TOKEN_FILE, TOKEN_FILE,
    checks, consent, docker, endpoint,
    member::{self, SameEtcd},
    report::Report,
    systemd, token,
};
use crate::{
    authority::{self, Newcomer, as_root, ca_file, certificates, host_identity},
    dotenv,
    exit::{Exit, OwnExit as _, WithExit as _},
    files,
    kernel::firewall::ServicePort,
    output::print,
};

/// What Debian's etcd reads its settings from.
const DEBIAN_ENV: &str = "/etc/default/etcd";
/// Where it keeps its data by them.
const LOOPBACK: &str = "http://127.0.0.1:2379";
/// Where members of etcd reach each other.
const PEER_PORT: u16 = 2380;
/// Where members of etcd are reached.
pub(super) const PORTS: [ServicePort; 2] = [ETCD_PORT, ServicePort::Tcp(PEER_PORT)];
/// How long a question about an etcd that may not be there may take.
const ASK_WITHIN: Duration = Duration::from_secs(3);
/// How long ours may take until it answers.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Makes this host the first one.
pub async fn init(wanted: &Init) -> Result<()> {
    checks::root("init")?;
    let uplink = checks::uplink(wanted.iface.as_deref()).await?;
    let docker = docker::check(wanted.address_pools).await?;
    let local = wanted.etcd.is_none();
    if local {
        check_local().await?;
    }
    let etcd = wanted
        .etcd
        .clone()
        .unwrap_or_else(|| local_config(uplink.address, wanted.tls, &wanted.prefix));
    // It may have another address than when this host's etcd was set up.
    let is_ours = local && Path::new(ETCD_DROP_IN).exists();
    let same = if is_ours { SameEtcd::Yes } else { SameEtcd::ByAddress };
    member::refuse_other(&etcd, wanted.iface.as_deref(), same)?;
    let mut report = Report::default();
    // Of a network that is there, everything is checked before anything is changed.
    let existing = if local && !Path::new(ETCD_DROP_IN).exists() {
        None
    } else {
        stored_config(&etcd, local).await?
    };
    let (_, network) = choose_network(wanted, existing.as_deref())?;
    checks::kernel_and_network(&network).await?;
    let ports: &[_] = if local { &[ETCD_PORT] } else { &[] };
    checks::firewall(&uplink, &network, ports).await?;
    Report::found(
        "machine",
        &format!(
            "kernel takes the programs, UDP port {} is free, {} overlaps no route",
            network.port, network.network
        ),
    )?;

    if !consent::ask(wanted.consent, &steps(&etcd, local, &network), None).await? {
        return Ok(());
    }
    let renewed = local && set_up_local(uplink.address, wanted.tls, &etcd, &mut report).await?;
    let store = EtcdStore::new(&as_root(etcd.clone()))?;
    if local {
        refuse_meanwhile(&store).await?;
        tell_hosts_apart(&store, uplink.address, wanted.certificate_lifetime).await?;
    }
    write_network(wanted, &etcd, &store, &mut report).await?;
    member::start(&etcd, wanted.iface.as_deref(), renewed, &docker, &mut report).await?;
    let endpoints = if local { service::endpoints(&etcd).await } else { etcd.endpoints.clone() };
    let members = endpoints.len();
    let token = invite::invite(&etcd, &store, endpoints, local, wanted, &mut report).await?;
    report.finish()?;
    print(format_args!(
        "\nThis host is ready. Copy {TOKEN_FILE} to every other one, with the package installed, and run there:\n\n  \
         overlay-agent join join.token\n\n"
    ))?;
    if local && members < 3 {
        let hosts = if members == 1 { "this host alone" } else { "two hosts" };
        print(format_args!(
            "etcd is on {hosts}. For it to outlive any one host, three have to take part in it, with \
             {MEMBER_TOKEN_FILE}:\n\n  overlay-agent join --etcd member.token\n\n"
        ))?;
    }
    print(format_args!(
        "What you copy is a secret, good for {} more; `overlay-agent init` makes a new one then.\n",
        token::ago(token.left(SystemTime::now()))
    ))
}

/// Has this host's etcd let every host do only what is its own, and this one in.
async fn tell_hosts_apart(
    store: &EtcdStore,
    address: Ipv4Addr,
    lifetime: Option<Duration>,
) -> Result<()> {
    let own = host_identity();
    let Some(host) = own.host().filter(|_| ca_file().exists()) else { return Ok(()) };
    let certificate = certificates::read_identity(&own)?.certificate;
    let newcomer = Newcomer { host, address: Some(address), certificate };
    authority::establish(store, &newcomer, lifetime).await.exit(Exit::Unavailable)
}

/// Fails while the authority is made another: what is made of the old one now is worth nothing soon.
async fn refuse_meanwhile(store: &EtcdStore) -> Result<()> {
    if authority::rotation(store).await.exit(Exit::Unavailable)?.is_some() {
        return Err(anyhow!(
            "the authority is being made another, which was not finished: `overlay-agent authority rotate` on a host with a \
             share in etcd goes on with it"
        ))
        .exit(Exit::Conflict);
    }
    Ok(())
}

/// Writes the network config, unless there is one: an etcd that was down before may have it.
async fn write_network(
    wanted: &Init,
    etcd: &EtcdConfig,
    store: &EtcdStore,
    report: &mut Report,
) -> Result<()> {
    let existing = stored_config(etcd, false).await?;
    let (text, network) = choose_network(wanted, existing.as_deref())?;
    if existing.is_none() {
        set_config(store, text.as_bytes(), &network, false).await.own_exit()?;
    }
    let key = store.prefix().config_key();
    report.step(existing.is_none(), "network", &format!("{} ({key})", network.network))
}

/// Fails where this host's etcd is not ours to set up.
async fn check_local() -> Result<()> {
    let unit = systemd::files_of(ETCD_UNIT)
        .await?
        .context(
            "there is no etcd on this host: `apt install etcd-server`, or name one with --etcd-endpoints",
        )
        .exit(Exit::Unavailable)?;
    if Path::new(ETCD_DROP_IN).exists() {
        return Ok(());
    }
    let way_out = "use that etcd with --etcd-endpoints, or remove its settings and data";
    let settings = files::read(Path::new(DEBIAN_ENV))?.unwrap_or_default();
    if let Some((name, _)) = dotenv::assignments(&settings).next() {
        return Err(anyhow!(
            "this host's etcd has settings of its own ({name} in {DEBIAN_ENV}): {way_out}"
        ))
        .exit(Exit::Conflict);
    }
    let foreign = unit
        .lines()
        .filter_map(|line| line.strip_prefix("# /"))
        .find(|file| file.starts_with("etc/systemd/"));
    if let Some(file) = foreign {
        return Err(anyhow!("this host's etcd has settings of its own (/{file}): {way_out}"))
            .exit(Exit::Conflict);
    }
    match keys_at(LOOPBACK).await {
        None | Some(0) => Ok(()),
        Some(keys) => Err(anyhow!(
            "somebody uses this host's etcd: it holds {keys} keys ({LOOPBACK}); {way_out}"
        ))
        .exit(Exit::Conflict),
    }
}

/// How many keys an etcd holds; nothing if none answers.
async fn keys_at(endpoint: &str) -> Option<i64> {
    let count = Box::pin(async {
        let mut client = Client::connect([endpoint], None).await.ok()?;
        let all = GetOptions::new().with_all_keys().with_count_only();
        Some(client.get(vec![0], Some(all)).await.ok()?.count())
    });
    tokio::time::timeout(ASK_WITHIN, count).await.ok()?
}

/// How to reach this host's etcd once it is set up.
fn local_config(address: Ipv4Addr, tls: bool, prefix: &str) -> EtcdConfig {
    EtcdConfig {
        endpoints: vec![endpoint(address, tls)],
        prefix: KeyPrefix::new(prefix),
        ca_file: tls.then(ca_file),
        identity: tls.then(host_identity),
        user: None,
    }
}

/// The same etcd, asked on its own host, by somebody who may do everything.
pub(super) fn at_home(etcd: &EtcdConfig) -> EtcdConfig {
    let endpoints = vec![endpoint(Ipv4Addr::LOCALHOST, etcd.ca_file.is_some())];
    as_root(EtcdConfig { endpoints, ..etcd.clone() })
}

/// What is done, for `--dry-run`.
fn steps(etcd: &EtcdConfig, local: bool, network: &NetworkConfig) -> Vec<String> {
    let etcd = etcd.endpoints.join(",");
    [
        if local {
            format!("set up this host's etcd at {etcd}")
        } else {
            format!("use etcd at {etcd}")
        },
        format!("make {} the overlay's network, unless there is one in etcd", network.network),
        "start the agent, and start it at boot".to_owned(),
        format!("have Docker start after it, with its bridge in a subnet of {}", network.network),
        format!("write the line for other hosts to {TOKEN_FILE}"),
    ]
    .into()
}

/// The network config that is in etcd. Ours may be down, or not have got that far.
async fn stored_config(etcd: &EtcdConfig, local: bool) -> Result<Option<Vec<u8>>> {
    if local && !ca_or_plain(etcd) {
        return Ok(None);
    }
    let store = EtcdStore::new(&if local { at_home(etcd) } else { as_root(etcd.clone()) })?;
    match store.get(&store.prefix().config_key()).await {
        Ok(entry) => Ok(entry.map(|entry| entry.value)),
        Err(_) if local => Ok(None),
        Err(error) => Err(error).exit(Exit::Unavailable),
    }
}

fn ca_or_plain(etcd: &EtcdConfig) -> bool {
    let identity = etcd.identity.as_ref().is_none_or(|identity| identity.key_file.exists());
    etcd.ca_file.as_ref().is_none_or(|file| file.exists()) && identity
}

/// The network to use: the one in etcd, unless another was asked for, which is refused.
fn choose_network(wanted: &Init, existing: Option<&[u8]>) -> Result<(String, NetworkConfig)> {
    if let Some(asked) = wanted.network.filter(|network| network.ip() != network.network()) {
        let first = asked.network();
        return Err(anyhow!(
            "{asked} is no network: the first address of its /{} is {first}",
            asked.prefix()
        ))
        .exit(Exit::Usage);
    }
    let asked = wanted.network.map(|network| network.to_string());
    let text = match existing {
        Some(text) => String::from_utf8_lossy(text).into_owned(),
        None => format!(
            r#"{{"Network":"{}","Backend":{{"Type":"vxlan"}}}}"#,
            asked.as_deref().unwrap_or(DEFAULT_NETWORK)
        ),
    };
    let config = NetworkConfig::parse(text.as_bytes())
        .context("the network config is malformed")
        .exit(if existing.is_some() { Exit::Config } else { Exit::Usage })?
        .config;
    if wanted.network.is_some_and(|network| network != config.network) {
        return Err(anyhow!(
            "the overlay has a network already, {}: `overlay-agent config set` changes it",
            config.network
        ))
        .exit(Exit::Conflict);
    }
    Ok((text, config))
}

/// Certificates, settings and service of this host's etcd. Returns whether any of these is new.
async fn set_up_local(
    address: Ipv4Addr,
    tls: bool,
    etcd: &EtcdConfig,
    report: &mut Report,
) -> Result<bool> {
    let mut changed = tls && certificates::make(address)?;
    if !tls {
        tracing::warn!("--no-tls: whoever reaches {address} can read and change the overlay");
    }
    let settings = match Settings::read()? {
        Some(found) => Settings { address, tls, ..found },
        None => Settings::first(address, tls),
    };
    changed |= settings.write()?;
    if changed {
        systemd::reload().await?;
    }
    changed |= systemd::enable(ETCD_UNIT).await?;
    changed |= snapshot::enable_timer().await?;
    // It may run with the settings of before, if an earlier `init` was interrupted.
    let answers = !changed && {
        let store = EtcdStore::new(&as_root(etcd.clone()))?;
        store.get(&store.prefix().config_key()).await.is_ok()
    };
    if !answers {
        systemd::restart(ETCD_UNIT).await.exit(Exit::Unavailable)?;
        wait_for_answer(etcd).await?;
    }
    service::tell_where(&settings, etcd).await?;
    let who = if tls { "clients need a certificate" } else { "open to everybody" };
    report.step(!answers, "etcd", &format!("{}, {who}", etcd.endpoints.join(",")))?;
    Ok(changed)
}

async fn wait_for_answer(etcd: &EtcdConfig) -> Result<()> {
    let store = EtcdStore::new(&as_root(etcd.clone()))?;
    let key = store.prefix().config_key();
    let start = std::time::Instant::now();
    loop {
        match store.get(&key).await {
            Ok(_) => return Ok(()),
            Err(error) if start.elapsed() > ANSWER_WITHIN => {
                return Err(error)
                    .with_context(|| format!("`journalctl --unit {ETCD_UNIT}` has the whole story"))
                    .exit(Exit::Unavailable);
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provision::Consent;

    fn wanted(network: Option<&str>) -> Init {
        Init {
            network: network.map(|network| network.parse().unwrap()),
            iface: None,
            address_pools: None,
            etcd: None,
            prefix: "/coreos.com/network".to_owned(),
            tls: true,
            token_lifetime: Duration::from_hours(24),
            token_once: false,
            certificate_lifetime: None,
            consent: Consent::Given,
        }
    }

    #[test]
    fn a_network_that_is_there_stays() {
        let text = br#"{"Network":"10.7.0.0/16","Backend":{"Type":"vxlan","Port":4789}}"#;
        let (_, config) = choose_network(&wanted(None), Some(text)).unwrap();
        assert_eq!((config.network.to_string().as_str(), config.port), ("10.7.0.0/16", 4789));
        choose_network(&wanted(Some("10.7.0.0/16")), Some(text)).unwrap();
        let error = choose_network(&wanted(Some("10.8.0.0/16")), Some(text)).unwrap_err();
        assert_eq!(Exit::of(&error), Exit::Conflict);
        assert!(error.to_string().contains("10.7.0.0/16"), "{error}");
    }

    #[test]
    fn a_network_that_cannot_be_is_the_command_lines_fault() {
        let error = choose_network(&wanted(Some("10.1.2.3/16")), None).unwrap_err();
        assert_eq!(Exit::of(&error), Exit::Usage);
        let (text, config) = choose_network(&wanted(None), None).unwrap();
        assert_eq!(config.network.to_string(), DEFAULT_NETWORK);
        assert!(text.contains("vxlan"));
    }
}
