//! Our agent where the firewall's rules hold: every flow begins in the host's stack.

use anyhow::Result;

use super::{Contender, Site, Standing, ours};

pub(super) const CONTENDER: Contender = Contender {
    name: super::OURS_HONOUR,
    about: "ours where the firewall's rules hold (`--rules honour`)",
    usual: true,
    set_up,
};

const NETWORK: u8 = 65;

fn set_up(site: &Site<'_>) -> Result<Standing> {
    ours::with_options(site, NETWORK, &site.agents.now, |options| {
        options.argument("--rules=honour")
    })
}
