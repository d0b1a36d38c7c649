//! The table in the terminal.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use overlay_lab::statistics::Estimate;

use super::{Report, figure};
use crate::bench::{
    analysis::{Column, Line},
    contenders::OURS,
    goals::{Bound, Verdict, is_too_noisy},
    rounds::Wire,
};

/// Everything, wire by wire.
pub(in crate::bench) fn table(report: &Report) -> String {
    let mut text = String::new();
    for &wire in &report.plan.wires {
        text = [&text, "\n", wire.title(), "\n", &of_wire(report, wire), "\n"].concat();
    }
    format!(
        "{text}\nMedians of {} rounds; ratios are medians of ratios within a round, with the interval \
         that holds the true one.\n{}\n",
        report.plan.rounds,
        report.noise_sentence()
    )
}

fn of_wire(report: &Report, wire: Wire) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_content_arrangement(ContentArrangement::Disabled);
    let names: Vec<&str> = report.plan.contenders.iter().map(|contender| contender.name).collect();
    let mut header = vec![""];
    header.extend(&names);
    header.extend(["ours/host", "we want", "ours/flannel", "we want", ""]);
    let lines: Vec<&Line> = report.lines.iter().filter(|line| line.wire == wire).collect();
    let pairs: Vec<String> = lines.first().map_or_else(Vec::new, |line| {
        line.pairs.iter().map(|pair| pair.contenders.join("/")).collect()
    });
    header.extend(pairs.iter().map(String::as_str));
    table.set_header(header);
    for line in lines {
        let mut row = vec![format!("{}, {}", line.work.title(), line.unit)];
        row.extend(names.iter().map(|name| line.column(name).map_or_else(String::new, value)));
        row.extend(judged(line));
        row.extend(line.pairs.iter().map(|pair| ratio(pair.ratio)));
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1).take(names.len()) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

fn value(column: &Column) -> String {
    figure(column.value.median)
}

/// Ours against the host and flannel, what we want, and whether it is so.
fn judged(line: &Line) -> [String; 5] {
    let ours = line.column(OURS);
    let [to_host, to_flannel] =
        [ours.and_then(|ours| ours.to_host), ours.and_then(|ours| ours.to_flannel)].map(ratio);
    let want = |bound: Option<Bound>| bound.map_or_else(String::new, |bound| bound.to_string());
    [
        to_host,
        want(line.goal.map(|goal| goal.host)),
        to_flannel,
        want(line.goal.map(|goal| goal.flannel)),
        verdict_words(line.verdicts),
    ]
}

/// A ratio with its interval, or why there is none.
pub(super) fn ratio(estimate: Option<Estimate>) -> String {
    match estimate {
        None => String::new(),
        Some(estimate) if !estimate.median.is_finite() || estimate.median == 0.0 => String::new(),
        Some(estimate) if is_too_noisy(&estimate) => "too noisy".to_owned(),
        Some(Estimate { median, low, high, .. }) => {
            format!("{median:.3} ({low:.3}–{high:.3})")
        }
    }
}

/// One word if both agree.
fn verdict_words(verdicts: [Option<Verdict>; 2]) -> String {
    match verdicts {
        [Some(host), Some(flannel)] if host == flannel => host.words().to_owned(),
        [Some(host), Some(flannel)] => {
            format!("host: {}; flannel: {}", host.words(), flannel.words())
        }
        [Some(host), None] => format!("host: {}", host.words()),
        [None, Some(flannel)] => format!("flannel: {}", flannel.words()),
        [None, None] => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_a_figure_only_if_it_is_known() {
        let estimate =
            |low, high| Some(Estimate { median: 1.0, low, high, confidence: 0.97, count: 10 });
        assert_eq!(ratio(estimate(0.98, 1.02)), "1.000 (0.980–1.020)");
        assert_eq!(ratio(estimate(0.5, 1.5)), "too noisy");
        assert_eq!(ratio(None), "");
    }

    #[test]
    fn verdicts_that_agree_are_one_word() {
        assert_eq!(verdict_words([Some(Verdict::Reached); 2]), "reached");
        assert_eq!(
            verdict_words([Some(Verdict::Missed), Some(Verdict::Reached)]),
            "host: missed; flannel: reached"
        );
        assert_eq!(verdict_words([None; 2]), "");
    }
}
