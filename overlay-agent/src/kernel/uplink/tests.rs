use regex::Regex;

use super::*;

fn address(text: &str) -> Address {
    Address { ip: text.parse().unwrap(), global: true, permanent: true, deprecated: false }
}

fn interface(ifindex: u32, name: &str, addresses: &[&str]) -> Interface {
    Interface {
        ifindex,
        name: name.to_owned(),
        mtu: 1500,
        mac: Some(MacAddr([2, 0, 0, 0, 0, 1])),
        addresses: addresses.iter().map(|text| address(text)).collect(),
    }
}

fn host() -> UplinkCandidates {
    UplinkCandidates {
        interfaces: vec![
            Interface { mtu: 65_536, mac: None, ..interface(1, "lo", &["127.0.0.1"]) },
            interface(2, "eth0", &["192.0.2.1", "192.0.2.2"]),
            interface(3, "eth1", &["198.51.100.1"]),
            interface(4, "eth2", &[]),
        ],
        default_routes: vec![(200, 2), (100, 3), (50, 4)],
        reaching: None,
    }
}

fn ifaces(names: &[&str]) -> UplinkConfig {
    UplinkConfig {
        ifaces: names.iter().map(|name| (*name).to_owned()).collect(),
        ..UplinkConfig::default()
    }
}

fn chosen(config: &UplinkConfig) -> (String, String) {
    let uplink = choose(config, &host()).unwrap();
    (uplink.name, uplink.address.to_string())
}

#[test]
fn the_first_iface_that_exists_counts_by_name_or_address() {
    for (names, expected) in [
        (&["eth1"][..], ("eth1", "198.51.100.1")),
        (&["eth9", "eth2", "eth0"], ("eth0", "192.0.2.1")),
        (&["192.0.2.2"], ("eth0", "192.0.2.2")),
        (&["203.0.113.1", "eth1"], ("eth1", "198.51.100.1")),
    ] {
        let (name, address) = chosen(&ifaces(names));
        assert_eq!((name.as_str(), address.as_str()), expected, "{names:?}");
    }
}

#[test]
fn an_expression_is_held_against_addresses_first_then_names() {
    for (regex, expected) in [
        ("^198\\.", ("eth1", "198.51.100.1")),
        ("2\\.2$", ("eth0", "192.0.2.2")),
        ("^eth", ("eth0", "192.0.2.1")),
    ] {
        let config =
            UplinkConfig { regexes: vec![Regex::new(regex).unwrap()], ..ifaces(&["eth9"]) };
        let (name, address) = chosen(&config);
        assert_eq!((name.as_str(), address.as_str()), expected, "{regex}");
    }
}

#[test]
fn what_reaches_an_address_is_tried_last() {
    let config =
        UplinkConfig { can_reach: Some(Ipv4Addr::new(203, 0, 113, 1)), ..ifaces(&["eth9"]) };
    let observed = UplinkCandidates { reaching: Some(3), ..host() };
    assert_eq!(choose(&config, &observed).unwrap().name, "eth1");
    choose(&config, &host()).unwrap_err();
}

#[test]
fn a_public_address_alone_chooses_its_owner() {
    let config =
        UplinkConfig { public_ip: Some(Ipv4Addr::new(192, 0, 2, 2)), ..UplinkConfig::default() };
    assert_eq!(chosen(&config), ("eth0".to_owned(), "192.0.2.2".to_owned()));
}

#[test]
fn a_public_address_with_an_iface_is_published_and_not_sent_from() {
    let config =
        UplinkConfig { public_ip: Some(Ipv4Addr::new(203, 0, 113, 9)), ..ifaces(&["eth1"]) };
    let uplink = choose(&config, &host()).unwrap();
    assert_eq!(uplink.public_ip, Ipv4Addr::new(203, 0, 113, 9));
    assert_eq!(uplink.address, Ipv4Addr::new(198, 51, 100, 1));
}

/// A host that is known by an address that all its interfaces lead to, as flannel's device has it as its `local`.
#[test]
fn a_public_address_on_a_loopback_is_sent_from_by_another_interface() {
    let mut host = host();
    host.interfaces[0].addresses.push(address("203.0.113.9"));
    let public = Some(Ipv4Addr::new(203, 0, 113, 9));
    for config in [
        UplinkConfig { public_ip: public, ..ifaces(&["eth1"]) },
        UplinkConfig { public_ip: public, ..UplinkConfig::default() },
    ] {
        let uplink = choose(&config, &host).unwrap();
        let (name, address) = (uplink.name.as_str(), Some(uplink.address));
        assert_eq!((name, address, uplink.has_address), ("eth1", public, false));
    }
    host.default_routes.clear();
    let config = UplinkConfig { public_ip: public, ..UplinkConfig::default() };
    assert!(matches!(choose(&config, &host), Err(UplinkError::NoDefaultRoute { .. })));
}

