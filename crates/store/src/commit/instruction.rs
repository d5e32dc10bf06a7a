//! The Dockerfile instructions that change an image's config (Dockerfile reference), as `docker commit --change` takes them.

use serde_json::{Map, Value, json};

use crate::error::{Error, Result, shown};

type Settings = Map<String, Value>;

/// One instruction, read but not applied.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Instruction {
    verb: Verb,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Cmd,
    Entrypoint,
    Env,
    Expose,
    Label,
    Onbuild,
    Stopsignal,
    User,
    Volume,
    Workdir,
}

impl Instruction {
    /// Reads instructions; a text may hold several lines.
    pub(super) fn parse_all(texts: &[String]) -> Result<Vec<Self>> {
        let lines = texts.iter().flat_map(|text| text.lines()).map(str::trim).filter(|line| !line.is_empty());
        lines.map(Instruction::parse).collect()
    }

    fn parse(line: &str) -> Result<Self> {
        let (word, text) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let verb = match word.to_ascii_uppercase().as_str() {
            "CMD" => Verb::Cmd,
            "ENTRYPOINT" => Verb::Entrypoint,
            "ENV" => Verb::Env,
            "EXPOSE" => Verb::Expose,
            "LABEL" => Verb::Label,
            "ONBUILD" => Verb::Onbuild,
            "STOPSIGNAL" => Verb::Stopsignal,
            "USER" => Verb::User,
            "VOLUME" => Verb::Volume,
            "WORKDIR" => Verb::Workdir,
            _ => {
                let known = "CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME or WORKDIR";
                return Err(bad(line, format!("an instruction is one of {known}")));
            }
        };
        let text = text.trim().to_owned();
        let instruction = Instruction { verb, text };
        // Whatever is wrong is told before anything is done.
        instruction.apply(&mut Settings::new(), false)?;
        Ok(instruction)
    }

    fn apply(&self, settings: &mut Settings, keeps_cmd: bool) -> Result<()> {
        let nothing = self.text.is_empty() && !matches!(self.verb, Verb::Cmd | Verb::Entrypoint);
        if nothing {
            return Err(bad(&format!("{:?}", self.verb).to_uppercase(), "it needs an argument"));
        }
        let said = format!("{:?} {}", self.verb, self.text);
        let wrong = |why: String| bad(&said, why);
        match self.verb {
            Verb::Cmd => drop(settings.insert("Cmd".into(), self.command().map_err(wrong)?)),
            Verb::Entrypoint => {
                settings.insert("Entrypoint".into(), self.command().map_err(wrong)?);
                if !keeps_cmd {
                    // As in a build: the old command was meant for the old entry point.
                    settings.remove("Cmd");
                }
            }
            Verb::Env => {
                for (key, value) in self.pairs(settings).map_err(wrong)? {
                    set_env(settings, &key, &value);
                }
            }
            Verb::Label => {
                for (key, value) in self.pairs(settings).map_err(wrong)? {
                    object(settings, "Labels").insert(key, value.into());
                }
            }
            Verb::Expose => {
                for word in self.words(settings).map_err(wrong)? {
                    for port in ports(&word).map_err(wrong)? {
                        object(settings, "ExposedPorts").insert(port, json!({}));
                    }
                }
            }
            Verb::Volume => {
                let paths = match json_list(&self.text) {
                    Some(list) => list,
                    None => self.words(settings).map_err(wrong)?,
                };
                for path in paths {
                    object(settings, "Volumes").insert(path, json!({}));
                }
            }
            Verb::Onbuild => match settings.entry("OnBuild").or_insert_with(|| json!([])) {
                Value::Array(list) => list.push(self.text.clone().into()),
                other => *other = json!([self.text]),
            },
            Verb::Stopsignal => drop(settings.insert("StopSignal".into(), self.word(settings).map_err(wrong)?.into())),
            Verb::User => drop(settings.insert("User".into(), self.word(settings).map_err(wrong)?.into())),
            Verb::Workdir => {
                let path = self.word(settings).map_err(wrong)?;
                let before = settings.get("WorkingDir").and_then(Value::as_str).unwrap_or("/").to_owned();
                settings.insert("WorkingDir".into(), join(&before, &path).into());
            }
        }
        Ok(())
    }

    /// The exec form, or the shell form.
    fn command(&self) -> std::result::Result<Value, String> {
        Ok(match json_list(&self.text) {
            Some(list) => json!(list),
            None if self.text.is_empty() => Value::Null,
            None => json!(["/bin/sh", "-c", self.text]),
        })
    }

