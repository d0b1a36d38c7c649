//! What must not leave the host: keys, passwords, tokens.

use anyhow::{Context as _, Result};
use regex::{Captures, Regex};

/// What takes a secret's place.
const LEFT_OUT: &str = "(left out)";

/// Each with what is kept before the secret, and after it.
const SECRETS: [&str; 5] = [
    // In PEM, whole or cut off.
    r"(-----BEGIN [A-Z ]*PRIVATE KEY-----)(?s:.*?)(-----END [A-Z ]*PRIVATE KEY-----|\z)",
    // The lines that let hosts join.
    r"(overlay\d+\.)[A-Za-z0-9_.-]+()",
    // NAME_PASSWORD=x, "password": "x", --password=x
    r#"((?i-u:password|passwd|secret|token)[\w-]*["']?\s*[=:]\s*["']?)[^\s"',]+()"#,
    // --etcd-password x
    r"(--?[\w-]*(?i-u:password|passwd|secret)[\w-]*\s+)[^\s-]\S*()",
    // https://name:password@host
    r"(://[^\s/:@]+:)[^\s/@]+(@)",
];

/// Takes secrets out of texts.
pub(super) struct Redactor(Vec<Regex>);

impl Redactor {
    /// Fails rather than to overlook a kind of them.
    pub(super) fn new() -> Result<Self> {
        let all: Result<_, _> = SECRETS.iter().map(|pattern| Regex::new(pattern)).collect();
        Ok(Self(all.context("cannot tell secrets from the rest")?))
    }

    /// The text without secrets.
    pub(super) fn redact(&self, text: &str) -> String {
        let without = |found: &Captures<'_>| format!("{}{LEFT_OUT}{}", &found[1], &found[2]);
        self.0
            .iter()
            .fold(text.to_owned(), |text, secret| secret.replace_all(&text, without).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_it_is_written_like_a_secret_is_left_out() {
        for (text, left) in [
            ("OVERLAY_ETCD_PASSWORD=hunter2\nNEXT=1", "OVERLAY_ETCD_PASSWORD=(left out)\nNEXT=1"),
            (r#"{"password": "hunter2", "a": 1}"#, r#"{"password": "(left out)", "a": 1}"#),
            ("run --etcd-password hunter2 --v=1", "run --etcd-password (left out) --v=1"),
            ("run --etcd-password=hunter2 --v=1", "run --etcd-password=(left out) --v=1"),
            ("at https://me:hunter2@192.0.2.1/", "at https://me:(left out)@192.0.2.1/"),
            ("join overlay1.aGVsbG8.d29ybGQ here", "join overlay1.(left out) here"),
            (
                "-----BEGIN PRIVATE KEY-----\nMIG\nabc\n-----END PRIVATE KEY-----\nrest",
                "-----BEGIN PRIVATE KEY-----(left out)-----END PRIVATE KEY-----\nrest",
            ),
            ("-----BEGIN EC PRIVATE KEY-----\nMIG", "-----BEGIN EC PRIVATE KEY-----(left out)"),
        ] {
            assert_eq!(Redactor::new().unwrap().redact(text), left);
        }
    }

    #[test]
    fn what_is_no_secret_stays() {
        for text in [
            "the join token expired 2 hours ago",
            "--etcd-certfile /etc/overlay/pki/client.pem",
            "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
            "overlay.1: 10.1.0.0/16 at http://192.0.2.1:2379",
            "subnets/10.1.7.0-24: overlays are fine",
        ] {
            assert_eq!(Redactor::new().unwrap().redact(text), text);
        }
    }
}
