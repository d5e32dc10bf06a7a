//! One thread of a storm: random operations on its own names, one at a time, each noted before it is asked for and after it was
//! acknowledged. All threads share the mount and one directory.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{CWD, FileType, Mode, RenameFlags};

use super::model::{At, Change, Id, Kind, Listed, Model, Names, Op, ROOT, Sync};
use super::random::Random;

/// The mode of new files.
pub(crate) const MODE: u32 = 0o644;
const NAMES_PER_THREAD: usize = 24;

/// What the threads of a storm have in common.
pub(crate) struct Weather {
    pub(crate) mount: PathBuf,
    /// The crash has begun: from now on errors are no failures.
    pub(crate) over: AtomicBool,
    pub(crate) done: AtomicU64,
    /// One in so many chances to sync is taken: what is often synced leaves little to lose.
    pub(crate) syncs: usize,
}

/// Goes on until the mount breaks.
///
/// # Errors
/// An operation failed although nothing had crashed yet.
pub(crate) fn rage(weather: &Weather, model: &Mutex<Model>, name: &str, mut random: Random) -> Result<(), String> {
    loop {
        let (op, action) = {
            let mut model = model.lock();
            let Some((op, action)) = choose(&mut model, name, weather.syncs, &mut random) else { continue };
            model.begin(&op);
            (op, action)
        };
        match action.perform(&weather.mount) {
            // An answer in the middle of a cut is no promise: filesystems that are shut down have let a sync succeed that
            // found its inode unpinned by the very shutdown.
            Ok(()) if weather.over.load(Ordering::SeqCst) => return Ok(()),
            Ok(()) => {
                model.lock().acknowledge();
                weather.done.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) if weather.over.load(Ordering::SeqCst) => return Ok(()),
            Err(error) => {
                // The crash may be a moment ahead of its announcement.
                std::thread::sleep(std::time::Duration::from_millis(200));
                if weather.over.load(Ordering::SeqCst) {
                    return Ok(());
                }
                return Err(format!("{action:?}: {error} (chosen as {op:.200?})"));
            }
        }
    }
}

/// An operation as a program does it, by paths from the root of the mount.
#[derive(Clone, Debug)]
enum Action {
    Create(String),
    MakeDir(String),
    Symlink(String, String),
    Fifo(String),
    Link(String, String),
    Unlink(String),
    RemoveDir(String),
    Rename(String, String),
    Exchange(String, String),
    Write {
        path: String,
        offset: u64,
        bytes: Bytes,
        append: bool,
        sync: Sync,
    },
    Truncate {
        path: String,
        len: u64,
        sync: Sync,
    },
    /// Open with `O_TRUNC`.
    Empty {
        path: String,
        sync: Sync,
    },
    Chmod(String, u32),
    Sync {
        path: String,
        sync: Sync,
    },
    SyncDir(String),
}

/// Not shown in full.
#[derive(Clone)]
struct Bytes(Arc<Vec<u8>>);

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Action {
    fn perform(&self, mount: &Path) -> io::Result<()> {
        let at = |path: &String| mount.join(path);
        match self {
            Action::Create(path) => OpenOptions::new().write(true).create_new(true).mode(MODE).open(at(path)).map(drop),
            Action::MakeDir(path) => std::fs::create_dir(at(path)),
            Action::Symlink(target, path) => std::os::unix::fs::symlink(target, at(path)),
            Action::Fifo(path) => Ok(rustix::fs::mknodat(CWD, at(path), FileType::Fifo, Mode::from_raw_mode(MODE), 0)?),
            Action::Link(old, new) => std::fs::hard_link(at(old), at(new)),
            Action::Unlink(path) => std::fs::remove_file(at(path)),
            Action::RemoveDir(path) => std::fs::remove_dir(at(path)),
            Action::Rename(from, to) => std::fs::rename(at(from), at(to)),
            Action::Exchange(one, other) => {
                Ok(rustix::fs::renameat_with(CWD, at(one), CWD, at(other), RenameFlags::EXCHANGE)?)
            }
            Action::Write { path, offset, bytes, append, sync } => {
                let file = OpenOptions::new().read(true).write(true).append(*append).open(at(path))?;
                match append {
                    true => io::Write::write_all(&mut &file, &bytes.0)?,
                    false => file.write_all_at(&bytes.0, *offset)?,
                }
                sync_file(&file, *sync)
            }
            Action::Truncate { path, len, sync } => {
                let file = OpenOptions::new().write(true).open(at(path))?;
                file.set_len(*len)?;
                sync_file(&file, *sync)
            }
            Action::Empty { path, sync } => {
                let file = OpenOptions::new().write(true).truncate(true).open(at(path))?;
                sync_file(&file, *sync)
            }
            Action::Chmod(path, mode) => std::fs::set_permissions(at(path), Permissions::from_mode(*mode)),
            Action::Sync { path, sync } => sync_file(&File::open(at(path))?, *sync),
            Action::SyncDir(path) => File::open(at(path))?.sync_all(),
        }
    }
}

