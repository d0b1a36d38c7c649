//! What counters have counted since they were last looked at.

use std::collections::BTreeMap;

use overlay_lab::CounterReading;

/// The counters as they were.
#[derive(Debug, Default)]
pub(super) struct Moved(BTreeMap<(String, String), (u64, u64)>);

impl Moved {
    /// A line for each counter that has moved.
    pub(super) fn since(&mut self, now: Vec<CounterReading>) -> Vec<String> {
        let mut lines = Vec::new();
        for CounterReading { hook, reason, packets, bytes } in now {
            let key = (hook, reason);
            let before = self.0.insert(key.clone(), (packets, bytes)).unwrap_or_default();
            // New maps begin at zero.
            let before = if packets < before.0 { (0, 0) } else { before };
            if packets > before.0 {
                let (hook, reason) = key;
                lines.push(format!(
                    "{hook:<15} {reason:<20} {:>+10} packets {:>+14} bytes {packets:>12} in all",
                    i128::from(packets - before.0),
                    i128::from(bytes.saturating_sub(before.1)),
                ));
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_moved_is_a_line_also_when_counting_begins_anew() {
        let counter = |reason: &str, packets| CounterReading {
            hook: "from_uplink".to_owned(),
            reason: reason.to_owned(),
            packets,
            bytes: packets * 100,
        };
        let mut moved = Moved::default();
        let words = |lines: Vec<String>| {
            let words = lines.iter().map(|line| line.split_whitespace().collect::<Vec<_>>());
            words.map(|words| words.join(" ")).collect::<Vec<_>>()
        };
        let first = moved.since(vec![counter("delivered", 3), counter("spoofed", 0)]);
        assert_eq!(words(first), ["from_uplink delivered +3 packets +300 bytes 3 in all"]);
        assert!(moved.since(vec![counter("delivered", 3), counter("spoofed", 0)]).is_empty());
        let last = moved.since(vec![counter("delivered", 2), counter("spoofed", 1)]);
        assert_eq!(
            words(last),
            [
                "from_uplink delivered +2 packets +200 bytes 2 in all",
                "from_uplink spoofed +1 packets +100 bytes 1 in all"
            ]
        );
    }
}
