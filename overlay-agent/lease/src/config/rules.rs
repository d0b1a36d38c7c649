use std::str::FromStr;

/// What others' rules mean for the overlay's packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RulesMode {
    /// Rules hold if there are any that may concern what containers send each other.
    #[default]
    Auto,
    /// Rules hold.
    Honour,
    /// The fast path carries everything from its first packet on, whatever the rules say.
    Bypass,
}

impl RulesMode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Honour, Self::Bypass];

    /// What it is called on the command line, in the network config and in `status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Honour => "honour",
            Self::Bypass => "bypass",
        }
    }
}

/// A text is the name of no mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are the modes auto, honour and bypass")]
pub struct UnknownMode;

impl FromStr for RulesMode {
    type Err = UnknownMode;

    /// In small letters or capital ones.
    fn from_str(text: &str) -> Result<Self, UnknownMode> {
        let named = |mode: &Self| mode.name().eq_ignore_ascii_case(text);
        Self::ALL.into_iter().find(named).ok_or(UnknownMode)
    }
}