fn sync_file(file: &File, sync: Sync) -> io::Result<()> {
    match sync {
        Sync::None => Ok(()),
        Sync::File => file.sync_all(),
        Sync::Data => file.sync_data(),
    }
}

/// Chooses what to do next; `None` when the dice fell on something that cannot be done just now.
fn choose(model: &mut Model, prefix: &str, syncs: usize, random: &mut Random) -> Option<(Op, Action)> {
    let all = model.tree.listing();
    let files: Vec<_> = all.iter().filter(|entry| entry.kind == Kind::File).collect();
    let dirs: Vec<_> = all.iter().filter(|entry| entry.kind == Kind::Dir).collect();
    let file = random.pick(&files).map(|file| (*file).clone());
    let dir = (*random.pick(&dirs)?).clone();
    match random.below(100) {
        0..12 => add(model, &dir, prefix, random),
        12..34 => write(model, &file?, syncs, random),
        34..39 => truncate(model, &file?, syncs, random),
        39..45 => chmod(&file?, random),
        45..56 if !random.one_in(syncs) => None,
        45..51 => {
            let (file, sync) = (file?, if random.one_in(3) { Sync::Data } else { Sync::File });
            Some((Op::Sync { id: file.id, sync }, Action::Sync { path: file.path, sync }))
        }
        51..56 => Some((Op::SyncDir(dir.id), Action::SyncDir(dir.path))),
        56..78 => rename(model, &all, &dir, prefix, random),
        78..84 => {
            let plain: Vec<_> = all.iter().filter(|entry| entry.kind != Kind::Dir).collect();
            let (plain, at) = (random.pick(&plain)?, free_name(model, &dir, prefix, random)?);
            let names = Names::Link { at: at.clone(), id: plain.id };
            Some((Op::Names(names), Action::Link(plain.path.clone(), join(&dir, &at.1))))
        }
        84..95 => {
            let plain: Vec<_> = all.iter().filter(|entry| entry.kind != Kind::Dir).collect();
            let plain = random.pick(&plain)?;
            Some((Op::Names(Names::Remove(plain.at.clone())), Action::Unlink(plain.path.clone())))
        }
        _ => {
            let empty = |dir: &&&Listed| dir.at.0 != ROOT && model.tree.dirs[&dir.id].is_empty();
            let empty: Vec<_> = dirs.iter().filter(empty).collect();
            let dir = random.pick(&empty)?;
            Some((Op::Names(Names::Remove(dir.at.clone())), Action::RemoveDir(dir.path.clone())))
        }
    }
}

fn join(dir: &Listed, name: &str) -> String {
    format!("{}/{name}", dir.path)
}

fn any_name(prefix: &str, random: &mut Random) -> String {
    format!("{prefix}n{}", random.below(NAMES_PER_THREAD))
}

fn free_name(model: &Model, dir: &Listed, prefix: &str, random: &mut Random) -> Option<At> {
    let at = (dir.id, any_name(prefix, random));
    model.tree.get(&at).is_none().then_some(at)
}

