//! The cluster that etcd is: who its members are, and how they come and go.

use etcd_client::{Error, MemberAddOptions, SnapshotStreaming};
use tokio::time::timeout;

use super::{ANSWER, EtcdConfig, EtcdStore, connect::explain};
use crate::store::StoreError;

/// What etcd calls a member that it cannot promote yet, since 3.4.
const NOT_IN_SYNC: &str = "in sync with leader";
/// And one that it has promoted.
const NO_LEARNER: &str = "can only promote a learner member";

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its number in the cluster.
    pub id: u64,
    /// What it calls itself; empty until it has started.
    pub name: String,
    /// Where other members reach it.
    pub peer_urls: Vec<String>,
    /// Where clients do; empty until it has started.
    pub client_urls: Vec<String>,
    /// Whether it copies what the others decide, and has no vote.
    pub is_learner: bool,
}

impl Member {
    /// Whether it has ever taken part.
    pub const fn has_started(&self) -> bool {
        !self.name.is_empty()
    }
}

impl From<&etcd_client::Member> for Member {
    fn from(member: &etcd_client::Member) -> Self {
        Self {
            id: member.id(),
            name: member.name().to_owned(),
            peer_urls: member.peer_urls().to_vec(),
            client_urls: member.client_urls().to_vec(),
            is_learner: member.is_learner(),
        }
    }
}

/// What has become of a learner that was to get a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promotion {
    /// It has one.
    Done,
    /// It has to catch up with the others first.
    NotInStep,
}

/// How a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Its number in the cluster.
    pub id: u64,
    /// etcd's version.
    pub version: String,
    /// The size of its database in bytes.
    pub size: i64,
    /// The number of the member that leads, as far as this one knows; 0: nobody.
    pub leader: u64,
    /// How far it has got in what was decided: raft's index.
    pub index: u64,
    /// What is wrong with it, in etcd's words.
    pub errors: Vec<String>,
}

/// Everything that a member holds, as it comes: etcd's own file of it, with its SHA-256 at the end.
pub struct Snapshot {
    stream: SnapshotStreaming,
    endpoint: String,
}

impl Snapshot {
    /// The next piece, or nothing after the last.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        let reason = match timeout(ANSWER, self.stream.message()).await {
            Ok(Ok(piece)) => return Ok(piece.map(|piece| piece.blob().to_vec())),
            Ok(Err(error)) => explain(&error),
            Err(_) => format!("no more of it within {} s", ANSWER.as_secs()),
        };
        Err(StoreError::Refused {
            doing: "copy",
            what: "all that is in etcd".to_owned(),
            endpoint: self.endpoint.clone(),
            reason,
        })
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Snapshot(of {})", self.endpoint)
    }
}

impl EtcdStore {
    /// How this was told to reach etcd.
    pub fn config(&self) -> &EtcdConfig {
        self.connector.config()
    }

    /// Tries these endpoints, too, where those that were configured do not answer; they take the place of those that
    /// this was said of before.
    pub async fn also_try(&self, endpoints: &[String]) {
        self.connector.also_try(endpoints).await;
    }

    /// Who the members are.
    pub async fn members(&self) -> Result<Vec<Member>, StoreError> {
        self.request("list", "etcd's members", |mut connection| async move {
            let answer = connection.client.member_list().await?;
            Ok(answer.members().iter().map(Member::from).collect())
        })
        .await
    }

    /// Makes room for a member that copies and does not vote, and returns its number.
    pub async fn add_learner(&self, peer_url: &str) -> Result<u64, StoreError> {
        let options = &MemberAddOptions::new().with_is_learner();
        self.request("add etcd's member", peer_url, |mut connection| async move {
            let answer = connection.client.member_add([peer_url], Some(options.clone())).await?;
            Ok(answer.member().map_or(0, etcd_client::Member::id))
        })
        .await
    }

    /// Gives a learner a vote.
    pub async fn promote(&self, id: u64) -> Result<Promotion, StoreError> {
        self.request("promote etcd's member", &format!("{id:x}"), |mut connection| async move {
            match connection.client.member_promote(id).await {
                Ok(_) => Ok(Promotion::Done),
                Err(Error::GRpcStatus(status)) if status.message().contains(NOT_IN_SYNC) => {
                    Ok(Promotion::NotInStep)
                }
                Err(Error::GRpcStatus(status)) if status.message().contains(NO_LEARNER) => {
                    Ok(Promotion::Done)
                }
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// Takes a member out of the cluster, for good: under this number it never comes back.
    pub async fn remove_member(&self, id: u64) -> Result<(), StoreError> {
        self.request("remove etcd's member", &format!("{id:x}"), |mut connection| async move {
            connection.client.member_remove(id).await.map(drop)
        })
        .await
    }

    /// Tells the others where a member is now.
    pub async fn move_member(&self, id: u64, peer_url: &str) -> Result<(), StoreError> {
        self.request("move etcd's member to", peer_url, |mut connection| async move {
            connection.client.member_update(id, [peer_url.to_owned()]).await.map(drop)
        })
        .await
    }

    /// How the member at this endpoint is, by its own account, also where the others are away.
    pub async fn condition(&self, endpoint: &str) -> Result<Condition, StoreError> {
        let ask = async {
            let mut client = self.connector.dial_unproved(endpoint).await?;
            client.status().await
        };
        let reason = match timeout(ANSWER, Box::pin(ask)).await {
            Ok(Ok(answer)) => {
                return Ok(Condition {
                    id: answer.header().map_or(0, etcd_client::ResponseHeader::member_id),
                    version: answer.version().to_owned(),
                    size: answer.db_size(),
                    leader: answer.leader(),
                    index: answer.raft_index(),
                    errors: answer.errors().to_vec(),
                });
            }
            Ok(Err(error)) => explain(&error),
            Err(_) => format!("no answer within {} s", ANSWER.as_secs()),
        };
        Err(StoreError::Refused {
            doing: "ask about itself",
            what: "etcd's member".to_owned(),
            endpoint: endpoint.to_owned(),
            reason,
        })
    }

    /// Begins to copy everything that the member holds that answers.
    pub async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.request("copy", "all that is in etcd", |mut connection| async move {
            let stream = connection.client.snapshot().await?;
            Ok(Snapshot { stream, endpoint: connection.endpoint.clone() })
        })
        .await
    }
}
