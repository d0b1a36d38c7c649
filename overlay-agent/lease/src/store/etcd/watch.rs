//! A watch, and the ways in which it ends.

use std::sync::Arc;

use etcd_client::{Event, EventType, ResponseHeader, WatchResponse, WatchStream};

use super::{
    super::{Change, News, Revision, Watch, WatchEnded},
    connect::{Connection, Connector, explain},
    entry,
};

/// The changes of all leases from some revision on.
pub struct EtcdWatch {
    stream: WatchStream,
    /// The number of the watch of leases, once etcd has said it.
    of_leases: Option<i64>,
    connector: Arc<Connector>,
    connection: Connection,
}

/// etcd parts messages that are larger than a megabyte and a half, and what is of one revision may then be in two.
const PARTED: usize = 1 << 20;

impl EtcdWatch {
    pub(super) const fn new(
        stream: WatchStream,
        connector: Arc<Connector>,
        connection: Connection,
    ) -> Self {
        Self { stream, of_leases: None, connector, connection }
    }

    async fn message(&mut self) -> Result<WatchResponse, WatchEnded> {
        let message = match self.stream.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return Err(self.failed("etcd has ended it".to_owned()).await),
            Err(error) => return Err(self.failed(explain(&error)).await),
        };
        if message.compact_revision() != 0 {
            return Err(WatchEnded::Compacted(Revision::new(message.compact_revision())));
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

impl Watch for EtcdWatch {
    async fn next(&mut self) -> Result<News, WatchEnded> {
        let message = self.message().await?;
        let changes = message.events().iter().filter_map(change).collect();
        if message.created() {
            // The watch of leases is the first of its stream.
            self.of_leases.get_or_insert(message.watch_id());
            return Ok(News { changes, complete: None });
        }
        let is_of_leases = self.of_leases == Some(message.watch_id());
        let complete = if is_of_leases { complete(&message) } else { None };
        Ok(News { changes, complete: complete.map(Revision::new) })
    }
}

fn change(event: &Event) -> Option<Change> {
    let kv = event.kv()?;
    Some(match event.event_type() {
        EventType::Put => Change::Put(entry(kv.clone())),
        EventType::Delete => {
            Change::Deleted { key: kv.key().to_vec(), revision: Revision::new(kv.mod_revision()) }
        }
    })
}

/// Up to which revision a message about leases completes what is known.
fn complete(message: &WatchResponse) -> Option<i64> {
    let events = message.events();
    let Some(last) = events.last().and_then(Event::kv) else {
        return message.header().map(ResponseHeader::revision);
    };
    let kvs = events.iter().filter_map(Event::kv);
    let bytes: usize = kvs.map(|kv| kv.key().len() + kv.value().len()).sum();
    Some(last.mod_revision() - i64::from(bytes > PARTED))
}
