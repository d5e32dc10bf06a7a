//! Tables in columns, as wide as what stands in them.

use std::io::{self, Write};

/// Between two columns.
const GAP: &str = "   ";

/// Rows of text under headers.
#[derive(Debug, Default)]
pub(crate) struct Table {
    headers: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Starts a table with one column for each header.
    pub(crate) fn new(headers: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Table { headers: headers.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// Adds a row: one cell for each column.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = impl AsRef<str>>) {
        self.rows.push(cells.into_iter().map(|cell| visible(cell.as_ref())).collect());
    }

    /// Writes the headers and the rows, without blanks at the ends of lines.
    pub(crate) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let widths: Vec<usize> = (0..self.headers.len())
            .map(|column| self.lines().filter_map(|line| line.get(column)).map(|c| width(c)).max().unwrap_or(0))
            .collect();
        for line in self.lines() {
            let mut text = String::new();
            for (cell, &widest) in line.iter().zip(&widths) {
                text.push_str(cell);
                text.extend(std::iter::repeat_n(' ', widest - width(cell)));
                text.push_str(GAP);
            }
            writeln!(out, "{}", text.trim_end())?;
        }
        Ok(())
    }

    fn lines(&self) -> impl Iterator<Item = &Vec<String>> {
        std::iter::once(&self.headers).chain(&self.rows)
    }
}

fn width(cell: &str) -> usize {
    cell.chars().count()
}

/// Replaces what would move the cursor or colour the terminal: texts in tables come from images, which anybody makes.
pub(crate) fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Cuts a text after `width` characters, the last of them `…`.
pub(crate) fn ellipsis(text: &str, width: usize) -> String {
    match text.char_indices().nth(width.saturating_sub(1)) {
        Some((at, c)) if at + c.len_utf8() < text.len() => format!("{}…", &text[..at]),
        _ => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(table: &Table) -> String {
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["NAME", "SIZE"]);
        table.row(["é-long-name", "1B"]);
        table.row(["b", "200kB"]);
        assert_eq!(text(&table), "NAME          SIZE\né-long-name   1B\nb             200kB\n");
    }

    #[test]
    fn an_empty_table_is_its_headers() {
        assert_eq!(text(&Table::new(["A", "B"])), "A   B\n");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let mut table = Table::new(["A"]);
        table.row(["x\x1b[31m\ny"]);
        assert_eq!(text(&table), "A\nx [31m y\n");
    }

    #[test]
    fn long_texts_are_cut_with_an_ellipsis() {
        assert_eq!(ellipsis("abcdef", 4), "abc…");
        assert_eq!(ellipsis("abcd", 4), "abcd");
        assert_eq!(ellipsis("", 4), "");
        assert_eq!(ellipsis("ääää", 3), "ää…");
    }
}
