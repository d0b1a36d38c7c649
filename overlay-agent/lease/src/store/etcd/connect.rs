//! One connection at a time, to whichever endpoint answers.
//!
//! The client library can balance over several endpoints, but then hands a share of the requests to
//! those that are down; and one of flannel's two default endpoints is down on nearly every host. So
//! we connect to one, stay with it while it works, and go on to the next when it does not.

use std::{
    error::Error as StdError,
    fmt::{self, Write as _},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::Context as _;
use etcd_client::{Certificate, Client, ConnectOptions, Error, GetOptions, Identity, TlsOptions};
use futures::{StreamExt as _, stream::FuturesUnordered};
use rand::Rng;
use tokio::{sync::Mutex, time::timeout};
use tracing::info;

use super::config::EtcdConfig;
use crate::figures::Figures;

/// How long an endpoint has to accept a connection and answer a first request.
const CONNECT: Duration = Duration::from_secs(5);
/// How long an endpoint is asked alone. Thousands who connect anew at once keep a busy etcd waiting, and are not to ask all
/// of its members for that.
const HEAD_START: Duration = Duration::from_secs(1);
/// etcd refuses clients that ping more often than every 5 s.
const PING: Duration = Duration::from_secs(15);
/// How long a ping may take. With [`PING`], how long a dead connection can go unnoticed.
const PONG: Duration = Duration::from_secs(10);

/// Knows the endpoints and holds the connection to one of them.
pub(super) struct Connector {
    config: EtcdConfig,
    options: ConnectOptions,
    /// A key to ask for, to see whether an endpoint answers.
    probe: String,
    /// How often our side of connections has gone. Beside the lock, which whoever connects holds for as long as endpoints
    /// do not answer.
    disconnections: AtomicU64,
    state: Mutex<State>,
    figures: Figures,
}

struct State {
    /// Those that were configured, and those that were heard of since.
    endpoints: Vec<String>,
    /// The endpoint to try first.
    next: usize,
    /// Counts connections, so that nobody gives up one that he does not have.
    generation: u64,
    /// How often connections had gone when this one was begun.
    disconnections: u64,
    client: Option<Client>,
}

/// A usable connection.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) endpoint: String,
    generation: u64,
}

impl Connector {
    /// Reads the files that `config` names, to see whether they can be, and again for each connection: certificates are made
    /// anew in time. Connects to nothing yet.
    pub(super) fn new(config: &EtcdConfig, figures: Figures) -> anyhow::Result<Self> {
        tls(config)?;
        let options = ConnectOptions::new()
            .with_require_leader(true)
            .with_connect_timeout(CONNECT)
            .with_keep_alive(PING, PONG)
            .with_auto_token_refresh(true);
        let next = rand::rng().random_range(0..config.endpoints.len().max(1));
        Ok(Self {
            config: config.clone(),
            options,
            probe: config.prefix.config_key(),
            disconnections: AtomicU64::new(0),
            state: Mutex::new(State {
                endpoints: config.endpoints.clone(),
                next,
                generation: 0,
                disconnections: 0,
                client: None,
            }),
            figures,
        })
    }

    /// How etcd is reached.
    pub(super) const fn config(&self) -> &EtcdConfig {
        &self.config
    }

    /// Tries these, too, from now on, in place of those that this was said of before. A connection stays as it is.
    pub(super) async fn also_try(&self, others: &[String]) {
        let mut state = self.state.lock().await;
        let current = state.endpoints.get(state.next).cloned();
        let mut endpoints = self.config.endpoints.clone();
        for other in others {
            if !endpoints.contains(other) {
                endpoints.push(other.clone());
            }
        }
        let place = |endpoint| endpoints.iter().position(|known| *known == endpoint);
        let next = current.and_then(place);
        if next.is_none() {
            // Who answers is no member any more.
            if state.client.take().is_some() {
                self.figures.disconnected();
            }
        }
        state.next = next.unwrap_or_default();
        state.endpoints = endpoints;
    }

    /// The connection there is, or else a new one to the first endpoint that answers.
    pub(super) async fn connection(&self) -> Result<Connection, NoEndpoint> {
        let mut state = self.state.lock().await;
        let disconnections = self.disconnections.load(Ordering::Relaxed);
        if state.disconnections != disconnections {
            (state.disconnections, state.client) = (disconnections, None);
            self.figures.disconnected();
        }
        if state.client.is_none() {
            let (client, index) = self.dial(&state.endpoints, state.next).await?;
            state.client = Some(client);
            state.next = index;
            state.generation += 1;
            self.figures.connected();
        }
        let endpoint = state.endpoints[state.next].clone();
        match &state.client {
            Some(client) => {
                Ok(Connection { client: client.clone(), endpoint, generation: state.generation })
            }
            None => Err(NoEndpoint { failures: Vec::new(), refused: false }),
        }
    }