    fn words(&self, settings: &Settings) -> std::result::Result<Vec<String>, String> {
        split(&self.text)?.into_iter().map(|word| expand(&word, settings)).collect()
    }

    fn word(&self, settings: &Settings) -> std::result::Result<String, String> {
        // One argument, blanks and all.
        expand(&self.text, settings)
    }

    /// `key=value key2="a b"`, or the old `key value`.
    fn pairs(&self, settings: &Settings) -> std::result::Result<Vec<(String, String)>, String> {
        let words = split(&self.text)?;
        let first = words.first().ok_or("it needs a name and a value")?;
        if !first.contains('=') {
            let (key, value) = self.text.split_once(char::is_whitespace).ok_or("it needs a value: write NAME=VALUE")?;
            return Ok(vec![(expand(key, settings)?, expand(value.trim(), settings)?)]);
        }
        let pair = |word: &String| {
            let (key, value) = word.split_once('=').ok_or(format!("'{word}' has no value: write NAME=VALUE"))?;
            let key = expand(key, settings)?;
            match key.is_empty() {
                true => Err(format!("'{word}' has no name: write NAME=VALUE")),
                false => Ok((key, expand(value, settings)?)),
            }
        };
        words.iter().map(pair).collect()
    }
}

/// Changes a config's settings.
pub(super) fn apply(instructions: &[Instruction], settings: &mut Settings) -> Result<()> {
    let keeps_cmd = instructions.iter().any(|instruction| instruction.verb == Verb::Cmd);
    instructions.iter().try_for_each(|instruction| instruction.apply(settings, keeps_cmd))
}

fn object<'a>(settings: &'a mut Settings, key: &str) -> &'a mut Settings {
    let value = settings.entry(key).or_insert(Value::Null);
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("it was made one"),
    }
}

fn set_env(settings: &mut Settings, key: &str, value: &str) {
    let entry = Value::String(format!("{key}={value}"));
    let prefix = format!("{key}=");
    let list = settings.entry("Env").or_insert_with(|| json!([]));
    if !list.is_array() {
        *list = json!([]);
    }
    let Value::Array(list) = list else { return };
    match list.iter_mut().find(|known| known.as_str().is_some_and(|known| known.starts_with(&prefix))) {
        Some(known) => *known = entry,
        None => list.push(entry),
    }
}

fn json_list(text: &str) -> Option<Vec<String>> {
    text.starts_with('[').then(|| serde_json::from_str(text).ok()).flatten()
}

/// `80`, `80/udp`, `8000-8002/tcp`.
fn ports(word: &str) -> std::result::Result<Vec<String>, String> {
    let (numbers, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
    let bad = || format!("'{word}' is no port: write 80, 80/udp or 8000-8010/tcp");
    let number = |text: &str| text.parse::<u16>().map_err(|_| bad());
    let (first, last) = (number(first)?, number(last)?);
    match ["tcp", "udp", "sctp"].contains(&protocol.as_str()) && first <= last {
        true => Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect()),
        false => Err(bad()),
    }
}

/// Splits into words at blanks outside of quotes; quotes and backslashes stay for [`expand`].
fn split(text: &str) -> std::result::Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' if quote != Some('\'') => {
                word.push(c);
                word.extend(chars.next());
                continue;
            }
            '"' | '\'' if quote.is_none() => quote = Some(c),
            _ if quote == Some(c) => quote = None,
            _ if c.is_whitespace() && quote.is_none() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            _ => {}
        }
        word.push(c);
    }
    if let Some(quote) = quote {
        return Err(format!("a {quote} that is not closed"));
    }
    if !word.is_empty() {
        words.push(word);
    }
    Ok(words)
}

/// Takes quotes and backslashes out, and puts the values of `$NAME` and `${NAME}` in.
fn expand(word: &str, settings: &Settings) -> std::result::Result<String, String> {
    let (mut text, mut quote) = (String::new(), None);
    let mut chars = word.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if quote != Some('\'') => text.extend(chars.next()),
            '"' | '\'' if quote.is_none() => quote = Some(c),
            _ if quote == Some(c) => quote = None,
            '$' if quote != Some('\'') => {
                let mut name = String::new();
                if chars.next_if_eq(&'{').is_some() {
                    loop {
                        match chars.next() {
                            Some('}') => break,
                            Some(c) if c.is_ascii_alphanumeric() || c == '_' => name.push(c),
                            _ => return Err("of ${...} only ${NAME} is understood".into()),
                        }
                    }
                } else {
                    while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
                        name.push(c);
                    }
                }
                match name.is_empty() {
                    true => text.push('$'),
                    false => text.push_str(env(settings, &name)),
                }
            }
            _ => text.push(c),
        }
    }
    Ok(text)
}

