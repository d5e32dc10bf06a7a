//! What the commands print: one list of rows, as a table, as JSON, or through a template.

use std::io::Write;
use std::str::FromStr;

use anyhow::Result;
use serde_json::{Map, Value};

pub(crate) mod table;
mod template;
pub(crate) mod units;

use table::Table;
use template::Template;

/// The argument of `--format`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Format {
    /// The columns that the command shows by itself.
    #[default]
    Table,
    /// One JSON document: a list of objects.
    Json,
    /// One line for each row.
    Lines(Template),
    /// `table TEMPLATE`: the template's cells (separated by tabs) under headers.
    Columns(Template),
}

impl FromStr for Format {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "table" => Ok(Format::Table),
            "json" => Ok(Format::Json),
            _ => match text.strip_prefix("table ") {
                Some(columns) => Ok(Format::Columns(Template::parse(columns)?)),
                None => Ok(Format::Lines(Template::parse(text)?)),
            },
        }
    }
}

/// The fields of one row. Their names are those of docker's templates where docker has them.
pub(crate) type Row = Map<String, Value>;

/// A column of a table: its header and the field that it shows.
pub(crate) type Column = (&'static str, &'static str);

/// Writes `rows` as `format` says; a table shows `columns`.
pub(crate) fn rows(out: &mut dyn Write, format: &Format, columns: &[Column], rows: Vec<Row>) -> Result<()> {
    match format {
        Format::Table => {
            let mut table = Table::new(columns.iter().map(|(header, _)| *header));
            for row in &rows {
                table.row(columns.iter().map(|(_, field)| cell(row.get(*field))));
            }
            table.write(out)?;
        }
        Format::Json => json(out, &Value::Array(rows.into_iter().map(Value::Object).collect()))?,
        Format::Lines(template) => {
            for row in rows {
                writeln!(out, "{}", template.render(&Value::Object(row))?)?;
            }
        }
        Format::Columns(template) => {
            let mut table = Table::new(template.headers().split('\t'));
            for row in rows {
                table.row(template.render(&Value::Object(row))?.split('\t'));
            }
            table.write(out)?;
        }
    }
    Ok(())
}

/// Writes a JSON document over several lines.
pub(crate) fn json(out: &mut dyn Write, value: &Value) -> Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)?;
    Ok(())
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// Makes a [`Row`] out of `name: value` pairs.
macro_rules! row {
    ($($field:ident: $value:expr),* $(,)?) => {{
        let mut row = $crate::print::Row::new();
        $(row.insert(stringify!($field).to_string(), serde_json::json!($value));)*
        row
    }};
}
pub(crate) use row;

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(format: &str) -> String {
        let list = vec![row! { ID: "1", Name: "one", Bytes: 5 }, row! { ID: "2", Name: "two", Bytes: 6 }];
        let mut out = Vec::new();
        rows(&mut out, &format.parse().unwrap(), &[("ID", "ID"), ("NAME", "Name")], list).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn one_list_prints_in_every_format() {
        assert_eq!(printed("table"), "ID   NAME\n1    one\n2    two\n");
        assert_eq!(printed("{{.Name}} {{.Bytes}}"), "one 5\ntwo 6\n");
        assert_eq!(printed("table {{.Name}}\\t{{.Bytes}}"), "NAME   BYTES\none    5\ntwo    6\n");
        let json: Value = serde_json::from_str(&printed("json")).unwrap();
        assert_eq!(json[1]["Name"], "two");
        assert_eq!(json[0]["Bytes"], 5);
    }
}
