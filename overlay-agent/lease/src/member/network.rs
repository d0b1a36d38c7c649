//! Waiting for the network config.

use std::time::Duration;

use rand::Rng;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::{
    config::{ConfigError, NetworkConfig},
    outage::Outage,
    store::{Change, Entry, Revision, Store, StoreError},
};

/// How often to look for a config that is not there yet, or is no good, give or take a half.
const LOOK: Duration = Duration::from_secs(1);

/// What fails while etcd does not answer at the start.
pub(super) const UNREACHABLE: &str = "cannot read the network config";

/// A network config, and which of its versions it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredConfig {
    /// The config.
    pub config: NetworkConfig,
    /// The same, as it was written.
    pub text: String,
    /// The revision at which it was written.
    pub mod_revision: Revision,
}

/// A config that is there but malformed.
#[derive(Debug, thiserror::Error)]
#[error("the network config at {key} is malformed: {error}")]
pub struct MalformedConfig {
    /// Where it is.
    pub key: String,
    /// The field and the rule.
    pub error: ConfigError,
}

/// Reads the network config; waits for etcd to answer and for the config to be there.
pub async fn wait_for_config(store: &impl Store) -> Result<StoredConfig, MalformedConfig> {
    let key = store.prefix().config_key();
    let mut unreachable = Outage::on(UNREACHABLE, store.troubles());
    let mut absent = Outage::on("there is no network config yet", store.troubles());
    loop {
        let pause = match unreachable.attempt(store.get(&key)).await {
            Ok(Some(entry)) => {
                unreachable.over();
                absent.over();
                return read(&key, &entry);
            }
            Ok(None) => {
                unreachable.over();
                absent.failed(&format_args!("{key} does not exist"));
                look_again()
            }
            Err(error) => unreachable.failed(&error),
        };
        tokio::time::sleep(pause).await;
    }
}

/// As [`wait_for_config`], and waits for a text that says nothing to be mended, as flanneld does. Fails where the
/// config asks for what this agent does not do.
pub async fn wait_for_good_config(store: &impl Store) -> Result<StoredConfig, MalformedConfig> {
    let mut malformed = Outage::on("cannot join the network", store.troubles());
    loop {
        match wait_for_config(store).await {
            Ok(config) => {
                malformed.over();
                return Ok(config);
            }
            Err(error) if error.error.is_beyond_us() => return Err(error),
            Err(error) => malformed.failed(&error),
        };
        tokio::time::sleep(look_again()).await;
    }
}

fn look_again() -> Duration {
    LOOK.mul_f64(rand::rng().random_range(0.5..1.5))
}

/// Checks a config, and logs it with what there is to say about it.
fn read(key: &str, entry: &Entry) -> Result<StoredConfig, MalformedConfig> {
    let parsed = NetworkConfig::parse(&entry.value)
        .map_err(|error| MalformedConfig { key: key.to_owned(), error })?;
    for note in parsed.notes {
        warn!("network config: {note}");
    }
    let text = String::from_utf8_lossy(&entry.value).into_owned();
    info!("network config: {text}");
    Ok(StoredConfig { config: parsed.config, text, mod_revision: entry.mod_revision })
}

/// What has become of the network config.
#[derive(Debug)]
pub enum ConfigUpdate {
    /// It is another one.
    Changed(StoredConfig),
    /// It cannot be used.
    Malformed(MalformedConfig),
    /// It has been deleted: this is where it was.
    Gone(String),
}

/// Tells somebody about changes of the network config, each once, however it is noticed.
#[derive(Debug)]
pub(super) struct ConfigReporter {
    key: String,
    /// The revision at which it was last written or deleted, as far as we know.
    seen: Revision,
    present: bool,
    updates: mpsc::Sender<ConfigUpdate>,
}

impl ConfigReporter {
    pub(super) const fn new(
        key: String,
        seen: Revision,
        updates: mpsc::Sender<ConfigUpdate>,
    ) -> Self {
        Self { key, seen, present: true, updates }
    }

    /// Reads it anew: changes may have been missed.
    pub(super) async fn look(&mut self, store: &impl Store) -> Result<(), StoreError> {
        match store.get(&self.key).await? {
            Some(entry) => self.found(&entry).await,
            None => self.gone(self.seen).await,
        }
        Ok(())
    }

    /// Takes note of a change, if it is of the config. Returns whether it was.
    pub(super) async fn observe(&mut self, change: &Change) -> bool {
        if change.key() != self.key.as_bytes() {
            return false;
        }
        match change {
            _ if change.revision() <= self.seen => {}
            Change::Put(entry) => self.found(entry).await,
            Change::Deleted { revision, .. } => self.gone(*revision).await,
        }
        true
    }

    async fn found(&mut self, entry: &Entry) {
        // After etcd was restored from a backup, revisions may be lower than what we know.
        if self.present && entry.mod_revision == self.seen {
            return;
        }
        self.seen = entry.mod_revision;
        self.present = true;
        self.send(match read(&self.key, entry) {
            Ok(config) => ConfigUpdate::Changed(config),
            Err(error) => ConfigUpdate::Malformed(error),
        })
        .await;
    }

    async fn gone(&mut self, revision: Revision) {
        self.seen = revision;
        if std::mem::take(&mut self.present) {
            self.send(ConfigUpdate::Gone(self.key.clone())).await;
        }
    }

    async fn send(&self, update: ConfigUpdate) {
        // Closed means that the agent is stopping.
        self.updates.send(update).await.ok();
    }
}
