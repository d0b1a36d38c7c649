//! Frames that got through once, kept and sent again: the corpus's `packets`.
//!
//! A file begins with a comment: the hook that has to see the frame, how it is sent where that matters (`packet ring`,
//! `another bridge`), and what was wrong. Behind `# stopped` comes what the kernel drops by itself, so that no program of
//! ours need have counted it. The rest is the frame in hexadecimal digits. Addresses are those of
//! [`Site`], and every frame ends with a number of its own ([`number_in`]).

use std::{collections::BTreeSet, net::Ipv4Addr};

use overlay_lab::{
    UPLINK,
    corpus::{self, Case},
};

use crate::{
    mutation::generate::number_in,
    tools::{
        frame::{IPV4, datagram, ethernet},
        port::Port,
        ring::Ring,
        site::{ATTACKER, OWNER, REMOTE, SECOND_MAC, Site, from_peer, to_gateway},
        sniffer::Sniffer,
        trial::Trial,
    },
};

/// A file of the corpus.
struct Kept {
    name: String,
    /// The hook and the way, as the file names them.
    way: String,
    what: String,
    stopped: bool,
    frame: Vec<u8>,
    number: u32,
}

fn read() -> Vec<Kept> {
    corpus::read("packets").unwrap().into_iter().map(parse).collect()
}

fn parse(Case { name, comments, body }: Case) -> Kept {
    let (way, what) =
        comments[0].split_once(": ").unwrap_or_else(|| panic!("{name} names no hook"));
    let stopped = match &comments[1..] {
        [] => false,
        [word] if word == "stopped" => true,
        other => panic!("{name}: nobody knows what {other:?} means"),
    };
    let digits: String = body.split_whitespace().collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let frame: Option<Vec<u8>> = digits.as_bytes().chunks(2).map(byte).collect();
    let frame = frame.unwrap_or_else(|| panic!("{name} has something else than digits"));
    let number = number_in(&frame).unwrap_or_else(|| panic!("{name} has no number"));
    Kept { way: way.to_owned(), what: what.to_owned(), stopped, name, frame, number }
}

/// Every way there is in the corpus, open.
fn prepare(site: &mut Site) {
    site.masquerade();
    site.add_application_network();
    site.add_outsider();
    for (host, second) in [(0, 110), (1, 111)] {
        let host = site.lab.host(host);
        host.ip(["address", "add", &format!("192.168.33.{second}/24"), "dev", UPLINK]).unwrap();
        for interface in ["all", UPLINK, "docker0"] {
            let name = format!("net/ipv4/conf/{interface}/accept_source_route");
            host.namespace().sysctl(&name, "1").unwrap();
        }
    }
    let numbered = |bytes: &[u8]| number_in(bytes).is_some();
    site.sniffers.extend([
        Sniffer::frames(site.owner.namespace(), "the owner", numbered),
        Sniffer::frames(site.remote.namespace(), "the remote container", numbered),
        Sniffer::datagrams(site.host().namespace(), "the first host", move |packet| {
            // VXLAN for its port has not been taken for what is in it.
            numbered(packet) && packet.get(22..24) != Some(&[0x21, 0x18])
        }),
    ]);
}

fn send(site: &Site, kept: &Kept) {
    let [application, outside] = [&site.others[0], &site.others[1]];
    let (namespace, by_ring) = match kept.way.as_str() {
        "from_container" => (site.attacker.namespace(), false),
        "from_container, packet ring" => (site.attacker.namespace(), true),
        "from_uplink" => (site.outlaw().namespace(), false),
        "from_uplink, packet ring" => (site.outlaw().namespace(), true),
        "from_interface" => (outside, false),
        "from_interface, packet ring" => (outside, true),
        "from_interface, another bridge" => (application, false),
        other => panic!("{}: nobody knows the way {other}", kept.name),
    };
    if by_ring {
        Ring::open(namespace, "eth0").send(std::slice::from_ref(&kept.frame)).unwrap();
    } else {
        Port::open(namespace, "eth0").send(&kept.frame).unwrap();
    }
}

fn replay(mut site: Site) {
    prepare(&mut site);
    let mut trial = Trial::new(&site);
    trial.delivers("an honest datagram from a container", |marker| {
        let frame = to_gateway(&datagram(ATTACKER, REMOTE, &marker));
        site.attacker_port().send(&frame).unwrap();
    });
    trial.delivers("an honest datagram from the wire", |marker| {
        site.wire_port().send(&from_peer(&datagram(REMOTE, OWNER, &marker))).unwrap();
    });
    trial.delivers("an honest datagram by a second interface", |marker| {
        let packet = datagram(Ipv4Addr::new(10, 99, 0, 2), OWNER, &marker);
        let frame = ethernet(SECOND_MAC, [2, 0, 10, 99, 0, 2], &[], IPV4, &packet);
        Port::open(&site.others[1], "eth0").send(&frame).unwrap();
    });
    let corpus = read();
    assert!(corpus.len() > 20, "{} files", corpus.len());
    for kept in &corpus {
        let what = format!("{}: {}", kept.name, kept.what);
        let attempt = |_| send(&site, kept);
        if kept.stopped {
            trial.stops(&what, 1, attempt);
        } else {
            trial.refuses(&what, 1, attempt);
        }
        for sniffer in &site.sniffers {
            let arrived = sniffer.seen();
            if arrived.iter().any(|frame| number_in(frame) == Some(kept.number)) {
                trial.fail(format!("{what}: it reached {}", sniffer.place));
            }
        }
    }
    trial.finish();
}

#[test]
fn what_got_through_once_does_not_get_through_again() {
    replay(Site::new());
}

#[test]
fn what_got_through_once_does_not_get_through_without_the_fast_path() {
    replay(Site::with(|options| options.fast_path(false)));
}

#[test]
fn every_frame_of_the_corpus_has_a_number_of_its_own() {
    let corpus = read();
    let numbers: BTreeSet<u32> = corpus.iter().map(|kept| kept.number).collect();
    assert_eq!(numbers.len(), corpus.len());
}
