//! Whether what a command does to others is wanted.

use std::io::{BufRead as _, Write as _};

use anyhow::{Context as _, Result, anyhow};

use super::{
    containers::{Ends, indented},
    docker,
};
use crate::{
    exit::{Exit, WithExit as _},
    output::print,
};

/// Whether a command may end containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consent {
    /// Whoever runs it is asked.
    #[default]
    Ask,
    /// They have said so.
    Given,
    /// They only want to know what it would do.
    DryRun,
}

impl Consent {
    /// As the flags `--yes` and `--dry-run` say.
    pub const fn of(yes: bool, dry_run: bool) -> Self {
        match (dry_run, yes) {
            (true, _) => Self::DryRun,
            (_, true) => Self::Given,
            _ => Self::Ask,
        }
    }
}

/// Says what the command does, asks where that is due, and returns whether to go on. `steps` is the whole of it,
/// in order; who leaves is asked also where no container ends, after the sentence `always`.
pub(super) async fn ask(consent: Consent, steps: &[String], always: Option<&str>) -> Result<bool> {
    let ends = docker::restart_ends(always.is_some()).await;
    let must_ask = always.is_some() || !matches!(ends, Ends::Nothing);
    decide(consent, steps, &ends.to_text(), must_ask.then(|| always.unwrap_or_default()))
}

/// The same where no container ends: of what concerns others it is always asked.
pub(super) fn ask_about(consent: Consent, steps: &[String], sentence: &str) -> Result<bool> {
    decide(consent, steps, "", Some(sentence))
}

fn decide(consent: Consent, steps: &[String], text: &str, question: Option<&str>) -> Result<bool> {
    let sentence = match consent {
        Consent::DryRun => {
            let steps = indented(steps);
            print(format_args!("This would be done:\n{steps}{text}Nothing was changed.\n"))?;
            return Ok(false);
        }
        Consent::Given => return print(text).map(|()| true),
        Consent::Ask => match question {
            None => return Ok(true),
            Some(sentence) => sentence,
        },
    };
    print(format_args!("{sentence}{text}Go on? [y/N] "))?;
    std::io::stdout().flush().context("cannot ask")?;
    let mut answer = String::new();
    let length =
        std::io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    if length == 0 {
        print("\n")?;
        return Err(anyhow!(
            "nobody answers, and nothing was changed: --yes goes on without asking"
        ))
        .exit(Exit::Conflict);
    }
    let agreed = matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes");
    if !agreed {
        print("Nothing was changed.\n")?;
    }
    Ok(agreed)
}
