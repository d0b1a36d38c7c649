//! One plot: a row for each contender, a dot for each round, a bar to the median.

use anyhow::{Result, anyhow};
use overlay_lab::statistics::as_float;
use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::figure;
use crate::bench::analysis::{Column, Line};

const WIDTH: u32 = 560;
const ROW: u32 = 34;
const LABELS: u32 = 136;
const FIGURES: u32 = 64;
const AXIS: u32 = 24;
const FONT: &str = "system-ui, sans-serif";
const INK: RGBColor = RGBColor(0x1f, 0x29, 0x33);
const FAINT: RGBColor = RGBColor(0xd9, 0xde, 0xe4);
const MUTED: RGBColor = RGBColor(0x6b, 0x77, 0x85);

/// A contender's colour, the same on every plot.
pub(super) fn colour(contender: &str) -> RGBColor {
    match contender {
        "ours" => RGBColor(0x0b, 0x8a, 0x6f),
        "ours-65536" => RGBColor(0x05, 0x5a, 0x48),
        "ours-slow" => RGBColor(0x7c, 0xc4, 0xb2),
        "flannel" => RGBColor(0xe0, 0x7b, 0x2c),
        "swarm" => RGBColor(0xc2, 0x4d, 0x6c),
        "collect-metadata" => RGBColor(0x7a, 0x5c, 0xc4),
        "host" => RGBColor(0x4a, 0x55, 0x61),
        "redirect" => RGBColor(0x3b, 0x82, 0xc4),
        _ => RGBColor(0x9a, 0xa5, 0xb1),
    }
}

/// Draws it as SVG.
pub(super) fn svg(line: &Line) -> Result<String> {
    let rows = u32::try_from(line.columns.len())?;
    let size = (WIDTH, rows * ROW + AXIS + 4);
    let most = line
        .columns
        .iter()
        .flat_map(|column| column.rounds.iter().copied().chain([column.value.high]))
        .fold(f64::MIN_POSITIVE, f64::max)
        * 1.04;
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        draw(&area, line, most).map_err(|error| anyhow!("cannot plot: {error}"))?;
        area.present().map_err(|error| anyhow!("cannot plot: {error}"))?;
    }
    Ok(scalable(&text, size))
}

/// As wide as the page allows.
fn scalable(svg: &str, (width, height): (u32, u32)) -> String {
    let fixed = format!("width=\"{width}\" height=\"{height}\" ");
    svg.replacen(&fixed, "", 1)
}

type Area<'text> = DrawingArea<SVGBackend<'text>, plotters::coord::Shift>;
type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

fn draw(area: &Area<'_>, line: &Line, most: f64) -> Drawn {
    let rows = line.columns.len();
    let left = i32::try_from(LABELS)?;
    let row_height = i32::try_from(ROW)?;
    let bottom = i32::try_from(rows)? * row_height;
    let span = f64::from(WIDTH - LABELS - FIGURES);
    let x = |value: f64| left + pixels(value / most * span);

    let font = |size: i32, colour: &RGBColor| (FONT, size).into_font().color(colour);
    for tick in ticks(most) {
        let at = x(tick);
        area.draw(&PathElement::new([(at, 0), (at, bottom)], FAINT.stroke_width(1)))?;
        let style = font(13, &MUTED).pos(Pos::new(HPos::Center, VPos::Top));
        area.draw(&Text::new(figure_of_tick(tick), (at, bottom + 6), style))?;
    }
    for (row, column) in line.columns.iter().enumerate() {
        let top = i32::try_from(row)? * row_height;
        let middle = top + row_height / 2;
        draw_column(area, column, middle, &x)?;
        let label = font(15, &INK).pos(Pos::new(HPos::Right, VPos::Center));
        area.draw(&Text::new(column.contender, (left - 8, middle), label))?;
        let value = font(15, &INK).pos(Pos::new(HPos::Left, VPos::Center));
        let at = i32::try_from(WIDTH - FIGURES)? + 10;
        area.draw(&Text::new(figure(column.value.median), (at, middle), value))?;
    }
    area.draw(&PathElement::new([(left, 0), (left, bottom)], INK.stroke_width(1)))?;
    Ok(())
}

fn draw_column(area: &Area<'_>, column: &Column, middle: i32, x: &impl Fn(f64) -> i32) -> Drawn {
    let colour = colour(column.contender);
    let bar = [(x(0.0), middle - 9), (x(column.value.median), middle + 9)];
    area.draw(&Rectangle::new(bar, colour.mix(0.28).filled()))?;
    for (number, &value) in column.rounds.iter().enumerate() {
        // Spread over the bar's height, so that equal rounds can be told apart.
        let shift = i32::try_from(number % 5)? * 3 - 6;
        area.draw(&Circle::new((x(value), middle + shift), 2, colour.mix(0.75).filled()))?;
    }
    let [low, high] = [x(column.value.low), x(column.value.high)];
    area.draw(&PathElement::new([(low, middle), (high, middle)], INK.stroke_width(1)))?;
    let median = x(column.value.median);
    area.draw(&PathElement::new(
        [(median, middle - 11), (median, middle + 11)],
        colour.stroke_width(3),
    ))?;
    Ok(())
}

fn pixels(length: f64) -> i32 {
    #[expect(clippy::cast_possible_truncation, reason = "a place on a plot of some hundred pixels")]
    let pixels = length.round() as i32;
    pixels
}

/// Round numbers from zero, about five of them.
fn ticks(most: f64) -> Vec<f64> {
    let rough = most / 5.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|&step| step >= rough)
        .unwrap_or(rough);
    (0..=10_usize).map(|number| as_float(number) * step).take_while(|&tick| tick <= most).collect()
}

/// No more digits than it takes.
fn figure_of_tick(tick: f64) -> String {
    let text = format!("{tick:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(ticks(10.4), [0.0, 5.0, 10.0]);
        assert_eq!(ticks(9.0), [0.0, 2.0, 4.0, 6.0, 8.0]);
        for most in [0.013, 0.7, 3.3, 47.0, 126.0, 9999.0] {
            let count = ticks(most).len();
            assert!((3..=7).contains(&count), "{count} ticks to {most}");
        }
        assert_eq!(figure_of_tick(2.0), "2");
        assert_eq!(figure_of_tick(0.05), "0.05");
    }
}
