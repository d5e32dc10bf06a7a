//! Changing what lies in the image: what it costs in time and on the disk.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::{Scene, Stage, always, amount, everybody, row, spelled};
use crate::contestants::Mounted;
use crate::interrupt;
use crate::plan::{Group, Sizes};
use crate::stack::{BIG, BRANCH, Kind, small};
use crate::units::Unit;

/// A second name of the large file in a plain directory, from which it comes back.
const SPARE: &str = "big.spare";
const MOVED: &str = "moved";

pub(super) fn scenes(sizes: &Sizes) -> Vec<Scene> {
    let big = Unit::Bytes.show(sizes.big as f64).replace(".00 ", " ").replace(".0 ", " ");
    let (small, branch) = (amount(sizes.small), amount(sizes.branch));
    vec![
        Scene {
            rows: vec![
                row("cow.byte", format!("first byte into a lower file of {big}")),
                row("cow.byte.disk", "  the disk it takes").bytes(),
                row("cow.byte.umount", "  the unmount after it"),
            ],
            weight: 7.0,
            ..scene("first byte", first_byte)
        },
        Scene {
            rows: vec![row("cow.chmod", "chmod of it"), row("cow.chmod.disk", "  the disk it takes").bytes()],
            weight: 5.0,
            ..scene("chmod", chmod)
        },
        Scene {
            rows: vec![row("cow.rename", "rename of it"), row("cow.rename.disk", "  the disk it takes").bytes()],
            weight: 5.0,
            ..scene("rename", rename)
        },
        Scene {
            rows: vec![row("cow.unlink", "rm of it"), row("cow.unlink.disk", "  the disk it takes").bytes()],
            weight: 2.0,
            ..scene("rm", unlink)
        },
        Scene {
            rows: vec![
                row("cow.append", format!("append to {small} lower files")),
                row("cow.append.disk", "  the disk it takes").bytes(),
            ],
            weight: 14.0,
            ..scene("appending", append)
        },
        Scene {
            rows: vec![
                row("cow.branch", format!("mv of a lower directory of {branch} entries")),
                row("cow.branch.disk", "  the disk it takes").bytes(),
            ],
            weight: 16.0,
            ..scene("mv of a directory", branch_rename)
        },
    ]
}

fn scene(name: &str, play: impl Fn(&mut Stage<'_>, &mut Mounted) -> Result<()> + 'static) -> Scene {
    Scene {
        group: Group::Cow,
        name: name.into(),
        stack: Kind::Heavy,
        rows: Vec::new(),
        weight: 1.0,
        fits: everybody,
        possible: always,
        play: Box::new(move |stage| {
            stage.settle()?;
            let mut mounted = stage.mount()?;
            let root = mounted.root().to_path_buf();
            if mounted.is_plain() && !root.join(SPARE).exists() {
                fs::hard_link(root.join(BIG), root.join(SPARE))?;
            }
            play(stage, &mut mounted)?;
            if mounted.is_plain() {
                restore(&root)?;
            }
            mounted.end()
        }),
    }
}

/// Puts back what was moved and removed in a plain directory; what was written in place may stay.
fn restore(root: &Path) -> Result<()> {
    if !root.join(BIG).exists() {
        fs::hard_link(root.join(SPARE), root.join(BIG))?;
    }
    match root.join(MOVED).symlink_metadata() {
        Ok(found) if found.is_dir() => fs::rename(root.join(MOVED), root.join(BRANCH))?,
        Ok(_) => fs::remove_file(root.join(MOVED))?,
        Err(_) => {}
    }
    Ok(())
}

fn first_byte(stage: &mut Stage<'_>, mounted: &mut Mounted) -> Result<()> {
    let path = mounted.root().join(BIG);
    let middle = stage.sizes.big / 2;
    stage.time("cow.byte", || {
        let file = rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        Ok(rustix::io::pwrite(&file, b"x", middle)?)
    })?;
    if mounted.is_plain() {
        return Ok(());
    }
    disk(stage, mounted, "cow.byte.disk")?;
    mounted.find_daemon();
    stage.time("cow.byte.umount", || mounted.unmount())
}

fn chmod(stage: &mut Stage<'_>, mounted: &mut Mounted) -> Result<()> {
    let path = mounted.root().join(BIG);
    stage.time("cow.chmod", || Ok(rustix::fs::chmod(&path, Mode::from(0o600))?))?;
    disk(stage, mounted, "cow.chmod.disk")
}

/// Records what the upper takes, which is what the workload before it made.
fn disk(stage: &mut Stage<'_>, mounted: &mut Mounted, row: &'static str) -> Result<()> {
    if mounted.is_plain() {
        return Ok(());
    }
    stage.settle()?;
    stage.record(row, mounted.disk()? as f64);
    Ok(())
}

fn rename(stage: &mut Stage<'_>, mounted: &mut Mounted) -> Result<()> {
    let (old, new) = (mounted.root().join(BIG), mounted.root().join(MOVED));
    stage.time("cow.rename", || Ok(rustix::fs::rename(&old, &new)?))?;
    disk(stage, mounted, "cow.rename.disk")
}

fn unlink(stage: &mut Stage<'_>, mounted: &mut Mounted) -> Result<()> {
    let path = mounted.root().join(BIG);
    stage.time("cow.unlink", || Ok(rustix::fs::unlink(&path)?))?;
    disk(stage, mounted, "cow.unlink.disk")
}

fn append(stage: &mut Stage<'_>, mounted: &mut Mounted) -> Result<()> {
    let files: Vec<_> = (0..stage.sizes.small).map(|n| small(n).into()).collect();
    let files = spelled(mounted.root(), &files)?;
    stage.time("cow.append", || {
        for file in &files {
            interrupt::check()?;
            let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC;
            let file = rustix::fs::open(file, flags, Mode::empty())?;
            rustix::io::write(&file, b"one more line\n")?;
        }
        Ok(())
    })?;
    disk(stage, mounted, "cow.append.disk")
}

fn branch_rename(stage: &mut Stage<'_>, mounted: &mut Mounted) -> Result<()> {
    let (old, new) = (mounted.root().join(BRANCH), mounted.root().join(MOVED));
    stage.time("cow.branch", || match rustix::fs::rename(&old, &new) {
        Err(Errno::XDEV) => move_by_copying(&old, &new),
        done => Ok(done?),
    })?;
    disk(stage, mounted, "cow.branch.disk")
}

/// Does what mv does when a directory cannot be renamed: copies what is in it, with modes and times, then removes it.
fn move_by_copying(old: &Path, new: &Path) -> Result<()> {
    fs::create_dir(new)?;
    for entry in fs::read_dir(old)? {
        interrupt::check()?;
        let entry = entry?;
        let target = new.join(entry.file_name());
        fs::copy(entry.path(), &target)?;
        let found = rustix::fs::lstat(entry.path())?;
        let times = rustix::fs::Timestamps {
            last_access: time(found.st_atime, found.st_atime_nsec as i64),
            last_modification: time(found.st_mtime, found.st_mtime_nsec as i64),
        };
        rustix::fs::utimensat(CWD, &target, &times, AtFlags::empty())?;
    }
    fs::remove_dir_all(old).context("remove what was copied")
}

fn time(sec: i64, nsec: i64) -> rustix::fs::Timespec {
    rustix::fs::Timespec { tv_sec: sec, tv_nsec: nsec }
}
