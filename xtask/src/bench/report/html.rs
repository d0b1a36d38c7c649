//! The page that one looks at rather than reads: complete in itself, no script, nothing fetched.

use std::fmt::Write as _;

use anyhow::Result;
use overlay_lab::statistics::Estimate;

use super::{Report, plan_sentence, plot, table};
use crate::bench::{
    analysis::{Column, Line},
    contenders::OURS,
    goals::{Bound, Verdict},
    rounds::Wire,
    work::Quantity,
};

const STYLE: &str = include_str!("style.css");

/// The whole page.
pub(super) fn page(report: &Report) -> Result<String> {
    let mut page = String::new();
    write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Overlay benchmark, {date}</title>\n<style>\n{STYLE}</style>\n\
         <header><h1>What the overlay costs</h1>\n<p>{date} · {machine}</p>\n<p>{plan}</p>\n\
         <p>{noise}.</p></header>\n<main>\n",
        date = escape(&report.machine.date),
        machine = escape(&report.machine.describe()),
        plan = escape(&plan_sentence(&report.plan, &report.machine)),
        noise = escape(&report.noise_sentence()),
    )?;
    goals(&mut page, report)?;
    legend(&mut page, report)?;
    for line in report.lines.iter().filter(|line| line.is_primary()) {
        if line.wire == report.plan.wires[0] {
            plots(&mut page, report, line)?;
        }
    }
    everything(&mut page, report)?;
    page.push_str("</main>\n</html>\n");
    Ok(page)
}

/// What we want, and whether it is so.
fn goals(page: &mut String, report: &Report) -> Result<()> {
    let judged: Vec<&Line> = report
        .lines
        .iter()
        .filter(|line| line.goal.is_some() && line.column(OURS).is_some())
        .collect();
    if judged.is_empty() {
        return Ok(());
    }
    page.push_str(
        "<section>\n<h2>What we want</h2>\n<table class=\"goals\">\n<tr><th><th>wire\
         <th>ours / host<th>we want<th><th>ours / flannel<th>we want<th>\n",
    );
    for line in judged {
        let (Some(goal), Some(ours)) = (line.goal, line.column(OURS)) else {
            continue;
        };
        write!(page, "<tr><td>{}<td>{}", escape(line.work.title()), line.wire.title())?;
        for (bound, ratio, verdict) in [
            (goal.host, ours.to_host, line.verdicts[0]),
            (goal.flannel, ours.to_flannel, line.verdicts[1]),
        ] {
            goal_cells(page, bound, ratio, verdict)?;
        }
        page.push('\n');
    }
    page.push_str("</table>\n</section>\n");
    Ok(())
}

fn goal_cells(
    page: &mut String,
    bound: Bound,
    ratio: Option<Estimate>,
    verdict: Option<Verdict>,
) -> Result<()> {
    write!(page, "<td>{}<td class=\"want\">{bound}<td>", table::ratio(ratio))?;
    if let Some(verdict) = verdict {
        let class = match verdict {
            Verdict::Reached => "reached",
            Verdict::Missed => "missed",
            Verdict::Close | Verdict::TooNoisy => "unclear",
        };
        write!(page, "<span class=\"pill {class}\">{}</span>", verdict.words())?;
    }
    Ok(())
}

fn legend(page: &mut String, report: &Report) -> Result<()> {
    page.push_str("<section>\n<h2>Contenders</h2>\n<ul class=\"legend\">\n");
    for contender in &report.plan.contenders {
        let colour = plot::colour(contender.name);
        writeln!(
            page,
            "<li><i style=\"background:rgb({},{},{})\"></i><b>{}</b> {}",
            colour.0,
            colour.1,
            colour.2,
            contender.name,
            escape(contender.about)
        )?;
    }
    page.push_str(
        "</ul>\n<p class=\"note\">In the plots, a dot is a round, the coloured bar ends at the median, \
         and the thin line is the interval that holds the true median.</p>\n</section>\n",
    );
    Ok(())
}

/// A work's most important quantity, on every wire side by side.
fn plots(page: &mut String, report: &Report, first: &Line) -> Result<()> {
    let better = match first.quantity {
        Quantity::Throughput | Quantity::Rate => "more is better",
        _ => "less is better",
    };
    writeln!(
        page,
        "<section>\n<h2>{} <small>{}, {better}</small></h2>\n<div class=\"plots\">",
        escape(first.work.title()),
        escape(first.unit)
    )?;
    for line in &report.lines {
        if line.work == first.work && line.quantity == first.quantity {
            writeln!(
                page,
                "<figure><figcaption>{}</figcaption>\n{}</figure>",
                line.wire.title(),
                plot::svg(line)?
            )?;
        }
    }
    page.push_str("</div>\n</section>\n");
    Ok(())
}

/// Every figure, for those who want to read after all.
fn everything(page: &mut String, report: &Report) -> Result<()> {
    page.push_str("<section>\n<h2>Every figure</h2>\n");
    for &wire in &report.plan.wires {
        figures(page, report, wire)?;
    }
    page.push_str("<p class=\"note\">Below each figure: its ratio to the host, with the interval. All rounds are in <a href=\"report.json\">report.json</a>.</p>\n</section>\n");
    Ok(())
}

fn figures(page: &mut String, report: &Report, wire: Wire) -> Result<()> {
    write!(page, "<h3>{}</h3>\n<div class=\"wide\"><table>\n<tr><th><th>", wire.title())?;
    for contender in &report.plan.contenders {
        write!(page, "<th>{}", contender.name)?;
    }
    page.push('\n');
    for line in report.lines.iter().filter(|line| line.wire == wire) {
        let title = if line.is_primary() { line.work.title() } else { "" };
        write!(page, "<tr><td>{}<td class=\"want\">{}", escape(title), escape(line.unit))?;
        for contender in &report.plan.contenders {
            page.push_str("<td class=\"figure\">");
            if let Some(column) = line.column(contender.name) {
                cell(page, column)?;
            }
        }
        page.push('\n');
    }
    page.push_str("</table></div>\n");
    Ok(())
}

fn cell(page: &mut String, column: &Column) -> Result<()> {
    page.push_str(&super::figure(column.value.median));
    let ratio = table::ratio(column.to_host);
    if !ratio.is_empty() && column.contender != crate::bench::contenders::HOST {
        write!(page, "<small>{ratio}</small>")?;
    }
    Ok(())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
