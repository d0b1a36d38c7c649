//! A plain container: what Docker makes for the network, without Docker.

use std::{net::Ipv4Addr, path::Path};

use anyhow::{Context as _, Result};

use crate::{command::Cmd, host::Host, ledger::Ledger, namespace::Namespace, subnet::LeasedSubnet};

/// The bridge that Docker makes.
pub const BRIDGE: &str = "docker0";

/// A namespace behind a host's bridge.
#[derive(Debug)]
pub struct Container {
    name: String,
    namespace: Namespace,
    address: Ipv4Addr,
    veth: String,
}

impl Container {
    pub(crate) fn create(ledger: &Ledger, host: &Host, name: &str, number: u32) -> Result<Self> {
        let subnet = host
            .subnet()
            .with_context(|| format!("container {name} on {} needs a subnet", host.name()))?;
        ensure_bridge(host, host.bridge(), &subnet)?;
        Self::plug(ledger, host, (host.bridge(), &subnet), name, number)
    }

    /// Behind a bridge that is there, with an address of its subnet.
    pub(crate) fn plug(
        ledger: &Ledger,
        host: &Host,
        (bridge, subnet): (&str, &LeasedSubnet),
        name: &str,
        number: u32,
    ) -> Result<Self> {
        let address = subnet.container(number);
        let veth = match bridge {
            BRIDGE => format!("veth{number}"),
            other => format!("{other}-{number}"),
        };
        let mtu = subnet.mtu.to_string();
        let cidr = format!("{address}/{}", subnet.prefix_length);
        let gateway = subnet.gateway.to_string();

        let namespace = Namespace::create(ledger, &format!("{}-{name}", host.name()))?;
        host.ip([
            "link",
            "add",
            &veth,
            "mtu",
            &mtu,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "mtu",
            &mtu,
            "netns",
            namespace.name(),
        ])?;
        host.ip(["link", "set", &veth, "master", bridge, "up"])?;
        namespace.ip(["address", "add", &cidr, "dev", "eth0"])?;
        namespace.ip(["link", "set", "eth0", "up"])?;
        namespace.ip(["route", "add", "default", "via", &gateway])?;
        Ok(Self { name: name.to_owned(), namespace, address, veth })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address in the overlay.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The host's end of its cable.
    pub fn veth(&self) -> &str {
        &self.veth
    }

    /// A command that runs in it.
    pub fn command(&self, program: impl AsRef<Path>) -> Cmd {
        self.namespace.command(program)
    }

    /// One ping; fails when there is no answer within two seconds.
    pub fn ping(&self, address: Ipv4Addr) -> Result<()> {
        self.command("ping")
            .args(["-n", "-c", "1", "-W", "2", &address.to_string()])
            .run()
            .map(drop)
    }
}

/// Makes the bridge that Docker would make, unless there is one.
pub(crate) fn ensure_bridge(host: &Host, bridge: &str, subnet: &LeasedSubnet) -> Result<()> {
    let exists = host.command("ip").args(["link", "show", bridge]).output()?.status.success();
    if exists {
        return Ok(());
    }
    let mtu = subnet.mtu.to_string();
    host.ip(["link", "add", bridge, "mtu", &mtu, "type", "bridge"])?;
    host.ip(["address", "add", &subnet.gateway_cidr(), "dev", bridge])?;
    host.ip(["link", "set", bridge, "up"])?;
    Ok(())
}
