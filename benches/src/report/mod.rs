//! What came out: for people on a terminal, for programs as JSON, for colleagues as a page.

mod chart;
mod html;
mod table;

use std::fmt::Display;
use std::io::{self, Write};

use serde::Serialize;

use crate::machine::Machine;
use crate::stats::Summary;
use crate::units::Unit;

/// The results of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The version of plyfs.
    pub plyfs: &'static str,
    /// When it began, in seconds since 1970.
    pub began: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// `quick`, `standard` or `full`.
    pub length: &'static str,
    /// Where it ran.
    pub machine: Machine,
    /// The layers that were mounted.
    pub image: String,
    /// Who took part.
    pub contestants: Vec<ContestantNote>,
    /// The groups.
    pub sections: Vec<Section>,
    /// What was not measured, and why.
    pub left_out: Vec<LeftOut>,
    /// What a reader has to know besides.
    pub notes: Vec<String>,
}

/// A contestant's name and what it is.
#[derive(Clone, Debug, Serialize)]
pub struct ContestantNote {
    /// As it stands over its column.
    pub name: String,
    /// What it is.
    pub about: String,
}

/// A group's results.
#[derive(Clone, Debug, Serialize)]
pub struct Section {
    /// The group's name.
    pub group: &'static str,
    /// What it is about.
    pub title: &'static str,
    /// With whom the others are compared.
    pub base: Option<String>,
    /// The columns.
    pub contestants: Vec<String>,
    /// The rows.
    pub rows: Vec<Row>,
}

/// One measurement, of all contestants.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What programs call it.
    pub key: String,
    /// What people call it.
    pub title: String,
    /// What it counts.
    pub unit: Unit,
    /// In the order of the section's contestants; `None` for one that did not play.
    pub cells: Vec<Option<Cell>>,
}

/// One measurement of one contestant.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// All that was measured, in the order of the rounds; seconds or bytes.
    pub samples: Vec<f64>,
    /// The middle one.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
    /// The median divided by the base's.
    pub ratio: Option<f64>,
    /// Whether the range of samples meets the base's: then the difference may be chance.
    pub within_noise: bool,
}

/// Something that was not measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// What.
    pub what: String,
    /// Why.
    pub why: String,
}

impl LeftOut {
    pub(crate) fn new(what: impl Display, why: impl Display) -> Self {
        LeftOut { what: what.to_string(), why: why.to_string() }
    }
}

impl Row {
    /// Makes a row out of the samples of each contestant, in the order of columns.
    pub(crate) fn new(key: &str, title: &str, unit: Unit, samples: &[Vec<f64>], base: Option<usize>) -> Self {
        let summaries: Vec<Option<Summary>> = samples.iter().map(|samples| Summary::of(samples)).collect();
        let base = base.map(|base| (base, summaries[base]));
        let cell = |(number, samples): (usize, &Vec<f64>)| {
            let own = summaries[number]?;
            let other = base.filter(|(base, _)| *base != number).and_then(|(_, summary)| summary);
            let ratio = other.filter(|base| base.median > 0.0).map(|base| own.median / base.median);
            Some(Cell {
                samples: samples.clone(),
                median: own.median,
                min: own.min,
                max: own.max,
                ratio,
                within_noise: other.is_some_and(|base| own.meets(&base)),
            })
        };
        Row {
            key: key.to_string(),
            title: title.to_string(),
            unit,
            cells: samples.iter().enumerate().map(cell).collect(),
        }
    }

    /// Returns the largest spread of its cells: half the range over the median.
    pub(crate) fn noise(&self) -> f64 {
        let spreads = self.cells.iter().flatten().map(|cell| cell.summary().spread());
        spreads.fold(0.0, f64::max)
    }

    fn rounds(&self) -> usize {
        self.cells.iter().flatten().map(|cell| cell.samples.len()).max().unwrap_or(0)
    }
}

impl Cell {
    fn summary(&self) -> Summary {
        Summary { median: self.median, min: self.min, max: self.max }
    }
}

