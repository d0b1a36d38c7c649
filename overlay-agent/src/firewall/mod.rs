//! What the host's firewall has to do for the overlay: forward what goes through the tunnel device, and,
//! with `--ip-masq`, give containers the host's address towards the outside.

mod forward;
mod masquerade;

use anyhow::Result;

pub use masquerade::Masquerade;

/// Removes every rule for tunnel device `device`. Returns whether there were any.
pub async fn remove(device: &str) -> Result<bool> {
    let forwarded = forward::remove(device).await?;
    let masqueraded = masquerade::list(device).await?.is_some();
    if masqueraded {
        masquerade::remove(device).await?;
    }
    Ok(forwarded || masqueraded)
}

/// The rules that should be there.
#[derive(Debug)]
pub struct Firewall {
    device: String,
    forward: bool,
    masquerade: Option<Masquerade>,
    /// The masquerading rules as `nft` lists them after we have made them.
    listing: Option<String>,
}

impl Firewall {
    /// Rules for tunnel device `device`.
    pub const fn new(device: String, forward: bool, masquerade: Option<Masquerade>) -> Self {
        Self { device, forward, masquerade, listing: None }
    }

    /// Puts right whatever is missing or was changed. Nothing is touched that is not ours.
    pub async fn ensure(&mut self) -> Result<()> {
        if self.forward {
            forward::ensure(&self.device).await?;
        }
        let found = masquerade::list(&self.device).await?;
        match &self.masquerade {
            None if found.is_some() => masquerade::remove(&self.device).await,
            Some(wanted) if found.is_none() || found != self.listing => {
                if self.listing.is_some() {
                    tracing::warn!(table = self.device, "the masquerading rules were changed");
                }
                crate::repairs::made("masquerading rules");
                wanted.apply(&self.device).await?;
                self.listing = masquerade::list(&self.device).await?;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
