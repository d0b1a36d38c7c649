//! `join`: every host but the first.

use std::{net::Ipv4Addr, time::SystemTime};

use anyhow::{Context as _, Result};
use overlay_lease::{
    config::NetworkConfig,
    store::{
        Store as _,
        etcd::{EtcdConfig, EtcdStore, Identity},
    },
    wire::key::KeyPrefix,
};

use super::{
    Join, ca_file, checks, consent, docker, enrol, etcd,
    files::{self, Readers},
    host_identity,
    member::{self, SameEtcd},
    pki::Credential,
    report::Report,
    token::{Tls, Token},
};
use crate::{
    exit::{Exit, WithExit as _},
    output::print,
};

/// Makes this host a member of the token's network.
pub async fn join(wanted: &Join) -> Result<()> {
    checks::root("join")?;
    let token = &wanted.token;
    token.check(SystemTime::now()).exit(Exit::Data)?;
    if wanted.etcd {
        etcd::check_invitation(token).await?;
    }
    let docker = docker::check().await?;
    let mut etcd = member_config(token);
    let same = match &token.tls {
        None => SameEtcd::ByAddress,
        Some(tls) if files::read(&ca_file())?.as_ref() == Some(&tls.ca) => SameEtcd::Yes,
        Some(_) => SameEtcd::No,
    };
    member::refuse_other(&etcd, wanted.iface.as_deref(), same)?;
    let uplink = checks::uplink(wanted.iface.as_deref()).await?;
    let (network, own) = ask(token, wanted.etcd.then_some(uplink.address)).await?;
    checks::kernel_and_network(&network).await?;
    let etcd_ports: &[_] = if wanted.etcd { &etcd::PORTS } else { &[] };
    checks::firewall(&uplink, &network, etcd_ports).await?;
    let mut report = Report::default();
    let text = format!(
        "kernel takes the programs, UDP port {} is free, {} overlaps no route; {} on {} is the way out",
        network.port, network.network, uplink.address, uplink.name
    );
    Report::found("machine", &text)?;

    let shares = wanted.etcd.then(|| "take part in etcd, with a copy of all it holds".to_owned());
    let steps: Vec<_> = [
        format!("keep the certificates for etcd at {}", token.endpoints.join(",")),
        "start the agent, and start it at boot".to_owned(),
        format!("have Docker start after it, with its bridge in a subnet of {}", network.network),
    ]
    .into_iter()
    .chain(shares)
    .collect();
    if !consent::ask(wanted.consent, &steps, None).await? {
        return Ok(());
    }
    let changed = write_credentials(token, own.as_ref())?;
    report.step(changed, "etcd", &token.endpoints.join(","))?;
    if wanted.etcd {
        etcd.endpoints = etcd::take_part(token, &etcd, uplink.address, &mut report).await?;
    }
    member::start(&etcd, wanted.iface.as_deref(), changed, &docker, &mut report).await?;
    member::hear_from_others().await?;
    report.finish()?;
    print(format_args!(
        "\nThis host is a member of {}. `overlay-agent status` shows the others, `overlay-agent doctor` \
         whether all is well.\n",
        network.network
    ))
}

/// How this host reaches etcd once it is a member.
fn member_config(token: &Token) -> EtcdConfig {
    let client = token.tls.as_ref().and_then(|tls| tls.client.as_ref());
    EtcdConfig {
        endpoints: token.endpoints.clone(),
        prefix: KeyPrefix::new(&token.prefix),
        ca_file: token.tls.is_some().then(ca_file),
        identity: client.map(|_| host_identity()),
        user: None,
    }
}

/// Asks etcd, as whom the token makes us, for the network config and the certificate to keep; and whether a `member` at
/// this address would reach the others.
async fn ask(
    token: &Token,
    member: Option<Ipv4Addr>,
) -> Result<(NetworkConfig, Option<Credential>)> {
    // The library takes files; these are gone with this function.
    let directory =
        tempfile::tempdir().context("cannot make a folder for the token's certificate")?;
    let file = |name: &str| directory.path().join(name);
    let mut etcd = member_config(token);
    let mut own = None;
    if let Some(Tls { ca, client }) = &token.tls {
        files::write(&file("ca.pem"), ca, Readers::Root)?;
        etcd.ca_file = Some(file("ca.pem"));
        if let Some(client) = client {
            files::write(&file("client.pem"), &client.certificate, Readers::Root)?;
            files::write(&file("client-key.pem"), &client.key, Readers::Root)?;
            etcd.identity =
                Some(Identity { cert_file: file("client.pem"), key_file: file("client-key.pem") });
            own = Some(Credential {
                certificate: client.certificate.clone(),
                key: client.key.clone(),
            });
        }
    }
    let store = EtcdStore::new(&etcd)?;
    let key = store.prefix().config_key();
    let entry = store.get(&key).await.exit(Exit::Unavailable)?;
    let entry = entry
        .with_context(|| format!("there is no network config at {key} in etcd"))
        .exit(Exit::NotFound)?;
    let network = NetworkConfig::parse(&entry.value)
        .with_context(|| format!("the network config at {key} is malformed"))
        .exit(Exit::Config)?
        .config;
    if let Some(address) = member {
        etcd::others_of(&store, address, token.tls.is_some()).await?;
    }
    let client = token.tls.as_ref().and_then(|tls| tls.client.as_ref());
    if client.is_some_and(|client| client.temporary) {
        own = Some(enrol::fetch(&store).await?);
    }
    Ok((network, own))
}

/// Writes what the agent needs to be let in. Returns whether it was not there.
fn write_credentials(token: &Token, own: Option<&Credential>) -> Result<bool> {
    let mut changed = false;
    if let Some(tls) = &token.tls {
        changed |= files::write(&ca_file(), &tls.ca, Readers::All)?;
    }
    if let Some(own) = own {
        let Identity { cert_file, key_file } = host_identity();
        changed |= files::write(&key_file, &own.key, Readers::Root)?;
        changed |= files::write(&cert_file, &own.certificate, Readers::All)?;
    }
    Ok(changed)
}
