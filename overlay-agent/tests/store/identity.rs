//! By what a host is known: its own MAC and subnet first, then its address.

use std::{net::Ipv4Addr, time::Duration};

use overlay_lease::{
    member::{
        acquire::Acquired,
        follow::Follower,
        incident::Incident,
        keeper::{Keeper, LeaseEvent},
        request::{LeaseOrigin, Request},
    },
    store::{Store as _, etcd::EtcdStore},
    wire::value::LeaseValue,
};
use tokio::sync::mpsc;

use crate::{
    support::{
        CONFIG, Followed, LeaseUpdate, World, key, lease, request, subnet, until, value,
        value_with_mac, within,
    },
    wire::Wire,
};

/// A day, for leases that are not to expire here.
const DAY: i64 = 86_400;

fn address(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, host)
}

/// Host `host` after a reboot with the address of `now`: it has its state file, and nothing in `/run`.
fn rebooted(host: u8, had: &str, now: u8) -> Request {
    Request {
        public_ip: address(now),
        previous: Some(subnet(had)),
        last_address: Some(address(host)),
        ..request(host)
    }
}

/// A host that keeps a lease and follows everybody's.
struct Host {
    acquired: Acquired,
    events: mpsc::Receiver<LeaseEvent>,
}

impl Host {
    async fn start(world: &World, request: &Request) -> Self {
        let acquired = world.acquire(request).await;
        Self::keep(world.store.clone(), acquired, request.ttl).await
    }

    async fn keep(store: EtcdStore, acquired: Acquired, ttl: Duration) -> Self {
        let keeper = Keeper::new(store.clone(), &acquired, ttl);
        let follower =
            Follower::new(store).starting_from(acquired.listing.clone()).informing(keeper.handle());
        let (sender, mut updates) = mpsc::channel(16);
        tokio::spawn(follower.run(sender));
        within(updates.recv()).await.expect("the follower has ended");
        tokio::spawn(async move { while updates.recv().await.is_some() {} });
        let (sender, events) = mpsc::channel(16);
        tokio::spawn(keeper.run(sender));
        Self { acquired, events }
    }

    fn name(&self) -> String {
        self.acquired.lease.subnet.to_string().replace('/', "-")
    }

    fn value(&self) -> Vec<u8> {
        self.acquired.lease.value().encode()
    }

    async fn event(&mut self) -> LeaseEvent {
        within(self.events.recv()).await.expect("the keeper has ended")
    }
}

async fn stored(world: &mut World, name: &str) -> String {
    let kv = world.get(name).await.unwrap();
    String::from_utf8(kv.value().to_vec()).unwrap()
}