impl Report {
    /// Writes the tables. With `ranges`, a second line of each row tells the least and the most.
    ///
    /// # Errors
    /// The writer's.
    pub fn write_table(&self, out: &mut dyn Write, ranges: bool) -> io::Result<()> {
        table::write(self, out, ranges)
    }

    /// Writes one JSON document.
    ///
    /// # Errors
    /// The writer's.
    pub fn write_json(&self, out: &mut dyn Write) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut *out, self)?;
        writeln!(out)
    }

    /// Writes a page that needs nothing else: tables and plots.
    ///
    /// # Errors
    /// The writer's.
    pub fn write_html(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(html::page(self).as_bytes())
    }

    /// Says in one line where it ran.
    fn place(&self) -> String {
        let machine = &self.machine;
        format!(
            "Linux {}, {} processors, {} of memory, {}, as {}; load {:.1} at the beginning",
            machine.kernel,
            machine.processors,
            Unit::Bytes.show(machine.memory as f64),
            machine.filesystem,
            machine.user,
            machine.load,
        )
    }
}

#[cfg(test)]
pub(crate) mod samples {
    use super::*;
    use std::path::Path;

    /// A small report with everything in it.
    pub(crate) fn report() -> Report {
        let rows = vec![
            Row::new(
                "walk.cold",
                "tree walk, cold",
                Unit::Seconds,
                &[vec![0.30, 0.34], vec![0.40, 0.41], vec![]],
                Some(0),
            ),
            Row::new("disk", "  disk <it> takes", Unit::Bytes, &[vec![1e9], vec![0.0], vec![1e9]], Some(0)),
        ];
        let depth = |layers: u32, slow: f64| {
            let title = format!("{layers} layers: walk");
            Row::new(&format!("depth.{layers}.walk"), &title, Unit::Seconds, &[vec![slow], vec![0.1], vec![]], Some(0))
        };
        let section = |group, rows| Section {
            group,
            title: "some group",
            base: Some("overlayfs".into()),
            contestants: vec!["overlayfs".into(), "plyfs".into(), "plain".into()],
            rows,
        };
        Report {
            plyfs: "1.2.3",
            began: 1_700_000_000,
            seconds: 65.0,
            length: "quick",
            machine: Machine::look(Path::new("/")),
            image: "an image of <4> layers".into(),
            contestants: vec![ContestantNote { name: "plyfs".into(), about: "ours & fast".into() }],
            sections: vec![
                section("meta", rows),
                section("depth", vec![depth(1, 0.1), depth(32, 0.5), depth(128, 2.0)]),
            ],
            left_out: vec![LeftOut::new("other", "not found")],
            notes: vec!["a note".into()],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_medians_to_the_base() {
        let row = Row::new("k", "t", Unit::Seconds, &[vec![1.0, 2.0, 3.0], vec![8.0], vec![2.5], vec![]], Some(0));
        let cell = |number: usize| row.cells[number].as_ref().unwrap();
        assert_eq!((cell(0).ratio, cell(0).within_noise), (None, false));
        assert_eq!((cell(1).ratio, cell(1).within_noise), (Some(4.0), false));
        assert_eq!((cell(2).ratio, cell(2).within_noise), (Some(1.25), true));
        assert!(row.cells[3].is_none());
        assert_eq!(row.noise(), 0.5);
        let alone = Row::new("k", "t", Unit::Seconds, &[vec![], vec![1.0]], Some(0));
        assert_eq!(alone.cells[1].as_ref().unwrap().ratio, None);
    }

    #[test]
    fn json_has_every_sample() {
        let mut out = Vec::new();
        samples::report().write_json(&mut out).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(json["sections"][0]["rows"][0]["cells"][1]["samples"], serde_json::json!([0.40, 0.41]));
        assert_eq!(json["sections"][0]["rows"][0]["unit"], "seconds");
        assert_eq!(json["left_out"][0]["why"], "not found");
    }
}
