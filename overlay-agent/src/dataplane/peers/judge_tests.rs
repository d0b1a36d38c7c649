use overlay_lease::{store::Revision, wire::Lease};
use proptest::prelude::*;

use super::*;

fn net(text: &str) -> Ipv4Network {
    text.parse().expect("a subnet")
}

fn address(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 33, host)
}

fn claim(of: &str, host: u8, created: i64) -> LeaseClaim {
    let lease = Lease {
        subnet: net(of),
        public_ip: address(host),
        vtep_mac: MacAddr([2, 0, 0, 0, 0, host]),
        vni: None,
    };
    let [created, written] = [Revision::new(created); 2];
    LeaseClaim { created, written, ..LeaseClaim::listed(lease) }
}

fn scope() -> Scope {
    Scope {
        network: net("10.1.0.0/16"),
        own: net("10.1.15.0/24"),
        own_address: address(10),
        own_mac: MacAddr([2, 0, 0, 0, 0, 10]),
    }
}

fn judge_up_to(of_writer: usize) -> Judge {
    let here = Surroundings::new([(address(10), 24)], [address(1)]);
    Judge::new(scope(), Limits { of_writer, of_all: 1000 }, here)
}

fn verdict(judge: &Judge, claim: &LeaseClaim) -> Verdict {
    judge.cases[&claim.key].verdict
}

fn refusal(judge: &Judge, claim: &LeaseClaim) -> String {
    match verdict(judge, claim) {
        Verdict::Refused(refusal) => refusal.to_string(),
        other => format!("{other:?}"),
    }
}

#[test]
fn what_no_host_can_be_is_refused_by_name() {
    let with = |public_ip: &str| {
        let claim = claim("10.1.20.0/24", 20, 1);
        LeaseClaim {
            lease: Lease { public_ip: public_ip.parse().unwrap(), ..claim.lease },
            ..claim
        }
    };
    let our_mac = claim("10.1.20.0/24", 20, 1);
    let our_mac =
        LeaseClaim { lease: Lease { vtep_mac: scope().own_mac, ..our_mac.lease }, ..our_mac };
    for (claim, reason) in [
        (claim("10.2.0.0/24", 20, 1), "it is outside the network 10.1.0.0/16"),
        (claim("10.1.0.0/16", 20, 1), "it covers the whole network 10.1.0.0/16"),
        (claim("0.0.0.0/1", 20, 1), "it covers the whole network 10.1.0.0/16"),
        (claim("128.0.0.0/1", 20, 1), "it is outside the network 10.1.0.0/16"),
        (claim("10.177.0.0/16", 20, 1), "it is outside the network 10.1.0.0/16"),
        (claim("10.1.15.16/28", 20, 1), "it overlaps our own subnet 10.1.15.0/24"),
        (claim("10.1.8.0/21", 20, 1), "it overlaps our own subnet 10.1.15.0/24"),
        (claim("10.1.15.0/24", 20, 1), "it overlaps our own subnet 10.1.15.0/24"),
        (with("0.0.0.0"), "its public address 0.0.0.0 is in 0.0.0.0/8, which no host has"),
        (with("127.0.0.1"), "its public address 127.0.0.1 is a loopback address"),
        (with("224.0.0.1"), "its public address 224.0.0.1 is a multicast address"),
        (with("250.1.1.1"), "its public address 250.1.1.1 is in 240.0.0.0/4, which no host has"),
        (
            with("255.255.255.255"),
            "its public address 255.255.255.255 is in 240.0.0.0/4, which no host has",
        ),
        (
            with("10.1.44.1"),
            "its public address 10.1.44.1 is inside the overlay network 10.1.0.0/16",
        ),
        (
            with("192.168.33.255"),
            "its public address 192.168.33.255 means all hosts of 192.168.33.0/24",
        ),
        (with("192.168.33.10"), "its public address 192.168.33.10 is this host's own"),
        (with("192.168.33.1"), "its public address 192.168.33.1 is this host's default gateway"),
        (our_mac, "its VtepMAC is that of our own tunnel device"),
    ] {
        let mut judge = judge_up_to(64);
        judge.put(claim);
        let changed = judge.settle();
        assert_eq!(refusal(&judge, &claim), reason);
        assert!(changed.is_empty(), "what is refused changes nothing: {changed:?}");
    }
}

#[test]
fn the_older_of_two_that_overlap_counts_and_the_younger_follows_at_once() {
    let old = claim("10.1.20.0/24", 20, 5);
    for young in [
        claim("10.1.20.16/28", 21, 6),
        claim("10.1.16.0/21", 21, 6),
        LeaseClaim {
            key: SubnetKey { ipv6: Some((std::net::Ipv6Addr::LOCALHOST, 64)), ..old.key },
            ..claim("10.1.20.0/24", 21, 6)
        },
    ] {
        for order in [[old, young], [young, old]] {
            let mut judge = judge_up_to(64);
            for claim in order {
                judge.put(claim);
            }
            judge.settle();
            assert_eq!(verdict(&judge, &old), Verdict::Believed);
            assert_eq!(
                refusal(&judge, &young),
                "it overlaps 10.1.20.0/24, which 192.168.33.20 has had for longer"
            );
            // A renewal makes nobody younger.
            judge.put(LeaseClaim { written: Revision::new(9), ..old });
            judge.settle();
            assert_eq!(verdict(&judge, &old), Verdict::Believed);
            judge.remove(old.key);
            assert_eq!(judge.settle().len(), 2);
            assert_eq!(verdict(&judge, &young), Verdict::Believed);
            // It comes back as somebody new.
            judge.put(LeaseClaim { created: Revision::new(10), ..old });
            judge.settle();
            assert_eq!(verdict(&judge, &young), Verdict::Believed);
            assert_eq!(judge.refused(), 1);
        }
    }
}

