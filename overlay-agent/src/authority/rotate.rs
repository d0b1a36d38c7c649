//! The authority is made another while everything goes on: first everybody trusts both, then the new one signs, then nobody trusts
//! the old one. Nothing of a step is begun before everybody has done with the one before, and each may be done again.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use overlay_lease::{
    store::{
        Revision, Store as _, StoreError,
        etcd::{EtcdStore, Member},
    },
    wire::{
        identity::{HostId, decode, encode},
        trust::{TrustDone, TrustOrder, done_key, order_key, trust_dir},
    },
};

use tokio::time::{Duration, Instant, sleep};

use super::{
    access::close_tokens,
    pki::{Authority, Credential},
    records::{
        MemberDone, Registration, Rotation, Step, hosts, read, rotation_key, turn_key, turns_dir,
    },
};

/// How often to look whether somebody is done.
const LOOK: Duration = Duration::from_millis(250);
/// How many hosts are named that are waited for.
const NAMED: usize = 8;
/// How long etcd may be away meanwhile.
const AWAY: Duration = Duration::from_mins(1);

impl Step {
    const ALL: [Self; 3] = [Self::Both, Self::Sign, Self::Only];

    /// What everybody does in it, after «waits for … to».
    const fn text(self) -> &'static str {
        match self {
            Self::Both => "trust both authorities",
            Self::Sign => "have a certificate of the new authority",
            Self::Only => "trust the new authority alone",
        }
    }
}

impl Rotation {
    fn order(&self) -> TrustOrder {
        let (old, new) = (self.old.clone(), self.new.clone());
        let authorities = match self.step {
            Step::Both => vec![old, new],
            Step::Sign => vec![new, old],
            Step::Only => vec![new],
        };
        TrustOrder { authorities, endorsement: self.endorsement.clone() }
    }
}

/// Begins, unless that was done before. Tokens are void from now on: they are of the old authority.
pub async fn begin(store: &EtcdStore, old: &Authority, new: &Credential) -> Result<()> {
    close_tokens(store).await?;
    let rotation = Rotation {
        step: Step::Both,
        old: old.own().certificate.clone(),
        new: new.certificate.clone(),
        endorsement: old.endorse(new)?,
        turn: None,
        without: Vec::new(),
    };
    let (key, value) = (rotation_key(store.prefix()), encode(&rotation));
    let written = store.replace_if_unchanged(key.as_bytes(), Revision::NONE, &value, None).await?;
    ensure!(written.is_some(), elsewhere());
    Ok(())
}

/// Goes on to the end, saying what it waits for. Nobody waits for hosts in `without`. Interrupted, it goes on where it was when
/// it is called again.
pub async fn drive(
    store: &EtcdStore,
    without: &[HostId],
    mut say: impl FnMut(&str) -> Result<()>,
) -> Result<()> {
    let mut away_since = Instant::now();
    let mut last = None;
    loop {
        let begun = Instant::now();
        let mut heard = |text: &str| {
            if last.as_deref() == Some(text) {
                return Ok(());
            }
            last = Some(text.to_owned());
            say(text)
        };
        let outcome = go_on(store, without, &mut heard).await;
        if begun.elapsed() > AWAY / 4 {
            away_since = Instant::now();
        }
        match outcome {
            // etcd is started anew meanwhile, also where it is all that there is.
            Err(error) if error.is::<StoreError>() && away_since.elapsed() < AWAY => {
                sleep(LOOK).await;
            }
            outcome => return outcome,
        }
    }
}

async fn go_on(
    store: &EtcdStore,
    without: &[HostId],
    say: &mut impl FnMut(&str) -> Result<()>,
) -> Result<()> {
    let key = rotation_key(store.prefix());
    let Some((entry, mut rotation)) = read::<Rotation>(store, &key).await? else { return Ok(()) };
    let mut record = Record { store, key, revision: entry.mod_revision, last: rotation.clone() };
    for host in without {
        if !rotation.without.contains(host) {
            rotation.without.push(host.clone());
        }
    }
    let at = rotation.step;
    for step in Step::ALL.into_iter().filter(|step| *step >= at) {
        rotation.step = step;
        record.write(&rotation).await?;
        members(&mut record, &mut rotation, say).await?;
        every_host(&record, &rotation, say).await?;
        say(&format!("all {}", step.text()))?;
    }
    for (host, _) in hosts(store).await? {
        store.delete_below(&trust_dir(store.prefix(), &host)).await?;
    }
    store.delete_below(&turns_dir(store.prefix())).await?;
    store.delete_if_unchanged(record.key.as_bytes(), record.revision).await?;
    Ok(())
}

/// What is remembered of it, as long as nobody else changes it.
struct Record<'a> {
    store: &'a EtcdStore,
    key: String,
    revision: Revision,
    last: Rotation,
}

