//! How a host of an etcd that lets everybody do only what is his asks those who decide about that.

use std::{sync::Arc, time::Duration};

use etcd_client::{DeleteOptions, PutOptions, ResponseHeader, WatchOptions};
use tokio::time::timeout;

use super::{
    super::{Change, Revision, StoreError, Watch as _},
    EtcdStore, EtcdWatch, Identity, LARGEST_MESSAGE,
    connect::NOT_PERMITTED,
    end_of,
};
use crate::wire::identity::{About, Answer, Applicant, SubnetRequest, decode, encode};

/// How long an answer may take: somebody reads the question, and changes roles.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);

impl EtcdStore {
    /// Writes a key, whatever is there, and returns the revision of that.
    pub async fn put(
        &self,
        key: &str,
        value: &[u8],
        etcd_lease: Option<i64>,
    ) -> Result<Revision, StoreError> {
        self.request("write", key, |mut connection| async move {
            let options = etcd_lease.map(|id| PutOptions::new().with_lease(id));
            let answer = connection.client.put(key, value, options).await?;
            Ok(Revision::new(answer.header().map_or(0, ResponseHeader::revision)))
        })
        .await
    }

    /// Deletes all keys that begin with `dir`.
    pub async fn delete_below(&self, dir: &str) -> Result<(), StoreError> {
        self.request("delete what is below", dir, |mut connection| async move {
            let options = DeleteOptions::new().with_range(end_of(dir));
            connection.client.delete(dir, Some(options)).await.map(drop)
        })
        .await
    }

    /// Watches all keys that begin with any of `dirs`, from the first change after `revision` on.
    pub async fn watch_below(
        &self,
        dirs: &[String],
        revision: Revision,
    ) -> Result<EtcdWatch, StoreError> {
        let what = dirs.join(", ");
        self.request("watch", &what, |connection| async move {
            let mut client =
                connection.client.watch_client().max_decoding_message_size(LARGEST_MESSAGE);
            let options = WatchOptions::new()
                .with_start_revision(revision.next().number())
                .with_prefix()
                .with_progress_notify();
            let (first, others) = dirs.split_first().map_or(("", &[][..]), |(a, b)| (a, b));
            let mut stream = client.watch(first, Some(options.clone())).await?;
            for dir in others {
                stream.watch(dir.as_str(), Some(options.clone())).await?;
            }
            Ok(EtcdWatch::new(stream, Arc::clone(&self.connector), connection))
        })
        .await
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// Where there is none, or it is no. What that says is a sentence about what was asked for.
    pub async fn ask(
        &self,
        asker: &Applicant,
        about: About,
        question: &[u8],
        etcd_lease: Option<i64>,
    ) -> Result<Answer, StoreError> {
        let (request, answer) =
            (asker.request_key(&self.prefix, about), asker.answer_key(&self.prefix, about));
        let revision = self.put(&request, question, etcd_lease).await?;
        let refused = |reason: String| StoreError::Refused {
            doing: "get an answer to",
            what: request.clone(),
            endpoint: self.connector.config().endpoints.join(","),
            reason,
        };
        let wait = async {
            let mut watch = self.watch_below(std::slice::from_ref(&answer), revision).await?;
            loop {
                let news = watch.next().await.map_err(|ended| refused(ended.to_string()))?;
                let mut answers = news.changes.iter().filter_map(|change| match change {
                    Change::Put(entry) => decode::<Answer>(&entry.value),
                    Change::Deleted { .. } => None,
                });
                let Some(answer) = answers.find(|answer| answer.is_to(revision.number())) else {
                    continue;
                };
                let Some(reason) = answer.refused else { return Ok(answer) };
                let (doing, what) = ("get an answer to", request.clone());
                return Err(StoreError::NotPermitted { doing, what, reason });
            }
        };
        timeout(ANSWERED_WITHIN, wait).await.unwrap_or_else(|_| {
            Err(refused(format!(
                "no host with a share in etcd has answered within {} s: does overlay-agent run on one?",
                ANSWERED_WITHIN.as_secs()
            )))
        })
    }

    /// Asks for the right to write this key, which somebody else may.
    pub(super) async fn ask_for_right_to(
        &self,
        doing: &'static str,
        key: &str,
    ) -> Result<(), StoreError> {
        let config = self.connector.config();
        let host = config.identity.as_ref().and_then(Identity::host);
        let refused = |reason: String| {
            let endpoint = config.endpoints.join(",");
            StoreError::Refused { doing, what: key.to_owned(), endpoint, reason }
        };
        let Some(host) = host else { return Err(refused(NOT_PERMITTED.to_owned())) };
        let Ok(key_of) = self.prefix.parse_subnet_key(key.as_bytes()) else {
            let reason = "a host may write what is its own; run this on one with a share in etcd";
            let (what, reason) = (key.to_owned(), reason.to_owned());
            return Err(StoreError::NotPermitted { doing, what, reason });
        };
        let question = encode(&SubnetRequest { subnet: key_of.subnet });
        match Box::pin(self.ask(&Applicant::Host(host), About::Subnet, &question, None)).await {
            Ok(_) => Ok(()),
            Err(StoreError::NotPermitted { reason, .. }) => {
                Err(StoreError::NotPermitted { doing, what: key.to_owned(), reason })
            }
            Err(StoreError::Refused { reason, .. }) => {
                Err(refused(format!("{NOT_PERMITTED}: {reason}")))
            }
            Err(error) => Err(error),
        }
    }
}
