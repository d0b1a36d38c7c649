use std::path::Path;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Empty};
use hyper::{Request, body::Bytes, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::Status;

/// Asks the agent that listens on `socket`.
pub async fn fetch_status(socket: &Path) -> Result<Status> {
    let answer = fetch(socket, "/status").await?;
    serde_json::from_slice(&answer).context("understanding the agent's answer")
}

/// The same for what it answers in text.
pub async fn fetch_text(socket: &Path, path: &str) -> Result<String> {
    let answer = fetch(socket, path).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

async fn fetch(socket: &Path, path: &str) -> Result<Bytes> {
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
    let body = response.into_body().collect().await.context("reading the agent's answer")?;
    Ok(body.to_bytes())
}