fn env<'a>(settings: &'a Settings, name: &str) -> &'a str {
    let all = settings.get("Env").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let value = |entry: &'a Value| entry.as_str()?.strip_prefix(name)?.strip_prefix('=');
    all.iter().find_map(value).unwrap_or_default()
}

/// A path that is not absolute counts from the one before.
fn join(before: &str, path: &str) -> String {
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{before}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn bad(line: &str, why: impl std::fmt::Display) -> Error {
    Error::invalid(format!("change '{}'", shown(line.as_bytes())), why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(before: Value, lines: &[&str]) -> Result<Value> {
        let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
        let Value::Object(mut settings) = before else { unreachable!() };
        apply(&Instruction::parse_all(&lines)?, &mut settings)?;
        Ok(Value::Object(settings))
    }

    #[test]
    fn each_instruction_changes_its_setting() {
        let base = json!({"Cmd": ["old"], "Env": ["PATH=/bin", "A=1"], "WorkingDir": "/srv"});
        for (line, key, value) in [
            (r#"CMD ["a", "b c"]"#, "Cmd", json!(["a", "b c"])),
            ("cmd echo $A", "Cmd", json!(["/bin/sh", "-c", "echo $A"])),
            (r#"ENTRYPOINT ["/x"]"#, "Entrypoint", json!(["/x"])),
            ("ENV A=2 B=\"x y\" C='$A' D=\\$A", "Env", json!(["PATH=/bin", "A=2", "B=x y", "C=$A", "D=$A"])),
            ("ENV PATH=/opt:$PATH", "Env", json!(["PATH=/opt:/bin", "A=1"])),
            ("ENV OLD form of it", "Env", json!(["PATH=/bin", "A=1", "OLD=form of it"])),
            (
                "EXPOSE 80 53/UDP 8000-8001",
                "ExposedPorts",
                json!({"80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {}}),
            ),
            ("LABEL a=1 \"b c\"=\"d e\"", "Labels", json!({"a": "1", "b c": "d e"})),
            ("USER 1000:1000", "User", json!("1000:1000")),
            ("WORKDIR sub/../x", "WorkingDir", json!("/srv/x")),
            ("WORKDIR /${A}", "WorkingDir", json!("/1")),
            (r#"VOLUME ["/a", "/b c"]"#, "Volumes", json!({"/a": {}, "/b c": {}})),
            ("VOLUME /a /b", "Volumes", json!({"/a": {}, "/b": {}})),
            ("STOPSIGNAL SIGTERM", "StopSignal", json!("SIGTERM")),
            ("ONBUILD RUN make", "OnBuild", json!(["RUN make"])),
        ] {
            assert_eq!(after(base.clone(), &[line]).unwrap()[key], value, "{line}");
        }
    }

    #[test]
    fn a_new_entry_point_drops_the_old_command_but_not_a_new_one() {
        let base = json!({"Cmd": ["old"]});
        assert_eq!(after(base.clone(), &["ENTRYPOINT a"]).unwrap().get("Cmd"), None);
        for lines in [["CMD b", "ENTRYPOINT a"], ["ENTRYPOINT a", "CMD b"]] {
            assert_eq!(after(base.clone(), &lines).unwrap()["Cmd"][2], "b");
        }
    }

    #[test]
    fn what_is_not_understood_is_told() {
        for (line, says) in [
            ("RUN make", "one of CMD"),
            ("ENV", "needs an argument"),
            ("ENV A", "write NAME=VALUE"),
            ("ENV A=1 B", "write NAME=VALUE"),
            ("ENV A=\"1", "not closed"),
            ("LABEL =x", "has no name"),
            ("EXPOSE 80000", "no port"),
            ("EXPOSE 80/icmp", "no port"),
            ("USER ${A:-b}", "only ${NAME}"),
        ] {
            let error = after(json!({}), &[line]).unwrap_err().to_string();
            assert!(error.contains(says), "{line}: {error}");
        }
    }
}
