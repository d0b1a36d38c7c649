use overlay_lab::corpus;
use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> ParsedConfig {
    NetworkConfig::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn config(text: &str) -> NetworkConfig {
    parse(text).config
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

/// What was accepted, or refused without a reason to go by, or could be.
#[test]
fn every_config_of_the_corpus_is_read_as_its_file_says() {
    let differences = corpus::differences("configs", |case| {
        let parsed = match NetworkConfig::parse(case.body.as_bytes()) {
            Ok(parsed) => parsed.config,
            Err(error) => return ("refused", error.to_string()),
        };
        let NetworkConfig { network, subnet_len, subnet_min, subnet_max, vni, port, .. } = parsed;
        let vni = vni.get();
        let means = format!(
            "{network}, /{subnet_len} from {subnet_min} to {subnet_max}, VNI {vni}, port {port}"
        );
        ("means", means)
    });
    assert_eq!(differences.unwrap(), [""; 0]);
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
