//! How tests ended, as test programs say it.

/// How many tests ended how.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// The counts of one test program, from the line it ends with.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let line = without_colours(line);
        let (_, counts) = line.split_once("test result: ")?.1.split_once(". ")?;
        let mut found = Self::default();
        for part in counts.split(';') {
            let mut words = part.split_whitespace();
            let (Some(number), Some(what)) = (words.next(), words.next()) else {
                continue;
            };
            match what {
                "passed" => found.passed = number.parse().ok()?,
                "failed" => found.failed = number.parse().ok()?,
                "ignored" => found.skipped = number.parse().ok()?,
                _ => {}
            }
        }
        Some(found)
    }

    pub(crate) fn closing_line(self) -> String {
        let skipped =
            if self.skipped > 0 { format!(", {} skipped", self.skipped) } else { String::new() };
        format!("{} passed, {} failed{skipped}", self.passed, self.failed)
    }
}

pub(crate) fn without_colours(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, escape)) = rest.split_once("\x1b[") {
        plain.push_str(before);
        rest = escape.split_once('m').map_or("", |(_, after)| after);
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_that_a_test_program_ends_with_is_counted() {
        let line = "test result: FAILED. 5 passed; 2 failed; 1 ignored; 0 measured; 3 filtered \
                    out; finished in 0.00s";
        let counts = Counts { passed: 5, failed: 2, skipped: 1 };
        assert_eq!(Counts::parse(line), Some(counts));
        let coloured = line.replace("FAILED", "\x1b[31mFAILED\x1b[0m");
        assert_eq!(Counts::parse(&coloured), Some(counts));
        assert_eq!(Counts::parse("test counts::tests::zero ... ok"), None);
    }

    #[test]
    fn the_closing_line_counts_everything() {
        let counts = Counts { passed: 7, failed: 0, skipped: 0 };
        assert_eq!(counts.closing_line(), "7 passed, 0 failed");
        let counts = Counts { skipped: 2, ..counts };
        assert_eq!(counts.closing_line(), "7 passed, 0 failed, 2 skipped");
    }
}
