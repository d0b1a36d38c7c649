//! Stub until the reader is there.
use anyhow::Result;
use ipnetwork::Ipv4Network;

/// What forwarded packets of the overlay look like to the firewall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scene {
    pub network: Ipv4Network,
    pub subnet: Ipv4Network,
    pub bridge: Option<String>,
    pub tunnel: String,
    pub uplink: String,
    pub direct: bool,
}

/// One rule that may concern them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Concern {
    pub text: String,
}

pub async fn concerns(_scene: &Scene) -> Result<Vec<Concern>> {
    Ok(Vec::new())
}
