//! A host takes part in etcd: it copies what the others have, and gets a vote once it is in step with them.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use overlay_lease::store::{
    StoreError,
    etcd::{EtcdConfig, EtcdStore, Member, Promotion},
};

use super::{
    super::{
        ETCD_DATA, ETCD_DROP_IN, ETCD_UNIT, MEMBER_TOKEN_FILE, report::Report, systemd,
        token::Token,
    },
    at_home, check_local,
    data::put_aside,
    refuse_meanwhile,
    service::{endpoints, stop_serving},
    settings::{Settings, peer_url},
    snapshot,
    status::may_be_lost,
    wait_for_answer,
};
use crate::{
    authority::certificates,
    exit::{Exit, WithExit as _},
    output::print,
};

/// How long a member may take to have everything that the others have.
const IN_STEP_WITHIN: Duration = Duration::from_mins(2);
/// How long members may take to agree that one of them goes.
pub(super) const AGREED_WITHIN: Duration = Duration::from_secs(15);
/// How often to ask.
const LOOK: Duration = Duration::from_millis(250);
/// How often to say what is waited for, and to look at the service.
const SAY: Duration = Duration::from_secs(2);
/// So many starts that came to nothing are enough.
const GIVEN_UP: u32 = 3;
/// How long another member's port may take to open.
const OPEN_WITHIN: Duration = Duration::from_secs(3);

/// Whether this host may take part, with this line: everything that can be known before anything is changed.
pub(in super::super) async fn check_invitation(token: &Token) -> Result<()> {
    if token.tls.is_some() && token.authority.is_none() {
        return Err(anyhow!(
            "with this token a host asks etcd, and cannot take part in it: that takes {MEMBER_TOKEN_FILE} of a host that does"
        ))
        .exit(Exit::Data);
    }
    check_local().await
}

/// The member at this address, if there is one, and the others, which can be reached from here.
pub(in super::super) async fn others_of(
    store: &EtcdStore,
    address: Ipv4Addr,
    tls: bool,
) -> Result<(Option<Member>, Vec<Member>)> {
    refuse_meanwhile(store).await?;
    let members = store.members().await.exit(Exit::Unavailable)?;
    let own_url = peer_url(address, tls);
    let (own, others): (Vec<_>, Vec<_>) =
        members.into_iter().partition(|member| member.peer_urls.contains(&own_url));
    refuse_second(&others)?;
    check_reachable(&others)?;
    Ok((own.into_iter().next(), others))
}

/// Makes this host a member of etcd's cluster, as the token says, and returns where to ask etcd from now on. The store is
/// asked as root.
pub(in super::super) async fn take_part(
    token: &Token,
    store: &EtcdStore,
    etcd: &EtcdConfig,
    address: Ipv4Addr,
    report: &mut Report,
) -> Result<Vec<String>> {
    let tls = token.tls.is_some();
    let own_url = peer_url(address, tls);
    let (mut own, others) = others_of(store, address, tls).await?;
    let has_data = Path::new(ETCD_DATA).join("member").exists();
    if let Some(lost) = own.take_if(|own| own.has_started() && !has_data) {
        once_settled(AGREED_WITHIN, async || store.remove_member(lost.id).await).await?;
        report
            .done("etcd", &format!("{}, whose data are gone, is no member any more", lost.name))?;
    }
    let in_place = own.is_some() && Settings::read()?.is_some_and(|found| found.address == address);
    if own.is_none() && has_data {
        // Of a time when it was a member: under that number it never will be one again. Whether the others have all that is
        // in them, nobody knows.
        systemd::stop(&[ETCD_UNIT]).await?;
        report.done("kept", &format!("old data of etcd's, in {}", put_aside()?.display()))?;
    }
    let is_news = own.is_none();
    let id = match own {
        Some(own) => own.id,
        None => once_settled(IN_STEP_WITHIN, async || store.add_learner(&own_url).await).await?,
    };
    let mut changed = false;
    if let Some(authority) = token.authority()? {
        changed |= certificates::keep_authority(authority.own())?;
    }
    changed |= tls && certificates::make(address)?;
    if !in_place {
        let named: Vec<_> = others
            .iter()
            .flat_map(|member| {
                let name = if member.has_started() {
                    member.name.clone()
                } else {
                    format!("member-{:x}", member.id)
                };
                member.peer_urls.iter().map(move |url| (name.clone(), url.clone()))
            })
            .collect();
        changed |= Settings::another(address, tls, &named).write()?;
    }
    if changed {
        systemd::reload().await?;
    }
    changed |= systemd::enable(ETCD_UNIT).await?;
    changed |= snapshot::enable_timer().await?;
    if changed || is_news || !systemd::is_active(ETCD_UNIT).await? {
        changed = true;
        systemd::begin_restart(ETCD_UNIT).await.exit(Exit::Unavailable)?;
    }
    if let Err(error) = wait_until_in_step(store, id).await {
        if is_news {
            // One that never answers would be in the way of the next.
            if let Err(error) = store.remove_member(id).await {
                tracing::warn!("{own_url} stays on etcd's list of members: {error:#}");
            }
            stop_serving(&mut Report::default()).await?;
        }
        return Err(error);
    }
    wait_for_answer(&at_home(etcd)).await?;
    let count = others.len() + 1;
    let text = format!("this host is one of {count} members; {}", may_be_lost(count, count));
    report.step(changed || is_news, "etcd", &text)?;
    Ok(endpoints(&at_home(etcd)).await)
}