#[test]
fn without_flags_the_usable_default_route_of_lowest_metric_counts() {
    assert_eq!(chosen(&UplinkConfig::default()).0, "eth1");
}

#[test]
fn the_best_address_is_global_permanent_and_not_deprecated() {
    let mut observed = host();
    observed.interfaces[1].addresses = vec![
        Address { deprecated: true, ..address("192.0.2.1") },
        Address { global: false, ..address("169.254.1.1") },
        Address { permanent: false, ..address("192.0.2.3") },
        address("192.0.2.4"),
        address("192.0.2.5"),
    ];
    let uplink = choose(&ifaces(&["eth0"]), &observed).unwrap();
    assert_eq!(uplink.address, Ipv4Addr::new(192, 0, 2, 4));
}

#[test]
fn an_mtu_beyond_16_bits_is_cut() {
    let mut observed = host();
    // As routing daemons have it: a loopback interface with an address that others reach.
    observed.interfaces[0].addresses.push(address("198.51.100.7"));
    let uplink = choose(&ifaces(&["lo"]), &observed).unwrap();
    assert_eq!((uplink.mtu, uplink.mac), (65_535, None));
    assert_eq!(uplink.address.to_string(), "198.51.100.7");
}

#[test]
fn a_loopback_address_is_no_uplink_by_whatever_flag() {
    let regex =
        |text| UplinkConfig { regexes: vec![Regex::new(text).unwrap()], ..UplinkConfig::default() };
    for (config, asked) in [
        (ifaces(&["lo"]), "--iface lo"),
        (ifaces(&["127.0.0.1"]), "--iface 127.0.0.1"),
        (regex("^lo$"), "--iface-regex ^lo$"),
        (regex("^127\\."), "--iface-regex ^127\\."),
    ] {
        let error = choose(&config, &host()).unwrap_err().to_string();
        let expected = format!(
            "no interface is usable for {asked}: other hosts cannot reach lo at a loopback address; \
             there are lo (127.0.0.1), eth0 ("
        );
        assert!(error.starts_with(&expected), "{error}");
    }
    let reaching = UplinkCandidates { reaching: Some(1), ..host() };
    let config = UplinkConfig { can_reach: Some(Ipv4Addr::LOCALHOST), ..UplinkConfig::default() };
    assert!(choose(&config, &reaching).unwrap_err().to_string().contains("loopback"));
    let config = UplinkConfig { public_ip: Some(Ipv4Addr::LOCALHOST), ..UplinkConfig::default() };
    choose(&config, &host()).unwrap_err();
    assert_eq!(chosen(&ifaces(&["lo", "127.0.0.1", "eth1"])).0, "eth1");
    assert_eq!(chosen(&regex(".")).0, "eth0", "the first address that others reach");
}

#[test]
fn errors_name_what_was_given_and_what_there_is() {
    let there_are = "lo (127.0.0.1), eth0 (192.0.2.1, 192.0.2.2), eth1 (198.51.100.1), eth2 (no IPv4 \
                     address)";
    let error = choose(&ifaces(&["eth9", "203.0.113.1"]), &host()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "no interface is usable for --iface eth9, --iface 203.0.113.1; there are {there_are}"
        )
    );
    let config =
        UplinkConfig { public_ip: Some(Ipv4Addr::new(203, 0, 113, 9)), ..UplinkConfig::default() };
    let error = choose(&config, &host()).unwrap_err().to_string();
    assert!(error.starts_with("no interface has --public-ip 203.0.113.9; there are lo"), "{error}");
    let error = choose(&UplinkConfig::default(), &UplinkCandidates::default()).unwrap_err();
    assert!(error.to_string().contains("there are none; name one with --iface"), "{error}");
}

#[tokio::test]
async fn the_kernel_shows_its_loopback_interface() {
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    tokio::spawn(connection);
    let reach = Some(Ipv4Addr::LOCALHOST);
    let observed = observe(&handle, reach).await.unwrap();
    let reaching = observed.interfaces.iter().find(|it| Some(it.ifindex) == observed.reaching);
    let (lo, localhost) = (reaching.unwrap(), Ipv4Addr::LOCALHOST);
    assert_eq!(lo.name, "lo");
    assert!(lo.addresses.iter().any(|address| address.ip == localhost && address.permanent));
}
