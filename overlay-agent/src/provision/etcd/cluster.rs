//! The members of etcd, as hosts come and go: any of three may be lost.

use std::{path::Path, time::SystemTime};

use anyhow::{Context as _, Result, anyhow, bail};
use overlay_lease::{
    store::etcd::{EtcdConfig, EtcdStore, Member},
    wire::key::KeyPrefix,
};

use super::{
    super::{
        ETCD_DATA, ETCD_DROP_IN, checks,
        consent::{self, Consent},
        enrol::Guest,
        member,
        report::Report,
        token::Token,
    },
    PORTS,
    service::stop_serving,
    settings::Settings,
    status::may_be_lost,
    take_part::{AGREED_WITHIN, check_invitation, once_settled, take_part},
};
use crate::{
    authority::{ca_file, host_identity},
    control::etcd_members::reachable,
    exit::{Exit, WithExit as _},
    files,
};

/// What `etcd add` and `etcd replace` are asked for.
#[derive(Clone, Debug)]
pub struct TakePart {
    /// What is in the file for members that `init` made.
    pub token: Token,
    /// The member that this host takes the place of, by name or address.
    pub replaces: Option<String>,
    /// The interface that reaches the other hosts, by name or address.
    pub iface: Option<String>,
    /// Whether to ask.
    pub consent: Consent,
}

/// What `etcd remove` is asked for.
#[derive(Clone, Debug)]
pub struct Remove {
    /// Which member, by name or address.
    pub member: String,
    /// How to reach etcd.
    pub etcd: EtcdConfig,
    /// Whether to ask.
    pub consent: Consent,
}

/// The other members of this host's etcd.
pub(in super::super) async fn others(etcd: &EtcdConfig) -> Result<Vec<Member>> {
    let Some(own) = Settings::read()? else {
        return Ok(Vec::new());
    };
    let members = EtcdStore::new(etcd)?.members().await.exit(Exit::Unavailable)?;
    Ok(members.into_iter().filter(|member| member.name != own.name).collect())
}

/// Has the others go on without this host's etcd, and returns where they are.
pub(in super::super) async fn part_with(
    etcd: &EtcdConfig,
    others: &[Member],
    report: &mut Report,
) -> Result<EtcdConfig> {
    let endpoints = reachable(others, &etcd.endpoints);
    if endpoints.is_empty() {
        bail!("no other member of etcd tells where it is");
    }
    let elsewhere = EtcdConfig { endpoints, ..etcd.clone() };
    let store = EtcdStore::new(&elsewhere)?;
    let own = Settings::read()?.map(|settings| settings.name);
    let members = store.members().await.exit(Exit::Unavailable)?;
    if let Some(own) = members.iter().find(|member| Some(&member.name) == own.as_ref()) {
        take_out(&store, own).await?;
        report.done("etcd", &format!("goes on without this host, on {} others", others.len()))?;
    }
    Ok(elsewhere)
}

/// Removes a member from the list. The others have to be able to go on without it.
async fn take_out(store: &EtcdStore, member: &Member) -> Result<()> {
    once_settled(AGREED_WITHIN, async || store.remove_member(member.id).await)
        .await
        .with_context(|| format!("etcd's member {} has to stay", describe(member)))
        .exit(Exit::Conflict)
}

fn describe(member: &Member) -> String {
    let name = if member.has_started() { &member.name } else { "that has never started" };
    format!("{name} ({})", member.peer_urls.join(","))
}

/// The member of this name, or at this address.
fn find<'a>(members: &'a [Member], wanted: &str) -> Result<&'a Member> {
    let host = |url: &str| {
        let (_, place) = url.split_once("://")?;
        Some(place.rsplit_once(':').map_or(place, |(host, _)| host).to_owned())
    };
    let is_wanted = |member: &&Member| {
        member.name == wanted
            || member.peer_urls.iter().any(|url| url == wanted)
            || member.peer_urls.iter().any(|url| host(url).as_deref() == Some(wanted))
    };
    members
        .iter()
        .find(is_wanted)
        .with_context(|| {
            let all: Vec<_> = members.iter().map(describe).collect();
            format!("etcd has no member {wanted}; there are {}", all.join(", "))
        })
        .exit(Exit::NotFound)
}

