//! The log: lines with a time, to a file or to the terminal, and none that says the same over and over.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;

use crate::failure::{Failure, one_line};

/// How often one line is written in a [`WINDOW`]; the rest is counted.
const REPEATS: u32 = 5;
/// How long a line is remembered.
const WINDOW: Duration = Duration::from_secs(10);
/// How many different lines are remembered.
const REMEMBERED: usize = 16;
/// The longest line in bytes; hostile names are long.
const LONGEST: usize = 4096;

/// Where the log goes.
#[derive(Clone, Copy, Debug)]
pub enum Destination<'a> {
    /// A file that grows.
    File(&'a Path),
    /// Standard error.
    Terminal,
    /// Nowhere: nobody could read it.
    Nowhere,
}

/// Sets up the log of this process; a second call changes nothing.
///
/// # Errors
/// The file cannot be opened.
pub fn init(destination: Destination<'_>, level: LevelFilter) -> Result<(), Failure> {
    let sink = match destination {
        Destination::Nowhere => return Ok(()),
        Destination::Terminal => Sink::Terminal,
        Destination::File(path) => Sink::File(open(path)?),
    };
    // A program that has a log already keeps it.
    if log::set_boxed_logger(Box::new(Logger(Mutex::new(Writer::new(sink))))).is_ok() {
        log::set_max_level(level);
    }
    Ok(())
}

fn open(path: &Path) -> Result<File, Failure> {
    let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    opened.map_err(|error| {
        let errno = rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO);
        Failure::new(format!(
            "plyfs.log {}: {}; name a file that can be written",
            path.display(),
            crate::failure::errno_text(errno)
        ))
    })
}

struct Logger(Mutex<Writer>);

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let text = one_line(&record.args().to_string());
            let level = if is_late_reply(record.target(), &text) { Level::Debug } else { record.level() };
            if level <= log::max_level() {
                self.0.lock().take(level, &text, Instant::now());
            }
        }
    }

    fn flush(&self) {
        self.0.lock().settle_all();
    }
}

/// Tells whether the FUSE library complains of a reply that nobody waits for any more: the program was interrupted, or the last
/// RELEASE met the end of the mount. The kernel answers ENOENT then, which means just that (fuse_dev_do_write).
fn is_late_reply(target: &str, text: &str) -> bool {
    target.starts_with("fuser") && text.starts_with("Failed to send FUSE reply: No such file or directory")
}

enum Sink {
    File(File),
    Terminal,
    #[cfg(test)]
    Memory(Vec<String>),
}

/// Decides what is written, and writes it.
struct Writer {
    sink: Sink,
    seen: Vec<Seen>,
}

/// A line that was written not long ago.
struct Seen {
    hash: u64,
    level: Level,
    text: String,
    since: Instant,
    times: u32,
}

impl Writer {
    fn new(sink: Sink) -> Self {
        Writer { sink, seen: Vec::new() }
    }

    fn take(&mut self, level: Level, text: &str, now: Instant) {
        // With -d every line counts.
        if level >= Level::Debug || self.is_worth_writing(level, text, now) {
            self.write(level, text);
        }
    }

    fn is_worth_writing(&mut self, level: Level, text: &str, now: Instant) -> bool {
        let hash = hash(level, text);
        if let Some(at) = self.seen.iter().position(|seen| seen.hash == hash) {
            if now.duration_since(self.seen[at].since) < WINDOW {
                self.seen[at].times += 1;
                return self.seen[at].times <= REPEATS;
            }
            self.settle(at);
        } else if self.seen.len() == REMEMBERED {
            self.settle(0);
        }
        self.seen.push(Seen { hash, level, text: text.to_owned(), since: now, times: 1 });
        true
    }

    /// Forgets a line, and tells how often it was left out.
    fn settle(&mut self, at: usize) {
        let seen = self.seen.remove(at);
        if let Some(left_out @ 1..) = seen.times.checked_sub(REPEATS) {
            self.write(seen.level, &format!("{left_out} times more: {}", seen.text));
        }
    }

