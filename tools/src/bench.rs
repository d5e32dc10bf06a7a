//! `plyfs bench`: union filesystems measured side by side.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use benches::{Group, Input, Interrupted, LeftOut, Length, Plan, Watch};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::process::geteuid;

use crate::cli::IdMap;
use crate::namespace;

/// What a shell says of a program that an interrupt has ended.
const INTERRUPTED: u8 = 130;

#[derive(Debug, Args)]
#[command(after_help = "\
Groups:
  meta       mounting, walking the tree, missing names, opening
  data       reading every file, and one large file
  write      writing, and storms of new files
  cow        changing what lies in the image: first byte, chmod, rename, append
  programs   tar, dpkg, git, a compiler and rm at work in a mount
  start      starting containers, their daemons' memory, 100 mounts
  sharing    what containers of one image share: disk, memory, page cache
  depth      stacks of 1, 32 and 128 layers
  parallel   one to eight clients
  store      loading images, against podman and tar

Without groups, all of them. Contestants are the kernel's overlayfs, plyfs on an image, plyfs on plain directories, every
fuse-overlayfs that is found, and the merged tree as a plain directory; who cannot run here is named with the reason.")]
pub(crate) struct BenchArgs {
    /// What to measure [default: all groups]
    #[arg(value_name = "GROUP")]
    groups: Vec<Group>,
    /// The image: the name of a loaded one, a source such as oci:DIR:REF, or directories in overlay format as dirs:TOP:...:BOTTOM.
    /// Given more than once, 'store' loads all of them, and the other groups use the first [default: a generated image]
    #[arg(long, value_name = "IMAGE")]
    image: Vec<String>,
    /// Small amounts, two minutes at most
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// Large amounts and five rounds, however long it takes
    #[arg(long)]
    full: bool,
    /// At most so many rounds
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// How the results are printed
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: BenchFormat,
    /// Show the least and the most under each row of the table
    #[arg(short, long)]
    verbose: bool,
    /// Also write a page with plots that needs nothing else
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Also write the results as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where the scratch directory is made; it is removed at the end
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    dir: PathBuf,
    /// A fuse-overlayfs program besides the one in PATH
    #[arg(long, value_name = "PROGRAM")]
    fuse_overlayfs: Vec<PathBuf>,
    /// A further contestant: 'cmd -o lowerdir={lower},upperdir={upper},workdir={work} {mnt}'
    #[arg(long, value_name = "COMMAND")]
    mounter: Vec<String>,
    /// plyfs once more, with these mount options (plyfs.disable=passthrough)
    #[arg(long, value_name = "OPTIONS")]
    plyfs_options: Vec<String>,
    /// The kernel's overlayfs once more, with these options (metacopy=on,redirect_dir=on)
    #[arg(long, value_name = "OPTIONS")]
    overlayfs_options: Vec<String>,
    /// Only this contestant; can be given more than once
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// All contestants but this one; can be given more than once
    #[arg(long, value_name = "NAME")]
    without: Vec<String>,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum BenchFormat {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// `plyfs bench`
pub(crate) fn run(root: &Path, args: &BenchArgs, out: &mut dyn Write) -> Result<ExitCode> {
    enter_namespace()?;
    let plan = plan(root, args)?;
    // Before the run, not after ten minutes.
    let html = args.html.as_deref().map(create).transpose()?;
    let json = args.json.as_deref().map(create).transpose()?;
    benches::watch_signals().context("signals")?;
    let report = match benches::run(&plan, &*watch()) {
        Err(error) if error.is::<Interrupted>() => {
            crate::complain("bench: interrupted; all is cleaned up");
            return Ok(ExitCode::from(INTERRUPTED));
        }
        done => done?,
    };
    match args.format {
        BenchFormat::Table => report.write_table(out, args.verbose)?,
        BenchFormat::Json => report.write_json(out)?,
    }
    if let Some(mut file) = html {
        report.write_html(&mut file)?;
        file.flush()?;
    }
    if let Some(mut file) = json {
        report.write_json(&mut file)?;
        file.flush()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// As an ordinary user, becomes root of a namespace, where one may mount; where that is not allowed, fusermount3 has to do.
fn enter_namespace() -> Result<()> {
    if !geteuid().is_root() && namespace::obstacle().is_none() {
        namespace::enter(IdMap::Auto).or_else(|_| namespace::enter(IdMap::Single))?;
    }
    Ok(())
}

fn plan(root: &Path, args: &BenchArgs) -> Result<Plan> {
    let inputs = match &args.image[..] {
        [] => vec![Input::Generated],
        images => images.iter().map(|text| input(text)).collect(),
    };
    if args.rounds == Some(0) {
        bail!("--rounds 0: nothing would be measured");
    }
    let mut groups = args.groups.clone();
    if groups.is_empty() {
        groups = Group::ALL.to_vec();
    }
    groups.sort_unstable();
    groups.dedup();
    Ok(Plan {
        groups,
        length: match (args.quick, args.full) {
            (true, _) => Length::Quick,
            (_, true) => Length::Full,
            _ => Length::Standard,
        },
        rounds: args.rounds,
        inputs,
        dir: args.dir.clone(),
        store: root.to_path_buf(),
        program: std::env::current_exe().context("/proc/self/exe")?,
        fuse_overlayfs: args.fuse_overlayfs.clone(),
        mounters: args.mounter.clone(),
        plyfs_options: args.plyfs_options.clone(),
        overlayfs_options: args.overlayfs_options.clone(),
        only: args.only.clone(),
        without: args.without.clone(),
    })
}

fn input(text: &str) -> Input {
    match text.strip_prefix("dirs:") {
        Some(dirs) => Input::Dirs(dirs.split(':').map(PathBuf::from).collect()),
        None if store::Source::is_source(text) => Input::Source(text.to_string()),
        None => Input::Loaded(text.to_string()),
    }
}

fn create(path: &Path) -> Result<BufWriter<File>> {
    Ok(BufWriter::new(File::create(path).with_context(|| path.display().to_string())?))
}

/// Shows how a run gets on: as a bar on a terminal, as a line for each step elsewhere.
fn watch() -> Box<dyn Watch> {
    if !io::stderr().is_terminal() {
        return Box::new(Lines(RefCell::default()));
    }
    let style = ProgressStyle::with_template("[{bar:30}] {elapsed}  {wide_msg}");
    let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr_with_hz(8));
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    Box::new(Bar(bar))
}

struct Bar(ProgressBar);

impl Watch for Bar {
    fn doing(&self, part: f64, what: &str) {
        self.0.set_position((part * 1000.0) as u64);
        self.0.set_message(what.to_string());
    }

    fn left_out(&self, left: &LeftOut) {
        self.0.suspend(|| crate::complain(&format!("bench: left out: {}: {}", left.what, left.why)));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// The last line, without the contestant: one line for each round is enough.
struct Lines(RefCell<String>);

impl Watch for Lines {
    fn doing(&self, part: f64, what: &str) {
        let step = what.rsplit_once(": ").map_or(what, |(step, _)| step);
        if self.0.replace(step.to_string()) != step {
            // Progress that nobody can read is no reason to stop.
            writeln!(io::stderr(), "{:3.0}%  {step}", part * 100.0).ok();
        }
    }

    fn left_out(&self, left: &LeftOut) {
        crate::complain(&format!("bench: left out: {}: {}", left.what, left.why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_a_name_a_source_or_directories() {
        assert_eq!(input("redis"), Input::Loaded("redis".into()));
        assert_eq!(input("oci:/d:redis"), Input::Source("oci:/d:redis".into()));
        assert_eq!(input("dirs:/b:/a"), Input::Dirs(vec!["/b".into(), "/a".into()]));
    }
}
