//! Writes the manual pages and the shells' completions, made of the command line's own definition, into
//! the folder that is given: `cargo xtask dist` packages them.

use std::{env, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;
use clap_complete::{Shell, generate_to};
use overlay_agent::cli::Cli;

const NAME: &str = "overlay-agent";

fn main() -> Result<()> {
    let folder = env::args_os().nth(1).map(PathBuf::from).context("usage: manual FOLDER")?;
    let [manual, completions] = ["man", "completions"].map(|name| folder.join(name));
    for folder in [&manual, &completions] {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    clap_mangen::generate_to(Cli::command(), &manual)
        .with_context(|| format!("cannot write manual pages to {}", manual.display()))?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut Cli::command(), NAME, &completions)
            .with_context(|| format!("cannot write completions to {}", completions.display()))?;
    }
    Ok(())
}
