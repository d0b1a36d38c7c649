use clap::Args;

use crate::provision::Consent;

/// Whether a verb asks before it does what concerns others.
#[derive(Clone, Copy, Debug, Args)]
pub struct ConsentArgs {
    /// Do not ask
    #[arg(long)]
    pub yes: bool,

    /// Only say what would be done
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,
}

impl From<ConsentArgs> for Consent {
    fn from(args: ConsentArgs) -> Self {
        Self::of(args.yes, args.dry_run)
    }
}
