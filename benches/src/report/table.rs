//! The report as text: a block for each group, a column for each contestant.

use std::io::{self, Write};

use super::{Cell, Report, Row, Section};
use crate::units;

/// Width of a value and of a ratio.
const VALUE: usize = 9;
const RATIO: usize = 8;

pub(super) fn write(report: &Report, out: &mut dyn Write, ranges: bool) -> io::Result<()> {
    writeln!(
        out,
        "plyfs {} bench, {} run of {:.0} s, on {}",
        report.plyfs, report.length, report.seconds, report.image
    )?;
    writeln!(out, "{}", report.place())?;
    for section in &report.sections {
        writeln!(out)?;
        write_section(section, out, ranges)?;
    }
    writeln!(out)?;
    writeln!(out, "Medians. Less is better. x: times what {} takes; ~: within noise of it.", bases(report))?;
    writeln!(out, "noise: the widest half-range of a row's contestants, as a part of the median; n: samples.")?;
    if !report.left_out.is_empty() {
        writeln!(out, "\nLeft out:")?;
        for left in &report.left_out {
            writeln!(out, "  {}: {}", left.what, left.why)?;
        }
    }
    for note in &report.notes {
        writeln!(out, "\nNote: {note}")?;
    }
    Ok(())
}

/// Names those with whom others are compared.
fn bases(report: &Report) -> String {
    let mut bases: Vec<&str> = report.sections.iter().filter_map(|section| section.base.as_deref()).collect();
    bases.dedup();
    if bases.is_empty() { "nobody".into() } else { bases.join(" or ") }
}

fn write_section(section: &Section, out: &mut dyn Write, ranges: bool) -> io::Result<()> {
    let head = format!("{}: {}", section.group.to_uppercase(), section.title);
    let first = section.rows.iter().map(|row| row.title.len()).chain([head.len()]).max().unwrap_or(0);
    let widths: Vec<usize> = section.contestants.iter().map(|name| name.len().max(VALUE + RATIO)).collect();
    let mut line = format!("{head:first$}");
    for (name, &width) in section.contestants.iter().zip(&widths) {
        line.push_str(&format!("  {name:>width$}"));
    }
    writeln!(out, "{line}   noise   n")?;
    for row in &section.rows {
        let mut line = format!("{:first$}", row.title);
        for (cell, &width) in row.cells.iter().zip(&widths) {
            line.push_str(&format!("  {:>width$}", cell.as_ref().map_or("-".into(), |cell| show(row, cell))));
        }
        writeln!(out, "{line}  {:>6}  {:>2}", format!("±{:.0}%", row.noise() * 100.0), row.rounds())?;
        if ranges {
            write_ranges(row, first, &widths, out)?;
        }
    }
    Ok(())
}

fn show(row: &Row, cell: &Cell) -> String {
    let ratio = cell
        .ratio
        .map_or(String::new(), |ratio| format!("{}{}", if cell.within_noise { "~" } else { "" }, units::ratio(ratio)));
    format!("{:>VALUE$}{ratio:>RATIO$}", row.unit.show(cell.median))
}

fn write_ranges(row: &Row, first: usize, widths: &[usize], out: &mut dyn Write) -> io::Result<()> {
    let mut line = " ".repeat(first);
    for (cell, &width) in row.cells.iter().zip(widths) {
        let range = cell.as_ref().map_or(String::new(), |cell| {
            format!("{}..{}", row.unit.show(cell.min).replace(' ', ""), row.unit.show(cell.max).replace(' ', ""))
        });
        line.push_str(&format!("  {range:>width$}"));
    }
    writeln!(out, "{}", line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::super::samples;

    #[test]
    fn columns_are_aligned() {
        let mut out = Vec::new();
        samples::report().write_table(&mut out, true).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let head = lines.iter().position(|line| line.starts_with("META")).unwrap();
        assert_eq!(
            lines[head..head + 5],
            [
                "META: some group           overlayfs              plyfs              plain   noise   n",
                "tree walk, cold       320 ms             405 ms   1.27x                  -     ±6%   2",
                "                        300ms..340ms       400ms..410ms",
                "  disk <it> takes    954 MiB                0 B <0.001x    954 MiB  ~1.00x     ±0%   1",
                "                      954MiB..954MiB             0B..0B     954MiB..954MiB",
            ],
            "{text}"
        );
        assert!(text.contains("other: not found") && text.contains("Note: a note"));
    }
}
