//! Who is in the etcd cluster, while its members come and go: what an agent was configured with on the first day need
//! not be there any more on the last.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use overlay_lease::store::etcd::{EtcdStore, Member};
use rand::Rng as _;
use serde::{Deserialize, Serialize};

use crate::subnet_env::replace;

/// How often to ask, half of it more or less: tens of thousands of hosts ask.
const EVERY: Duration = Duration::from_secs(20);

/// What was heard of, beside the state file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Heard {
    /// The endpoints by which it was heard of: those of another cluster know nothing of it.
    configured: Vec<String>,
    members: Vec<String>,
}

fn path(state_file: &Path) -> PathBuf {
    state_file.with_file_name("etcd-members.json")
}

/// Where else than at its `configured` endpoints etcd was when an agent on this host last heard of it.
pub fn heard_of(state_file: &Path, configured: &[String]) -> Vec<String> {
    let Ok(text) = std::fs::read(path(state_file)) else {
        return Vec::new();
    };
    match serde_json::from_slice::<Heard>(&text) {
        Ok(heard) if heard.configured == configured => heard.members,
        _ => Vec::new(),
    }
}

/// Removes what was heard of.
pub fn forget(state_file: &Path) -> Result<bool> {
    crate::state_file::remove(&path(state_file))
}

/// Where to reach the members, of those who are reached where they say. An address of the loopback is that of a host
/// which is not this one.
pub fn reachable(members: &[Member], configured: &[String]) -> Vec<String> {
    let scheme = |url: &str| url.split_once("://").map(|(scheme, _)| scheme.to_owned());
    let is_like_ours = |url: &str| configured.iter().any(|own| scheme(own) == scheme(url));
    let is_loopback =
        |url: &str| ["//127.", "//localhost", "//[::1]"].iter().any(|word| url.contains(word));
    let voting = members.iter().filter(|member| !member.is_learner);
    let mut urls: Vec<_> = voting
        .flat_map(|member| &member.client_urls)
        .filter(|url| is_like_ours(url) && !is_loopback(url))
        .cloned()
        .collect();
    urls.sort_unstable();
    urls.dedup();
    urls
}

/// Follows the members for good.
pub(super) async fn follow(store: EtcdStore, state_file: PathBuf) {
    let configured = store.config().endpoints.clone();
    let mut members = heard_of(&state_file, &configured);
    store.also_try(&members).await;
    loop {
        match store.members().await.map(|found| reachable(&found, &configured)) {
            // One that tells nothing of use, as behind a proxy, is asked where it was configured.
            Ok(found) if !found.is_empty() && found != members => {
                tracing::info!(members = found.join(","), "etcd's members");
                members = found;
                store.also_try(&members).await;
                let heard = Heard { configured: configured.clone(), members: members.clone() };
                if let Err(error) = write(&state_file, &heard) {
                    tracing::warn!("etcd's members are not known after a reboot: {error:#}");
                }
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "etcd's members are not known"),
        }
        let pause = EVERY.mul_f64(rand::rng().random_range(0.5..1.5));
        tokio::time::sleep(pause).await;
    }
}

fn write(state_file: &Path, heard: &Heard) -> Result<()> {
    let path = path(state_file);
    let written = serde_json::to_vec(heard).map_err(std::io::Error::other);
    written
        .and_then(|text| replace(&path, &text))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(client_url: &str, is_learner: bool) -> Member {
        Member {
            id: 1,
            name: "one".to_owned(),
            peer_urls: Vec::new(),
            client_urls: vec![client_url.to_owned()],
            is_learner,
        }
    }

    #[test]
    fn only_members_that_answer_others_are_asked() {
        let members = [
            member("https://192.0.2.2:2379", false),
            member("https://192.0.2.1:2379", false),
            member("https://192.0.2.3:2379", true),
            member("https://localhost:2379", false),
            member("https://127.0.0.1:2379", false),
            member("http://192.0.2.4:2379", false),
        ];
        let configured = ["https://192.0.2.1:2379".to_owned()];
        let found = reachable(&members, &configured);
        assert_eq!(found, ["https://192.0.2.1:2379", "https://192.0.2.2:2379"]);
    }

    #[test]
    fn what_was_heard_of_another_cluster_is_not_asked() {
        let dir = tempfile::tempdir().unwrap();
        let state_file = dir.path().join("state.env");
        let [one, two] = ["https://192.0.2.1:2379", "https://192.0.2.2:2379"].map(str::to_owned);
        assert!(heard_of(&state_file, std::slice::from_ref(&one)).is_empty());
        let heard = Heard { configured: vec![one.clone()], members: vec![two.clone()] };
        write(&state_file, &heard).unwrap();
        assert_eq!(heard_of(&state_file, std::slice::from_ref(&one)), [two.as_str()]);
        assert!(heard_of(&state_file, &[two]).is_empty());
        assert!(forget(&state_file).unwrap());
        assert!(heard_of(&state_file, &[one]).is_empty());
    }
}
