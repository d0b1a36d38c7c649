//! `authority`: the authority that signs for etcd and for all hosts is made another, while everything goes on.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use overlay_lease::store::etcd::{EtcdConfig, EtcdStore};
use serde::Serialize;

use super::{
    AGENT_UNIT, MEMBER_TOKEN_FILE, TOKEN_FILE, checks,
    consent::{self, Consent},
    etcd,
    expel::{KnownHost, hosts, may_decide, table},
    report::Report,
    systemd,
};
use crate::{
    authority::{
        self, Rotation, Step, ca_file, certificates, next_authority, next_authority_file,
        pki::{Authority, Credential, LIFETIME},
    },
    exit::{Exit, WithExit as _},
    files::{self, Readers},
    output::print,
};

/// What makes a copy of all that etcd holds.
const BACKUP: &str = "overlay-agent-backup.service";

/// What `authority rotate` is asked for.
#[derive(Clone, Debug)]
pub struct Rotate {
    /// Hosts for which nobody waits: names, addresses or subnets.
    pub without: Vec<String>,
    /// How to reach etcd.
    pub etcd: EtcdConfig,
    /// Whether to ask.
    pub consent: Consent,
}

/// How it is with the authority.
#[derive(Clone, Debug, Serialize)]
pub struct AuthorityStatus {
    /// For how many seconds more it is good.
    pub seconds_left: u64,
    /// What is being done, if it is made another.
    pub rotation: Option<Step>,
}

impl AuthorityStatus {
    /// For people.
    pub fn to_text(&self) -> String {
        let left = super::token::ago(std::time::Duration::from_secs(self.seconds_left));
        let doing = match self.rotation {
            None => return format!("The authority is good for {left} more.\n"),
            Some(Step::Both) => "hosts come to trust both, the old one and the new one",
            Some(Step::Sign) => "the new one signs, and hosts get certificates of it",
            Some(Step::Only) => "hosts come to trust the new one alone",
        };
        format!(
            "The authority is being made another: {doing}. `overlay-agent authority rotate` goes on with it.\n"
        )
    }
}

/// Says how it is with it.
pub async fn authority_status(etcd: &EtcdConfig) -> Result<AuthorityStatus> {
    may_decide(etcd)?;
    let store = EtcdStore::new(etcd)?;
    let rotation = authority::rotation(&store).await.exit(Exit::Unavailable)?;
    let own = certificates::read_authority()?.with_context(no_key).exit(Exit::NotPermitted)?;
    let left = crate::certificate::left(&own.certificate)?.unwrap_or_default();
    Ok(AuthorityStatus {
        seconds_left: left.as_secs(),
        rotation: rotation.map(|rotation| rotation.step),
    })
}

fn no_key() -> String {
    "this host has not the authority's key: one with a share in etcd has it".to_owned()
}

/// Makes the authority another, or goes on with that.
pub async fn rotate(wanted: &Rotate) -> Result<()> {
    checks::root("authority rotate")?;
    may_decide(&wanted.etcd)?;
    let store = EtcdStore::new(&wanted.etcd)?;
    let known = hosts(&wanted.etcd).await?;
    let mut without = Vec::new();
    for name in &wanted.without {
        let found: Vec<_> = known.iter().filter(|host| host.is(name)).collect();
        if found.is_empty() {
            return Err(anyhow!(
                "etcd knows no host {name}; `overlay-agent hosts` lists those it knows"
            ))
            .exit(Exit::NotFound);
        }
        without.extend(found.into_iter().map(|host| host.name.clone()));
    }
    let begun = authority::rotation(&store).await.exit(Exit::Unavailable)?;
    if begun.is_none() {
        check(&wanted.etcd, &store).await?;
        let (steps, sentence) = plan(&store, &known, &wanted.without).await?;
        if !consent::ask_about(wanted.consent, &steps, &sentence)? {
            return Ok(());
        }
        let (old, next) = make_next()?;
        authority::begin(&store, &old, &next).await.exit(Exit::Unavailable)?;
    } else if wanted.consent == Consent::DryRun {
        let steps = ["go on making the authority another, where that was interrupted".to_owned()];
        return consent::ask_about(wanted.consent, &steps, "").map(drop);
    }
    // What is in them opens nothing any more.
    for file in [TOKEN_FILE, MEMBER_TOKEN_FILE] {
        files::remove(Path::new(file))?;
    }
    let say = |text: &str| Report::found("authority", text);
    Box::pin(authority::drive(&store, &without, say)).await.exit(Exit::Unavailable)?;
    Report::found("authority", "is another: what the old one has signed opens nothing any more")?;
    // Copies of before have the old one in them.
    let copied = systemd::start(BACKUP).await;
    let copied = copied.map_or_else(
        |error| format!("no copy of etcd: {error:#}"),
        |()| "a new copy of etcd is made; those of before cannot be restored any more".to_owned(),
    );
    Report::found("backup", &copied)?;
    print(format_args!("\nKnown from now on:\n{}", table(&hosts(&wanted.etcd).await?)))?;
    print(
        "\nJoin tokens of before are void: `overlay-agent init` makes new ones. A host that was off meanwhile comes back by \
         `overlay-agent leave`, and `overlay-agent join` with a new one.\n",
    )
}

