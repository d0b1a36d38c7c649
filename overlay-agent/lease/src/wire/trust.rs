//! How a host is told whom to trust while etcd's authority is made another: in a place of its own,
//! `<prefix>/hosts/<host>/trust/order`, and how it says that it does, in `…/done`.

use serde::{Deserialize, Serialize};

use super::{
    identity::{Applicant, HostId},
    key::KeyPrefix,
};

/// Whom a host is to trust.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustOrder {
    /// The certificates of all authorities that sign for etcd, in PEM. The host's own is to be by the first.
    pub authorities: Vec<String>,
    /// A certificate to the key of the newest, signed by the one before: nobody else names whom hosts trust.
    pub endorsement: String,
}

/// That it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustDone {
    /// The revision of the order.
    pub to: i64,
}

/// All that is said between a host and those who rotate, the trailing slash included.
pub fn trust_dir(prefix: &KeyPrefix, host: &HostId) -> String {
    format!("{}trust/", Applicant::Host(host.clone()).dir(prefix))
}

/// Where a host is told.
pub fn order_key(prefix: &KeyPrefix, host: &HostId) -> String {
    format!("{}order", trust_dir(prefix, host))
}

/// Where it answers.
pub fn done_key(prefix: &KeyPrefix, host: &HostId) -> String {
    format!("{}done", trust_dir(prefix, host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_no_question() {
        let (prefix, host) = (KeyPrefix::new("/coreos.com/network"), HostId::new("web1"));
        for key in [order_key(&prefix, &host), done_key(&prefix, &host)] {
            assert!(key.starts_with(&Applicant::Host(host.clone()).dir(&prefix)), "{key}");
            assert_eq!(Applicant::of_request(&prefix, key.as_bytes()), None);
        }
    }
}