#[tokio::test]
async fn a_host_that_gets_a_dead_hosts_address_keeps_its_own_subnet() {
    // Wherever the dead one's sorts.
    for dead in ["10.5.3.0-24", "10.5.200.0-24"] {
        for ours in [value(1), value_with_mac(1, 1).replace(r#""VNI":1"#, r#""VNI":1,"Extra":1"#)] {
            let mut world = World::new(CONFIG).await;
            world.put_with_ttl("10.5.7.0-24", &ours, DAY).await;
            world.put_with_ttl(dead, &value(9), DAY).await;
            let acquired = world.acquire(&rebooted(1, "10.5.7.0/24", 9)).await;
            assert_eq!(
                (acquired.lease.subnet, acquired.origin),
                (subnet("10.5.7.0/24"), LeaseOrigin::Mac)
            );
            assert_eq!(acquired.lease.public_ip, address(9));
            assert_eq!(stored(&mut world, "10.5.7.0-24").await, value_with_mac(9, 1));
            assert_eq!(stored(&mut world, dead).await, value(9), "it may come back elsewhere");
        }
    }
}

#[tokio::test]
async fn a_running_host_that_gets_a_dead_hosts_address_keeps_its_own_subnet_at_once() {
    let mut world = World::new(CONFIG).await;
    world.put_with_ttl("10.5.3.0-24", &value(9), DAY).await;
    world.put_with_ttl("10.5.7.0-24", &value(1), DAY).await;
    let revision = world.get("10.5.7.0-24").await.unwrap().mod_revision();
    let running = Request { is_running: true, ..rebooted(1, "10.5.7.0/24", 9) };
    let acquired = world.acquire(&running).await;
    assert_eq!(acquired.lease.subnet, subnet("10.5.7.0/24"));
    let kv = world.get("10.5.7.0-24").await.unwrap();
    assert_eq!((kv.mod_revision() > revision, kv.version()), (true, 2), "one write, no question");
}

#[tokio::test]
async fn a_dead_hosts_lease_with_our_new_address_is_not_ours_although_our_own_has_expired() {
    let mut world = World::new(CONFIG).await;
    world.put_with_ttl("10.5.3.0-24", &value(9), DAY).await;
    let acquired = world.acquire(&rebooted(1, "10.5.7.0/24", 9)).await;
    assert_eq!(
        (acquired.lease.subnet, acquired.origin),
        (subnet("10.5.7.0/24"), LeaseOrigin::SubnetFile)
    );

    // Nor if our subnet is another host's by now.
    world.delete("10.5.7.0-24").await;
    world.put_with_ttl("10.5.7.0-24", &value(8), DAY).await;
    let acquired = world.acquire(&rebooted(1, "10.5.7.0/24", 9)).await;
    assert_eq!(acquired.origin, LeaseOrigin::Free);
    assert_eq!(stored(&mut world, "10.5.3.0-24").await, value(9));
}

#[tokio::test]
async fn two_hosts_that_swap_addresses_keep_their_subnets() {
    let mut world = World::new(CONFIG).await;
    world.put_with_ttl("10.5.7.0-24", &value(1), DAY).await;
    world.put_with_ttl("10.5.8.0-24", &value(2), DAY).await;
    let one = Host::start(&world, &rebooted(1, "10.5.7.0/24", 2)).await;
    let two = Host::start(&world, &rebooted(2, "10.5.8.0/24", 1)).await;
    assert_eq!(one.acquired.lease.subnet, subnet("10.5.7.0/24"));
    assert_eq!(two.acquired.lease.subnet, subnet("10.5.8.0/24"));
    assert_eq!(stored(&mut world, "10.5.7.0-24").await, value_with_mac(2, 1));
    assert_eq!(stored(&mut world, "10.5.8.0-24").await, value_with_mac(1, 2));
}

/// Whoever has the address by now goes on to speak for it.
#[tokio::test]
async fn a_host_that_is_asked_whether_it_lives_is_not_taken_for_the_last_to_write() {
    let mut world = World::new(CONFIG).await;
    world.put_with_ttl("10.5.7.0-24", &value(1), DAY).await;
    let mut followed = Followed::new(Follower::new(world.store.clone()));
    followed.snapshot().await;
    world.acquire(&rebooted(1, "10.5.7.0/24", 2)).await;
    let moved = overlay_lease::wire::Lease { public_ip: address(2), ..lease("10.5.7.0/24", 1) };
    assert_eq!(followed.next().await, LeaseUpdate::Put(moved), "the first that is heard");
}

#[tokio::test]
async fn a_host_whose_address_changes_while_it_is_off_keeps_subnet_and_mac() {
    let mut world = World::new(CONFIG).await;
    let old = world.put_with_ttl("10.5.7.0-24", &value(1), DAY).await;
    let acquired = world.acquire(&rebooted(1, "10.5.7.0/24", 101)).await;
    let expected =
        overlay_lease::wire::Lease { public_ip: address(101), ..lease("10.5.7.0/24", 1) };
    assert_eq!((acquired.lease, acquired.origin), (expected, LeaseOrigin::Mac));
    assert_eq!(acquired.displaced, Some(address(1)));
    assert_eq!(world.etcd_leases().await.len(), 1);
    assert!(!world.etcd_leases().await.contains(&old));
    assert_eq!(stored(&mut world, "10.5.7.0-24").await, value_with_mac(101, 1), "byte for byte");
}

#[tokio::test]
async fn a_reservation_of_a_host_whose_address_changes_stays_one() {
    let mut world = World::new(CONFIG).await;
    world.put("10.5.7.0-24", &value(1)).await;
    let acquired = world.acquire(&rebooted(1, "10.5.7.0/24", 101)).await;
    assert_eq!((acquired.lease.subnet, acquired.etcd_lease), (subnet("10.5.7.0/24"), None));
    assert_eq!(world.get("10.5.7.0-24").await.unwrap().lease(), 0);
}

#[tokio::test]
async fn a_copied_machine_takes_nothing_from_the_host_that_lives() {
    let mut world = World::new(CONFIG).await;
    let mut living = Host::start(&world, &request(1)).await;
    let name = living.name();
    // Everything is copied: state file, subnet file, and the MAC of the uplink.
    let copy = rebooted(1, &living.acquired.lease.subnet.to_string(), 2);
    let acquired = world.acquire(&copy).await;
    assert_ne!(acquired.lease.subnet, living.acquired.lease.subnet);
    assert_ne!(acquired.lease.vtep_mac, living.acquired.lease.vtep_mac);
    let of = Incident::IsCopy { of: address(1), subnet: living.acquired.lease.subnet };
    assert_eq!(acquired.incidents, [of]);
    assert_eq!(living.event().await, LeaseEvent::Incident(Incident::Copied { by: address(2) }));
    assert_eq!(stored(&mut world, &name).await.into_bytes(), living.value());
    assert!(living.events.try_recv().is_err(), "nothing else has happened to it");
    let text = Incident::Copied { by: address(2) }.to_string();
    assert!(text.contains("192.0.2.2"), "{text}");
}

#[tokio::test]
async fn a_copied_machine_gives_way_when_the_host_that_lives_is_back_in_sight_of_etcd() {
    let mut world = World::new(CONFIG).await;
    let wire = Wire::to(&world.etcd).await;
    let acquired = world.acquire(&request(1)).await;
    let mut living = Host::keep(wire.store(), acquired, request(1).ttl).await;
    wire.cut();
    let name = living.name();
    let mut copy =
        Host::start(&world, &rebooted(1, &living.acquired.lease.subnet.to_string(), 2)).await;
    assert_eq!(copy.acquired.lease.subnet, living.acquired.lease.subnet, "it cannot know");
    wire.mend();
    assert_eq!(living.event().await, LeaseEvent::Incident(Incident::Copied { by: address(2) }));
    let owner = loop {
        match copy.event().await {
            LeaseEvent::TakenByOther { owner, .. } => break owner,
            LeaseEvent::Incident(Incident::Copied { by }) => assert_eq!(by, address(1)),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(owner, Some(address(1)));
    until("the key to be that of the host that lives", async || {
        world.get(&name).await.unwrap().value() == living.value()
    })
    .await;
    assert_eq!(stored(&mut world, &name).await.into_bytes(), living.value());
    // As the agent of the copy asks next.
    let again =
        Request { previous: None, last_address: Some(address(2)), ..rebooted(1, "10.5.1.0/24", 2) };
    assert_ne!(world.acquire(&again).await.lease.vtep_mac, living.acquired.lease.vtep_mac);
}

/// As a restored backup of etcd brings it.
#[tokio::test]
async fn our_own_lease_of_earlier_that_comes_back_takes_nothing_from_us() {
    let mut world = World::new(CONFIG).await;
    world.put_with_ttl("10.5.7.0-24", &value(1), DAY).await;
    let mut host = Host::start(&world, &rebooted(1, "10.5.7.0/24", 2)).await;
    world.put_with_ttl("10.5.7.0-24", &value(1), DAY).await;
    assert_eq!(host.event().await, LeaseEvent::Incident(Incident::Copied { by: address(1) }));
    assert_eq!(stored(&mut world, "10.5.7.0-24").await.into_bytes(), host.value());
}

#[tokio::test]
async fn from_flannel_and_back_and_again_subnet_and_mac_are_those_of_the_lease() {
    let mut world = World::new(CONFIG).await;
    world.put_with_ttl("10.5.7.0-24", &value(1), DAY).await;
    // The device of flannel's says the MAC; the address is the same.
    let ours = world.acquire(&request(1)).await;
    assert_eq!(ours.lease, lease("10.5.7.0/24", 1));
    // flannel finds it by the address, and has a new MAC.
    world.put_with_ttl("10.5.7.0-24", &value_with_mac(1, 77), DAY).await;
    // Ours again, with the state file of the time before; then with flannel's device still there.
    let state = rebooted(1, "10.5.7.0/24", 1);
    let device = Request { vtep_mac: Some("02:00:00:00:00:4d".parse().unwrap()), ..state.clone() };
    for request in [state, device] {
        let again = world.acquire(&request).await;
        let value = LeaseValue::decode(stored(&mut world, "10.5.7.0-24").await.as_bytes()).unwrap();
        assert_eq!(again.lease.subnet, subnet("10.5.7.0/24"));
        assert_eq!(value.vtep_mac(), Some("02:00:00:00:00:4d".parse().unwrap()));
    }
    assert_eq!(world.store.list().await.unwrap().entries.len(), 1);
}

/// What may stand in our key, and what is said about it.
fn damage() -> Vec<(&'static str, String, &'static str)> {
    vec![
        ("garbage", "nonsense".to_owned(), "not valid JSON"),
        ("nothing", String::new(), "not valid JSON"),
        ("no object", "7".to_owned(), "must be a JSON object"),
        ("half a lease", r#"{"PublicIP":"192.0.2.1","BackendType":"vxlan"}"#.to_owned(), "missing"),
        ("another MAC", value_with_mac(1, 99), "02:00:00:00:00:63"),
        ("another host's value", value(9), "192.0.2.9"),
        ("megabytes", "x".repeat(1 << 20), "not valid JSON"),
    ]
}

#[tokio::test]
async fn our_key_is_put_right_within_a_second_whatever_is_written_to_it() {
    let mut world = World::new(CONFIG).await;
    world.put_with_ttl("10.5.250.0-24", &value(9), DAY).await;
    let mut host = Host::start(&world, &request(1)).await;
    let name = host.name();
    let mut times = Vec::new();
    for (what, value, told) in damage() {
        for with_ttl in [true, false] {
            if with_ttl {
                let id = host.acquired.etcd_lease.unwrap();
                let options = etcd_client::PutOptions::new().with_lease(id);
                world.client.put(key(&name), value.as_str(), Some(options)).await.unwrap();
            } else {
                world.put(&name, &value).await;
            }
            let start = std::time::Instant::now();
            until(what, async || world.get(&name).await.unwrap().value() == host.value()).await;
            times.push(start.elapsed());
            let LeaseEvent::Incident(incident) = host.event().await else { panic!("{what}") };
            assert!(incident.to_string().contains(told), "{what}: {incident}");
            let is_reserved = world.get(&name).await.unwrap().lease() == 0;
            assert_eq!(is_reserved, what == "another MAC" && !with_ttl, "{what}");
            if is_reserved {
                let id = host.acquired.etcd_lease.unwrap();
                let options = etcd_client::PutOptions::new().with_lease(id);
                world.client.put(key(&name), host.value(), Some(options)).await.unwrap();
            }
        }
    }
    // A machine with other things to do may be late once.
    times.sort_unstable();
    assert!(times[times.len() / 2] < Duration::from_secs(1), "{times:?}");
    assert_eq!(stored(&mut world, "10.5.250.0-24").await, value(9));
}

#[tokio::test]
async fn a_restart_takes_its_damaged_key_back() {
    for (what, damaged, told) in damage() {
        let mut world = World::new(CONFIG).await;
        world.put_with_ttl("10.5.250.0-24", &value(9), DAY).await;
        world.put_with_ttl("10.5.7.0-24", &value(1), DAY).await;
        world.put("10.5.7.0-24", &damaged).await;
        let acquired = world.acquire(&rebooted(1, "10.5.7.0/24", 1)).await;
        assert_eq!(acquired.lease.subnet, subnet("10.5.7.0/24"), "{what}");
        if what != "another MAC" {
            assert_eq!(acquired.lease, lease("10.5.7.0/24", 1), "{what}");
            assert_eq!(stored(&mut world, "10.5.7.0-24").await, value(1), "{what}");
            assert_eq!(acquired.origin, LeaseOrigin::Damaged, "{what}");
            assert_ne!(world.get("10.5.7.0-24").await.unwrap().lease(), 0, "{what}");
            let incidents: Vec<_> = acquired.incidents.iter().map(ToString::to_string).collect();
            assert!(incidents[0].contains(told), "{what}: {incidents:?}");
        }
        assert_eq!(stored(&mut world, "10.5.250.0-24").await, value(9));
    }
}

#[tokio::test]
async fn a_damaged_key_that_is_not_known_to_be_ours_is_nobodys() {
    let mut world = World::new(CONFIG).await;
    world.put("10.5.7.0-24", "nonsense").await;
    let acquired = world.acquire(&rebooted(1, "10.5.8.0/24", 1)).await;
    assert_eq!(acquired.lease.subnet, subnet("10.5.8.0/24"));
    assert_eq!(stored(&mut world, "10.5.7.0-24").await, "nonsense");
}
