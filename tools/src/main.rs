//! The `plyfs` command: what people type about images, containers and mounts.
//!
//! This program is also the daemon: it starts itself again with [`mountd::DAEMON_WORD`], so that one binary is all there is.

mod about;
mod bench;
mod bundle;
mod cli;
mod containers;
mod explain;
mod filter;
mod images;
mod install_links;
mod layer_store;
mod mounts;
mod namespace;
mod print;
mod progress;
mod prune;
mod quickstart;
mod registries;
mod sample;
mod save;
mod snapshotter;
mod tree;
mod usage;
mod volumes;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use store::Store;

use cli::{Cli, Command, ContainerCommand, ImageCommand, Kind, ManifestCommand, SystemCommand};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    match arguments.get(1).and_then(|word| word.to_str()) {
        Some(mountd::DAEMON_WORD) => return mountd::run_from_args(arguments),
        Some(namespace::PROBE) => return namespace::probe(),
        Some(namespace::WRITE_MAP) => return namespace::write_map(&arguments[2..]),
        _ => {}
    }
    let cli = Cli::parse();
    warn_on_standard_error();
    match run(cli) {
        Ok(code) => code,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS, // `plyfs images | head -n 1` has what it wanted.
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let root = cli.root.unwrap_or_else(Store::default_root);
    let root = std::path::absolute(&root).unwrap_or(root);
    let out = &mut io::stdout().lock();
    match cli.command {
        Command::Quickstart(args) => return quickstart::run(root, &args).map(|()| ExitCode::SUCCESS),
        Command::Unshare(args) => return mounts::unshare(&root, &args),
        Command::Run(args) | Command::Container(ContainerCommand::Run(args)) => {
            return Ok(bundle::run::run(&root, &args));
        }
        Command::Volume(command) => return volumes::run(&root, &command, out),
        Command::Sample(args) => sample::write(&args, out)?,
        Command::Login(args) => registries::login(&args, out)?,
        Command::Logout(args) => registries::logout(&args, out)?,
        Command::Search(args) | Command::Image(ImageCommand::Search(args)) => registries::search(&args, out)?,
        Command::Manifest(ManifestCommand::Inspect(args)) => registries::inspect(&args, out)?,
        Command::Bench(args) => return bench::run(&root, &args, out),
        Command::Version(args) | Command::System(SystemCommand::Version(args)) => about::version(&args, out)?,
        Command::Info(args) | Command::System(SystemCommand::Info(args)) => about::info(&root, &args, out)?,
        Command::Snapshotter(args) => snapshotter::serve(open(root)?, &args)?,
        Command::LayerStore(args) => layer_store::serve(open(root)?, &args)?,
        Command::InstallLinks(args) => install_links::install(&args, out)?,
        command => return on_store(&open(root)?, command, out),
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a command that works on the store.
fn on_store(store: &Store, command: Command, out: &mut dyn Write) -> Result<ExitCode> {
    match command {
        Command::Load(args) | Command::Image(ImageCommand::Load(args)) => images::load(store, &args, out)?,
        Command::Save(args) | Command::Image(ImageCommand::Save(args)) => save::save(store, &args)?,
        Command::Pull(args) | Command::Image(ImageCommand::Pull(args)) => registries::pull(store, &args, out)?,
        Command::Push(args) | Command::Image(ImageCommand::Push(args)) => registries::push(store, &args, out)?,
        Command::Images(args) | Command::Image(ImageCommand::Ls(args)) => images::list(store, &args, out)?,
        Command::Inspect(args) => return containers::inspect(store, &args, args.kind, out),
        Command::Image(ImageCommand::Inspect(args)) => {
            return containers::inspect(store, &args, Some(Kind::Image), out);
        }
        Command::Container(ContainerCommand::Inspect(args)) => {
            return containers::inspect(store, &args, Some(Kind::Container), out);
        }
        Command::History(args) | Command::Image(ImageCommand::History(args)) => images::history(store, &args, out)?,
        Command::Tag(args) | Command::Image(ImageCommand::Tag(args)) => images::tag(store, &args)?,
        Command::Rmi(args) | Command::Image(ImageCommand::Rm(args)) => return images::remove(store, &args, out),
        Command::Prune(args) | Command::Image(ImageCommand::Prune(args)) => prune::images(store, &args, out)?,
        Command::Container(ContainerCommand::Prune(args)) => prune::containers(store, &args, out)?,
        Command::System(SystemCommand::Prune(args)) => prune::system(store, &args, out)?,
        Command::Tree(args) | Command::Image(ImageCommand::Tree(args)) => {
            tree::draw(store, args.image.as_deref(), args.no_trunc, out)?;
        }
        Command::Fsck(args) | Command::System(SystemCommand::Fsck(args)) => return usage::fsck(store, &args, out),
        Command::Create(args) | Command::Container(ContainerCommand::Create(args)) => {
            containers::create(store, &args, out)?;
        }
        Command::Ps(args) | Command::Container(ContainerCommand::Ls(args)) => containers::list(store, &args, out)?,
        Command::Diff(args) | Command::Container(ContainerCommand::Diff(args)) => containers::diff(store, &args, out)?,
        Command::Commit(args) | Command::Container(ContainerCommand::Commit(args)) => {
            containers::commit(store, &args, out)?;
        }
        Command::Export(args) | Command::Container(ContainerCommand::Export(args)) => save::export(store, &args)?,
        Command::Explain(args) => explain::explain(store, &args, out)?,
        Command::Rm(args) | Command::Container(ContainerCommand::Rm(args)) => {
            return containers::remove(store, &args, out);
        }
        Command::Mount(args) => mounts::mount(store, &args, None, out)?,
        Command::Image(ImageCommand::Mount(args)) => mounts::mount(store, &args, Some(Kind::Image), out)?,
        Command::Container(ContainerCommand::Mount(args)) => mounts::mount(store, &args, Some(Kind::Container), out)?,
        Command::Bundle(args) => bundle::bundle(store, &args, out)?,
        Command::Umount(args)
        | Command::Image(ImageCommand::Umount(args))
        | Command::Container(ContainerCommand::Umount(args)) => return mounts::umount(store, &args),
        Command::Settle(args) | Command::Container(ContainerCommand::Settle(args)) => {
            return mounts::settle_containers(store, &args, out);
        }
        Command::Df(args) | Command::System(SystemCommand::Df(args)) => usage::df(store, &args, out)?,
        Command::Gc(args) | Command::System(SystemCommand::Gc(args)) => usage::gc(store, &args, out)?,
        Command::Quickstart(_)
        | Command::Sample(_)
        | Command::Login(_)
        | Command::Logout(_)
        | Command::Search(_)
        | Command::Image(ImageCommand::Search(_))
        | Command::Manifest(_)
        | Command::Unshare(_)
        | Command::Run(_)
        | Command::Volume(_)
        | Command::Snapshotter(_)
        | Command::LayerStore(_)
        | Command::InstallLinks(_)
        | Command::Container(ContainerCommand::Run(_))
        | Command::Bench(_)
        | Command::Version(_)
        | Command::Info(_)
        | Command::System(SystemCommand::Info(_) | SystemCommand::Version(_)) => {} // done without a store
    }
    Ok(ExitCode::SUCCESS)
}

fn open(root: PathBuf) -> Result<Store> {
    Ok(Store::open(&root)?)
}

/// Does one thing for each name, goes on after a failure, and tells every failure.
fn for_each<T>(names: &[T], mut action: impl FnMut(&T) -> Result<()>) -> Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for name in names {
        match action(name) {
            Ok(()) => {}
            Err(error) if is_closed_pipe(&error) => return Err(error),
            Err(error) => {
                complain(&format!("{error:#}"));
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

/// Writes `plyfs: <what is wrong>` on standard error: one line, whatever a name in it holds.
fn complain(text: &str) {
    let text = without_numbers(&print::table::visible(text));
    writeln!(io::stderr(), "plyfs: {text}").ok(); // There is nobody left to tell.
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
            || cause
                .downcast_ref::<serde_json::Error>()
                .is_some_and(|error| error.io_error_kind() == Some(io::ErrorKind::BrokenPipe))
    })
}

/// Returns what the system said, without the number of the error.
fn reason(error: &io::Error) -> String {
    without_numbers(&error.to_string())
}

/// Leaves ` (os error 2)` out, which says nothing that the words before it do not say.
fn without_numbers(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let mut kept = parts.next().unwrap_or_default().to_string();
    for part in parts {
        kept.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start_matches(')'));
    }
    kept
}

/// Warnings of the rooms below, for whoever typed the command.
struct Warnings;

impl log::Log for Warnings {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            complain(&format!("warning: {}", record.args()));
        }
    }

    fn flush(&self) {}
}

fn warn_on_standard_error() {
    // Fails only where a logger is set already, and nobody does that before.
    if log::set_logger(&Warnings).is_ok() {
        log::set_max_level(log::LevelFilter::Warn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_errors_are_left_out() {
        assert_eq!(without_numbers("a: No such file (os error 2)"), "a: No such file");
        assert_eq!(without_numbers("a (os error 13); b (os error 2)"), "a; b");
        assert_eq!(without_numbers("plain"), "plain");
        assert_eq!(reason(&io::Error::from_raw_os_error(2)), "No such file or directory");
    }
}
