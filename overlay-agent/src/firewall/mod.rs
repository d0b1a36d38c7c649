//! What the host's firewall has to do for the overlay: forward what is the overlay's, leave addresses inside it as
//! they are, and, with `--ip-masq`, give containers the host's address towards the outside.

mod changes;
mod forward;
mod nat;

use std::time::Duration;

use anyhow::Result;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tokio_util::task::AbortOnDropHandle;

use changes::Changes;

pub use forward::Forward;
pub use nat::{Masquerade, Nat};

/// How many times as long as a look took there is none: where somebody changes rules without pause, and there
/// are thousands to list, looking takes a fifth of the time and not all of it.
const REST: u32 = 4;

/// Removes every rule for tunnel device `device`. Returns whether there were any.
pub async fn remove(device: &str) -> Result<bool> {
    let forwarded = forward::remove(device).await?;
    let masqueraded = nat::list(device).await?.is_some();
    if masqueraded {
        nat::remove(device).await?;
    }
    Ok(forwarded || masqueraded)
}

/// The rules that should be there.
#[derive(Debug)]
pub struct Firewall {
    device: String,
    forward: Option<Forward>,
    nat: Nat,
    /// The rules about addresses as `nft` lists them after we have made them.
    listing: Option<String>,
}

impl Firewall {
    /// Rules for tunnel device `device`.
    pub const fn new(device: String, forward: Option<Forward>, nat: Nat) -> Self {
        Self { device, forward, nat, listing: None }
    }

    /// Looks after the rules at once, whenever somebody changes any, and every `period`, because rules of
    /// `iptables-legacy` make no event. In a task of its own: the programs that it runs wait for each other's
    /// lock, and the datapath is not to wait with them.
    pub fn keep(mut self, period: Duration) -> Kept {
        let (report, fault) = watch::channel(None);
        let task = async move {
            let mut changes = Changes::subscribe();
            let mut check = interval(period);
            check.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    _ = check.tick() => {}
                    () = changes.next() => {}
                }
                let begun = Instant::now();
                let outcome = self.ensure().await;
                report.send_replace(crate::agent::report("bringing the firewall in step", outcome));
                sleep(begun.elapsed() * REST).await;
            }
        };
        Kept { fault, task: AbortOnDropHandle::new(tokio::spawn(task)) }
    }

    /// Puts right whatever is missing or was changed. Nothing is touched that is not ours.
    async fn ensure(&mut self) -> Result<()> {
        // One that fails does not keep the other from being made.
        let translated = self.ensure_nat().await;
        if let Some(forward) = &self.forward {
            forward.ensure(&self.device).await?;
        }
        translated
    }

    async fn ensure_nat(&mut self) -> Result<()> {
        let found = nat::list(&self.device).await?;
        if found.is_some() && found == self.listing {
            return Ok(());
        }
        if self.listing.is_some() {
            tracing::warn!(table = self.device, "the rules about addresses were changed");
        }
        if !self.nat.apply(&self.device).await? {
            return Ok(());
        }
        crate::repairs::made("rules about addresses");
        self.listing = nat::list(&self.device).await?;
        Ok(())
    }
}

/// Rules that a task looks after, for as long as this value lives.
#[derive(Debug)]
pub struct Kept {
    fault: watch::Receiver<Option<String>>,
    task: AbortOnDropHandle<()>,
}

impl Kept {
    /// What failed the last time, as a sentence.
    pub fn fault(&self) -> Option<String> {
        self.fault.borrow().clone()
    }

    /// Whether the task has died, which it never should.
    pub fn is_dead(&self) -> bool {
        self.task.is_finished()
    }
}
