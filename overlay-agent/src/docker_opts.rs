//! From `subnet.env` to options for dockerd: what flannel's `mk-docker-opts.sh` does.
//!
//! The shell script reads its input by sourcing it, and takes options of other origin from the
//! environment, so here too the variables of the environment and of the file are one set, in which
//! the file counts more.

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnetwork::Ipv4Network;

use crate::{
    address_pools::{AddressPools, AddressPoolsError, PoolSize},
    dotenv,
};

/// The variables that become options.
const OPTION: &str = "DOCKER_OPT_";

/// What to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// One line for each option.
    pub individual: bool,
    /// The name of the line that holds all of them, if there is to be one.
    pub combined: Option<String>,
    /// Whether `--ip-masq` is among them.
    pub ip_masq: bool,
    /// Whether the networks that Docker makes get parts of the subnet, and of which prefix length if that is said.
    pub address_pools: Option<PoolSize>,
}

/// What a subnet file says cannot be made options of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOptions {
    /// `FLANNEL_IPMASQ` is neither `true` nor `false`.
    #[error("FLANNEL_IPMASQ must be true or false, but is {0:?}")]
    IpMasq(String),
    /// `FLANNEL_SUBNET` is no subnet, where that has to be divided.
    #[error("FLANNEL_SUBNET must be an address and a prefix length, but is {0:?}")]
    Subnet(String),
    /// It cannot be divided.
    #[error(transparent)]
    AddressPools(#[from] AddressPoolsError),
}

/// All variables that count: the environment's, then those of the text of a subnet file.
pub fn variables(
    environment: impl IntoIterator<Item = (String, String)>,
    subnet_file: &str,
) -> BTreeMap<String, String> {
    let file =
        dotenv::assignments(subnet_file).map(|(name, value)| (name.to_owned(), value.to_owned()));
    environment.into_iter().chain(file).collect()
}

/// The text to write for `variables`.
pub fn render(
    variables: &BTreeMap<String, String>,
    wanted: &Wanted,
) -> Result<String, InvalidOptions> {
    let options = options(variables, wanted)?;
    let mut text = String::new();
    if wanted.individual {
        text.extend(options.iter().map(|(name, value)| format!("{name}=\"{value}\"\n")));
    }
    if let Some(key) = &wanted.combined {
        // The script puts a space behind what is there already, and one before each option.
        let mut line = variables
            .get(key)
            .filter(|value| !value.is_empty())
            .map(|value| format!("{value} "))
            .unwrap_or_default();
        line.extend(options.values().map(|value| format!(" {value}")));
        text.push_str(&format_line(key, &line));
    }
    Ok(text)
}

fn format_line(key: &str, value: &str) -> String {
    format!("{key}=\"{value}\"\n")
}

/// All options by name, in order.
fn options(
    variables: &BTreeMap<String, String>,
    wanted: &Wanted,
) -> Result<BTreeMap<String, String>, InvalidOptions> {
    let mut options: BTreeMap<_, _> = variables
        .range(OPTION.to_owned()..)
        .take_while(|(name, _)| name.starts_with(OPTION))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let given = |name: &str| variables.get(name).filter(|value| !value.is_empty());
    let mut set = |name: &str, value: String| options.insert(format!("{OPTION}{name}"), value);
    if let Some(subnet) = given("FLANNEL_SUBNET") {
        match wanted.address_pools {
            None => set("BIP", format!("--bip={subnet}")),
            Some(size) => {
                let leased: Ipv4Network =
                    subnet.parse().map_err(|_invalid| InvalidOptions::Subnet(subnet.clone()))?;
                let parts = AddressPools::of(leased, size)?;
                set("BIP", format!("--bip={}/{}", leased.ip(), parts.size));
                set("POOLS", parts.options())
            }
        };
    }
    if let Some(mtu) = given("FLANNEL_MTU") {
        set("MTU", format!("--mtu={mtu}"));
    }
    if let Some(masq) = given("FLANNEL_IPMASQ").filter(|_| wanted.ip_masq) {
        // Of the two, exactly one must masquerade.
        let dockers = match masq.as_str() {
            "true" => false,
            "false" => true,
            other => return Err(InvalidOptions::IpMasq(other.to_owned())),
        };
        set("IPMASQ", format!("--ip-masq={dockers}"));
    }
    Ok(options)
}

/// The gateway by which `routes`, the text of `/proc/net/route`, leads to exactly `subnet`.
///
/// Docker refuses to use a subnet that somebody else routes, so whoever starts it should hear of it
/// here, where it can be explained.
pub fn gateway_of(subnet: Ipv4Network, routes: &str) -> Option<Ipv4Addr> {
    routes.lines().skip(1).find_map(|line| {
        let mut columns = line.split_whitespace().skip(1);
        let destination = kernel_address(columns.next()?)?;
        let gateway = kernel_address(columns.next()?)?;
        let mask = kernel_address(columns.nth(4)?)?;
        let same = destination == subnet.network() && mask == subnet.mask();
        (same && !gateway.is_unspecified()).then_some(gateway)
    })
}

