use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> ParsedConfig {
    NetworkConfig::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn config(text: &str) -> NetworkConfig {
    parse(text).config
}

fn error(text: &str) -> String {
    NetworkConfig::parse(text.as_bytes()).map_or_else(
        |error| error.to_string(),
        |parsed| panic!("{text} was accepted as {parsed:?}"),
    )
}

/// A config of `rest` in 10.3.0.0/16 with the backend written out.
fn with(rest: &str) -> String {
    format!(r#"{{"Network":"10.3.0.0/16","Backend":{{"Type":"vxlan"}}{rest}}}"#)
}

fn with_backend(rest: &str) -> String {
    format!(r#"{{"Network":"10.3.0.0/16","Backend":{{"Type":"vxlan"{rest}}}}}"#)
}

#[test]
fn the_smallest_config_gets_flannels_defaults() {
    let parsed = parse(r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vxlan"}}"#);
    assert!(parsed.notes.is_empty());
    assert_eq!(
        parsed.config,
        NetworkConfig {
            network: "10.3.0.0/16".parse().unwrap(),
            subnet_len: 24,
            subnet_min: Ipv4Addr::new(10, 3, 1, 0),
            subnet_max: Ipv4Addr::new(10, 3, 255, 0),
            vni: Vni::new(1).unwrap(),
            port: 8472,
            mtu: None,
            direct_routing: false,
            gbp: false,
            rules: None,
            policy: Vec::new(),
        }
    );
}

#[test]
fn every_field_is_read_in_any_case() {
    let config = config(
        r#"{"network":"10.0.0.7/8","SUBNETLEN":20,"subnetMin":"10.10.0.0","subnetmax":"10.99.0.0",
            "enableipv4":true,"RULES":"Bypass","EnableIPV6":false,"unknown":{},
            "backend":{"type":"VXLAN","vni":7,"port":4789,"mtu":9000,"directrouting":true,"gbp":true}}"#,
    );
    assert_eq!(config.network.to_string(), "10.0.0.0/8");
    assert_eq!(config.subnet_len, 20);
    assert_eq!(config.subnet_min, Ipv4Addr::new(10, 10, 0, 0));
    assert_eq!(config.subnet_max, Ipv4Addr::new(10, 99, 0, 0));
    assert_eq!(config.vni.get(), 7);
    assert_eq!(config.port, 4789);
    assert_eq!(config.mtu, Some(9000));
    assert!(config.direct_routing);
    assert!(config.gbp);
    assert_eq!(config.rules, Some(RulesMode::Bypass));
}

#[test]
fn null_zero_and_the_unspecified_address_count_as_unset() {
    let config = config(
        r#"{"Network":"10.3.0.0/16","SubnetLen":0,"SubnetMin":null,"SubnetMax":"0.0.0.0",
            "Backend":{"Type":"vxlan","Port":0,"MTU":0,"VNI":null}}"#,
    );
    assert_eq!(config.subnet_len, 24);
    assert_eq!(config.subnet_max, Ipv4Addr::new(10, 3, 255, 0));
    assert_eq!((config.port, config.mtu, config.vni.get()), (8472, None, 1));
}

#[test]
fn the_subnet_length_follows_the_network_when_it_is_small() {
    for (network, len) in [("10.0.0.0/8", 24), ("10.3.0.0/22", 24), ("10.3.0.0/23", 25)] {
        let text = format!(r#"{{"Network":"{network}"}}"#);
        assert_eq!(config(&text).subnet_len, len, "{network}");
    }
    assert_eq!(config(r#"{"Network":"10.3.0.0/28"}"#).subnet_len, 30);
}

#[test]
fn an_absent_backend_is_vxlan_and_said() {
    let parsed = parse(r#"{"Network":"10.3.0.0/16"}"#);
    assert_eq!(parsed.notes, [ConfigNote::BackendAssumed]);
    assert_eq!(parse(r#"{"Network":"10.3.0.0/16","Backend":null}"#), parsed);
}

#[test]
fn what_has_no_effect_here_is_said() {
    let text = r#"{"Network":"10.3.0.0/16","EnableNFTables":true,
                   "Backend":{"Type":"vxlan","Learning":true}}"#;
    assert_eq!(parse(text).notes, [ConfigNote::NfTablesIgnored, ConfigNote::LearningIgnored]);
}

#[test]
fn every_violated_rule_names_the_field_and_the_rule() {
    for (text, expected) in [
        ("{", "not valid JSON: EOF while parsing an object at line 1 column 1"),
        ("[]", "the network config must be a JSON object, but is an array"),
        ("{}", r#"Network is missing: it must be an IPv4 range such as "10.5.0.0/16""#),
        (r#"{"Network":7}"#, "Network must be a string, but is a number"),
        (
            r#"{"Network":"10.3.0.0"}"#,
            r#"Network must be an IPv4 range such as "10.5.0.0/16", but is "10.3.0.0""#,
        ),
        (
            r#"{"Network":"fc00::/48"}"#,
            r#"Network must be an IPv4 range such as "10.5.0.0/16", but is "fc00::/48""#,
        ),
        (
            r#"{"Network":"0.0.0.0/0"}"#,
            r#"Network must be an IPv4 range such as "10.5.0.0/16", but is "0.0.0.0/0""#,
        ),
        (
            r#"{"Network":"10.3.0.0/16","policy":[{"Name":"a","Action":"x"}]}"#,
            r#"Policy[0].Action must be "allow" or "deny", but is "x""#,
        ),
        (
            r#"{"Network":"10.3.0.0/29"}"#,
            "Network 10.3.0.0/29 is too small to be divided: without SubnetLen it may be at most /28",
        ),
        (
            &with(r#","EnableIPv6":true"#),
            "EnableIPv6 is true, but IPv6 is not supported yet: set it to false",
        ),
        (
            &with(r#","EnableIPv4":false"#),
            "EnableIPv4 is false, which leaves no address family to carry: set it to true",
        ),
        (&with(r#","EnableIPv4":1"#), "EnableIPv4 must be true or false, but is a number"),
        (
            &with(r#","SubnetLen":31"#),
            "SubnetLen must be at most 30, so that a host has room for containers, but is 31",
        ),
        (
            &with(r#","SubnetLen":17"#),
            "SubnetLen must be at least 18 for Network 10.3.0.0/16, so that there are at least four \
             subnets, but is 17",
        ),
        (&with(r#","SubnetLen":-1"#), "SubnetLen must be a whole number from 0 to 32, but is -1"),
        (&with(r#","SubnetLen":"24""#), "SubnetLen must be a number, but is a string"),
        (&with(r#","SubnetMin":"10.4.0.0""#), "SubnetMin 10.4.0.0 is outside Network 10.3.0.0/16"),
        (
            &with(r#","SubnetMax":"10.3.9.8""#),
            "SubnetMax 10.3.9.8 is not the first address of a /24 subnet (SubnetLen is 24)",
        ),
        (
            &with(r#","SubnetMax":"10.3.9""#),
            r#"SubnetMax must be an IPv4 address, but is "10.3.9""#,
        ),
        (
            &with(r#","SubnetMin":"10.3.9.0","SubnetMax":"10.3.8.0""#),
            "SubnetMin 10.3.9.0 is after SubnetMax 10.3.8.0, which leaves no subnet to lease",
        ),
    ] {
        assert_eq!(error(text), expected, "{text}");
    }
}

#[test]
fn every_violated_rule_of_the_backend_names_the_field_and_the_rule() {
    for (text, expected) in [
        (
            r#"{"Network":"10.3.0.0/16","Backend":{}}"#,
            r#"Backend.Type is missing: it must be "vxlan""#,
        ),
        (
            r#"{"Network":"10.3.0.0/16","Backend":"vxlan"}"#,
            "Backend must be an object, but is a string",
        ),
        (
            r#"{"Network":"10.3.0.0/16","Backend":{"Type":"host-gw"}}"#,
            "Backend.Type is \"host-gw\", which routes without a tunnel and so needs all hosts on \
             one link: it must be \"vxlan\"",
        ),
        (
            r#"{"Network":"10.3.0.0/16","Backend":{"Type":"vlan"}}"#,
            r#"Backend.Type is "vlan", which is no backend that flannel knows: it must be "vxlan""#,
        ),
        (
            &with_backend(r#","VNI":16777216"#),
            "Backend.VNI: VNI 16777216 is larger than 16777215, the largest that 24 bits hold",
        ),
        (
            &with_backend(r#","Port":65536"#),
            "Backend.Port must be a whole number from 0 to 65535, but is 65536",
        ),
        (
            &with_backend(r#","MTU":117"#),
            "Backend.MTU is the underlay's MTU and must be at least 118, so that 68 bytes remain \
             after encapsulation, but is 117",
        ),
        (
            &with(r#","Rules":"none""#),
            "Rules must be \"auto\", \"honour\" or \"bypass\", but is \"none\"",
        ),
        (&with(r#","Rules":1"#), "Rules must be a string, but is a number"),
        (&with_backend(r#","GBP":"yes""#), "Backend.GBP must be true or false, but is a string"),
    ] {
        assert_eq!(error(text), expected, "{text}");
    }
}

#[test]
fn only_aligned_subnets_of_the_range_are_admitted() {
    let config = config(&with(r#","SubnetMin":"10.3.10.0","SubnetMax":"10.3.20.0""#));
    for (subnet, admitted) in [
        ("10.3.10.0/24", true),
        ("10.3.20.0/24", true),
        ("10.3.9.0/24", false),
        ("10.3.21.0/24", false),
        ("10.3.12.0/25", false),
        ("10.3.12.1/24", false),
        ("10.4.12.0/24", false),
    ] {
        assert_eq!(config.admits(subnet.parse().unwrap()), admitted, "{subnet}");
    }
    assert_eq!(config.capacity(), 11);
}

#[test]
fn the_overlay_mtu_never_exceeds_what_the_uplink_carries() {
    let plain = config(&with(""));
    assert_eq!(plain.overlay_mtu(1500), 1450);
    let jumbo = config(&with_backend(r#","MTU":9000"#));
    assert_eq!(jumbo.overlay_mtu(1500), 1450);
    assert_eq!(jumbo.overlay_mtu(9216), 8950);
}

proptest! {
    #[test]
    fn any_accepted_config_has_room_for_a_subnet(
        network: u32, prefix in 0_u8..=32, len in 0_u8..=40, min: u32, max: u32,
        given in any::<(bool, bool, bool)>(),
    ) {
        let mut fields = vec![format!(r#""Network":"{}/{prefix}""#, Ipv4Addr::from(network))];
        fields.extend(given.0.then(|| format!(r#""SubnetLen":{len}"#)));
        fields.extend(given.1.then(|| format!(r#""SubnetMin":"{}""#, Ipv4Addr::from(min))));
        fields.extend(given.2.then(|| format!(r#""SubnetMax":"{}""#, Ipv4Addr::from(max))));
        let text = format!("{{{}}}", fields.join(","));
        if let Ok(parsed) = NetworkConfig::parse(text.as_bytes()) {
            let config = parsed.config;
            prop_assert!(config.capacity() >= 1);
            for bound in [config.subnet_min, config.subnet_max] {
                let subnet = Ipv4Network::new(bound, config.subnet_len).unwrap();
                prop_assert!(config.admits(subnet));
                prop_assert!(config.network.contains(subnet.network()));
                prop_assert!(config.network.contains(subnet.broadcast()));
            }
        }
    }

    #[test]
    fn no_input_makes_the_parser_panic(text: Vec<u8>) {
        drop(NetworkConfig::parse(&text));
    }
}
