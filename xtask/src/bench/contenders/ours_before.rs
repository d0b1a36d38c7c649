//! Our agent of another version (`--before`): what a change costs, in one run.

use anyhow::{Context as _, Result};

use super::{Contender, Site, Standing, ours};

pub(super) const CONTENDER: Contender = Contender {
    name: super::OURS_BEFORE,
    about: "our agent of another version, if `--before` names one",
    usual: false,
    set_up,
};

const NETWORK: u8 = 55;

fn set_up(site: &Site<'_>) -> Result<Standing> {
    let before = site.agents.before.as_deref();
    let before = before.context("`--before` names none")?;
    ours::with_options(site, NETWORK, before, |options| options)
}
