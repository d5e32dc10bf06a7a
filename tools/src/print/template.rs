//! The part of Go's templates that people type behind `--format`: fields, `json`, `upper`, `lower`, `len`.

use anyhow::{Result, bail};
use serde_json::Value;

use super::table::visible;

/// A parsed template: `{{.ID}}: {{json .Names}}`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Field { function: Function, path: Vec<String> },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Function {
    Print,
    Json,
    Upper,
    Lower,
    Len,
}

impl Template {
    /// Reads a template; `\t` and `\n` stand for a tab and a line's end.
    ///
    /// # Errors
    /// An action that is not closed, or not one of ours.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let Some((action, after)) = after.split_once("}}") else {
                bail!("--format '{text}': '{{{{' without '}}}}'");
            };
            push_text(&mut parts, before);
            parts.push(Part::action(action, text)?);
            rest = after;
        }
        push_text(&mut parts, rest);
        Ok(Template(parts))
    }

    /// Fills the template with the fields of `value`.
    ///
    /// # Errors
    /// A field that `value` does not have; the message lists those that it has.
    pub(crate) fn render(&self, value: &Value) -> Result<String> {
        self.0.iter().map(|part| part.render(value)).collect()
    }

    /// Returns the headers of a table whose cells this template fills: the fields' names in capitals.
    pub(crate) fn headers(&self) -> String {
        self.0
            .iter()
            .map(|part| match part {
                Part::Text(text) => text.clone(),
                Part::Field { path, .. } => header(path.last().map_or("", String::as_str)),
            })
            .collect()
    }
}

impl Part {
    fn action(action: &str, whole: &str) -> Result<Part> {
        let words: Vec<&str> = action.split_whitespace().collect();
        let (function, operand) = match words[..] {
            [operand] => (Function::Print, operand),
            ["json", operand] => (Function::Json, operand),
            ["upper", operand] => (Function::Upper, operand),
            ["lower", operand] => (Function::Lower, operand),
            ["len", operand] => (Function::Len, operand),
            _ => bail!("--format '{whole}': '{action}' is not understood; write {{{{.Field}}}} or {{{{json .Field}}}}"),
        };
        let Some(fields) = operand.strip_prefix('.') else {
            bail!("--format '{whole}': '{operand}' is not a field; write {{{{.{operand}}}}}");
        };
        let path = fields.split('.').filter(|name| !name.is_empty()).map(str::to_string).collect();
        Ok(Part::Field { function, path })
    }

    fn render(&self, value: &Value) -> Result<String> {
        let (function, path) = match self {
            Part::Text(text) => return Ok(text.clone()),
            Part::Field { function, path } => (function, path),
        };
        let value = find(value, path)?;
        Ok(match function {
            Function::Print => plain(value),
            Function::Json => value.to_string(),
            Function::Upper => plain(value).to_uppercase(),
            Function::Lower => plain(value).to_lowercase(),
            Function::Len => match value {
                Value::Array(list) => list.len().to_string(),
                Value::Object(map) => map.len().to_string(),
                Value::Null => "0".to_string(),
                other => plain(other).chars().count().to_string(),
            },
        })
    }
}

fn push_text(parts: &mut Vec<Part>, text: &str) {
    if !text.is_empty() {
        parts.push(Part::Text(text.replace("\\t", "\t").replace("\\n", "\n")));
    }
}

fn find<'v>(mut value: &'v Value, path: &[String]) -> Result<&'v Value> {
    for name in path {
        value = match value {
            Value::Object(map) if map.contains_key(name) => &map[name],
            Value::Object(map) => {
                let known: Vec<String> = map.keys().map(|key| format!(".{key}")).collect();
                bail!("--format: there is no field .{name}; there are {}", known.join(" "));
            }
            _ => bail!("--format: there is no field .{name}: .{} has no fields", path.join(".")),
        };
    }
    Ok(value)
}

/// Writes a value as Go's templates do: texts bare, lists in brackets, nothing for what is absent.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => visible(text),
        Value::Array(list) => format!("[{}]", list.iter().map(plain).collect::<Vec<_>>().join(" ")),
        other => other.to_string(),
    }
}

/// Splits a field's name into words: `CreatedSince` is the column `CREATED SINCE`.
fn header(field: &str) -> String {
    let mut words = String::new();
    let mut last_was_lower = false;
    for c in field.chars() {
        if c.is_uppercase() && last_was_lower {
            words.push(' ');
        }
        last_was_lower = c.is_lowercase();
        words.extend(c.to_uppercase());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(template: &str) -> Result<String> {
        let value = json!({"ID": "12ab", "Names": ["a", "b"], "Config": {"User": "me", "Cmd": null}, "Size": 7});
        Template::parse(template)?.render(&value)
    }

    #[test]
    fn templates_are_filled_as_go_does() {
        for (template, text) in [
            ("{{.ID}}", "12ab"),
            ("{{ .ID }}\\t{{.Size}}", "12ab\t7"),
            ("id={{upper .ID}}", "id=12AB"),
            ("{{.Names}}", "[a b]"),
            ("{{json .Names}}", "[\"a\",\"b\"]"),
            ("{{len .Names}}", "2"),
            ("{{.Config.User}}", "me"),
            ("{{.Config.Cmd}}", ""),
            ("{{json .Config}}", "{\"Cmd\":null,\"User\":\"me\"}"),
            ("plain", "plain"),
        ] {
            assert_eq!(render(template).unwrap(), text, "{template}");
        }
    }

    #[test]
    fn mistakes_are_told_with_what_is_right() {
        for (template, words) in [
            ("{{.Id}}", "there are .Config .ID .Names .Size"),
            ("{{.ID", "without"),
            ("{{ID}}", "write {{.ID}}"),
            ("{{range .Names}}", "not understood"),
            ("{{.ID.X}}", "no fields"),
        ] {
            let message = render(template).unwrap_err().to_string();
            assert!(message.contains(words), "{template}: {message}");
        }
    }

    #[test]
    fn headers_are_the_fields_in_capitals() {
        assert_eq!(
            Template::parse("{{.ID}}\\t{{.CreatedSince}}\\t{{.MountPoint}}").unwrap().headers(),
            "ID\tCREATED SINCE\tMOUNT POINT"
        );
    }
}
