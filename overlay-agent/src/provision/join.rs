//! `join`: every host but the first.

use std::time::SystemTime;

use anyhow::Result;
use overlay_lease::{store::etcd::EtcdConfig, wire::key::KeyPrefix};

use super::{
    Join, checks, consent, docker,
    enrol::Guest,
    etcd,
    member::{self, SameEtcd},
    report::Report,
    token::Token,
};
use crate::{
    authority::{ca_file, host_identity},
    exit::{Exit, WithExit as _},
    files,
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
    let docker = docker::check(wanted.address_pools).await?;
    let mut etcd = member_config(token);
    let same = match &token.tls {
        None => SameEtcd::ByAddress,
        Some(tls) if files::read(&ca_file())?.as_ref() == Some(&tls.ca) => SameEtcd::Yes,
        Some(_) => SameEtcd::No,
    };
    member::refuse_other(&etcd, wanted.iface.as_deref(), same)?;
    let uplink = checks::uplink(wanted.iface.as_deref()).await?;
    let guest = Guest::new(token, etcd.clone())?;
    let network = guest.network().await?;
    if wanted.etcd {
        etcd::others_of(guest.store(), uplink.address, token.tls.is_some()).await?;
    }
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
        format!("get a certificate of its own for etcd at {}", token.endpoints.join(",")),
        "start the agent, and start it at boot".to_owned(),
        format!("have Docker start after it, with its bridge in a subnet of {}", network.network),
    ]
    .into_iter()
    .chain(shares)
    .collect();
    if !consent::ask(wanted.consent, &steps, None).await? {
        return Ok(());
    }
    let changed = guest.enrol(uplink.address).await?;
    report.step(changed, "etcd", &token.endpoints.join(","))?;
    if wanted.etcd {
        etcd.endpoints =
            etcd::take_part(token, guest.store(), &etcd, uplink.address, &mut report).await?;
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
