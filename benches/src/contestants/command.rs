//! Contestants that are programs: a command line with places for the directories.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Place;
use super::daemon::{self, Daemon};

/// How long a program that stays in the foreground has for its mount.
const PATIENCE: Duration = Duration::from_secs(10);

/// A command line in which `{lower}`, `{upper}`, `{work}` and `{mnt}` stand for directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template {
    program: PathBuf,
    words: Vec<String>,
}

impl Template {
    /// Reads a template; words are separated by blanks, there is no quoting.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut words = text.split_whitespace().map(String::from);
        let program = words.next().context("it is empty")?;
        let words: Vec<String> = words.collect();
        for place in ["{lower}", "{mnt}"] {
            if !words.iter().any(|word| word.contains(place)) {
                bail!(
                    "it has no {place}; for example 'cmd -o lowerdir={{lower}},upperdir={{upper}},workdir={{work}} {{mnt}}'"
                );
            }
        }
        Ok(Template { program: program.into(), words })
    }

    pub(super) fn with_program(self, program: &Path) -> Self {
        Template { program: program.to_path_buf(), ..self }
    }

    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    fn fill(&self, lower: &[PathBuf], place: &Place) -> Result<Vec<String>> {
        let text = |path: &PathBuf| path.to_str().map(String::from).with_context(|| format!("{path:?}: not UTF-8"));
        let lower = lower.iter().map(text).collect::<Result<Vec<_>>>()?.join(":");
        let (upper, work, mnt) = (text(&place.upper)?, text(&place.work)?, text(&place.mnt)?);
        let fill = |word: &String| {
            let word = word.replace("{lower}", &lower).replace("{upper}", &upper);
            word.replace("{work}", &work).replace("{mnt}", &mnt)
        };
        Ok(self.words.iter().map(fill).collect())
    }

    /// Runs the command, and returns when it has gone to the background or when its mount is there.
    pub(super) fn mount(&self, lower: &[PathBuf], place: &Place) -> Result<Daemon> {
        let log = place.log();
        let output = File::create(&log)?;
        let mut child = Command::new(&self.program)
            .args(self.fill(lower, place)?)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        if !daemon::gone_within(child.id(), PATIENCE) {
            if is_mounted(place)? {
                return Ok(Daemon::Child(child));
            }
            child.kill()?;
            child.wait()?;
            bail!("nothing was mounted within {} s", PATIENCE.as_secs());
        }
        let status = child.wait()?;
        let said = || std::fs::read_to_string(&log).unwrap_or_default().trim().replace('\n', "; ");
        if !status.success() {
            bail!("{status}: {}", said());
        }
        if !is_mounted(place)? {
            bail!("it said that it was done, but nothing is mounted: {}", said());
        }
        Ok(Daemon::Background)
    }
}

fn is_mounted(place: &Place) -> Result<bool> {
    Ok(std::fs::metadata(&place.mnt)?.dev() != std::fs::metadata(&place.dir)?.dev())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_filled() {
        let template = Template::parse("cmd -o lowerdir={lower},upperdir={upper},workdir={work} {mnt}").unwrap();
        let place = Place { dir: "/s".into(), mnt: "/s/mnt".into(), upper: "/s/u".into(), work: "/s/w".into() };
        assert_eq!(template.program(), Path::new("cmd"));
        assert_eq!(
            template.fill(&["/b".into(), "/a".into()], &place).unwrap(),
            ["-o", "lowerdir=/b:/a,upperdir=/s/u,workdir=/s/w", "/s/mnt"]
        );
        assert!(Template::parse("").is_err());
        assert!(Template::parse("cmd {mnt}").unwrap_err().to_string().contains("no {lower}"));
    }
}
