//! `init`: the first host, with the etcd that all others use.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, anyhow};
use etcd_client::{Client, GetOptions};
use overlay_lease::{
    config::NetworkConfig,
    store::{
        Store as _,
        etcd::{EtcdConfig, EtcdStore, Identity},
        operate::set_config,
    },
    wire::key::KeyPrefix,
};

use super::{
    DEFAULT_NETWORK, ETCD_DATA, ETCD_DROP_IN, ETCD_ENV, ETCD_UNIT, Init, TOKEN_FILE, ca_file,
    checks, consent, docker, endpoint, enrol,
    files::{self, Readers},
    host_identity,
    member::{self, SameEtcd},
    pki::{self, Authority, Credential},
    pki_file,
    report::Report,
    systemd,
    token::{self, Token},
};
use crate::{
    dotenv,
    exit::{Exit, OwnExit as _, WithExit as _},
    output::print,
};

const DROP_IN: &str = include_str!("../../../packaging/systemd/etcd.conf");
/// What Debian's etcd reads its settings from.
const DEBIAN_ENV: &str = "/etc/default/etcd";
/// Where it keeps its data by them.
const LOOPBACK: &str = "http://127.0.0.1:2379";
/// As whom it runs.
const GROUP: &str = "etcd";
/// How long a question about an etcd that may not be there may take.
const ASK_WITHIN: Duration = Duration::from_secs(3);
/// How long ours may take until it answers.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Makes this host the first one.
pub async fn init(wanted: &Init) -> Result<()> {
    checks::root("init")?;
    let uplink = checks::uplink(wanted.iface.as_deref()).await?;
    let docker = docker::check().await?;
    let local = wanted.etcd.is_none();
    if local {
        check_local().await?;
    }
    let etcd = wanted.etcd.clone().unwrap_or_else(|| local_config(uplink.address, wanted));
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
    let store = EtcdStore::new(&etcd)?;
    write_network(wanted, &etcd, &store, &mut report).await?;
    if local && let Some(identity) = &etcd.identity {
        enrol::publish(&store, &read_identity(identity)?).await?;
    }
    member::start(&etcd, wanted.iface.as_deref(), renewed, &docker, &mut report).await?;
    let token = token(&etcd, local, wanted, &mut report)?;
    report.finish()?;
    print(format_args!(
        "\nThis host is ready. Copy {TOKEN_FILE} to every other one, with the package installed, and run there:\n\n  \
         overlay-agent join join.token\n\nThat file is a secret, good for {} more; `overlay-agent init` makes a new \
         one then.\n",
        token::ago(token.left(SystemTime::now()))
    ))
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
fn local_config(address: Ipv4Addr, wanted: &Init) -> EtcdConfig {
    EtcdConfig {
        endpoints: vec![endpoint(address, wanted.tls)],
        prefix: KeyPrefix::new(&wanted.prefix),
        ca_file: wanted.tls.then(ca_file),
        identity: wanted.tls.then(host_identity),
        user: None,
    }
}

/// The same etcd, asked on its own host.
pub(super) fn at_home(etcd: &EtcdConfig) -> EtcdConfig {
    let endpoints = vec![endpoint(Ipv4Addr::LOCALHOST, etcd.ca_file.is_some())];
    EtcdConfig { endpoints, ..etcd.clone() }
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
    let store = EtcdStore::new(&if local { at_home(etcd) } else { etcd.clone() })?;
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
    let mut changed = tls && make_certificates(address)?;
    if !tls {
        tracing::warn!("--no-tls: whoever reaches {address} can read and change the overlay");
    }
    changed |= files::write(Path::new(ETCD_ENV), &etcd_env(address, tls), Readers::All)?;
    changed |= files::write(Path::new(ETCD_DROP_IN), DROP_IN, Readers::All)?;
    if changed {
        systemd::reload().await?;
    }
    changed |= systemd::enable(ETCD_UNIT).await?;
    // It may run with the settings of before, if an earlier `init` was interrupted.
    let answers = !changed && {
        let store = EtcdStore::new(etcd)?;
        store.get(&store.prefix().config_key()).await.is_ok()
    };
    if !answers {
        systemd::restart(ETCD_UNIT).await.exit(Exit::Unavailable)?;
        wait_for_answer(etcd).await?;
    }
    let who = if tls { "clients need a certificate" } else { "open to everybody" };
    report.step(!answers, "etcd", &format!("{}, {who}", etcd.endpoints.join(",")))?;
    Ok(changed)
}

async fn wait_for_answer(etcd: &EtcdConfig) -> Result<()> {
    let store = EtcdStore::new(etcd)?;
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

/// Makes what is missing or about to expire. Returns whether that was anything.
fn make_certificates(address: Ipv4Addr) -> Result<bool> {
    let (ca, ca_key) = (ca_file(), pki_file("ca-key.pem"));
    let mut changed = false;
    let authority =
        if let (Some(certificate), Some(key)) = (files::read(&ca)?, files::read(&ca_key)?) {
            Authority::load(Credential { certificate, key })?
        } else {
            let authority = Authority::new(pki::LIFETIME)?;
            // Without the key, the certificate is of no use: it comes last.
            changed |= files::write(&ca_key, &authority.own().key, Readers::Root)?;
            changed |= files::write(&ca, &authority.own().certificate, Readers::All)?;
            authority
        };
    let addresses = [IpAddr::V4(address), IpAddr::V4(Ipv4Addr::LOCALHOST)];
    let server = (pki_file("server.pem"), pki_file("server-key.pem"));
    if !is_good(&server.0, &server.1, &authority, &addresses)? {
        let made = authority.server(&addresses, pki::LIFETIME)?;
        changed |= files::write(&server.1, &made.key, Readers::Group(GROUP))?;
        changed |= files::write(&server.0, &made.certificate, Readers::All)?;
    }
    let Identity { cert_file, key_file } = host_identity();
    if !is_good(&cert_file, &key_file, &authority, &[])? {
        let made = authority.client("overlay host", pki::LIFETIME)?;
        changed |= files::write(&key_file, &made.key, Readers::Root)?;
        changed |= files::write(&cert_file, &made.certificate, Readers::All)?;
    }
    Ok(changed)
}

/// Whether a certificate is there with its key, of this authority, for these addresses, and for long enough.
fn is_good(cert: &Path, key: &Path, authority: &Authority, addresses: &[IpAddr]) -> Result<bool> {
    let Some(text) = files::read(cert)?.filter(|_| key.exists()) else {
        return Ok(false);
    };
    Ok(pki::left(&text)?.is_some_and(|left| left > pki::RENEWAL)
        && pki::addresses(&text)? == addresses
        && pki::is_signed_by(&text, &authority.own().certificate)?)
}

/// The settings of etcd.
fn etcd_env(address: Ipv4Addr, tls: bool) -> String {
    let client = endpoint(address, tls);
    let local = endpoint(Ipv4Addr::LOCALHOST, tls);
    let peer = local.replace("2379", "2380");
    let mut text = format!(
        "# Written by `overlay-agent init`, removed by `overlay-agent leave`.\n\
         ETCD_NAME=overlay\n\
         ETCD_DATA_DIR={ETCD_DATA}\n\
         ETCD_LISTEN_CLIENT_URLS={client},{local}\n\
         ETCD_ADVERTISE_CLIENT_URLS={client}\n\
         ETCD_LISTEN_PEER_URLS={peer}\n\
         ETCD_INITIAL_ADVERTISE_PEER_URLS={peer}\n\
         ETCD_INITIAL_CLUSTER=overlay={peer}\n\
         ETCD_AUTO_COMPACTION_RETENTION=1h\n"
    );
    // Writing to a string cannot fail.
    if tls {
        for role in ["", "PEER_"] {
            for (name, file) in [
                ("TRUSTED_CA_FILE", "ca.pem"),
                ("CERT_FILE", "server.pem"),
                ("KEY_FILE", "server-key.pem"),
            ] {
                writeln!(text, "ETCD_{role}{name}={}", pki_file(file).display()).ok();
            }
            writeln!(text, "ETCD_{role}CLIENT_CERT_AUTH=true").ok();
        }
    }
    text
}

/// The line for other hosts: the one that was made before while it is good, else a new one.
fn token(etcd: &EtcdConfig, local: bool, wanted: &Init, report: &mut Report) -> Result<Token> {
    let path = Path::new(TOKEN_FILE);
    let ca = etcd.ca_file.as_deref().map(files::read).transpose()?.flatten();
    let old = files::read(path)?.and_then(|line| line.parse::<Token>().ok()).filter(|old| {
        old.check(SystemTime::now()).is_ok()
            && old.endpoints == etcd.endpoints
            && old.tls.as_ref().map(|tls| &tls.ca) == ca.as_ref()
    });
    if let Some(old) = old {
        Report::kept("token", &format!("in {TOKEN_FILE}"))?;
        return Ok(old);
    }
    let end = SystemTime::now() + wanted.token_lifetime;
    let client = match &etcd.identity {
        None => None,
        Some(identity) => {
            let own = read_identity(identity)?;
            Some(if local {
                let authority = read_authority()?;
                let made = authority.client("overlay join", wanted.token_lifetime)?;
                token::Client { certificate: made.certificate, key: made.key, temporary: true }
            } else {
                token::Client { certificate: own.certificate, key: own.key, temporary: false }
            })
        }
    };
    let new = Token {
        endpoints: etcd.endpoints.clone(),
        prefix: etcd.prefix.to_string(),
        tls: ca.map(|ca| token::Tls { ca, client }),
        expires: end.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
    };
    files::write(path, &format!("{}\n", new.encode()), Readers::Root)?;
    report.done("token", &format!("in {TOKEN_FILE}"))?;
    Ok(new)
}

fn read_identity(identity: &Identity) -> Result<Credential> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    Ok(Credential { certificate: read(&identity.cert_file)?, key: read(&identity.key_file)? })
}

fn read_authority() -> Result<Authority> {
    let files = Identity { cert_file: ca_file(), key_file: pki_file("ca-key.pem") };
    Authority::load(read_identity(&files)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provision::Consent;

    fn wanted(network: Option<&str>) -> Init {
        Init {
            network: network.map(|network| network.parse().unwrap()),
            iface: None,
            etcd: None,
            prefix: "/coreos.com/network".to_owned(),
            tls: true,
            token_lifetime: Duration::from_hours(24),
            consent: Consent::Given,
        }
    }

    #[test]
    fn with_tls_etcd_asks_everybody_for_a_certificate() {
        let text = etcd_env(Ipv4Addr::new(192, 0, 2, 1), true);
        let settings: std::collections::BTreeMap<_, _> = dotenv::assignments(&text).collect();
        assert_eq!(
            settings["ETCD_LISTEN_CLIENT_URLS"],
            "https://192.0.2.1:2379,https://127.0.0.1:2379"
        );
        assert_eq!(settings["ETCD_CLIENT_CERT_AUTH"], "true");
        assert_eq!(settings["ETCD_PEER_CLIENT_CERT_AUTH"], "true");
        assert!(settings.values().all(|value| !value.contains("http://")));
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
