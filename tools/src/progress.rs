//! How a load is seen: a bar for each layer on a terminal, a line for each elsewhere.

use std::collections::HashMap;
use std::fmt::Write;
use std::io::{IsTerminal, Write as _};
use std::sync::{Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use layer::DiffId;
use store::{LayerEvent, LayerPlan, Progress, Reference, Silent};

use crate::print::units;

/// Returns what shows a load on standard error.
pub(crate) fn new(quiet: bool) -> Box<dyn Progress> {
    match (quiet, std::io::stderr().is_terminal()) {
        (true, _) => Box::new(Silent),
        (false, true) => Box::new(Bars::new()),
        (false, false) => Box::new(Lines),
    }
}

/// Returns what shows a pull, in docker's words.
pub(crate) fn pull(quiet: bool) -> Box<dyn Progress> {
    match (quiet, std::io::stderr().is_terminal()) {
        (true, _) => Box::new(Silent),
        (false, true) => Box::new(Bars { words: PULL, ..Bars::new() }),
        (false, false) => Box::new(PullLines),
    }
}

/// What finished layers are called.
#[derive(Clone, Copy)]
struct Words {
    existing: &'static str,
    /// Instead of what was unpacked.
    complete: Option<&'static str>,
}

const LOAD: Words = Words { existing: "already there", complete: None };
const PULL: Words = Words { existing: "Already exists", complete: Some("Pull complete") };

/// Docker's lines for a pull without a terminal.
struct PullLines;

impl Progress for PullLines {
    fn layer(&self, layer: DiffId, event: LayerEvent) {
        let text = match event {
            LayerEvent::Existing => "Already exists",
            LayerEvent::Started { .. } => "Pulling fs layer",
            LayerEvent::Unpacked { .. } => "Pull complete",
            LayerEvent::Read { .. } => return,
        };
        // Progress that nobody can read is no reason to stop.
        std::io::stderr().write_all(format!("{}: {text}\n", short(layer)).as_bytes()).ok();
    }
}

/// Returns the 12 digits of a layer's diffID by which people know it.
fn short(layer: DiffId) -> String {
    layer.0.hex()[..12].to_string()
}

fn unpacked(members: u64, size: u64) -> String {
    let entries = if members == 1 { "entry" } else { "entries" };
    format!("{members} {entries}, {}", units::size(size))
}

/// One line for each layer, once it is there.
struct Lines;

impl Progress for Lines {
    fn layer(&self, layer: DiffId, event: LayerEvent) {
        let text = match event {
            LayerEvent::Existing => "already there".to_string(),
            LayerEvent::Unpacked { members, size } => format!("unpacked, {}", unpacked(members, size)),
            LayerEvent::Started { .. } | LayerEvent::Read { .. } => return,
        };
        // Progress that nobody can read is no reason to stop.
        std::io::stderr().write_all(format!("{}: {text}\n", short(layer)).as_bytes()).ok();
    }
}

/// One bar for each layer; a finished one becomes a line.
struct Bars {
    words: Words,
    screen: MultiProgress,
    bars: Mutex<HashMap<DiffId, ProgressBar>>,
}

impl Bars {
    fn new() -> Self {
        Bars {
            words: LOAD,
            screen: MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(12)),
            bars: Mutex::default(),
        }
    }

    fn bar(&self, layer: DiffId) -> ProgressBar {
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = bars.entry(layer).or_insert_with(|| {
            let bar = self.screen.add(ProgressBar::new(0).with_style(waiting()));
            bar.set_prefix(short(layer));
            bar.tick();
            bar
        });
        bar.clone()
    }
}

impl Progress for Bars {
    fn image(&self, _names: &[Reference], layers: &[LayerPlan]) {
        for layer in layers {
            self.bar(layer.diff_id);
        }
    }

    fn layer(&self, layer: DiffId, event: LayerEvent) {
        let bar = self.bar(layer);
        match event {
            LayerEvent::Existing => end(&bar, self.words.existing.to_string()),
            LayerEvent::Started { total } => {
                bar.set_length(total);
                bar.set_style(running());
            }
            LayerEvent::Read { done } => bar.set_position(done),
            LayerEvent::Unpacked { members, size } => {
                let done = self.words.complete.map_or_else(|| unpacked(members, size), str::to_string);
                end(&bar, done);
            }
        }
    }
}

fn end(bar: &ProgressBar, message: String) {
    bar.set_style(style("{prefix}  {msg}"));
    bar.finish_with_message(message);
}

fn waiting() -> ProgressStyle {
    style("{prefix}  waiting")
}

fn running() -> ProgressStyle {
    // What cannot be drawn is not seen; there is nobody to tell.
    let write = |bytes: u64, to: &mut dyn Write| to.write_str(&units::size(bytes)).unwrap_or_default();
    style("{prefix}  [{bar:40}] {done:>6} of {all}")
        .with_key("done", move |state: &ProgressState, to: &mut dyn Write| write(state.pos(), to))
        .with_key("all", move |state: &ProgressState, to: &mut dyn Write| write(state.len().unwrap_or_default(), to))
        .progress_chars("=> ")
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
