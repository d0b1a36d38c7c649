//! How verbs that answer write their answers.

use std::{
    fmt,
    io::{self, Write as _},
};

use anyhow::Context as _;
use clap::ValueEnum;
use serde::Serialize;

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// In words and tables
    Text,
    /// As JSON
    Json,
}

impl OutputFormat {
    /// Prints an answer one way or the other.
    pub(crate) fn print(
        self,
        json: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> anyhow::Result<()> {
        match self {
            Self::Text => print(text()),
            Self::Json => {
                let json = serde_json::to_string_pretty(json).context("cannot write JSON")?;
                print(format_args!("{json}\n"))
            }
        }
    }
}

/// Prints to stdout, where a reader that has gone is an error, not a panic.
pub(crate) fn print(text: impl fmt::Display) -> anyhow::Result<()> {
    write!(io::stdout(), "{text}").context("cannot print the answer")
}