/// Makes this host a member of etcd, where it is one of the overlay.
pub async fn add(wanted: &TakePart) -> Result<()> {
    checks::root("etcd add")?;
    let token = &wanted.token;
    token.check(SystemTime::now()).exit(Exit::Data)?;
    check_invitation(token).await?;
    let mine = files::read(&ca_file())?;
    if mine != token.tls.as_ref().map(|tls| tls.ca.clone()) {
        return Err(anyhow!(
            "this host is no member of that overlay: `overlay-agent join --etcd` makes it one, of both"
        ))
        .exit(Exit::Conflict);
    }
    let tls = token.tls.is_some();
    let etcd = EtcdConfig {
        endpoints: token.endpoints.clone(),
        prefix: KeyPrefix::new(&token.prefix),
        ca_file: tls.then(ca_file),
        identity: tls.then(host_identity),
        user: None,
    };
    let uplink = checks::uplink(wanted.iface.as_deref()).await?;
    let guest = Guest::new(token, etcd.clone())?;
    checks::firewall(&uplink, &guest.network().await?, &PORTS).await?;
    let leaving = match &wanted.replaces {
        None => None,
        Some(name) => {
            let members = guest.store().members().await.exit(Exit::Unavailable)?;
            Some(find(&members, name)?.clone())
        }
    };
    let leaves =
        leaving.as_ref().map(|member| format!("remove etcd's member {}", describe(member)));
    let steps: Vec<_> = leaves
        .into_iter()
        .chain([format!(
            "make this host, at {}, a member of etcd, with a copy of all it holds",
            uplink.address
        )])
        .collect();
    let sentence = match &leaving {
        None => String::new(),
        Some(member) => format!("etcd's member {} never comes back.\n", describe(member)),
    };
    let agreed = match (&leaving, wanted.consent) {
        (None, Consent::Ask) => true,
        _ => consent::ask_about(wanted.consent, &steps, &sentence)?,
    };
    if !agreed {
        return Ok(());
    }
    let mut report = Report::default();
    if let Some(member) = leaving {
        take_out(guest.store(), &member).await?;
        report.done("etcd", &format!("{} is no member any more", describe(&member)))?;
    }
    guest.enrol(uplink.address).await?;
    let endpoints = take_part(token, guest.store(), &etcd, uplink.address, &mut report).await?;
    member::ask_at(&endpoints, &mut report).await?;
    report.finish()
}

/// Takes a member out of etcd, mostly one that is gone for good.
pub async fn remove(wanted: &Remove) -> Result<()> {
    checks::root("etcd remove")?;
    let members = EtcdStore::new(&wanted.etcd)?.members().await.exit(Exit::Unavailable)?;
    let leaving = find(&members, &wanted.member)?;
    let others: Vec<_> = members.iter().filter(|member| member.id != leaving.id).cloned().collect();
    if others.iter().all(|member| member.is_learner || !member.has_started()) {
        return Err(anyhow!(
            "{} is etcd's only member: without it, nobody could take or renew a lease",
            describe(leaving)
        ))
        .exit(Exit::Conflict);
    }
    let name = describe(leaving);
    let is_here = Path::new(ETCD_DROP_IN).exists()
        && Settings::read()?.is_some_and(|own| own.name == leaving.name);
    let here = is_here.then(|| format!("remove this host's etcd with its data in {ETCD_DATA}"));
    let steps: Vec<_> = [format!("remove etcd's member {name}")].into_iter().chain(here).collect();
    let sentence = format!("etcd's member {name} never comes back.\n");
    if !consent::ask_about(wanted.consent, &steps, &sentence)? {
        return Ok(());
    }
    let mut report = Report::default();
    let endpoints = reachable(&others, &wanted.etcd.endpoints);
    let elsewhere = EtcdConfig { endpoints, ..wanted.etcd.clone() };
    take_out(&EtcdStore::new(&elsewhere)?, leaving).await?;
    report.done("etcd", &format!("{name} is no member any more"))?;
    if is_here {
        stop_serving(&mut report).await?;
        member::ask_at(&elsewhere.endpoints, &mut report).await?;
    }
    let voting = others.iter().filter(|member| !member.is_learner).count();
    Report::found("etcd", &format!("has {voting} members; {}", may_be_lost(voting, voting)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_found_by_its_name_and_by_its_address() {
        let member = |name: &str, url: &str| Member {
            id: 1,
            name: name.to_owned(),
            peer_urls: vec![url.to_owned()],
            client_urls: Vec::new(),
            is_learner: false,
        };
        let members =
            [member("overlay", "https://192.0.2.1:2380"), member("", "https://192.0.2.11:2380")];
        assert_eq!(find(&members, "overlay").unwrap(), &members[0]);
        assert_eq!(find(&members, "192.0.2.1").unwrap(), &members[0]);
        assert_eq!(find(&members, "192.0.2.11").unwrap(), &members[1]);
        assert_eq!(find(&members, "https://192.0.2.11:2380").unwrap(), &members[1]);
        let error = find(&members, "192.0.2.9").unwrap_err();
        assert_eq!(Exit::of(&error), Exit::NotFound);
        assert!(error.to_string().contains("https://192.0.2.1:2380"), "{error}");
    }
}
