use overlay_common::MacAddr;

use super::*;

fn subnet(text: &str) -> Ipv4Network {
    text.parse().expect("a subnet")
}

fn address(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 33, host)
}

/// The lease of a host, as old as it is written late.
fn claim(of: &str, host: u8, revision: i64) -> LeaseClaim {
    let lease = Lease {
        subnet: subnet(of),
        public_ip: address(host),
        vtep_mac: MacAddr([2, 0, 0, 0, 0, host]),
        vni: None,
    };
    let [created, written] = [Revision::new(revision); 2];
    LeaseClaim { created, written, ..LeaseClaim::listed(lease) }
}

fn peers_up_to(limits: Limits) -> Peers {
    let scope = Scope {
        network: subnet("10.1.0.0/16"),
        own: subnet("10.1.15.0/24"),
        own_address: address(10),
        own_mac: MacAddr([2, 0, 0, 0, 0, 10]),
    };
    Peers::new(scope, limits, Surroundings::default())
}

fn peers() -> Peers {
    peers_up_to(Limits { of_writer: 64, of_all: 131_072 })
}

fn problems(peers: &Peers) -> Vec<String> {
    peers.problems((Vec::new(), 0), |key| format!("/n/subnets/{key}"))
}

fn speaks_for(peers: &Peers, host: u8, of: &str) -> bool {
    peers.vtep(address(host)) == Some(Vtep::new(prefix(subnet(of))))
}

#[test]
fn our_own_leases_are_no_peers() {
    let mut peers = peers();
    peers.replace_all(vec![
        claim("10.1.15.0/24", 10, 1),
        claim("10.1.20.0/24", 11, 2),
        claim("10.1.99.0/24", 10, 3),
    ]);
    assert_eq!(peers.all_peers(&Routing::default()).len(), 1);
    assert_eq!(peers.all_vteps().len(), 1);
    assert!(problems(&peers).is_empty(), "a lease of ours of earlier runs out by itself");
}

#[test]
fn a_changed_address_moves_the_right_to_speak() {
    let mut peers = peers();
    peers.put(claim("10.1.20.0/24", 11, 1));
    peers.take_stale();
    peers.put(LeaseClaim { written: Revision::new(2), ..claim("10.1.20.0/24", 12, 1) });
    let stale = peers.take_stale();
    assert_eq!(stale.addresses, BTreeSet::from([address(11), address(12)]));
    assert_eq!(stale.subnets, BTreeSet::from([subnet("10.1.20.0/24")]));
    assert_eq!(peers.vtep(address(11)), None);
    assert!(peers.vtep(address(12)).is_some());
    peers.remove(claim("10.1.20.0/24", 12, 1).key);
    assert!(peers.all_vteps().is_empty());
}

#[test]
fn the_newer_of_two_leases_speaks_wherever_it_sorts() {
    let mut peers = peers();
    peers.put(claim("10.1.30.0/24", 11, 1));
    assert!(speaks_for(&peers, 11, "10.1.30.0/24"));
    // The host was wiped, and has another subnet now.
    peers.put(claim("10.1.40.0/24", 11, 2));
    assert!(speaks_for(&peers, 11, "10.1.40.0/24"));
    peers.put(claim("10.1.20.0/24", 11, 3));
    assert!(speaks_for(&peers, 11, "10.1.20.0/24"));
    assert_eq!(peers.all_peers(&Routing::default()).len(), 3, "the others lead to the same host");
    let found = problems(&peers);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("192.168.33.11 has 2 more lease(s) than /n/subnets/10.1.20.0-24"));
    // Its old lease is renewed once more.
    peers.put(LeaseClaim { written: Revision::new(4), ..claim("10.1.30.0/24", 11, 1) });
    assert!(speaks_for(&peers, 11, "10.1.30.0/24"));
}

#[test]
fn what_is_kept_alive_speaks_and_not_what_merely_stands_there() {
    let mut peers = peers();
    let reservation = |of, revision| LeaseClaim { kept: false, ..claim(of, 11, revision) };
    peers.put(claim("10.1.30.0/24", 11, 2));
    peers.put(reservation("10.1.20.0/24", 1));
    peers.put(reservation("10.1.40.0/24", 3));
    assert!(speaks_for(&peers, 11, "10.1.30.0/24"));
    peers.remove(claim("10.1.30.0/24", 11, 2).key);
    assert!(speaks_for(&peers, 11, "10.1.40.0/24"), "better than none");
}

#[test]
fn lengths_come_longest_first_and_those_of_few_leases_are_named() {
    let mut peers = peers();
    for third in 20..30 {
        peers.put(claim(&format!("10.1.{third}.0/24"), third, i64::from(third)));
    }
    for (number, of) in
        ["10.1.64.0/26", "10.1.65.0/25", "10.1.32.0/27", "10.1.40.0/28", "10.1.41.0/29"]
            .into_iter()
            .enumerate()
    {
        let host = 50 + u8::try_from(number).unwrap();
        peers.put(claim(of, host, 100));
    }
    assert_eq!(peers.lengths(), [29, 28, 27, 24]);
    let found = problems(&peers);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("1 lease(s) of length /26 are not programmed"), "{found:?}");
    assert!(found[1].contains("/25"), "{found:?}");
    peers.remove(claim("10.1.41.0/29", 54, 100).key);
    assert_eq!(peers.lengths(), [28, 27, 26, 24]);
}

#[test]
fn what_does_not_fit_is_counted_and_follows_when_there_is_room() {
    let mut peers = peers_up_to(Limits { of_writer: 64, of_all: 10 });
    let lease = |third: u8| claim(&format!("10.1.{third}.0/24"), third, i64::from(third));
    peers.replace_all((100..107).map(lease).collect());
    assert!(problems(&peers).is_empty());
    peers.put(lease(107));
    assert_eq!(problems(&peers), ["There are 8 leases, and the maps hold 10."]);
    for third in 108..150 {
        peers.put(lease(third));
    }
    let all = peers.all_peers(&Routing::default());
    assert_eq!((all.len(), peers.all_vteps().len(), peers.count()), (10, 10, 10));
    assert!(peers.lease(subnet("10.1.109.0/24")).is_some(), "the oldest stay");
    assert_eq!(
        problems(&peers),
        ["40 lease(s) are not programmed: the maps hold 10, and the oldest count."]
    );
    peers.take_stale();
    peers.remove(lease(100).key);
    let stale = peers.take_stale();
    assert_eq!(stale.subnets, BTreeSet::from(["10.1.100.0/24", "10.1.110.0/24"].map(subnet)));
    assert_eq!((peers.count(), peers.lengths()), (10, [24, 0, 0, 0]));
    peers.replace_all(Vec::new());
    assert_eq!((peers.count(), peers.lengths()), (0, [0; 4]));
    assert!(problems(&peers).is_empty());
}

#[test]
fn at_most_ten_are_named() {
    let mut peers = peers();
    for third in 0..30_u8 {
        peers.put(claim(&format!("10.2.{third}.0/24"), 100 + third, i64::from(third)));
    }
    let ignored = (vec!["/n/subnets/x is ignored: why".to_owned()], 5);
    let found = peers.problems(ignored, |key| format!("/n/subnets/{key}"));
    assert_eq!(found.len(), 11);
    assert_eq!(found[0], "/n/subnets/x is ignored: why.");
    assert_eq!(
        found[1],
        "The lease /n/subnets/10.2.0.0-24 is not believed: it is outside the network 10.1.0.0/16."
    );
    assert_eq!(found[10], "And 25 more leases are not believed.");
}
