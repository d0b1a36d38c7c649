//! Demo.
use anyhow::Result;
/// O.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {}
/// R.
pub fn run(_o: &Options) -> Result<()> {
    Ok(())
}
