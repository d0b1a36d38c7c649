use std::{fs, io::ErrorKind};

use anyhow::{Context, Result};

/// Whether connection tracking judges TCP segments by the window that it has seen
/// (Documentation/networking/nf_conntrack-sysctl.rst).
const LIBERAL: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";

/// Has connection tracking take a segment for its connection's wherever in the stream it is: of a flow that the fast
/// path carries it sees one now and then, and would take all others for invalid. `flowtable` does the same for each of
/// its connections. Where nothing tracks connections, there is nothing to do.
pub(super) fn be_liberal() -> Result<()> {
    match fs::read_to_string(LIBERAL) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Ok(found) if found.trim() == "0" => {}
        _ => return Ok(()),
    }
    fs::write(LIBERAL, "1").with_context(|| format!("setting {LIBERAL} to 1"))?;
    crate::kernel::repairs::made(LIBERAL);
    Ok(())
}
