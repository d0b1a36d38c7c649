//! Listings as the tools print them; those of `nft` are of 1.0.6, those of `iptables-save` of 1.8.

mod iptables;
mod nft;

use super::{Saved, Scene, Sources};

fn scene() -> Scene {
    Scene {
        network: "10.1.0.0/16".parse().unwrap(),
        subnet: "10.1.15.0/24".parse().unwrap(),
        bridge: Some("docker0".to_owned()),
        tunnel: "overlay.1".to_owned(),
        uplink: "eth0".to_owned(),
        direct: false,
    }
}

/// Every scene that there is with those addresses.
fn scenes() -> impl Iterator<Item = Scene> {
    [false, true].into_iter().flat_map(|direct| {
        [Some("docker0".to_owned()), None].map(|bridge| Scene { direct, bridge, ..scene() })
    })
}

fn texts(sources: &Sources, scene: &Scene) -> Vec<String> {
    sources.concerns(scene).into_iter().map(|concern| concern.text).collect()
}

fn saved(text: &str) -> Sources {
    let saved = Saved { tool: "iptables", is_nft: true, text: text.to_owned() };
    Sources { saved: vec![saved], ..Sources::default() }
}

fn native(text: &str) -> Sources {
    Sources { nft: Some(text.to_owned()), ..Sources::default() }
}

/// What the tools could not do concerns, whatever else there is.
#[test]
fn what_cannot_be_read_concerns() {
    let unread = vec!["nft failed (exit status: 1): no".to_owned()];
    let sources = Sources { unread: unread.clone(), ..saved("") };
    assert_eq!(texts(&sources, &scene()), unread);
}
