//! Waiting for the network config.

use std::time::Duration;

use rand::Rng;
use tracing::{info, warn};

use super::{Etcd, outage::Outage};
use crate::network_config::{ConfigError, NetworkConfig};

/// How often to look for a config that is not there yet, give or take a half.
const LOOK: Duration = Duration::from_secs(1);

/// A network config, and which of its versions it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredConfig {
    /// The config.
    pub config: NetworkConfig,
    /// The revision at which it was written.
    pub mod_revision: i64,
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
pub async fn wait_for_config(store: &Etcd) -> Result<StoredConfig, MalformedConfig> {
    let key = store.prefix().config_key();
    let mut unreachable = Outage::new("cannot read the network config");
    let mut absent = Outage::new("there is no network config yet");
    loop {
        let pause = match unreachable.attempt(store.get(&key)).await {
            Ok(Some(entry)) => {
                unreachable.over();
                absent.over();
                let parsed = NetworkConfig::parse(&entry.value)
                    .map_err(|error| MalformedConfig { key: key.clone(), error })?;
                for note in parsed.notes {
                    warn!("network config: {note}");
                }
                info!("network config: {}", String::from_utf8_lossy(&entry.value));
                return Ok(StoredConfig {
                    config: parsed.config,
                    mod_revision: entry.mod_revision,
                });
            }
            Ok(None) => {
                unreachable.over();
                absent.failed(&format_args!("{key} does not exist"));
                LOOK.mul_f64(rand::rng().random_range(0.5..1.5))
            }
            Err(error) => unreachable.failed(&error),
        };
        tokio::time::sleep(pause).await;
    }
}
