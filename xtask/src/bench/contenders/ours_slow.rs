//! Our agent with `--fast-path off`: every packet through the host's stack and the kernel's device.

use anyhow::Result;

use super::{Contender, Site, Standing, ours};

pub(super) const CONTENDER: Contender =
    Contender { name: "ours-slow", about: "ours with the fast path off", usual: true, set_up };

const NETWORK: u8 = 50;

fn set_up(site: &Site<'_>) -> Result<Standing> {
    ours::with_options(site, NETWORK, &site.agents.now, |options| options.fast_path(false))
}
