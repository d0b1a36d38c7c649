//! The value of a lease's key: who has the subnet and how to reach it.
//!
//! Written byte for byte as flannel's Go encoder writes it, and read as leniently as its decoder
//! reads: names in any case, unknown fields ignored.

use std::net::Ipv4Addr;

use overlay_common::{MacAddr, Vni};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::json;

/// The largest value that is looked at, in bytes: some twenty times that of a lease.
pub const LARGEST_VALUE: usize = 4096;

/// What a lease's value says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseValue {
    /// The address that outer packets of the host bear.
    pub public_ip: Ipv4Addr,
    /// How the host carries packets.
    pub backend: Backend,
}

/// How a host carries packets, as its lease says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// As we do.
    Vxlan {
        /// Published for information: flannel does not use it on Linux, and its old versions do not
        /// write it.
        vni: Option<Vni>,
        /// The MAC of the host's tunnel device.
        vtep_mac: MacAddr,
    },
    /// In a way that we cannot follow: the `BackendType`, empty if absent.
    Other(String),
}

impl LeaseValue {
    /// The JSON to publish.
    pub fn encode(&self) -> Vec<u8> {
        let (backend_type, backend_data) = match &self.backend {
            Backend::Vxlan { vni, vtep_mac } => (
                "vxlan",
                Some(VxlanData { vni: vni.map_or(0, Vni::get), vtep_mac: vtep_mac.to_string() }),
            ),
            Backend::Other(name) => (name.as_str(), None),
        };
        let attributes =
            Attributes { public_ip: self.public_ip, public_ipv6: (), backend_type, backend_data };
        // Strings and numbers alone always serialise.
        serde_json::to_vec(&attributes).unwrap_or_default()
    }

    /// The MAC of the host's tunnel device, if the host has one of our kind.
    pub const fn vtep_mac(&self) -> Option<MacAddr> {
        match self.backend {
            Backend::Vxlan { vtep_mac, .. } => Some(vtep_mac),
            Backend::Other(_) => None,
        }
    }

    /// Whether both name one host: by address and by MAC.
    pub fn is_same_host(&self, other: &Self) -> bool {
        self.public_ip == other.public_ip && self.vtep_mac() == other.vtep_mac()
    }

    /// Reads a value.
    pub fn decode(bytes: &[u8]) -> Result<Self, ValueError> {
        let value: Value =
            serde_json::from_slice(bytes).map_err(|error| ValueError::Syntax { error })?;
        let Value::Object(fields) = &value else {
            return Err(ValueError::NotAnObject(json::kind(&value)));
        };
        let public_ip = public_ip(fields)?;
        let backend = match json::member(fields, "BackendType") {
            // Case counts here: flannel's vxlan backend compares exactly.
            Some(Value::String(name)) if name == "vxlan" => vxlan(fields)?,
            Some(Value::String(name)) => Backend::Other(name.clone()),
            None => Backend::Other(String::new()),
            Some(other) => {
                return Err(ValueError::WrongKind {
                    field: "BackendType",
                    expected: "a string",
                    found: json::kind(other),
                });
            }
        };
        Ok(Self { public_ip, backend })
    }
}

/// The field by which a host asks whether the one that has a lease is alive. flannel ignores what it does not
/// know.
const ASKED_BY: &str = "AskedBy";

