//! The tool for nftables.

use std::{io, process::Output, process::Stdio};

use tokio::{io::AsyncWriteExt as _, process::Command};

/// Has `nft` carry out a script, all of it or nothing.
///
/// # Errors
/// Where there is no `nft`, or it cannot be talked to. What it thinks of the script is in its output.
pub(super) async fn carry_out(script: &str) -> io::Result<Output> {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut input) = nft.stdin.take() {
        input.write_all(script.as_bytes()).await?;
    }
    nft.wait_with_output().await
}
