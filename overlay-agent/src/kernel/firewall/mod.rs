//! What the host's firewall has to do for the overlay: forward what is the overlay's, leave addresses inside it as
//! they are, and, with `--ip-masq`, give containers the host's address towards the outside.

mod changes;
mod conntrack;
mod docker_nftables;
mod forward;
pub mod mend;
mod nat;
mod nft;
mod rules;

use std::{net::Ipv4Addr, time::Duration};

use anyhow::Result;
use ipnetwork::Ipv4Network;
use overlay_common::tables::HostConfig;
use overlay_lease::config::RulesMode;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tokio_util::task::AbortOnDropHandle;

use changes::RulesetEvents;

pub use nat::{Masquerade, Nat};
pub use rules::{Concern, Flow, Rules, Scene, ServicePort};

/// What netfilter sees of what containers of two hosts send each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scrutiny {
    /// Nothing but what the fast path does not carry
    #[default]
    None,
    /// Every flow until it has let it through, and again more than once a second
    EachFlow,
    /// Every packet
    EachPacket,
}

impl Scrutiny {
    /// What netfilter is to see by this mode, where there are these rules that may concern the overlay.
    pub fn by(mode: RulesMode, concerns: &[Concern]) -> Self {
        match mode {
            RulesMode::Bypass => Self::None,
            RulesMode::Auto if concerns.is_empty() => Self::None,
            _ if concerns.iter().any(|rule| rule.each_packet) => Self::EachPacket,
            _ => Self::EachFlow,
        }
    }

    /// The bits of [`HostConfig::flags`] that say so.
    pub const fn flags(self) -> u32 {
        match self {
            Self::None => 0,
            Self::EachFlow => HostConfig::HONOUR_RULES,
            Self::EachPacket => HostConfig::HONOUR_RULES | HostConfig::EVERY_PACKET,
        }
    }
}

/// How many times as long as a look took there is none: where somebody changes rules without pause, and there
/// are thousands to list, looking takes a fifth of the time and not all of it.
const REST: u32 = 4;

/// Removes every rule for tunnel device `device`. Returns whether there were any.
pub async fn remove(device: &str) -> Result<bool> {
    // One that cannot be removed does not keep the others.
    let removed = [
        forward::remove(device).await,
        docker_nftables::remove(device).await,
        remove_nat(device).await,
    ];
    removed.into_iter().try_fold(false, |any, removed| Ok(any | removed?))
}

async fn remove_nat(device: &str) -> Result<bool> {
    let is_there = nat::list(device).await?.is_some();
    if is_there {
        nat::remove(device).await?;
    }
    Ok(is_there)
}

/// What is to be looked after.
#[derive(Debug)]
pub struct Spec {
    /// What the overlay looks like to the firewall.
    pub scene: Scene,
    /// Whether others' rules hold for the overlay.
    pub mode: RulesMode,
    /// Whether the host is to forward what is the overlay's.
    pub forward: bool,
    /// The rules about addresses.
    pub nat: Nat,
    /// How often to look.
    pub period: Duration,
}

/// The rules that should be there.
#[derive(Debug)]
pub struct Firewall {
    scene: watch::Receiver<Scene>,
    mode: RulesMode,
    forward: bool,
    nat: Nat,
    /// The rules of our table as `nft` lists them after we have made them, and for whom.
    listing: Option<(Scene, String)>,
}

