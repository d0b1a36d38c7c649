//! The containers that run on this host: Docker ends them when it is started on another bridge.

use std::{
    fmt::{self, Write as _},
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use tokio::process::Command;

use crate::files::{self, Readers};

/// Those that ran before Docker was stopped, should whoever stopped it not live to start them again.
const REMEMBERED: &str = "/run/overlay/containers";

/// A container that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Running {
    id: String,
    name: String,
    after: After,
}

/// What becomes of a container when Docker is started anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// Docker starts it again.
    ByPolicy,
    /// Docker does not, so we do.
    ByUs,
    /// It removes itself when it ends.
    Gone,
}

impl fmt::Display for Running {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.after {
            After::ByPolicy => "started again by its restart policy",
            After::ByUs => "has no restart policy, and is started again by this command",
            After::Gone => "was started with --rm: it is GONE once it has ended",
        };
        write!(out, "{} ({what})", self.name)
    }
}

/// What starting Docker on another bridge ends.
#[derive(Debug)]
pub(super) enum Ends {
    /// Docker is not started anew, or no container runs.
    Nothing,
    /// These containers.
    Containers(Vec<Running>),
    /// It cannot be told: why.
    Unknown(anyhow::Error),
}

impl Ends {
    /// For whoever is asked.
    pub(super) fn to_text(&self) -> String {
        match self {
            Self::Nothing => String::new(),
            Self::Containers(running) => {
                let lines = indented(running);
                format!(
                    "Docker is restarted on a bridge with another subnet, and what runs in it ends; what is started \
                     again has another address:\n{lines}"
                )
            }
            Self::Unknown(error) => format!(
                "Docker is restarted on a bridge with another subnet, and what runs in it ends. Which containers run \
                 cannot be told: {error:#}.\n"
            ),
        }
    }
}

/// A line for each.
pub(super) fn indented(lines: &[impl fmt::Display]) -> String {
    let mut text = String::new();
    for line in lines {
        // Writing to a string cannot fail.
        writeln!(text, "  {line}").ok();
    }
    text
}

async fn docker<S: AsRef<str>>(args: impl IntoIterator<Item = S>) -> Result<String> {
    let mut command = Command::new("docker");
    // Whatever the operator's own command talks to, this is about this host.
    command.env_remove("DOCKER_CONTEXT").args(["--host", "unix:///var/run/docker.sock"]);
    for arg in args {
        command.arg(arg.as_ref());
    }
    let output =
        command.stdin(std::process::Stdio::null()).output().await.context("cannot run `docker`")?;
    if !output.status.success() {
        bail!("docker: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Those that run now. Docker has to run.
pub(super) async fn running() -> Result<Vec<Running>> {
    const FORMAT: &str =
        "{{.Id}} {{.Name}} {{.HostConfig.AutoRemove}} {{.HostConfig.RestartPolicy.Name}}";
    const TRIES: u32 = 5;
    let mut tries = 1;
    loop {
        let ids = docker(["ps", "--quiet", "--no-trunc"]).await?;
        let ids: Vec<_> = ids.split_whitespace().collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let inspect = ["inspect", "--type", "container", "--format", FORMAT];
        match docker(inspect.into_iter().chain(ids)).await {
            // One that has ended and removed itself meanwhile fails the question about all.
            Err(_) if tries < TRIES => tries += 1,
            inspected => return Ok(parse(&inspected?)),
        }
    }
}

fn parse(inspected: &str) -> Vec<Running> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let (id, name) =
            (words.next()?.to_owned(), words.next()?.trim_start_matches('/').to_owned());
        let after = match (words.next()?, words.next()) {
            ("true", _) => After::Gone,
            (_, Some("always" | "unless-stopped")) => After::ByPolicy,
            _ => After::ByUs,
        };
        Some(Running { id, name, after })
    };
    inspected.lines().filter_map(line).collect()
}

/// Remembers those that have to be started again, beside those of a command that was interrupted.
pub(super) fn remember(running: &[Running]) -> Result<()> {
    let mut text = files::read(Path::new(REMEMBERED))?.unwrap_or_default();
    for Running { id, name, .. } in running.iter().filter(|found| found.after == After::ByUs) {
        if !text.contains(id.as_str()) {
            // Writing to a string cannot fail.
            writeln!(text, "{id} {name}").ok();
        }
    }
    if text.is_empty() {
        return Ok(());
    }
    files::write(Path::new(REMEMBERED), &text, Readers::Root).map(drop)
}

/// Whether Docker says that somebody has removed a container.
fn is_gone(error: &anyhow::Error) -> bool {
    error.to_string().contains("No such container")
}

/// Starts those again that were remembered, and returns their names. One that cannot be started is told of, and stays
/// remembered for the next time.
pub(super) async fn start_again() -> Result<Vec<String>> {
    let text = files::read(Path::new(REMEMBERED))?.unwrap_or_default();
    let mut left: Vec<_> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    let mut started = Vec::new();
    // One that uses another's network starts after that.
    for last in [false, true] {
        let mut failed = Vec::new();
        for (id, name) in left {
            match docker(["start", id]).await {
                Ok(_) => started.push(name.to_owned()),
                Err(error) if is_gone(&error) => {}
                Err(error) => {
                    if last {
                        tracing::warn!("container {name} does not start again: {error:#}");
                    }
                    failed.push((id, name));
                }
            }
        }
        left = failed;
    }
    if left.is_empty() {
        files::remove(Path::new(REMEMBERED))?;
    } else {
        let text: Vec<_> = left.iter().map(|(id, name)| [*id, " ", *name, "\n"].concat()).collect();
        files::write(Path::new(REMEMBERED), &text.concat(), Readers::Root)?;
    }
    Ok(started)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_becomes_of_a_container_is_read_from_what_docker_says() {
        let found = parse(
            "aa /web false always\nbb /job false no\ncc /once true no\ndd /old false \nee /retry false on-failure\n",
        );
        let after: Vec<_> = found.iter().map(|found| (found.name.as_str(), found.after)).collect();
        assert_eq!(
            after,
            [
                ("web", After::ByPolicy),
                ("job", After::ByUs),
                ("once", After::Gone),
                ("old", After::ByUs),
                ("retry", After::ByUs),
            ]
        );
    }
}
