//! From options to a union: which lower, which upper, which of the kernel's offers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use backing::bodies::StoreBodies;
use backing::index_note;
use backing::mmap::Map;
use backing::scanned::{self, Scanned};
use backing::upper::{Durability, Settings, UpperDir};
use layer::index::Index;
use overlay::folded::Folded;
use overlay::ids::{IdMap, Ids, Run};
use overlay::{Lower, Overlay};
use rustix::fs::{Mode, OFlags};

use crate::fs::{FOREVER, Fs, Wishes};
use crate::options::{self, DirNlink, Feature, ImageLower, LowerDirs, Options, Owners, XattrPermissions};
use crate::{Daemon, Failure, Settle};

/// Builds the union that `options` describe, and serves it until the mount ends.
///
/// Nothing is mounted before [`Daemon::serve`]: what fails here fails with no trace.
pub(crate) fn build_and_serve(options: &Options, daemon: Daemon) -> Result<(), Failure> {
    match &options.lower {
        LowerDirs::Image(image) => serve(options, daemon, open_image(image)?, &image.objects),
        LowerDirs::Plain(dirs) => {
            let scanned = open_dirs(dirs, options)?;
            serve(options, daemon, scanned, dirs.first().map_or(&options.target, |dir| dir))
        }
        LowerDirs::Layers(_) => Err(no_union()),
    }
}

fn no_union() -> Failure {
    Failure::new("layers side by side are no union")
}

fn failure(error: overlay::Error) -> Failure {
    Failure::new(error.to_string())
}

