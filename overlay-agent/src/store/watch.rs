//! A watch, and the ways in which it ends.

use std::sync::Arc;

use etcd_client::{Event, WatchStream};

use super::connect::{Connection, Connector, explain};

/// The changes of all leases from some revision on.
pub struct Watch {
    stream: WatchStream,
    connector: Arc<Connector>,
    connection: Connection,
}

/// Why there are no more changes to be had from this watch.
#[derive(Debug, thiserror::Error)]
pub enum WatchEnded {
    /// The connection failed, or etcd has lost its leader.
    #[error("the watch at {endpoint} has failed: {reason}")]
    Failed {
        /// Where it was.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// The changes that were asked for are not kept any more.
    #[error("etcd has forgotten all changes up to revision {0}")]
    Compacted(i64),
    /// etcd does not want to go on.
    #[error("etcd has cancelled the watch: {0}")]
    Cancelled(String),
}

impl Watch {
    pub(super) const fn new(
        stream: WatchStream,
        connector: Arc<Connector>,
        connection: Connection,
    ) -> Self {
        Self { stream, connector, connection }
    }

    /// The next changes, in order. May be empty: etcd says so that the watch is alive.
    pub async fn next(&mut self) -> Result<Vec<Event>, WatchEnded> {
        let message = match self.stream.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return Err(self.failed("etcd has ended it".to_owned()).await),
            Err(error) => return Err(self.failed(explain(&error)).await),
        };
        if message.compact_revision() != 0 {
            return Err(WatchEnded::Compacted(message.compact_revision()));
        }
        if message.canceled() {
            return Err(WatchEnded::Cancelled(message.cancel_reason().to_owned()));
        }
        Ok(message.events().to_vec())
    }

    async fn failed(&self, reason: String) -> WatchEnded {
        self.connector.give_up(&self.connection).await;
        WatchEnded::Failed { endpoint: self.connection.endpoint.clone(), reason }
    }
}
