//! Who hosts are to an etcd that lets each write its own and no more, and how they ask the hosts that decide about that: those
//! with the key of etcd's authority. Both sides talk by keys, of which each has room for one question:
//! `<prefix>/hosts/<host>/<about>/request`, answered in `…/answer`.
//!
//! A host is a user of etcd's, by the common name of its certificate (etcd's `--client-cert-auth`).

use std::{fmt, net::Ipv4Addr};

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::key::KeyPrefix;

/// What the users that hosts are begin with.
const HOST_USER: &str = "overlay-host/";
/// What the users begin with that a token makes of whoever has it.
const TOKEN_USER: &str = "overlay-join/";
/// The longest part of a host's name in what it is called here.
const LONGEST_NAME: usize = 40;

/// A host, as etcd knows it: its name, and something that tells it from the one that had this name before.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HostId(String);

impl HostId {
    /// One that nobody had before.
    pub fn new(host_name: &str) -> Self {
        let name: String = host_name
            .chars()
            .map(|letter| letter.to_ascii_lowercase())
            .filter(|letter| is_plain(*letter))
            .take(LONGEST_NAME)
            .collect();
        let name = if name.is_empty() { "host" } else { &name };
        Self(format!("{name}-{:08x}", rand::random::<u32>()))
    }

    /// Reads what [`Display`](fmt::Display) writes.
    pub fn parse(text: &str) -> Option<Self> {
        let is_one = !text.is_empty() && text.chars().all(is_plain);
        is_one.then(|| Self(text.to_owned()))
    }

    /// The host that is this user of etcd's.
    pub fn of_user(user: &str) -> Option<Self> {
        Self::parse(user.strip_prefix(HOST_USER)?)
    }

    /// The user of etcd's that it is, and its role there.
    pub fn user(&self) -> String {
        format!("{HOST_USER}{self}")
    }

    /// The name that the host had.
    pub fn host_name(&self) -> &str {
        self.0.rsplit_once('-').map_or(&self.0, |(name, _)| name)
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// A token, by the part of it that is no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenId(String);

impl TokenId {
    /// One that nobody had before.
    #[expect(clippy::new_without_default, reason = "no two are the same")]
    pub fn new() -> Self {
        Self(format!("{:016x}", rand::random::<u64>()))
    }

    /// Reads what [`Display`](fmt::Display) writes.
    pub fn parse(text: &str) -> Option<Self> {
        HostId::parse(text).map(|HostId(text)| Self(text))
    }

    /// The token that makes somebody this user of etcd's.
    pub fn of_user(user: &str) -> Option<Self> {
        Self::parse(user.strip_prefix(TOKEN_USER)?)
    }

    /// The user of etcd's that it makes of whoever has it, and the role there.
    pub fn user(&self) -> String {
        format!("{TOKEN_USER}{self}")
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

const fn is_plain(letter: char) -> bool {
    letter.is_ascii_lowercase() || letter.is_ascii_digit() || matches!(letter, '-' | '.')
}

/// What hosts ask about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// A certificate, the first or the next.
    Certificate,
    /// The right to write the lease of a subnet.
    Subnet,
    /// To be known no more.
    Leaving,
}

impl About {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Certificate, Self::Subnet, Self::Leaving];

    const fn word(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Subnet => "subnet",
            Self::Leaving => "leaving",
        }
    }
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applicant {
    /// A host that is known.
    Host(HostId),
    /// One that has a token, and wants to be.
    Guest(TokenId, HostId),
}

impl Applicant {
    /// Who it is, or is to be.
    pub const fn host(&self) -> &HostId {
        match self {
            Self::Host(host) | Self::Guest(_, host) => host,
        }
    }

    /// Where in etcd it asks: nobody else may write there.
    pub fn dir(&self, prefix: &KeyPrefix) -> String {
        match self {
            Self::Host(host) => format!("{}{host}/", prefix.hosts_dir()),
            Self::Guest(token, host) => format!("{}{token}/{host}/", prefix.join_dir()),
        }
    }

    /// Where it asks about this.
    pub fn request_key(&self, prefix: &KeyPrefix, about: About) -> String {
        format!("{}{}/request", self.dir(prefix), about.word())
    }

    /// Where that is answered.
    pub fn answer_key(&self, prefix: &KeyPrefix, about: About) -> String {
        format!("{}{}/answer", self.dir(prefix), about.word())
    }

    /// Who asks about what by this key; nothing if it is none of a question.
    pub fn of_request(prefix: &KeyPrefix, key: &[u8]) -> Option<(Self, About)> {
        let key = str::from_utf8(key).ok()?;
        let (hosts, join) = (prefix.hosts_dir(), prefix.join_dir());
        let (asker, rest) = if let Some(rest) = key.strip_prefix(&hosts) {
            let (host, rest) = rest.split_once('/')?;
            (Self::Host(HostId::parse(host)?), rest)
        } else {
            let (token, rest) = key.strip_prefix(&join)?.split_once('/')?;
            let (host, rest) = rest.split_once('/')?;
            (Self::Guest(TokenId::parse(token)?, HostId::parse(host)?), rest)
        };
        let about = rest.strip_suffix("/request")?;
        let about = About::ALL.into_iter().find(|known| known.word() == about)?;
        Some((asker, about))
    }
}

/// A question about a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRequest {
    /// A PKCS #10 request (RFC 2986), in PEM: the key is in it, and the proof that the asker has its other half.
    pub csr: String,
    /// Where the host is, for leases that were reserved for this address.
    pub address: Option<Ipv4Addr>,
}

/// A question about a subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetRequest {
    /// Which one.
    pub subnet: Ipv4Network,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The revision of the question.
    pub to: i64,
    /// The certificate that was asked for, in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// Why the answer is no, as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

impl Answer {
    /// Yes.
    pub const fn granted(to: i64) -> Self {
        Self { to, certificate: None, refused: None }
    }