fn open_image(image: &ImageLower) -> Result<Folded<Map, StoreBodies>, Failure> {
    let path = image.index.display();
    let open = rustix::fs::open(&image.index, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let opened = open.and_then(|file| Ok((index_note::read(&file), Map::of(&file)?)));
    let (note, map) = opened.map_err(|error| Failure::new(format!("open index {path}: {error}")))?;
    let index = Index::open_noted(map, &note)
        .map_err(|error| Failure::new(format!("index {path}: {error}; delete it and mount again, it is a cache")))?;
    let bodies = StoreBodies::open(&image.layers, &image.objects, index.layers()).map_err(failure)?;
    Folded::new(index, bodies).map_err(failure)
}

fn open_dirs(dirs: &[PathBuf], options: &Options) -> Result<Scanned, Failure> {
    let how = scanned::Options {
        whiteouts: match options.whiteouts {
            options::Whiteouts::Every => scanned::Whiteouts::All,
            options::Whiteouts::Overlay => scanned::Whiteouts::Overlay,
        },
        override_stat: options.xattr_permissions == XattrPermissions::User || !privileged(),
    };
    Scanned::open_mapped(dirs, how, ids(&options.owners)).map_err(|error| Failure::new(error.to_string()))
}

/// Tells whether owners and devices can be what they are: without privilege, records stand for them.
fn privileged() -> bool {
    namespace_ids("/proc/self/uid_map").is_none() && rustix::process::geteuid().is_root()
}

fn serve<L: Lower>(options: &Options, daemon: Daemon, lower: L, space_of: &Path) -> Result<(), Failure> {
    let upper = open_upper(options)?;
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let space_of = rustix::fs::open(space_of, directory, Mode::empty()).ok().map(Arc::new);
    let wishes = Wishes {
        space_of,
        bare: options.enabled(Feature::Bare) && daemon.may_lack_attributes(),
        always_plus: upper.is_none(),
        ..wishes(options, lower.has_acls() || upper.is_some())
    };
    let settings = overlay::Options {
        ids: ids(&options.owners),
        lazy: options.enabled(Feature::LazyCopyUp),
        ..overlay::Options::default()
    };
    let overlay = Overlay::new(lower, upper, settings).map_err(failure)?;
    let fs = Fs::new(overlay, wishes);
    let started = fs.on_start();
    daemon.serve(options, fs, started)?;
    match options.leave {
        // The end of the mount did that.
        Settle::AtRest => Ok(()),
        how => settle(options, how),
    }
}

/// Brings the upper that `options` name to rest, without a mount.
pub(crate) fn settle(options: &Options, how: Settle) -> Result<(), Failure> {
    match &options.lower {
        LowerDirs::Image(image) => settle_over(options, open_image(image)?, how),
        LowerDirs::Plain(dirs) => settle_over(options, open_dirs(dirs, options)?, how),
        LowerDirs::Layers(_) => Err(no_union()),
    }
}

fn settle_over<L: Lower>(options: &Options, lower: L, how: Settle) -> Result<(), Failure> {
    let settings = overlay::Options { ids: ids(&options.owners), ..overlay::Options::default() };
    let overlay = Overlay::new(lower, open_upper(options)?, settings).map_err(failure)?;
    match how {
        Settle::AtRest => overlay.settle().map_err(failure),
        Settle::Plain => overlay.settle_plain().map_err(failure),
        Settle::Aufs => {
            overlay.settle_plain().map_err(failure)?;
            drop(overlay);
            open_upper(options)?.map_or(Ok(()), UpperDir::into_aufs).map_err(failure)
        }
    }
}

fn open_upper(options: &Options) -> Result<Option<UpperDir>, Failure> {
    let opened = options.upper.as_ref().map(|dirs| UpperDir::open(&dirs.upper, &dirs.work, settings(options)));
    opened.transpose().map_err(failure)
}

fn settings(options: &Options) -> Settings {
    Settings {
        durability: match options.durability {
            options::Durability::Full | options::Durability::NoFsync => Durability::Synced,
            options::Durability::Volatile => Durability::Volatile,
        },
        always_override: options.xattr_permissions == XattrPermissions::User,
        user_marks: options.user_xattr,
    }
}

fn wishes(options: &Options, acl: bool) -> Wishes {
    let on = |feature| options.enabled(feature);
    Wishes {
        passthrough: on(Feature::Passthrough),
        stacked: stacked(options),
        readdirplus: on(Feature::ReadDirPlus),
        parallel_dirops: on(Feature::ParallelDirops),
        no_opendir: on(Feature::NoOpendir),
        cache_symlinks: on(Feature::CacheSymlinks),
        idmap: on(Feature::AllowIdmap),
        resend: on(Feature::Resend),
        killpriv: on(Feature::KillPriv),
        acl: acl && on(Feature::Acl) && !options.no_acl,
        negative: on(Feature::NegativeEntries),
        bare: false,
        always_plus: false,
        ttl: options.timeout.unwrap_or(FOREVER),
        max_write: options.max_write.unwrap_or(1 << 20).clamp(4096, 16 << 20),
        follow: on(Feature::Follow) && options.threads.get() == 1,
        content: on(Feature::Content) && options.threads.get() == 1,
        sync: options.durability == options::Durability::Full,
        static_nlink: options.dir_nlink == DirNlink::One,
        space_of: None,
    }
}

/// Tells whether a backing file lies on a stacked filesystem, over which the kernel stacks only if it is told so.
fn stacked(options: &Options) -> bool {
    const OVERLAYFS: i64 = 0x794c_7630;
    const FUSE: i64 = 0x6573_5546;
    let over = |path: &Path| rustix::fs::statfs(path).is_ok_and(|fs| [OVERLAYFS, FUSE].contains(&fs.f_type));
    let lower = match &options.lower {
        LowerDirs::Image(image) => over(&image.objects),
        LowerDirs::Plain(dirs) => dirs.iter().any(|dir| over(dir)),
        LowerDirs::Layers(store) => over(&store.objects),
    };
    lower || options.upper.as_ref().is_some_and(|dirs| over(&dirs.upper))
}

fn ids(owners: &Owners) -> Ids {
    let map = |map: &options::IdMap, squash: Option<u32>, file: &str| IdMap {
        runs: map.ranges().iter().map(|r| Run { shown: r.shown, disk: r.on_disk, len: r.len }).collect(),
        squash,
        known: namespace_ids(file),
    };
    Ids {
        uid: map(&owners.uids, owners.squash_uid, "/proc/self/uid_map"),
        gid: map(&owners.gids, owners.squash_gid, "/proc/self/gid_map"),
    }
}

/// Reads which ids this user namespace has; `None` where it has them all. Others are shown as the mounting user's, because
/// the kernel refuses to write to a file whose owner it cannot name.
fn namespace_ids(file: &str) -> Option<(Vec<(u32, u32)>, u32)> {
    let text = std::fs::read_to_string(file).ok()?;
    let ranges: Vec<(u32, u32)> = text
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace().map(str::parse);
            let first = fields.next()?.ok()?;
            let count = fields.nth(1)?.ok()?;
            Some((first, count))
        })
        .collect();
    let all = ranges.iter().any(|(first, count)| *first == 0 && *count == u32::MAX);
    let own =
        if file.ends_with("uid_map") { rustix::process::getuid().as_raw() } else { rustix::process::getgid().as_raw() };
    (!all).then_some((ranges, own))
}
