//! Plots, as SVG that stands in a page.

use super::{Row, Section};
use crate::units;

/// The contestants' colours, in order; chosen to differ for the colour-blind too.
const COLOURS: [&str; 8] = ["#7f7f7f", "#d1495b", "#edae49", "#00798c", "#5b8e7d", "#8e6c8a", "#30638e", "#a65628"];

pub(super) fn colour(number: usize) -> &'static str {
    COLOURS[number % COLOURS.len()]
}

/// Makes text fit for XML.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A logarithmic axis from `low` to `high`, `length` long.
struct Axis {
    low: f64,
    high: f64,
    length: f64,
}

impl Axis {
    /// An axis on which all values have a place; from power of ten to power of ten.
    fn of(values: impl Iterator<Item = f64>, length: f64) -> Option<Self> {
        let positive = values.filter(|value| *value > 0.0 && value.is_finite());
        let (low, high) = positive.fold((f64::MAX, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
        if low > high {
            return None;
        }
        let (low, high) = (10_f64.powf(low.log10().floor()), 10_f64.powf(high.log10().ceil()));
        Some(Axis { low, high: if high > low { high } else { low * 10.0 }, length })
    }

    fn at(&self, value: f64) -> f64 {
        let value = value.clamp(self.low, self.high);
        (value / self.low).log10() / (self.high / self.low).log10() * self.length
    }

    fn decades(&self) -> impl Iterator<Item = f64> {
        let (low, high) = (self.low.log10().round() as i32, self.high.log10().round() as i32);
        (low..=high).map(|power| 10_f64.powi(power))
    }
}

/// Plots the ratios of all rows: a line for each row, a dot for each contestant, a whisker from the least to the most.
pub(super) fn dots(section: &Section) -> Option<String> {
    const LEFT: f64 = 330.0;
    const WIDTH: f64 = 560.0;
    const LINE: f64 = 20.0;
    let base = section.contestants.iter().position(|name| Some(name) == section.base.as_ref())?;
    let rows: Vec<(&Row, f64)> = section
        .rows
        .iter()
        .filter_map(|row| Some((row, row.cells[base].as_ref()?.median)))
        .filter(|(_, median)| *median > 0.0)
        .collect();
    let ratios = rows.iter().flat_map(|(row, base)| row.cells.iter().flatten().map(move |cell| cell.median / base));
    let axis = Axis::of(ratios, WIDTH)?;
    let bottom = LINE * rows.len() as f64 + 8.0;
    let mut svg = format!("<svg viewBox=\"0 0 {} {}\" role=\"img\">", LEFT + WIDTH + 30.0, bottom + 24.0);
    for decade in axis.decades() {
        let x = LEFT + axis.at(decade);
        let kind = if (decade - 1.0).abs() < 1e-9 { "one" } else { "grid" };
        svg += &format!("<line class=\"{kind}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"{bottom}\"/>");
        svg += &format!("<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>", bottom + 16.0, plain(decade));
    }
    for (number, (row, base)) in rows.iter().enumerate() {
        let y = LINE * number as f64 + LINE / 2.0 + 2.0;
        let title = escape(row.title.trim());
        svg += &format!("<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{title}</text>", LEFT - 12.0, y + 4.0);
        for (column, cell) in row.cells.iter().enumerate() {
            let Some(cell) = cell else { continue };
            let x = |value: f64| LEFT + axis.at(value / base);
            let tip = format!("{}: {} ({})", section.contestants[column], row.unit.show(cell.median), {
                units::ratio(cell.median / base)
            });
            svg += &format!(
                "<g stroke=\"{0}\" fill=\"{0}\"><title>{1}</title><line x1=\"{2:.1}\" x2=\"{3:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <circle cx=\"{4:.1}\" cy=\"{y:.1}\" r=\"4.5\"/></g>",
                colour(column),
                escape(&tip),
                x(cell.min),
                x(cell.max),
                x(cell.median),
            );
        }
    }
    Some(svg + "</svg>")
}

/// A series of rows that differ in one number: `depth.32.walk.cold`, `parallel.walkers.8`.
pub(super) struct Series<'a> {
    pub(super) title: String,
    points: Vec<(f64, &'a Row)>,
}

/// Finds the rows that belong together in a group of many layers or clients.
pub(super) fn series(section: &Section) -> Vec<Series<'_>> {
    let mut all: Vec<(String, Series<'_>)> = Vec::new();
    for row in &section.rows {
        let words: Vec<&str> = row.key.split('.').collect();
        let Some((at, number)) = words.iter().enumerate().find_map(|(at, word)| Some((at, word.parse::<f64>().ok()?)))
        else {
            continue;
        };
        let rest = [&words[..at], &words[at + 1..]].concat().join(".");
        let title = row.title.split_once(": ").map_or(&row.title[..], |(_, title)| title).to_string();
        match all.iter_mut().find(|(key, _)| *key == rest) {
            Some((_, series)) => series.points.push((number, row)),
            None => all.push((rest, Series { title, points: vec![(number, row)] })),
        }
    }
    all.into_iter().map(|(_, series)| series).filter(|series| series.points.len() > 1).collect()
}

/// Plots a series: a line for each contestant, both axes logarithmic.
pub(super) fn lines(section: &Section, series: &Series<'_>) -> Option<String> {
    const LEFT: f64 = 70.0;
    const WIDTH: f64 = 300.0;
    const HEIGHT: f64 = 200.0;
    let values = series.points.iter().flat_map(|(_, row)| row.cells.iter().flatten().map(|cell| cell.median));
    let vertical = Axis::of(values, HEIGHT)?;
    let (first, last) = (series.points.first()?.0, series.points.last()?.0);
    let horizontal = Axis { low: first, high: last, length: WIDTH };
    let y = |value: f64| HEIGHT + 10.0 - vertical.at(value);
    let x = |value: f64| LEFT + horizontal.at(value);
    let unit = series.points[0].1.unit;
    let mut svg = format!("<svg viewBox=\"0 0 {} {}\" role=\"img\">", LEFT + WIDTH + 20.0, HEIGHT + 40.0);
    for decade in vertical.decades() {
        let y = y(decade);
        svg += &format!("<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>", LEFT + WIDTH);
        let text = escape(&unit.show(decade).replace(".00", "").replace(".0", ""));
        svg += &format!("<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>", LEFT - 6.0, y + 4.0);
    }
    for (number, _) in &series.points {
        let bottom = HEIGHT + 28.0;
        svg += &format!("<text x=\"{:.1}\" y=\"{bottom}\" text-anchor=\"middle\">{number}</text>", x(*number));
    }
    for (column, name) in section.contestants.iter().enumerate() {
        let cells = series.points.iter().filter_map(|(number, row)| Some((*number, row.cells[column].as_ref()?)));
        let points: Vec<(f64, f64)> = cells.map(|(number, cell)| (x(number), y(cell.median))).collect();
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let dots: String =
            points.iter().map(|(x, y)| format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>")).collect();
        svg += &format!(
            "<g stroke=\"{0}\" fill=\"{0}\"><title>{1}</title><polyline points=\"{2}\" fill=\"none\"/>{dots}</g>",
            colour(column),
            escape(name),
            path.join(" "),
        );
    }
    Some(svg + "</svg>")
}

/// Writes a power of ten.
fn plain(value: f64) -> String {
    if value >= 1.0 { format!("{value:.0}x") } else { format!("{value}x") }
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn an_axis_goes_from_decade_to_decade() {
        let axis = Axis::of([0.3, 20.0].into_iter(), 100.0).unwrap();
        assert_eq!((axis.low, axis.high.round()), (0.1, 100.0));
        assert!((axis.at(0.1), axis.at(axis.high)) == (0.0, 100.0));
        assert_eq!(axis.decades().count(), 4);
        assert!(Axis::of([0.0].into_iter(), 1.0).is_none());
        assert!(Axis::of([1.0].into_iter(), 1.0).unwrap().high > 1.0);
    }

    #[test]
    fn rows_of_many_layers_are_one_series() {
        let report = samples::report();
        assert!(series(&report.sections[0]).is_empty());
        let depth = series(&report.sections[1]);
        assert_eq!((depth.len(), &depth[0].title[..], depth[0].points.len()), (1, "walk", 3));
        assert!(lines(&report.sections[1], &depth[0]).unwrap().contains("polyline"));
    }
}
