//! Host to host, without containers and without any overlay: as fast as it can get.

use anyhow::Result;

use super::{Contender, Place, Site, Standing};

pub(super) const CONTENDER: Contender = Contender {
    name: super::HOST,
    about: "host to host, no overlay, no container",
    usual: true,
    set_up,
};

#[expect(clippy::unnecessary_wraps, reason = "as every contender, which can fail")]
fn set_up(site: &Site<'_>) -> Result<Standing> {
    let places = site.hosts.map(|host| Place {
        namespace: host.namespace().name().to_owned(),
        address: host.address(),
    });
    Ok(Standing::between(places, Vec::new(), Vec::new()))
}