/// Fails where this host is a member at another address: what it has on its disk is the cluster's.
fn refuse_second(others: &[Member]) -> Result<()> {
    let own = Settings::read()?.filter(|_| Path::new(ETCD_DROP_IN).exists());
    let same = others.iter().find(|other| own.as_ref().is_some_and(|own| own.name == other.name));
    let Some(same) = same else { return Ok(()) };
    Err(anyhow!(
        "this host is etcd's member {} already, at {}: `overlay-agent init` tells the others where it is now",
        same.name,
        same.peer_urls.join(",")
    ))
    .exit(Exit::Conflict)
}

/// Fails where other members cannot be reached from here, which they could not tell either.
fn check_reachable(others: &[Member]) -> Result<()> {
    for url in others.iter().flat_map(|member| &member.peer_urls) {
        let place = url.split_once("://").map_or(url.as_str(), |(_, place)| place);
        let Ok(place) = place.parse::<SocketAddr>() else {
            continue;
        };
        if place.ip().is_loopback() {
            return Err(anyhow!(
                "etcd's first member speaks with others at {url} only, since it was set up by an earlier version: run \
                 `overlay-agent init` there again"
            ))
            .exit(Exit::Conflict);
        }
        if let Err(error) = TcpStream::connect_timeout(&place, OPEN_WITHIN) {
            return Err(error)
                .with_context(|| {
                    format!(
                        "cannot reach etcd's member at {place}, TCP: a member that is gone for good has to be removed \
                         (`overlay-agent etcd remove {}`), and a firewall there has to let this port in",
                        place.ip()
                    )
                })
                .exit(Exit::Unavailable);
        }
    }
    Ok(())
}

/// Asks the members for what changes who they are, again while they are busy with the change before: they take one at a
/// time, and look whether they have been in touch for some seconds.
pub(super) async fn once_settled<T>(
    within: Duration,
    ask: impl AsyncFn() -> Result<T, StoreError>,
) -> Result<T> {
    const BUSY: [&str; 3] = ["too many learner", "unhealthy cluster", "not enough started"];
    let start = Instant::now();
    let mut said = start;
    loop {
        let error = match ask().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let text = error.to_string();
        if !BUSY.iter().any(|word| text.contains(word)) || start.elapsed() > within {
            return Err(error).exit(Exit::Unavailable);
        }
        if said.elapsed() > SAY {
            said = Instant::now();
            print(format_args!("{:<9} waits for its members to agree: {text}\n", "etcd"))?;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until this host's etcd has what the others have, and a vote.
async fn wait_until_in_step(store: &EtcdStore, id: u64) -> Result<()> {
    let start = Instant::now();
    let mut looked = start;
    let mut before = u32::MAX;
    loop {
        let last = match store.promote(id).await {
            Ok(Promotion::Done) => return Ok(()),
            Ok(Promotion::NotInStep) => "it is not in step with the others yet".to_owned(),
            Err(error) => error.to_string(),
        };
        if looked.elapsed() > SAY {
            looked = Instant::now();
            print(format_args!("{:<9} waits for this host's etcd: {last}\n", "etcd"))?;
            let restarts = systemd::restarts(ETCD_UNIT).await?;
            before = before.min(restarts);
            if restarts - before >= GIVEN_UP {
                let last = systemd::last_words(ETCD_UNIT, "etcd").await?;
                return Err(anyhow!("this host's etcd does not stay up: {last}"))
                    .exit(Exit::Unavailable);
            }
        }
        if start.elapsed() > IN_STEP_WITHIN {
            return Err(anyhow!(
                "this host's etcd is not in step with the others after {} s: {last}. They have to reach TCP port {} here, \
                 as this host theirs; `journalctl --unit {ETCD_UNIT}` has the whole story",
                IN_STEP_WITHIN.as_secs(),
                super::PEER_PORT
            ))
            .exit(Exit::Unavailable);
        }
        tokio::time::sleep(LOOK).await;
    }
}
