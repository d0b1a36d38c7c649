use std::fmt;

/// A point in the history of a store. What comes later is greater; nothing else is to be made of it but by the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(i64);

impl Revision {
    /// Before everything: that of what is not there.
    pub const NONE: Self = Self(0);

    /// After everything.
    pub const LAST: Self = Self(i64::MAX);

    /// The one that a store calls by this number.
    pub const fn new(number: i64) -> Self {
        Self(number)
    }

    /// The number that its store has for it, for people to read.
    pub const fn number(self) -> i64 {
        self.0
    }

    /// The one after it.
    pub(super) const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}
