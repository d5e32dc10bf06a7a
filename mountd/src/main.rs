//! The daemon as a program of its own; see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    mountd::run_from_args(std::env::args_os().collect())
}
