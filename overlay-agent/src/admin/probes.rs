//! `/healthz`, `/readyz` and `/metrics`, for whoever may reach the port: nobody has to say who he is, so nothing that is done
//! here costs the agent more than a moment, a little memory and a few file descriptors.

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use axum::{Json, Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};

use super::{
    Meters, metrics,
    pulse::{Heard, Listener, Readiness},
    server::{Asker, ask},
};
use crate::exit::{Exit, WithExit as _};

/// So many connections at a time; one more ends the oldest.
const CONNECTIONS: usize = 64;

/// How long a request may take to arrive.
const REQUEST: Duration = Duration::from_secs(5);

/// How long everything may take.
const CONNECTION: Duration = Duration::from_secs(10);

/// How long an agent that starts may take to say what it waits for.
const ANSWER: Duration = Duration::from_secs(2);

/// After a connection that could not be accepted: without descriptors, trying at once fails again.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Clone)]
struct Sources {
    asker: Asker,
    listener: Listener,
}

/// Alive: the agent's loop turns. It is not asked, only listened to.
async fn healthz(State(sources): State<Sources>) -> impl IntoResponse {
    match sources.listener.listen() {
        Heard::Nothing => (StatusCode::OK, "the agent is starting\n".to_owned()),
        Heard::Beats(_) => (StatusCode::OK, "the agent is running\n".to_owned()),
        Heard::Silence(silence) => {
            let text = format!("the agent's loop has not turned for {} s\n", silence.as_secs());
            (StatusCode::SERVICE_UNAVAILABLE, text)
        }
    }
}

async fn readyz(State(sources): State<Sources>) -> impl IntoResponse {
    let silent =
        || Readiness { ready: false, problems: vec!["The agent does not answer.".to_owned()] };
    let readiness = match sources.listener.listen() {
        Heard::Beats(readiness) => readiness,
        Heard::Silence(_) => silent(),
        Heard::Nothing => match timeout(ANSWER, ask(&sources.asker)).await {
            Ok(Some(status)) => Readiness { ready: status.ready, problems: status.problems },
            _ => silent(),
        },
    };
    let code = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(readiness))
}

/// Answers `/healthz`, `/readyz` and `/metrics`.
pub async fn serve_probes(
    address: SocketAddr,
    asker: Asker,
    listener: Listener,
    meters: Meters,
) -> Result<()> {
    let socket = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen for health probes on {address}"))
        .exit(Exit::Unavailable)?;
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(Sources { asker, listener })
        .merge(metrics::router(meters));
    tokio::spawn(accept(socket, router));
    Ok(())
}

async fn accept(socket: TcpListener, router: Router) {
    let mut connections = JoinSet::new();
    let mut oldest_first: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = match socket.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a health probe could not be accepted");
                sleep(PAUSE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        oldest_first.retain(|connection| !connection.is_finished());
        if oldest_first.len() >= CONNECTIONS
            && let Some(oldest) = oldest_first.pop_front()
        {
            oldest.abort();
        }
        oldest_first.push_back(connections.spawn(serve(stream, router.clone())));
    }
}

async fn serve(stream: TcpStream, router: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match timeout(CONNECTION, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a health probe has failed"),
        Err(_) => tracing::debug!("a health probe took too long"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        sync::mpsc,
    };

    use super::*;
    use crate::admin::{Census, Pulse};

    /// A server that nobody answers behind.
    async fn server() -> (SocketAddr, Pulse) {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        drop(socket);
        let (pulse, listener) = Pulse::new();
        let meters = Meters::new(listener.clone(), None, None);
        serve_probes(address, mpsc::channel(1).0, listener, meters).await.unwrap();
        (address, pulse)
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(REQUEST, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }

    #[tokio::test]
    async fn half_open_requests_neither_stay_nor_keep_others_out() {
        let (address, pulse) = server().await;
        pulse.beat(true, Vec::new(), Census::default());
        let mut half_open = Vec::new();
        for _ in 0..3 * CONNECTIONS {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost:").await.unwrap();
            half_open.push(stream);
        }
        let answer = get(address, "/healthz").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let ended = async |stream: &mut TcpStream| {
            let mut byte = [0];
            matches!(stream.read(&mut byte).await, Ok(0) | Err(_))
        };
        // All but the latest are ended at once, and these when their time is over.
        for stream in &mut half_open[..=2 * CONNECTIONS] {
            assert!(timeout(REQUEST / 2, ended(stream)).await.unwrap());
        }
        for stream in &mut half_open[2 * CONNECTIONS + 1..] {
            let mut all = Vec::new();
            timeout(2 * REQUEST, stream.read_to_end(&mut all)).await.unwrap().ok();
        }
    }

    #[tokio::test]
    async fn an_agent_whose_loop_does_nothing_is_not_asked() {
        let (address, pulse) = server().await;
        assert!(get(address, "/healthz").await.contains("is starting"));
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 503"));
        pulse.beat(true, vec!["There is no bridge.".to_owned()], Census::default());
        assert!(get(address, "/healthz").await.contains("is running"));
        let answer = get(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("no bridge"), "{answer}");
    }
}