    /// Makes the next request use another endpoint, unless that has happened already.
    pub(super) async fn give_up(&self, connection: &Connection) {
        let mut state = self.state.lock().await;
        if state.generation == connection.generation && state.client.take().is_some() {
            self.figures.disconnected();
            state.next = (state.next + 1) % state.endpoints.len();
        }
    }

    /// Makes the next request connect anew: our side of the connection in use is gone.
    pub(super) fn disconnect(&self) {
        self.disconnections.fetch_add(1, Ordering::Relaxed);
        self.figures.disconnected();
    }

    /// The first endpoint that answers. One after the other is asked, without waiting for long: one that is silent does
    /// not keep us from the next (as RFC 8305, section 5, has it for addresses).
    async fn dial(
        &self,
        endpoints: &[String],
        first: usize,
    ) -> Result<(Client, usize), NoEndpoint> {
        let count = endpoints.len();
        let mut waiting = (0..count).map(|offset| (first + offset) % count);
        let mut dials = FuturesUnordered::new();
        let mut failures = vec![None; count];
        let mut refused = true;
        loop {
            let next = waiting.next();
            dials.extend(next.map(|index| async move {
                let dial = Box::pin(self.dial_one(&endpoints[index]));
                (index, timeout(CONNECT, dial).await)
            }));
            let patience = if next.is_some() { HEAD_START } else { CONNECT };
            let (index, outcome) = match timeout(patience, dials.next()).await {
                Ok(Some(ended)) => ended,
                Ok(None) => break,
                Err(_) => continue,
            };
            failures[index] = Some(match outcome {
                Ok(Ok(client)) => return Ok((client, index)),
                Ok(Err(error)) => {
                    refused &= is_refusal(&error);
                    explain_end(&endpoints[index], explain(&error))
                }
                Err(_) => {
                    refused = false;
                    format!("no answer within {} s", CONNECT.as_secs())
                }
            });
        }
        let failures = endpoints.iter().cloned().zip(failures);
        let failures = failures.filter_map(|(endpoint, reason)| Some((endpoint, reason?)));
        Err(NoEndpoint { failures: failures.collect(), refused })
    }

    /// Connecting alone says little, it happens on first use: so something is asked for.
    async fn dial_one(&self, endpoint: &str) -> Result<Client, Error> {
        let mut client = self.dial_unproved(endpoint).await?;
        let count = GetOptions::new().with_count_only();
        client.get(self.probe.as_str(), Some(count)).await?;
        Ok(client)
    }

    /// The same for what a member answers without the others.
    pub(super) async fn dial_unproved(&self, endpoint: &str) -> Result<Client, Error> {
        let mut options = self.options.clone();
        if !endpoint.starts_with("http://") {
            let tls =
                tls(&self.config).map_err(|error| Error::InvalidArgs(format!("{error:#}")))?;
            options = tls.into_iter().fold(options, ConnectOptions::with_tls);
        }
        self.log_in(endpoint, options).await
    }

    /// Connects as the user, or as nobody where etcd asks nobody who he is: Go's client does the same.
    async fn log_in(&self, endpoint: &str, options: ConnectOptions) -> Result<Client, Error> {
        if let Some((name, password)) = &self.config.user {
            let as_user = options.clone().with_user(name, password.reveal());
            match Client::connect([endpoint], Some(as_user)).await {
                Err(error) if says(&error, AUTH_IS_OFF) => {
                    info!("{endpoint}: authentication is off, so {name} goes without a password");
                }
                outcome => return outcome,
            }
        }
        Client::connect([endpoint], Some(options)).await
    }
}

/// How etcd answers somebody who logs in where nobody has to.
const AUTH_IS_OFF: &str = "authentication is not enabled";
/// How it answers somebody who has not logged in and has to, since authentication was switched on.
const NOT_LOGGED_IN: &str = "user name is empty";

/// How it answers who may not do what he asks for.
pub(super) const NOT_PERMITTED: &str = "permission denied";
/// How it answers, up to 3.4 and since, where users or roles were changed while it was about to: nothing was done.
const ROLES_HAVE_CHANGED: [&str; 2] =
    ["revision in header is old", "revision of auth store is old"];

/// Whether somebody else may do it, and not we.
pub(super) fn is_not_permitted(error: &Error) -> bool {
    says(error, NOT_PERMITTED)
}

/// Whether the same question is answered when it is asked again.
pub(super) fn is_to_be_repeated(error: &Error) -> bool {
    ROLES_HAVE_CHANGED.iter().any(|text| says(error, text))
}

pub(super) fn says(error: &Error, text: &str) -> bool {
    matches!(error, Error::GRpcStatus(status) if status.message().contains(text))
}