    /// Whether it is one to the question of this revision, or to a later one.
    pub const fn is_to(&self, question: i64) -> bool {
        self.to >= question
    }
}

/// Reads a question or an answer; nothing if it is malformed.
pub fn decode<T: DeserializeOwned>(value: &[u8]) -> Option<T> {
    serde_json::from_slice(value).ok()
}

/// Writes one.
pub fn encode(value: &impl Serialize) -> Vec<u8> {
    // None of them can fail: no maps with keys that are no text.
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix() -> KeyPrefix {
        KeyPrefix::new("/coreos.com/network")
    }

    #[test]
    fn a_host_is_called_after_its_name_and_never_as_another_before_it() {
        let [one, two] = ["Web1.example.org", "Web1.example.org"].map(HostId::new);
        assert_ne!(one, two);
        assert_eq!(one.host_name(), "web1.example.org");
        assert_eq!(HostId::of_user(&one.user()), Some(one));
        assert_eq!(HostId::new("../../\u{e9}/x y").host_name(), "....xy");
        assert_eq!(HostId::new("/").host_name(), "host");
        assert_eq!(HostId::of_user("root"), None);
        assert_eq!(HostId::of_user("overlay-host/a/b"), None);
    }

    #[test]
    fn everybody_asks_at_a_place_of_his_own() {
        let (host, token) = (HostId::new("web1"), TokenId::new());
        for asker in [Applicant::Host(host.clone()), Applicant::Guest(token, host)] {
            for about in About::ALL {
                let key = asker.request_key(&prefix(), about);
                assert!(key.starts_with(&asker.dir(&prefix())), "{key}");
                let read = Applicant::of_request(&prefix(), key.as_bytes());
                assert_eq!(read, Some((asker.clone(), about)), "{key}");
                let answer = asker.answer_key(&prefix(), about);
                assert_eq!(Applicant::of_request(&prefix(), answer.as_bytes()), None, "{answer}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_name_leads_out_of_the_place_of_its_host(name in "\\PC{0,80}") {
            let host = HostId::new(&name);
            prop_assert_eq!(HostId::parse(&host.to_string()), Some(host.clone()));
            prop_assert_eq!(Applicant::Host(host).dir(&prefix()).matches('/').count(), 5);
        }

        #[test]
        fn no_key_makes_the_parser_panic(key in prop::collection::vec(any::<u8>(), 0..60), rest in "\\PC{0,60}") {
            prop_assert_eq!(Applicant::of_request(&prefix(), &key), None);
            let key = format!("/coreos.com/network/hosts/{rest}");
            if let Some((asker, about)) = Applicant::of_request(&prefix(), key.as_bytes()) {
                prop_assert_eq!(asker.request_key(&prefix(), about), key);
            }
        }
    }
}
