//! How much of a listing to ask for at once.
//!
//! A lease is 200 bytes, and a page of thousands a short message. But nothing keeps anybody from writing
//! megabytes under our prefix, and a message that is too long is lost as a whole. So pages begin small, grow
//! while what they bring is small, and become smaller where one did not fit.

use etcd_client::Error;

/// Few enough for a page to fit even if one value in twenty were as large as etcd allows by default.
const FIRST: i64 = 1024;
/// About 2 MB of leases.
const LARGEST: i64 = 8192;
/// What a page may bring for the next one to be larger.
const SMALL: usize = 2 << 20;

/// How many keys to ask for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PageSize(i64);

impl Default for PageSize {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl PageSize {
    /// How many.
    pub(super) const fn keys(&self) -> i64 {
        self.0
    }

    /// The page did not fit a message. Returns whether a smaller one can be asked for.
    pub(super) const fn halve(&mut self) -> bool {
        let smaller = self.0 > 1;
        if smaller {
            self.0 /= 2;
        }
        smaller
    }

    /// The page was of so many bytes.
    pub(super) fn fits(&mut self, bytes: usize) {
        if bytes < SMALL {
            self.0 = (self.0 * 2).min(LARGEST);
        }
    }
}

/// Whether an answer did not fit a message. The number is gRPC's for out of range, with which the client library
/// refuses a length before it has read a byte; an answer of etcd's with that number says other words.
pub(super) fn is_too_large(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status)
        if status.code() as i32 == 11 && status.message().contains("message length too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_grow_while_they_are_small_and_shrink_until_they_fit() {
        let mut size = PageSize::default();
        let mut asked = vec![size.keys()];
        for _ in 0..4 {
            size.fits(200 * 1024);
            asked.push(size.keys());
        }
        assert_eq!(asked, [1024, 2048, 4096, 8192, 8192]);
        while size.halve() {}
        assert_eq!(size.keys(), 1);
        size.fits(1_400_000);
        size.fits(50 << 20);
        assert_eq!(size.keys(), 2, "a page that was large makes the next one no larger");
    }
}
