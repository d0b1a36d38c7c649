//! The tool for nftables.

use std::{
    io,
    process::{Output, Stdio},
};

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
    let mut written = Ok(());
    if let Some(mut input) = nft.stdin.take() {
        written = input.write_all(script.as_bytes()).await;
    }
    // Who ends before it has read everything says why.
    let output = nft.wait_with_output().await?;
    if output.status.success() { written.map(|()| output) } else { Ok(output) }
}
