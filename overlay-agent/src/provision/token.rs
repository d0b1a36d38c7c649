//! The line that lets a host join: where etcd is, who signs for it, and a certificate that is good for
//! as long as the line is. It is a secret.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::{authority::pki, certificate::BACKDATED};

/// What every token begins with; the number is the format's.
const MARK: &str = "overlay1";

/// The line, understood.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Where etcd is.
    pub endpoints: Vec<String>,
    /// Where in etcd the network is.
    pub prefix: String,
    /// How to be let in; nothing where etcd asks nobody.
    pub tls: Option<Tls>,
    /// Seconds since 1970 at which it ends.
    pub expires: u64,
    /// The private key of etcd's authority, in PEM, for a host that takes part in etcd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
}

/// The part about TLS, in PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tls {
    /// The authority's certificate.
    pub ca: String,
    /// The client's certificate and key.
    pub client: Option<Client>,
}

/// A client's certificate and key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// Whether it only serves to fetch the hosts' own from etcd, and ends with the token.
    pub temporary: bool,
}

/// Why a line is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is something else.
    #[error("this is no join token: one begins with {MARK}. and is made by `overlay-agent init`")]
    Foreign,
    /// Something of it is missing, or was changed.
    #[error("the join token is damaged: it was cut off or altered; copy the whole line again")]
    Altered,
    /// Its time is over.
    #[error(
        "the join token expired {} ago, by this host's clock: `overlay-agent init` on the first host makes a new \
         one; if the clock is wrong, `timedatectl set-ntp true` sets it", ago(*.0)
    )]
    Expired(Duration),
    /// Its authority is of the future.
    #[error(
        "this host's clock is wrong: it is {} behind that of the host that made the join token; \
         `timedatectl set-ntp true` sets it", ago(*.0)
    )]
    Early(Duration),
}

impl Token {
    /// The line.
    pub fn encode(&self) -> String {
        let payload = serde_json::to_vec(self).unwrap_or_default();
        let sum = digest(&SHA256, &payload);
        let [payload, sum] = [payload.as_slice(), sum.as_ref()].map(|b| URL_SAFE_NO_PAD.encode(b));
        format!("{MARK}.{payload}.{sum}")
    }

    /// Fails once its time is over, and before it can have begun.
    pub fn check(&self, now: SystemTime) -> Result<(), TokenError> {
        if let Ok(since) = now.duration_since(self.end()) {
            return Err(TokenError::Expired(since));
        }
        let ca = self.tls.as_ref().map(|tls| pki::made_at(&tls.ca));
        // An authority that cannot be read is refused by whoever uses it.
        match ca.and_then(Result::ok).map(|made| made.duration_since(now)) {
            Some(Ok(early)) if early > BACKDATED => Err(TokenError::Early(early)),
            _ => Ok(()),
        }
    }

    /// What is left of it.
    pub fn left(&self, now: SystemTime) -> Duration {
        self.end().duration_since(now).unwrap_or_default()
    }

    fn end(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.expires)
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(line: &str) -> Result<Self, TokenError> {
        // Terminals and mail programs break long lines.
        let line: String = line.split_whitespace().collect();
        let rest = line.strip_prefix(MARK).and_then(|rest| rest.strip_prefix('.'));
        let parts = rest.ok_or(TokenError::Foreign)?.split_once('.');
        let (payload, sum) = parts.ok_or(TokenError::Altered)?;
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).or(Err(TokenError::Altered));
        let (payload, sum) = (decode(payload)?, decode(sum)?);
        if digest(&SHA256, &payload).as_ref() != sum {
            return Err(TokenError::Altered);
        }
        serde_json::from_slice(&payload).or(Err(TokenError::Altered))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Token(for {})", self.endpoints.join(","))
    }
}

/// A span of time in the largest unit that fits.
pub(super) fn ago(span: Duration) -> String {
    let seconds = span.as_secs();
    let (number, unit) = match seconds {
        0..120 => (seconds, "seconds"),
        120..7200 => (seconds / 60, "minutes"),
        7200..172_800 => (seconds / 3600, "hours"),
        _ => (seconds / 86_400, "days"),
    };
    format!("{number} {unit}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> Token {
        Token {
            endpoints: vec!["https://192.0.2.1:2379".to_owned()],
            prefix: "/coreos.com/network".to_owned(),
            tls: Some(Tls {
                ca: "CA".to_owned(),
                client: Some(Client {
                    certificate: "CERTIFICATE".to_owned(),
                    key: "KEY".to_owned(),
                    temporary: true,
                }),
            }),
            expires: 1_000,
            authority: None,
        }
    }

    #[test]
    fn it_is_one_line_that_reads_back_even_when_a_terminal_has_broken_it() {
        let line = token().encode();
        assert_eq!(line.lines().count(), 1);
        assert_eq!(line.parse(), Ok(token()));
        let broken = format!(" {}\r\n  {}\n", &line[..50], &line[50..]);
        assert_eq!(broken.parse(), Ok(token()));
    }

    #[test]
    fn its_end_is_the_end() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(token().check(at(999)), Ok(()));
        let error = token().check(at(8_200)).unwrap_err();
        assert!(error.to_string().starts_with("the join token expired 2 hours ago"), "{error}");
        assert_eq!(token().left(at(990)), Duration::from_secs(10));
        assert_eq!(token().left(at(1_990)), Duration::ZERO);
    }

    #[test]
    fn a_clock_that_is_behind_is_told_from_one_that_is_a_little_behind() {
        let now = SystemTime::now();
        let ca = pki::Authority::new(pki::LIFETIME).unwrap().own().certificate.clone();
        let tls = Some(Tls { ca, client: None });
        let token = Token { tls, expires: u64::MAX / 2, ..token() };
        assert_eq!(token.check(now - Duration::from_hours(20)), Ok(()));
        let error = token.check(now - Duration::from_hours(100)).unwrap_err().to_string();
        assert!(error.starts_with("this host's clock is wrong: it is 4 days behind"), "{error}");
    }

    #[test]
    fn something_else_is_told_from_something_damaged() {
        assert_eq!("hello".parse::<Token>(), Err(TokenError::Foreign));
        let line = token().encode();
        assert_eq!(line[..line.len() - 1].parse::<Token>(), Err(TokenError::Altered));
        assert_eq!(line[..20].parse::<Token>(), Err(TokenError::Altered));
    }

    #[test]
    fn no_log_can_show_it() {
        assert!(!format!("{:?}", token()).contains("KEY"));
    }

    proptest! {
        #[test]
        fn whatever_character_is_changed_it_is_refused(place: prop::sample::Index, new in "[A-Za-z0-9_.-]") {
            let line = token().encode();
            let place = place.index(line.len());
            prop_assume!(line[place..=place] != new);
            let altered = format!("{}{new}{}", &line[..place], &line[place + 1..]);
            prop_assert!(altered.parse::<Token>().is_err());
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC*|overlay1\\.[A-Za-z0-9_.-]*") {
            prop_assert!(text.parse::<Token>().is_err());
        }
    }
}
