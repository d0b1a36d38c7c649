//! A watch, and the ways in which it ends.

use std::sync::Arc;

use etcd_client::{Event, WatchResponse, WatchStream};

use super::connect::{Connection, Connector, explain};

/// The changes of all leases from some revision on.
pub struct Watch {
    stream: WatchStream,
    /// The number of the watch of leases, once etcd has said it.
    of_leases: Option<i64>,
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

/// What a watch says.
#[derive(Debug)]
pub struct News {
    /// Changes, in order. There may be none: etcd says so that the watch is alive.
    pub events: Vec<Event>,
    /// No change of a lease up to this revision is still to come.
    pub complete: Option<i64>,
}

/// etcd parts messages that are larger than a megabyte and a half, and what is of one revision may then be in two.
const PARTED: usize = 1 << 20;

impl Watch {
    pub(super) const fn new(
        stream: WatchStream,
        connector: Arc<Connector>,
        connection: Connection,
    ) -> Self {
        Self { stream, of_leases: None, connector, connection }
    }

    /// The next of what it says.
    pub async fn next(&mut self) -> Result<News, WatchEnded> {
        let message = self.message().await?;
        let events = message.events().to_vec();
        if message.created() {
            // The watch of leases is the first of its stream.
            self.of_leases.get_or_insert(message.watch_id());
            return Ok(News { events, complete: None });
        }
        let is_of_leases = self.of_leases == Some(message.watch_id());
        let complete = if is_of_leases { complete(&message, &events) } else { None };
        Ok(News { events, complete })
    }

    async fn message(&mut self) -> Result<WatchResponse, WatchEnded> {
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
        Ok(message)
    }

    async fn failed(&self, reason: String) -> WatchEnded {
        self.connector.give_up(&self.connection).await;
        WatchEnded::Failed { endpoint: self.connection.endpoint.clone(), reason }
    }
}

/// Up to which revision a message about leases completes what is known.
fn complete(message: &WatchResponse, events: &[Event]) -> Option<i64> {
    let Some(last) = events.last().and_then(Event::kv) else {
        return message.header().map(etcd_client::ResponseHeader::revision);
    };
    let kvs = events.iter().filter_map(Event::kv);
    let bytes: usize = kvs.map(|kv| kv.key().len() + kv.value().len()).sum();
    Some(last.mod_revision() - i64::from(bytes > PARTED))
}