/// What TLS needs. The files are read only where an endpoint wants it.
fn tls(config: &EtcdConfig) -> anyhow::Result<Option<TlsOptions>> {
    if !config.wants_tls() {
        return Ok(None);
    }
    let read = |what: &str, path: &std::path::Path| {
        std::fs::read(path).with_context(|| format!("cannot read {what} {}", path.display()))
    };
    let mut options = TlsOptions::new();
    options = match &config.ca_file {
        Some(path) => {
            let pem = read("the certificate of etcd's authority", path)?;
            options.ca_certificate(Certificate::from_pem(pem))
        }
        None => options.with_enabled_roots(),
    };
    if let Some(identity) = &config.identity {
        let cert = read("our certificate", &identity.cert_file)?;
        let key = read("our key", &identity.key_file)?;
        options = options.identity(Identity::from_pem(cert, key));
    }
    Ok(Some(options))
}

/// No endpoint answers, or none as we want it to: each with its reason.
#[derive(Debug)]
pub(super) struct NoEndpoint {
    failures: Vec<(String, String)>,
    /// They are there and want nothing to do with us: what is wrong is the user, the password, the role.
    refused: bool,
}

impl fmt::Display for NoEndpoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(if self.refused { "etcd refuses us" } else { "no etcd endpoint answers" })?;
        for (index, (endpoint, reason)) in self.failures.iter().enumerate() {
            out.write_str(if index == 0 { " (" } else { "; " })?;
            write!(out, "{endpoint}: {reason}")?;
        }
        if !self.failures.is_empty() {
            out.write_char(')')?;
        }
        Ok(())
    }
}

impl StdError for NoEndpoint {}

/// What is really wrong. The library's own text stops at «transport error».
pub(super) fn explain(error: &Error) -> String {
    match error {
        Error::TransportError(error) => root_of(error),
        Error::GRpcStatus(status) => match StdError::source(status) {
            Some(source) => root_of(source),
            None => status.message().to_owned(),
        },
        other => other.to_string(),
    }
}

/// What is said of an etcd whose certificate somebody else has signed.
pub const OF_ANOTHER: &str = "etcd's certificate is of another authority";
/// The TLS library's way to say what it thinks of the other end: that somebody else has signed its certificate, of whatever name.
const INVALID: &str = "invalid peer certificate: ";
const FROM_OTHERS: [&str; 2] = ["UnknownIssuer", "BadSignature"];

fn root_of(error: &(dyn StdError + 'static)) -> String {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    let text = root.to_string();
    if FROM_OTHERS.iter().any(|end| text.starts_with(INVALID) && text.ends_with(end)) {
        return format!(
            "etcd's certificate is of another authority than this host trusts ({text})"
        );
    }
    // The TLS library's way to say what the other end thinks of us.
    match text.strip_prefix("received fatal alert: ") {
        Some(alert) if alert.contains("Certificate") || alert == "UnknownCA" => {
            format!("etcd wants a client certificate, and does not accept what it gets ({alert})")
        }
        _ => text,
    }
}

/// A server that does not like a client's certificate says so and hangs up, in TLS 1.3 after the handshake;
/// we may notice the second before the first.
fn explain_end(endpoint: &str, reason: String) -> String {
    // The words of several layers; which of them notices first is a matter of luck.
    const HUNG_UP: [&str; 4] =
        ["connection closed", "connection reset", "broken pipe", "operation was canceled"];
    let lower = reason.to_lowercase();
    if endpoint.starts_with("https://") && HUNG_UP.iter().any(|text| lower.contains(text)) {
        format!("{reason}: it may want a client certificate, and not accept what it gets")
    } else {
        reason
    }
}

/// Whether etcd has answered that it does not want us. The numbers are gRPC's: invalid argument (an
/// unknown user or a wrong password), permission denied, unauthenticated.
fn is_refusal(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status) if matches!(status.code() as i32, 3 | 7 | 16)
        && StdError::source(status).is_none())
}

/// Whether another endpoint, or a new connection, could do better.
///
/// The numbers are gRPC's: invalid argument, not found, already exists, permission denied, resource
/// exhausted, failed precondition, out of range. Those are answers; everything else is trouble. So is not being
/// logged in any more: a new connection logs in.
pub(super) fn is_connection_trouble(error: &Error) -> bool {
    match error {
        Error::GRpcStatus(_) if says(error, NOT_LOGGED_IN) => true,
        Error::GRpcStatus(status) => !matches!(status.code() as i32, 3 | 5..=9 | 11),
        Error::InvalidArgs(_) | Error::LeaseKeepAliveError(_) => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hang_up_over_tls_hints_at_the_certificate_whoever_words_it() {
        for words in ["stream closed because of a broken pipe", "Broken pipe (os error 32)"] {
            let hint = explain_end("https://192.0.2.1:2379", words.to_owned());
            assert!(hint.contains("it may want a client certificate"), "{hint}");
            assert_eq!(explain_end("http://192.0.2.1:2379", words.to_owned()), words);
        }
    }
}