    fn settle_all(&mut self) {
        while !self.seen.is_empty() {
            self.settle(0);
        }
    }

    fn write(&mut self, level: Level, text: &str) {
        let level = level.as_str().to_lowercase();
        let line = format!("{} {level:<5} {}\n", Timestamp(SystemTime::now()), cut(text));
        // There is nowhere left to say that the log itself cannot be written.
        match &mut self.sink {
            Sink::File(file) => file.write_all(line.as_bytes()).ok(),
            Sink::Terminal => io::stderr().write_all(line.as_bytes()).ok(),
            #[cfg(test)]
            Sink::Memory(lines) => {
                lines.push(line);
                None
            }
        };
    }
}

fn cut(text: &str) -> &str {
    let end = (0..=LONGEST.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

fn hash(level: Level, text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (level, text).hash(&mut hasher);
    hasher.finish()
}

/// A moment as RFC 3339 has it, in UTC with milliseconds.
struct Timestamp(SystemTime);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since_epoch = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = since_epoch.as_secs();
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        // Civil date from days since 1970-01-01, with years that begin in March (H. Hinnant, "chrono-compatible low-level date
        // algorithms"): leap days come last then.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        let millis = since_epoch.subsec_millis();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(writer: &Writer) -> Vec<&str> {
        let Sink::Memory(lines) = &writer.sink else { panic!("no memory") };
        lines.iter().map(|line| line.split_once(' ').unwrap().1.trim_end()).collect()
    }

    #[test]
    fn dates_are_right() {
        for (seconds, shown) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (1_709_251_200, "2024-03-01T00:00:00.000Z"),
            (4_102_444_799, "2099-12-31T23:59:59.000Z"),
        ] {
            assert_eq!(Timestamp(UNIX_EPOCH + Duration::from_secs(seconds)).to_string(), shown);
        }
    }

    #[test]
    fn reply_that_nobody_waits_for_is_no_error() {
        let late = "Failed to send FUSE reply: No such file or directory (os error 2)";
        assert!(is_late_reply("fuser::reply", late));
        assert!(
            !is_late_reply("mountd::fs", late) && !is_late_reply("fuser::reply", "Failed to send FUSE reply: EINVAL")
        );
    }

    #[test]
    fn repeated_line_is_counted_instead_of_written() {
        let mut writer = Writer::new(Sink::Memory(Vec::new()));
        let start = Instant::now();
        for _ in 0..100 {
            writer.take(Level::Error, "disk gone", start);
            writer.take(Level::Debug, "request", start);
        }
        assert_eq!(lines(&writer).iter().filter(|line| **line == "error disk gone").count(), REPEATS as usize);
        assert_eq!(lines(&writer).iter().filter(|line| **line == "debug request").count(), 100);

        writer.take(Level::Error, "disk gone", start + WINDOW);
        assert_eq!(lines(&writer)[105..], ["error 95 times more: disk gone", "error disk gone"]);
        writer.settle_all();
        assert_eq!(lines(&writer).len(), 107, "nothing was left out since");
    }

    #[test]
    fn many_different_lines_are_all_written_and_the_oldest_is_forgotten() {
        let mut writer = Writer::new(Sink::Memory(Vec::new()));
        let now = Instant::now();
        (0..=REPEATS).for_each(|_| writer.take(Level::Warn, "first", now));
        (0..100).for_each(|i| writer.take(Level::Warn, &format!("line {i}"), now));
        assert_eq!(lines(&writer).len(), REPEATS as usize + 1 + 100);
        assert!(lines(&writer).contains(&"warn  1 times more: first"));
        assert_eq!(writer.seen.len(), REMEMBERED);
    }

    #[test]
    fn overlong_line_is_cut() {
        let mut writer = Writer::new(Sink::Memory(Vec::new()));
        writer.take(Level::Warn, &"\u{e9}".repeat(LONGEST), Instant::now());
        assert!(lines(&writer)[0].len() <= LONGEST + 6);
    }
}