/// What can be known before anything is changed.
async fn check(etcd: &EtcdConfig, store: &EtcdStore) -> Result<()> {
    if !systemd::is_active(AGENT_UNIT).await? {
        return Err(anyhow!("{AGENT_UNIT} does not run, which does this host's part of it"))
            .exit(Exit::Unavailable);
    }
    let cluster = etcd::status(etcd).await?;
    if !cluster.is_fine() {
        return Err(anyhow!(
            "not all members of etcd are well, of which each has to be started anew: {}; `overlay-agent etcd status` has more",
            cluster.summary()
        ))
        .exit(Exit::Unavailable);
    }
    if authority::lets_sharers_in(store).await.exit(Exit::Unavailable)? {
        return Err(anyhow!(
            "hosts of earlier versions are let in by one certificate, which nobody can make anew for them: upgrade them, then \
             `overlay-agent expel --shared-certificate`"
        ))
        .exit(Exit::Conflict);
    }
    Ok(())
}

async fn plan(
    store: &EtcdStore,
    known: &[KnownHost],
    without: &[String],
) -> Result<(Vec<String>, String)> {
    let left: Vec<_> = known
        .iter()
        .filter(|host| host.leases.is_empty() || without.iter().any(|name| host.is(name)))
        .map(|host| host.name.to_string())
        .collect();
    let members = store.members().await.exit(Exit::Unavailable)?;
    let names: Vec<_> = known.iter().map(|host| host.name.to_string()).collect();
    let file = next_authority_file();
    let mut steps = vec![
        format!("make a new authority, in {}, and all join tokens void", file.display()),
        format!(
            "have {} hosts trust both, and give each a certificate of it: {}",
            names.len(),
            names.join(", ")
        ),
        format!("start etcd anew twice on each of {} hosts, one after the other", members.len()),
        "have nobody trust the old one any more".to_owned(),
    ];
    if members.len() > 1 {
        steps.insert(1, format!(
            "wait until somebody has brought {} to etcd's other members: `overlay-agent authority adopt FILE` takes it there",
            file.display()
        ));
    }
    if !left.is_empty() {
        steps.push(format!(
            "wait for none of those that have no lease, or are left behind, which may have to join again: {}",
            left.join(", ")
        ));
    }
    let sentence = match members.len() {
        1 => {
            "Nothing can be written to etcd, which is on this host alone, while it is started anew."
        }
        _ => "Expel first who is none of yours of the hosts that `overlay-agent hosts` has.",
    };
    Ok((steps, format!("{sentence}\n")))
}

/// Makes the new authority, unless an earlier run has. Returns the old one and the new one.
fn make_next() -> Result<(Authority, Credential)> {
    let own = certificates::read_authority()?.with_context(no_key).exit(Exit::NotPermitted)?;
    let file = next_authority_file();
    let before = next_authority(&file)?.filter(|before| before.certificate != own.certificate);
    let next = if let Some(before) = before {
        before
    } else {
        let made = Authority::new(LIFETIME)?.own().clone();
        files::write(&file, &[made.certificate.as_str(), &made.key].concat(), Readers::Root)?;
        made
    };
    Ok((Authority::load(own)?, next))
}

/// Keeps the new authority on another host with a share in etcd.
pub async fn adopt(file: &Path, etcd: &EtcdConfig) -> Result<()> {
    checks::root("authority adopt")?;
    may_decide(etcd)?;
    let store = EtcdStore::new(etcd)?;
    let next = next_authority(file)
        .exit(Exit::Data)?
        .with_context(|| format!("there is no file {}", file.display()))
        .exit(Exit::NotFound)?;
    let rotation: Option<Rotation> = authority::rotation(&store).await.exit(Exit::Unavailable)?;
    if rotation.is_none_or(|rotation| rotation.new != next.certificate) {
        return Err(anyhow!(
            "{} is not what is to become the authority: copy it from where `overlay-agent authority rotate` was begun",
            file.display()
        ))
        .exit(Exit::Conflict);
    }
    let text = [next.certificate.as_str(), &next.key].concat();
    let changed = files::write(&next_authority_file(), &text, Readers::Root)?;
    files::remove(Path::new(MEMBER_TOKEN_FILE))?;
    files::remove(Path::new(TOKEN_FILE))?;
    let trusted = ca_file();
    Report::default().step(
        changed,
        "authority",
        &format!("the next one is here; the agent takes it into {}", trusted.display()),
    )
}
