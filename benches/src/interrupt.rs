//! Being interrupted: a signal sets a flag, long loops ask for it, and the guards on the way out take everything away.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// A signal is the process's, not one run's.
static FLAG: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// The run was ended by a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// From now on SIGINT, SIGTERM and SIGHUP end a run in good order: it returns [`Interrupted`] once its mounts are gone.
///
/// # Errors
/// When the signals cannot be caught.
pub fn watch_signals() -> io::Result<()> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, FLAG.clone())?;
    }
    Ok(())
}

/// Returns [`Interrupted`] once a signal has come. Cheap enough for the innermost loops.
pub(crate) fn check() -> Result<(), Interrupted> {
    if FLAG.load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
}