impl Record<'_> {
    async fn write(&mut self, rotation: &Rotation) -> Result<()> {
        if self.last == *rotation {
            return Ok(());
        }
        let (key, value) = (self.key.as_bytes(), encode(rotation));
        let wrote = self.store.replace_if_unchanged(key, self.revision, &value, None).await?;
        self.revision = wrote.with_context(elsewhere)?;
        self.last = rotation.clone();
        Ok(())
    }

    /// Fails where somebody else has gone on meanwhile: hosts are not told what is over.
    async fn is_ours(&self) -> Result<()> {
        let there = self.store.get(&self.key).await?;
        ensure!(there.is_some_and(|there| there.mod_revision == self.revision), elsewhere());
        Ok(())
    }
}

fn elsewhere() -> String {
    "the authority is made another from elsewhere, too: one command is enough".to_owned()
}

/// Has one member of etcd after the other do this step.
async fn members(
    record: &mut Record<'_>,
    rotation: &mut Rotation,
    say: &mut impl FnMut(&str) -> Result<()>,
) -> Result<()> {
    let store = record.store;
    loop {
        let mut waits = None;
        for member in store.members().await? {
            if let Some(trouble) = trouble_of(store, &member, rotation.step).await? {
                waits = Some((member, trouble));
                break;
            }
        }
        let Some((member, trouble)) = waits else { return Ok(()) };
        // One at a time: the others go on meanwhile.
        rotation.turn = Some(member.id);
        record.write(rotation).await?;
        say(&format!(
            "waits for etcd's member {} ({}) to {}: {trouble}",
            member.name,
            member.peer_urls.join(","),
            rotation.step.text()
        ))?;
        sleep(LOOK).await;
    }
}

/// What is still in a member's way; nothing if it has done this step, and is one of those that agree.
async fn trouble_of(store: &EtcdStore, member: &Member, step: Step) -> Result<Option<String>> {
    let done = read::<MemberDone>(store, &turn_key(store.prefix(), member.id)).await?;
    let url = member.client_urls.first();
    let condition = match url {
        Some(url) => store.condition(url).await.map_err(|error| error.to_string()),
        None => Err("it has never started".to_owned()),
    };
    Ok(match (condition, done.map(|(_, done)| done).filter(|done| done.step >= step)) {
        (Err(error), _) => Some(format!(
            "{error}. If it is gone for good: overlay-agent etcd remove {}",
            member.name
        )),
        (Ok(condition), Some(MemberDone { trouble: None, .. })) if condition.leader != 0 => None,
        (_, Some(MemberDone { trouble: Some(trouble), .. })) => Some(trouble),
        _ => Some("its agent does that, where it runs and is of this version".to_owned()),
    })
}

/// Tells all hosts, and waits for those that have a lease.
async fn every_host(
    record: &Record<'_>,
    rotation: &Rotation,
    say: &mut impl FnMut(&str) -> Result<()>,
) -> Result<()> {
    let store = record.store;
    let prefix = store.prefix();
    let wanted = encode(&rotation.order());
    loop {
        let begun = Instant::now();
        record.is_ours().await?;
        let places = store.list_below(&prefix.hosts_dir()).await?.entries;
        let places: BTreeMap<_, _> =
            places.iter().map(|entry| (entry.key.as_slice(), entry)).collect();
        let leases = store.list().await?.entries;
        let is_there = |host: &Registration| {
            let keys = host.subnets.iter().map(|subnet| prefix.subnet_key(*subnet));
            keys.into_iter().any(|key| leases.iter().any(|lease| lease.key == key.as_bytes()))
        };
        let mut waits = Vec::new();
        for (host, known) in hosts(store).await? {
            let key = order_key(prefix, &host);
            let told = places.get(key.as_bytes()).filter(|told| told.value == wanted);
            if told.is_none() {
                store.put(&key, &wanted, None).await?;
            }
            let done = places.get(done_key(prefix, &host).as_bytes());
            let done = done.and_then(|done| decode::<TrustDone>(&done.value));
            let is_done =
                told.zip(done).is_some_and(|(told, done)| done.to == told.mod_revision.number());
            if !is_done && is_there(&known) && !rotation.without.contains(&host) {
                waits.push(host.to_string());
            }
        }
        if waits.is_empty() {
            return Ok(());
        }
        let others = match waits.len().saturating_sub(NAMED) {
            0 => String::new(),
            others => format!(" and {others} others"),
        };
        waits.truncate(NAMED);
        say(&format!("waits for {}{others} to {}", waits.join(", "), rotation.step.text()))?;
        // Of thousands, looking takes its time, and theirs.
        sleep(LOOK.max(begun.elapsed() * 4)).await;
    }
}