impl Firewall {
    /// Looks after the rules at once, whenever somebody changes any, and every `period`, because rules of
    /// `iptables-legacy` make no event. In a task of its own: the programs that it runs wait for each other's
    /// lock, and the datapath is not to wait with them.
    pub fn keep(spec: Spec, seen: Rules) -> FirewallTask {
        let Spec { scene, mode, forward, nat, period } = spec;
        let (scenes, scene) = watch::channel(scene);
        let mut this = Self { scene, mode, forward, nat, listing: None };
        let (tell, fault) = watch::channel(None);
        let (find, found) = watch::channel(seen);
        let task = async move {
            let mut changes = RulesetEvents::subscribe();
            let mut check = interval(period);
            check.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = check.tick() => {}
                    () = changes.next() => {}
                    // The agent, which tells of it, ends this task.
                    Ok(()) = this.scene.changed() => {}
                }
                let begun = Instant::now();
                let outcome = this.turn(&find).await;
                tell.send_replace(report("bringing the firewall in step", outcome));
                sleep(begun.elapsed() * REST).await;
            }
        };
        FirewallTask { fault, scenes, found, task: AbortOnDropHandle::new(tokio::spawn(task)) }
    }

    async fn turn(&mut self, find: &watch::Sender<Rules>) -> Result<()> {
        let scene = self.scene.borrow_and_update().clone();
        let kept = self.ensure(&scene).await;
        let rules = Rules::read(&scene).await;
        let is_for_flows = Scrutiny::by(self.mode, &rules.concerns) == Scrutiny::EachFlow;
        let tracked = if is_for_flows { conntrack::be_liberal() } else { Ok(()) };
        find.send_if_modified(|found| {
            let is_news = *found != rules;
            *found = rules;
            is_news
        });
        // What fails keeps nothing else from being done, or told.
        kept.and(tracked)
    }

    /// Puts right whatever is missing or was changed. Nothing is touched that is not ours.
    async fn ensure(&mut self, scene: &Scene) -> Result<()> {
        // One that fails does not keep the others from being made.
        let translated = self.ensure_nat(scene).await;
        if !self.forward {
            return translated;
        }
        let forwarded = forward::ensure(scene).await;
        translated.and(forwarded).and(docker_nftables::ensure(scene).await)
    }

    async fn ensure_nat(&mut self, scene: &Scene) -> Result<()> {
        let found = nat::list(&scene.tunnel).await?;
        // Peers come and go, and are not among the rules.
        let scene = Scene { peers: Vec::new(), ..scene.clone() };
        if let Some((made_for, listing)) = &self.listing {
            let is_ours = found.as_ref() == Some(listing);
            if is_ours && *made_for == scene {
                return Ok(());
            }
            if !is_ours {
                tracing::warn!(table = scene.tunnel, "the rules about addresses were changed");
            }
        }
        let Some(made) = self.nat.apply(&scene).await? else { return Ok(()) };
        crate::kernel::repairs::made("rules about addresses");
        // What somebody has changed meanwhile is not ours, and has made an event that has us look again.
        let listing = nat::list(&scene.tunnel).await?;
        let listing = listing.filter(|listing| nat::shown(listing) == made);
        self.listing = listing.map(|listing| (scene, listing));
        Ok(())
    }
}

/// Rules that a task looks after, for as long as this value lives.
#[derive(Debug)]
pub struct FirewallTask {
    fault: watch::Receiver<Option<String>>,
    scenes: watch::Sender<Scene>,
    found: watch::Receiver<Rules>,
    task: AbortOnDropHandle<()>,
}

impl FirewallTask {
    /// What failed the last time, as a sentence.
    pub fn fault(&self) -> Option<String> {
        self.fault.borrow().clone()
    }

    /// Tells behind which bridges containers are, and who the peers are. Rules go by a bridge's name, so that one
    /// that is gone keeps them until another comes: it is made anew under its name, and nothing has to change twice.
    pub fn see(&self, bridges: Vec<String>, peers: Vec<(Ipv4Addr, Ipv4Network)>) {
        self.scenes.send_if_modified(|scene| {
            let is_another = bridges.iter().any(|bridge| !scene.bridges.contains(bridge));
            let is_news = is_another || scene.peers != peers;
            if is_another {
                scene.bridges = bridges;
            }
            scene.peers = peers;
            is_news
        });
    }

    /// Others' rules, as far as they matter to the overlay.
    pub fn rules(&self) -> Rules {
        self.found.borrow().clone()
    }

    /// Returns when there are others.
    pub async fn changed(&mut self) {
        if self.found.changed().await.is_err() {
            // The task has died, which is looked at elsewhere.
            std::future::pending::<()>().await;
        }
    }

    /// Whether the task has died, which it never should.
    pub fn is_dead(&self) -> bool {
        self.task.is_finished()
    }
}

/// Logs a failure and turns it into a sentence for `status`.
fn report(doing: &str, outcome: Result<()>) -> Option<String> {
    let error = outcome.err()?;
    tracing::error!("{doing}: {error:#}");
    Some(format!("The last attempt at {doing} failed: {error:#}."))
}