/// An address as `/proc/net/route` shows it: the four bytes as one number of this machine.
fn kernel_address(text: &str) -> Option<Ipv4Addr> {
    let number = u32::from_str_radix(text, 16).ok()?;
    Some(Ipv4Addr::from(number.to_ne_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBNET_ENV: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\n\
                              FLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n";

    fn wanted(individual: bool, combined: Option<&str>) -> Wanted {
        Wanted {
            individual,
            combined: combined.map(str::to_owned),
            ip_masq: true,
            address_pools: None,
        }
    }

    fn environment(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn render(wanted: &Wanted) -> String {
        super::render(&variables([], SUBNET_ENV), wanted).unwrap()
    }

    #[test]
    fn by_default_each_option_and_all_together_are_written() {
        assert_eq!(
            render(&wanted(true, Some("DOCKER_OPTS"))),
            "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\n\
             DOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n\
             DOCKER_OPT_MTU=\"--mtu=1472\"\n\
             DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n"
        );
    }

    #[test]
    fn with_i_only_each_option_is_written() {
        assert_eq!(
            render(&wanted(true, None)),
            "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\n\
             DOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n\
             DOCKER_OPT_MTU=\"--mtu=1472\"\n"
        );
    }

    #[test]
    fn with_c_only_all_together_are_written() {
        assert_eq!(
            render(&wanted(false, Some("DOCKER_OPTS"))),
            "DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n"
        );
    }

    #[test]
    fn with_k_the_combined_line_has_another_name() {
        assert_eq!(
            render(&wanted(true, Some("CUSTOM_KEY"))),
            "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\n\
             DOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n\
             DOCKER_OPT_MTU=\"--mtu=1472\"\n\
             CUSTOM_KEY=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n"
        );
    }

    #[test]
    fn with_m_masquerading_is_left_out() {
        let wanted = Wanted { ip_masq: false, ..wanted(true, Some("DOCKER_OPTS")) };
        assert_eq!(
            render(&wanted),
            "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\n\
             DOCKER_OPT_MTU=\"--mtu=1472\"\n\
             DOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n"
        );
    }

    #[test]
    fn inherited_options_are_kept_and_ours_replace_their_namesakes() {
        let environment = environment(&[
            ("DOCKER_OPTS", "--debug"),
            ("DOCKER_OPT_LOG", "--log-level=warn"),
            ("DOCKER_OPT_MTU", "--mtu=9"),
            ("DOCKER_OPTION", "no"),
            ("HOME", "/root"),
        ]);
        let variables = variables(environment, SUBNET_ENV);
        assert_eq!(
            super::render(&variables, &wanted(true, Some("DOCKER_OPTS"))).unwrap(),
            "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\n\
             DOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n\
             DOCKER_OPT_LOG=\"--log-level=warn\"\n\
             DOCKER_OPT_MTU=\"--mtu=1472\"\n\
             DOCKER_OPTS=\"--debug  --bip=10.1.74.1/24 --ip-masq=true --log-level=warn --mtu=1472\"\n"
        );
    }

    #[test]
    fn without_input_there_are_no_options() {
        let text = super::render(&BTreeMap::new(), &wanted(true, Some("DOCKER_OPTS"))).unwrap();
        assert_eq!(text, "DOCKER_OPTS=\"\"\n");
    }

    #[test]
    fn dockers_masquerading_is_the_inverse_of_ours() {
        let masq = |value: &str| {
            let variables = variables([], &format!("FLANNEL_IPMASQ={value}\n"));
            super::render(&variables, &wanted(true, None))
        };
        assert_eq!(masq("true").unwrap(), "DOCKER_OPT_IPMASQ=\"--ip-masq=false\"\n");
        assert_eq!(masq("yes"), Err(InvalidOptions::IpMasq("yes".to_owned())));
        assert_eq!(
            masq("yes").unwrap_err().to_string(),
            r#"FLANNEL_IPMASQ must be true or false, but is "yes""#
        );
    }

    #[test]
    fn a_route_to_the_subnet_by_a_gateway_is_found() {
        let hex = |text: &str| {
            let address: Ipv4Addr = text.parse().unwrap();
            format!("{:08X}", u32::from_ne_bytes(address.octets()))
        };
        let routes = format!(
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
             eth0\t00000000\t{gateway}\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
             docker0\t{docker}\t00000000\t0001\t0\t0\t0\t{mask}\t0\t0\t0\n\
             eth0\t{other}\t{gateway}\t0003\t0\t0\t0\t{mask}\t0\t0\t0\n",
            gateway = hex("192.0.2.1"),
            docker = hex("10.1.74.0"),
            other = hex("10.1.75.0"),
            mask = hex("255.255.255.0"),
        );
        let gateway = |subnet: &str| gateway_of(subnet.parse().unwrap(), &routes);
        assert_eq!(gateway("10.1.75.0/24"), Some(Ipv4Addr::new(192, 0, 2, 1)));
        assert_eq!(gateway("10.1.74.0/24"), None);
        assert_eq!(gateway("10.1.75.0/25"), None);
        assert_eq!(gateway("10.1.76.0/24"), None);
    }
}