#[test]
fn who_is_refused_refuses_nobody() {
    let mut judge = judge_up_to(64);
    let (old, wide, inside) =
        (claim("10.1.20.0/24", 20, 1), claim("10.1.16.0/20", 21, 2), claim("10.1.25.0/24", 22, 3));
    for claim in [inside, wide, old] {
        judge.put(claim);
    }
    judge.settle();
    assert_eq!(verdict(&judge, &inside), Verdict::Believed);
    judge.remove(old.key);
    judge.settle();
    assert_eq!(verdict(&judge, &wide), Verdict::Believed);
    assert!(matches!(verdict(&judge, &inside), Verdict::Refused(_)), "the wide one is older");
}

#[test]
fn a_writer_gets_so_many_leases_and_the_next_when_one_is_gone() {
    let mut judge = judge_up_to(3);
    let lease = |third: u8| claim(&format!("10.1.{third}.0/24"), 20, i64::from(third));
    (20..25).for_each(|third| judge.put(lease(third)));
    judge.settle();
    assert_eq!(judge.of_address(address(20)).count(), 3);
    assert_eq!(
        refusal(&judge, &lease(23)),
        "192.168.33.20 has 3 older leases, and no host gets more"
    );
    assert_eq!(judge.crowded().collect::<Vec<_>>(), [(address(20), 3)]);
    judge.remove(lease(20).key);
    judge.settle();
    assert_eq!(verdict(&judge, &lease(23)), Verdict::Believed);
    // An older one takes its place.
    judge.put(lease(19));
    judge.settle();
    assert_eq!(
        refusal(&judge, &lease(23)),
        "192.168.33.20 has 3 older leases, and no host gets more"
    );
    assert_eq!(judge.refused(), 2);
}

#[test]
fn an_address_that_becomes_our_own_is_no_peers_any_more() {
    let mut judge = judge_up_to(64);
    let peer = claim("10.1.20.0/24", 20, 1);
    judge.put(peer);
    judge.settle();
    judge.set_surroundings(Surroundings::new([(address(10), 24), (address(20), 32)], []));
    assert_eq!(judge.settle().len(), 1);
    assert_eq!(refusal(&judge, &peer), "its public address 192.168.33.20 is this host's own");
    judge.set_surroundings(Surroundings::default());
    judge.settle();
    assert_eq!(verdict(&judge, &peer), Verdict::Believed);
}

/// What the rules say, without any shortcut.
fn judged_plainly(claims: &BTreeMap<SubnetKey, LeaseClaim>, judge: &Judge) -> BTreeSet<SubnetKey> {
    let mut ranks: Vec<_> = claims.values().collect();
    ranks.sort_unstable_by_key(|claim| claim.rank());
    let mut believed: Vec<&LeaseClaim> = Vec::new();
    for claim in ranks {
        let ours = claim.lease.public_ip == scope().own_address;
        let overlaps = believed.iter().any(|other| overlap(other.key.subnet, claim.key.subnet));
        let of_writer =
            believed.iter().filter(|other| other.lease.public_ip == claim.lease.public_ip).count();
        if !ours
            && judge.refusal_by_itself(claim).is_none()
            && !overlaps
            && of_writer < judge.limits.of_writer
        {
            believed.push(claim);
        }
    }
    believed.into_iter().map(|claim| claim.key).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_outcome_is_that_of_the_rules_whatever_the_order_of_changes(
        steps in prop::collection::vec(
            (0_u32..24, 18_u8..=28, 9_u8..14, 0_i64..6, 0_u8..5, prop::bool::ANY), 1..60,
        ),
    ) {
        let mut judge = judge_up_to(2);
        let mut claims = BTreeMap::new();
        let mut believed = BTreeMap::new();
        for (at, length, host, created, action, settles) in steps {
            let host_of = Ipv4Network::new((0x0a01_0000 + at * 0x133).into(), length).unwrap();
            let subnet = Ipv4Network::new(host_of.network(), length).unwrap();
            let claim = claim(&subnet.to_string(), host, created);
            if action == 0 {
                claims.remove(&claim.key);
                judge.remove(claim.key);
            } else {
                claims.insert(claim.key, claim);
                judge.put(claim);
            }
            if settles {
                for (key, before) in judge.settle() {
                    prop_assert_eq!(believed.get(&key).copied(), before);
                    believed.remove(&key);
                    believed.extend(judge.believed(key).map(|claim| (key, *claim)));
                }
                let all: BTreeMap<_, _> =
                    judge.all_believed().map(|claim| (claim.key, *claim)).collect();
                prop_assert_eq!(&all, &believed, "changes tell all there is to know");
            }
        }
        judge.settle();
        let all: BTreeSet<_> = judge.all_believed().map(|claim| claim.key).collect();
        prop_assert_eq!(&all, &judged_plainly(&claims, &judge));
        let ours = judge.cases.values().filter(|case| case.verdict == Verdict::Ours).count();
        prop_assert_eq!(judge.refused() + all.len() + ours, claims.len());
        prop_assert_eq!(judge.believed.len(), all.len());
        for (index, one) in all.iter().enumerate() {
            let apart = all.iter().skip(index + 1).all(|other| !overlap(one.subnet, other.subnet));
            prop_assert!(apart, "nobody has a part of another's subnet");
        }
    }
}
