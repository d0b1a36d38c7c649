use std::{ops::ControlFlow, path::Path};

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::HOST,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::Status;
use crate::exit::{Exit, WithExit as _};

/// Asks the agent that listens on `socket`.
pub async fn fetch_status(socket: &Path) -> Result<Status> {
    let answer = fetch(socket, "/status").await?;
    serde_json::from_slice(&answer).context("understanding the agent's answer")
}

/// The same for lines that come one after the other, until `each` says that it has enough, or the agent ends. What fails in
/// `each` has its own exit code.
pub async fn fetch_lines(
    socket: &Path,
    path: &str,
    mut each: impl AsyncFnMut(&str) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let mut body = ask(socket, path).await.exit(Exit::Unavailable)?;
    let mut rest = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.context("reading the agent's answer").exit(Exit::Unavailable)?;
        rest.extend_from_slice(frame.data_ref().map_or(&[], |data| &data[..]));
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            if each(&String::from_utf8_lossy(&line)).await?.is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The same for what it answers in text.
pub async fn fetch_text(socket: &Path, path: &str) -> Result<String> {
    let answer = fetch(socket, path).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

async fn fetch(socket: &Path, path: &str) -> Result<Bytes> {
    let body = ask(socket, path).await?;
    let body = body.collect().await.context("reading the agent's answer")?;
    Ok(body.to_bytes())
}

async fn ask(socket: &Path, path: &str) -> Result<Incoming> {
    let stream = UnixStream::connect(socket)
        .await
        .with_context(|| format!("no agent answers on {}", socket.display()))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .with_context(|| format!("speaking HTTP on {}", socket.display()))?;
    tokio::spawn(connection);
    let request = Request::get(path)
        .header(HOST, "localhost")
        .body(Empty::<Bytes>::new())
        .context("building the request")?;
    let response = sender.send_request(request).await.context("asking the agent")?;
    if !response.status().is_success() {
        bail!("the agent on {} answers {}", socket.display(), response.status());
    }
    Ok(response.into_body())
}
