use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot},
};

use super::{Meters, Status, metrics};
use crate::drops::Drops;

/// Questions to the agent, each with the place for its answer.
pub type Requests = mpsc::Receiver<oneshot::Sender<Status>>;

pub(super) type Asker = mpsc::Sender<oneshot::Sender<Status>>;

pub(super) async fn ask(asker: &Asker) -> Option<Status> {
    let (answer, status) = oneshot::channel();
    asker.send(answer).await.ok()?;
    status.await.ok()
}

#[derive(Clone)]
struct Sources {
    asker: Asker,
    meters: Meters,
}

async fn status(State(Sources { asker, meters }): State<Sources>) -> impl IntoResponse {
    let Some(mut status) = ask(&asker).await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    // Of thousands of peers it is megabytes, for which nobody else should have to wait.
    let write = move || {
        meters.add_counters(&mut status);
        serde_json::to_vec(&status)
    };
    match tokio::task::spawn_blocking(write).await {
        Ok(Ok(json)) => ([(CONTENT_TYPE, "application/json")], json).into_response(),
        Ok(Err(_)) | Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Removes the socket's file when the server ends.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Whoever removed it before us has done our work.
        fs::remove_file(&self.0).ok();
    }
}

/// Answers `overlay-agent status`, and `/metrics`, on a Unix socket that only root can use. Takes the place of a socket
/// that a killed agent left; the lock on the pin path has made sure that none is running.
pub fn serve_socket(path: &Path, asker: Asker, meters: Meters, drops: Drops) -> Result<SocketFile> {
    let place = || format!("listening on {}", path.display());
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(place)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(place);
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(place)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).with_context(place)?;
    let router = Router::new()
        .route("/status", get(status))
        .with_state(Sources { asker, meters: meters.clone() })
        .merge(super::drops::router(drops, meters.clone()))
        .merge(metrics::router(meters));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the status socket has failed");
        }
    });
    Ok(SocketFile(path.to_owned()))
}