fn add(model: &mut Model, dir: &Listed, prefix: &str, random: &mut Random) -> Option<(Op, Action)> {
    let at = free_name(model, dir, prefix, random)?;
    let path = join(dir, &at.1);
    let (kind, action) = match random.below(9) {
        0..5 => (Kind::File, Action::Create(path)),
        5..7 => (Kind::Dir, Action::MakeDir(path)),
        7 => (Kind::Fifo, Action::Fifo(path)),
        _ => {
            let target = format!("to-{}", random.below(1000));
            (Kind::Symlink(target.clone()), Action::Symlink(target, path))
        }
    };
    Some((Op::Names(Names::Add { at, id: model.fresh(), kind }), action))
}

fn some_sync(syncs: usize, random: &mut Random) -> Sync {
    match random.below(8 * syncs) {
        0 => Sync::File,
        1 => Sync::Data,
        _ => Sync::None,
    }
}

fn write(model: &Model, file: &Listed, syncs: usize, random: &mut Random) -> Option<(Op, Action)> {
    let size = model.files[&file.id].content.len();
    let len = match random.below(6) {
        0 => 1,
        1..5 => 1 + random.below(6000),
        _ => 1 + random.below(200_000),
    };
    let append = random.one_in(2);
    let offset = match random.below(3) {
        _ if append => size,
        0 => 0,
        _ => random.below(size + 1),
    };
    let bytes = Arc::new(random.bytes(len));
    let sync = some_sync(syncs, random);
    let change = Change::Write { offset, bytes: bytes.clone() };
    let action = Action::Write { path: file.path.clone(), offset: offset as u64, bytes: Bytes(bytes), append, sync };
    Some((Op::Content { id: file.id, change, sync }, action))
}

fn truncate(model: &Model, file: &Listed, syncs: usize, random: &mut Random) -> Option<(Op, Action)> {
    let size = model.files[&file.id].content.len();
    let (path, sync) = (file.path.clone(), some_sync(syncs, random));
    let len = match random.below(4) {
        0 => 0,
        1 => size + random.below(10_000),
        _ => random.below(size + 1),
    };
    let action = match len {
        0 if random.one_in(2) => Action::Empty { path, sync },
        _ => Action::Truncate { path, len: len as u64, sync },
    };
    Some((Op::Content { id: file.id, change: Change::Truncate(len), sync }, action))
}

fn chmod(file: &Listed, random: &mut Random) -> Option<(Op, Action)> {
    let mode = *random.pick(&[0o600, 0o640, 0o644, 0o664, 0o755, 0o700])?;
    Some((Op::Chmod { id: file.id, mode }, Action::Chmod(file.path.clone(), mode)))
}

fn rename(model: &Model, all: &[Listed], dir: &Listed, prefix: &str, random: &mut Random) -> Option<(Op, Action)> {
    let movable: Vec<_> = all.iter().filter(|entry| entry.at.0 != ROOT).collect();
    let from = *random.pick(&movable)?;
    if random.one_in(6) {
        let other = *random.pick(&movable)?;
        if holds(model, from, other.id) || holds(model, other, from.id) || from.id == other.id {
            return None;
        }
        let names = Names::Exchange(from.at.clone(), other.at.clone());
        return Some((Op::Names(names), Action::Exchange(from.path.clone(), other.path.clone())));
    }
    // Half the time onto a name that was there, or is.
    let name = match random.one_in(2) {
        true => all.iter().filter(|entry| entry.at.0 == dir.id).map(|entry| entry.at.1.clone()).nth(random.below(4)),
        false => None,
    };
    let to = (dir.id, name.unwrap_or_else(|| any_name(prefix, random)));
    if let Some(there) = model.tree.get(&to) {
        let is_dir = |id: Id| model.tree.kinds[&id] == Kind::Dir;
        let full = model.tree.dirs.get(&there).is_some_and(|names| !names.is_empty());
        if there == from.id || is_dir(there) != is_dir(from.id) || full {
            return None;
        }
    }
    if holds(model, from, dir.id) {
        return None;
    }
    let names = Names::Rename(from.at.clone(), to.clone());
    Some((Op::Names(names), Action::Rename(from.path.clone(), join(dir, &to.1))))
}

fn holds(model: &Model, entry: &Listed, id: Id) -> bool {
    entry.kind == Kind::Dir && model.tree.holds(entry.id, id)
}