/// The same lease to every reader, with the question of the host at `asker` whether the owner lives: who lives
/// puts it right. `None` if `value` is no JSON object.
pub fn with_question(value: &[u8], asker: Ipv4Addr) -> Option<Vec<u8>> {
    let text = str::from_utf8(value).ok()?.trim_end();
    let fields = text.strip_suffix('}')?;
    Some(format!(r#"{fields},"{ASKED_BY}":"{asker}"}}"#).into_bytes())
}

/// The host that asks by this value whether its owner lives, if one does.
pub fn asker(value: &[u8]) -> Option<Ipv4Addr> {
    // Nearly no value holds a question.
    let name = ASKED_BY.as_bytes();
    value.windows(name.len()).find(|found| *found == name)?;
    match serde_json::from_slice(value).ok()? {
        Value::Object(fields) => fields.get(ASKED_BY)?.as_str()?.parse().ok(),
        _ => None,
    }
}

/// Why a value is no lease.
#[derive(Debug, thiserror::Error)]
pub enum ValueError {
    /// The text is no JSON.
    #[error("the value is not valid JSON: {error}")]
    Syntax {
        /// Where and why.
        error: serde_json::Error,
    },
    /// The JSON is something other than an object.
    #[error("the value must be a JSON object, but is {0}")]
    NotAnObject(&'static str),
    /// A field is of another JSON type than it must be.
    #[error("{field} must be {expected}, but is {found}")]
    WrongKind {
        /// The field, with its path.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// A field is absent.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// `PublicIP` is no address of a host.
    #[error("PublicIP must be the IPv4 address of a host, but is {0:?}")]
    PublicIp(String),
    /// `VtepMAC` is no MAC of a device.
    #[error("BackendData.VtepMAC must be a unicast MAC address, but is {0:?}")]
    VtepMac(String),
    /// `VNI` does not fit 24 bits.
    #[error("BackendData.VNI must be a whole number of 24 bits, but is {0}")]
    Vni(String),
}

/// Field order and the lone `null` are those of flannel's encoder.
#[derive(Serialize)]
struct Attributes<'a> {
    #[serde(rename = "PublicIP")]
    public_ip: Ipv4Addr,
    #[serde(rename = "PublicIPv6")]
    public_ipv6: (),
    #[serde(rename = "BackendType", skip_serializing_if = "str::is_empty")]
    backend_type: &'a str,
    #[serde(rename = "BackendData", skip_serializing_if = "Option::is_none")]
    backend_data: Option<VxlanData>,
}

#[derive(Serialize)]
struct VxlanData {
    #[serde(rename = "VNI")]
    vni: u32,
    #[serde(rename = "VtepMAC")]
    vtep_mac: String,
}

/// The host that a value names, whatever else it says.
pub fn public_ip_of(value: &[u8]) -> Option<Ipv4Addr> {
    match serde_json::from_slice(value).ok()? {
        Value::Object(fields) => public_ip(&fields).ok(),
        _ => None,
    }
}

/// flannel reads an absent address as 0.0.0.0 and would route to it; a `null` makes it ignore the
/// lease. Neither names a host, so we refuse both.
fn public_ip(fields: &Map<String, Value>) -> Result<Ipv4Addr, ValueError> {
    match json::raw_member(fields, "PublicIP") {
        None => Err(ValueError::Missing("PublicIP")),
        Some(Value::String(text)) => match text.parse::<Ipv4Addr>() {
            Ok(ip) if !ip.is_unspecified() && !ip.is_broadcast() && !ip.is_multicast() => Ok(ip),
            _ => Err(ValueError::PublicIp(text.clone())),
        },
        Some(other) => Err(ValueError::WrongKind {
            field: "PublicIP",
            expected: "a string",
            found: json::kind(other),
        }),
    }
}

fn vxlan(fields: &Map<String, Value>) -> Result<Backend, ValueError> {
    let data = match json::member(fields, "BackendData") {
        Some(Value::Object(data)) => data,
        None => return Err(ValueError::Missing("BackendData")),
        Some(other) => {
            return Err(ValueError::WrongKind {
                field: "BackendData",
                expected: "an object",
                found: json::kind(other),
            });
        }
    };
    let vtep_mac = match json::member(data, "VtepMAC") {
        None => return Err(ValueError::Missing("BackendData.VtepMAC")),
        Some(Value::String(text)) => text
            .parse::<MacAddr>()
            .ok()
            .filter(|mac| mac.is_unicast())
            .ok_or_else(|| ValueError::VtepMac(text.clone()))?,
        Some(other) => {
            return Err(ValueError::WrongKind {
                field: "BackendData.VtepMAC",
                expected: "a string",
                found: json::kind(other),
            });
        }
    };
    let vni = json::member(data, "VNI")
        .map(|value| {
            value
                .as_u64()
                .and_then(|vni| Vni::new(u32::try_from(vni).ok()?).ok())
                .ok_or_else(|| ValueError::Vni(value.to_string()))
        })
        .transpose()?;
    Ok(Backend::Vxlan { vni, vtep_mac })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOLDEN: &str = r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;

    fn golden() -> LeaseValue {
        LeaseValue {
            public_ip: Ipv4Addr::new(192, 168, 64, 3),
            backend: Backend::Vxlan {
                vni: Some(Vni::new(1).unwrap()),
                vtep_mac: "c6:d2:32:6f:8f:44".parse().unwrap(),
            },
        }
    }

    #[test]
    fn a_question_changes_nothing_for_whoever_is_not_asked() {
        let asked = with_question(GOLDEN.as_bytes(), Ipv4Addr::new(192, 0, 2, 9)).unwrap();
        assert_eq!(LeaseValue::decode(&asked).unwrap(), golden());
        assert_eq!(asker(&asked), Some(Ipv4Addr::new(192, 0, 2, 9)));
        // Asked once more, by another.
        let again = with_question(&asked, Ipv4Addr::new(192, 0, 2, 7)).unwrap();
        assert_eq!(LeaseValue::decode(&again).unwrap(), golden());
        assert_eq!(asker(&again), Some(Ipv4Addr::new(192, 0, 2, 7)));
        assert_eq!(asker(GOLDEN.as_bytes()), None);
        for none in ["", "7", "nonsense", r#"["AskedBy"]"#] {
            assert_eq!(
                (with_question(none.as_bytes(), Ipv4Addr::LOCALHOST), asker(none.as_bytes())),
                (None, None)
            );
        }
    }

    #[test]
    fn a_value_is_flannels_byte_for_byte() {
        assert_eq!(str::from_utf8(&golden().encode()).unwrap(), GOLDEN);
        assert_eq!(LeaseValue::decode(GOLDEN.as_bytes()).unwrap(), golden());
    }

    #[test]
    fn an_old_value_without_vni_is_accepted() {
        let text = r#"{"PublicIP":"10.0.0.1","BackendType":"vxlan",
            "BackendData":{"VtepMAC":"02:00:00:00:00:01"}}"#;
        let Backend::Vxlan { vni, .. } = LeaseValue::decode(text.as_bytes()).unwrap().backend
        else {
            panic!("not vxlan");
        };
        assert_eq!(vni, None);
    }

    #[test]
    fn other_backends_are_told_from_garbage() {
        for (text, name) in [
            (r#"{"PublicIP":"10.0.0.1","BackendType":"host-gw"}"#, "host-gw"),
            (r#"{"PublicIP":"10.0.0.1","BackendType":"VXLAN","BackendData":null}"#, "VXLAN"),
            (r#"{"PublicIP":"10.0.0.1"}"#, ""),
        ] {
            let value = LeaseValue::decode(text.as_bytes()).unwrap();
            assert_eq!(value.backend, Backend::Other(name.to_owned()), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_value_that_we_write_we_read(
            ip in 0x0100_0000_u32..0xe000_0000, vni in 0_u32..=0x00ff_ffff, mac: [u8; 6],
        ) {
            let value = LeaseValue {
                public_ip: ip.into(),
                backend: Backend::Vxlan {
                    vni: Some(Vni::new(vni).unwrap()),
                    vtep_mac: MacAddr::local(mac),
                },
            };
            prop_assert_eq!(LeaseValue::decode(&value.encode()).unwrap(), value);
        }

        #[test]
        fn no_input_makes_the_decoder_panic(bytes: Vec<u8>) {
            drop(LeaseValue::decode(&bytes));
        }
    }
}
