//! How the members of etcd are.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use futures::future::join_all;
use overlay_lease::store::etcd::{Condition, EtcdConfig, EtcdStore, Member};
use serde::Serialize;

use crate::exit::{Exit, WithExit as _};

/// How a cluster is.
#[derive(Clone, Debug, Serialize)]
pub struct ClusterStatus {
    /// Its members.
    pub members: Vec<MemberState>,
    /// How many of those that vote have to answer for anything to be written.
    pub quorum: usize,
    /// How many of them answer.
    pub answering: usize,
}

/// How a member is.
#[derive(Clone, Debug, Serialize)]
pub struct MemberState {
    /// What it calls itself; empty until it has started for the first time.
    pub name: String,
    /// Where other members reach it.
    pub peer_urls: Vec<String>,
    /// Whether it copies what the others decide, and has no vote yet.
    pub is_learner: bool,
    /// Whether it leads.
    pub leads: bool,
    /// etcd's version, the database's size in bytes, and how far it has got (raft's index); nothing if it does not answer.
    pub answer: Option<(String, i64, u64)>,
    /// What is wrong with it.
    pub errors: Vec<String>,
}

/// How the members are, each asked by itself. Where too few of them answer to say who they are, those are asked that this
/// host knows of.
pub async fn status(etcd: &EtcdConfig) -> Result<ClusterStatus> {
    let store = EtcdStore::new(etcd)?;
    let members = match store.members().await {
        Ok(members) => members,
        Err(error) => {
            let known: Vec<_> = etcd.endpoints.iter().map(|endpoint| known(endpoint)).collect();
            let states = states(&store, &known).await;
            if states.iter().all(|state| state.answer.is_none()) {
                return Err(error).exit(Exit::Unavailable);
            }
            return Ok(ClusterStatus::of(states));
        }
    };
    Ok(ClusterStatus::of(states(&store, &members).await))
}

/// A member of which nothing is known but where it is asked.
fn known(endpoint: &str) -> Member {
    Member {
        id: 0,
        name: endpoint.to_owned(),
        peer_urls: Vec::new(),
        client_urls: vec![endpoint.to_owned()],
        is_learner: false,
    }
}

async fn states(store: &EtcdStore, members: &[Member]) -> Vec<MemberState> {
    let conditions = join_all(members.iter().map(|member| condition(store, member))).await;
    let leader = conditions.iter().flatten().map(|found| found.leader).find(|leader| *leader != 0);
    let state = |(member, condition): (&Member, Result<Condition>)| {
        let id = condition.as_ref().map_or(member.id, |found| found.id);
        let (answer, errors) = match condition {
            Ok(Condition { version, size, index, errors, .. }) => {
                (Some((version, size, index)), errors)
            }
            Err(error) => (None, vec![format!("{error:#}")]),
        };
        MemberState {
            name: member.name.clone(),
            peer_urls: member.peer_urls.clone(),
            is_learner: member.is_learner,
            leads: Some(id) == leader,
            answer,
            errors,
        }
    };
    members.iter().zip(conditions).map(state).collect()
}

async fn condition(store: &EtcdStore, member: &Member) -> Result<Condition> {
    match member.client_urls.first() {
        None => bail!("it has never started"),
        Some(url) => Ok(store.condition(url).await?),
    }
}

impl ClusterStatus {
    fn of(members: Vec<MemberState>) -> Self {
        let voting: Vec<_> = members.iter().filter(|state| !state.is_learner).collect();
        let answering = voting.iter().filter(|state| state.answer.is_some()).count();
        Self { quorum: voting.len() / 2 + 1, answering, members }
    }

    /// Whether everybody answers, and nothing is wrong with anybody.
    pub fn is_fine(&self) -> bool {
        self.members.iter().all(|member| member.answer.is_some() && member.errors.is_empty())
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header(["member", "address", "is", "etcd", "bytes", "index"]);
        for member in &self.members {
            let role = match (&member.answer, member.is_learner, member.leads) {
                (None, ..) => "not answering",
                (_, true, _) => "a copy without a vote",
                (_, _, true) => "leading",
                _ => "following",
            };
            let [version, size, index] = match &member.answer {
                None => Default::default(),
                Some((version, size, index)) => {
                    [version.clone(), size.to_string(), index.to_string()]
                }
            };
            let name = if member.name.is_empty() { "-".to_owned() } else { member.name.clone() };
            table.add_row([
                name,
                member.peer_urls.join(","),
                role.to_owned(),
                version,
                size,
                index,
            ]);
        }
        let mut text = format!("{table}\n");
        for (member, problem) in self.problems() {
            // Writing to a string cannot fail.
            writeln!(text, "{member}: {problem}").ok();
        }
        writeln!(text, "{}.", self.summary()).ok();
        text
    }

    /// Who of them has which problem.
    pub fn problems(&self) -> impl Iterator<Item = (&str, &str)> {
        self.members.iter().flat_map(|member| {
            // One that has never started has no name yet.
            let url = member.peer_urls.first().filter(|_| member.name.is_empty());
            let name = url.unwrap_or(&member.name).as_str();
            member.errors.iter().map(move |error| (name, error.as_str()))
        })
    }

    /// How many there are, and how many may be lost.
    pub fn summary(&self) -> String {
        let voting = self.members.iter().filter(|member| !member.is_learner).count();
        let may = may_be_lost(voting, self.answering);
        format!("{} of {voting} members answer: {may}", self.answering)
    }
}

/// How many members may be lost of a cluster of so many, as a sentence.
pub(super) fn may_be_lost(voting: usize, answering: usize) -> String {
    let quorum = voting / 2 + 1;
    match answering.checked_sub(quorum) {
        None => format!("nothing can be written until {quorum} answer"),
        Some(0) if voting == 2 => {
            "nothing can be written while either is away: take a third".to_owned()
        }
        Some(0) => "none may be lost".to_owned(),
        Some(1) => "any one may be lost".to_owned(),
        Some(count) => format!("any {count} may be lost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_many_may_be_lost_is_what_raft_says() {
        let said = |voting, answering| may_be_lost(voting, answering);
        assert_eq!(said(1, 1), "none may be lost");
        assert!(said(2, 2).contains("take a third"));
        assert_eq!(said(3, 3), "any one may be lost");
        assert_eq!(said(3, 2), "none may be lost");
        assert_eq!(said(3, 1), "nothing can be written until 2 answer");
        assert_eq!(said(5, 5), "any 2 may be lost");
    }
}
