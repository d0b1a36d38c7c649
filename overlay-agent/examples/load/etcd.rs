//! What etcd holds, and what it counts.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Instant};

use anyhow::{Context as _, Result};
use etcd_client::{Client, Txn, TxnOp};
use overlay_common::{MacAddr, Vni};
use overlay_lease::{
    store::etcd::{EtcdConfig, EtcdStore},
    wire::{Lease, key::KeyPrefix},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{Row, row};

/// etcd's default limit of operations in one transaction.
const BATCH: usize = 128;

/// Requests by method.
pub(crate) type Requests = BTreeMap<String, u64>;

pub(crate) fn prefix() -> KeyPrefix {
    KeyPrefix::new(overlay_lab::ETCD_PREFIX)
}

pub(crate) fn store(endpoint: &str, prefix: KeyPrefix) -> Result<EtcdStore> {
    EtcdStore::new(&EtcdConfig {
        endpoints: vec![endpoint.to_owned()],
        prefix,
        ca_file: None,
        identity: None,
        user: None,
    })
}

/// The lease of the host of this number. Number 0 is the host that the agent runs on.
pub(crate) fn lease(number: u32, version: u8, own: Ipv4Addr) -> Result<Lease> {
    let subnet = Ipv4Addr::from(0x0a00_0000 | (number.wrapping_add(1) % 65_536) << 8);
    let [.., high, low] = number.to_be_bytes();
    Ok(Lease {
        subnet: ipnetwork::Ipv4Network::new(subnet, 24)?,
        public_ip: if number == 0 { own } else { Ipv4Addr::from(0xac10_0000 | number) },
        vtep_mac: MacAddr([2, 0, 0, version, high, low]),
        vni: Some(Vni::new(1).context("1 is a VNI")?),
    })
}

pub(crate) async fn put(client: &mut Client, lease: &Lease) -> Result<()> {
    client.put(prefix().subnet_key(lease.subnet), lease.value().encode(), None).await?;
    Ok(())
}

/// Writes the leases, as many in one transaction as etcd takes.
pub(crate) async fn fill(endpoint: &str, count: u32, own: Ipv4Addr) -> Result<Vec<Row>> {
    let mut client = Client::connect([endpoint], None).await?;
    let start = Instant::now();
    let leases: Vec<_> = (0..count).map(|number| lease(number, 0, own)).collect::<Result<_>>()?;
    for batch in leases.chunks(BATCH) {
        let puts: Vec<_> = batch
            .iter()
            .map(|lease| {
                TxnOp::put(prefix().subnet_key(lease.subnet), lease.value().encode(), None)
            })
            .collect();
        client.txn(Txn::new().and_then(puts)).await?;
    }
    Ok(vec![row("writing them to etcd", format!("{:.1?}", start.elapsed()), "")])
}

/// How many requests of each kind etcd has begun to serve, by its own count.
pub(crate) async fn requests(endpoint: &str) -> Result<Requests> {
    let address = endpoint.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await?;
    let get = format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(get.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let count = |line: &str| {
        let labels = line.strip_prefix("grpc_server_started_total{")?;
        let method = labels.split_once("grpc_method=\"")?.1.split_once('"')?.0;
        Some((method.to_owned(), labels.rsplit_once(' ')?.1.parse().ok()?))
    };
    // More than one service has a method of the name Watch.
    Ok(text.lines().filter_map(count).filter(|(_, count)| *count != 0).collect())
}

/// What has been added, in words. Puts are our own.
pub(crate) fn difference(before: &Requests, after: &Requests) -> String {
    let rises: Vec<_> = after
        .iter()
        .map(|(method, count)| (method, count - before.get(method).unwrap_or(&0)))
        .filter(|(method, count)| *count != 0 && *method != "Put")
        .map(|(method, count)| format!("{method} {count}"))
        .collect();
    rises.join(", ")
}
