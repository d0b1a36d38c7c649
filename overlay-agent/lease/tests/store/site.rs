//! What the tests need of whatever store they are about.

use std::{future::Future, net::Ipv4Addr, time::Duration};

use ipnetwork::Ipv4Network;
use overlay_common::{MacAddr, Vni};
use overlay_lease::{
    store::{Change, Entry, Store, StoreError, Watch},
    wire::Lease,
};
use tokio::time::timeout;

/// How long anything that must happen may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// The network config that every site begins with.
pub(crate) const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

/// A store under test, and those who write to it past it.
pub(crate) trait Site: Sized {
    /// What is under test.
    type Store: Store;

    /// Whether hosts may write.
    const IS_WRITABLE: bool;

    /// One with [`CONFIG`] and no leases.
    async fn start() -> Self;

    /// What is under test.
    fn store(&self) -> &Self::Store;

    /// Somebody gives a subnet to a host for good.
    async fn put(&mut self, subnet: &str, host: u8);

    /// Somebody deletes a lease.
    async fn delete(&mut self, subnet: &str);

    /// Somebody writes another config: [`CONFIG`] with this MTU.
    async fn set_mtu(&mut self, mtu: u16);

    /// What the store calls a lease.
    fn key(&self, of: &str) -> String {
        self.store().prefix().subnet_key(subnet(of))
    }

    /// The lease of that subnet, which is there.
    async fn lease(&self, of: &str) -> Entry {
        self.store().get(&self.key(of)).await.unwrap().expect("there is no such lease")
    }
}

/// A store that hosts may write to.
pub(crate) trait WritableSite: Site {
    /// Makes the store forget all changes up to now.
    async fn forget(&mut self);
}

/// [`CONFIG`] with this MTU.
pub(crate) fn config(mtu: u16) -> String {
    CONFIG.replace(r#""vxlan""#, &format!(r#""vxlan","MTU":{mtu}"#))
}

pub(crate) fn subnet(text: &str) -> Ipv4Network {
    text.parse().unwrap()
}

pub(crate) fn address(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, host)
}

pub(crate) fn mac(host: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, host])
}

/// The lease of a host.
pub(crate) fn lease(of: &str, host: u8) -> Lease {
    Lease {
        subnet: subnet(of),
        public_ip: address(host),
        vtep_mac: mac(host),
        vni: Some(Vni::new(1).unwrap()),
    }
}

/// What a host publishes.
pub(crate) fn value(of: &str, host: u8) -> Vec<u8> {
    lease(of, host).value().encode()
}

/// `future`, or a failed test.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, Box::pin(future)).await.expect("this should not have taken so long")
}

/// The next so many changes.
pub(crate) async fn changes(watch: &mut impl Watch, count: usize) -> Vec<Change> {
    let mut changes = Vec::new();
    while changes.len() < count {
        changes.extend(within(watch.next()).await.unwrap().changes);
    }
    changes
}

/// What a store that hosts may not write says to whoever tries.
pub(crate) fn assert_refused<T: std::fmt::Debug>(outcome: Result<T, StoreError>) {
    let error = outcome.unwrap_err();
    assert!(matches!(error, StoreError::ReadOnly { .. }), "{error:?}");
    assert!(error.to_string().ends_with("the peers file is not ours to write"), "{error}");
}
