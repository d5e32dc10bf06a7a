//! Meaning: single options into [`Options`]. Later options win over earlier ones.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::mount::{MountFlags, MountPropagationFlags};

use super::grammar::{Given, MountLine, split_colons, unescape};
use super::table::{Known, Stance};
use super::{
    Access, DirNlink, Durability, FeatureSet, IdMap, ImageLower, LowerDirs, MAX_LAYERS, MountOptions, Options, Owners,
    Stay, UpperDirs, Whiteouts, XattrPermissions,
};
use crate::{Failure, Settle};

/// The longest path that a system call takes (`PATH_MAX` without its NUL, limits.h).
const PATH_MAX: usize = 4095;

/// `atime` and its like exclude each other.
const ATIME: MountFlags = MountFlags::NOATIME.union(MountFlags::RELATIME).union(MountFlags::STRICTATIME);

/// Word, what it decides, what it switches on.
const MOUNT_FLAGS: &[(&str, MountFlags, MountFlags)] = &[
    ("ro", MountFlags::RDONLY, MountFlags::RDONLY),
    ("rw", MountFlags::RDONLY, MountFlags::empty()),
    ("suid", MountFlags::NOSUID, MountFlags::empty()),
    ("nosuid", MountFlags::NOSUID, MountFlags::NOSUID),
    ("dev", MountFlags::NODEV, MountFlags::empty()),
    ("nodev", MountFlags::NODEV, MountFlags::NODEV),
    ("exec", MountFlags::NOEXEC, MountFlags::empty()),
    ("noexec", MountFlags::NOEXEC, MountFlags::NOEXEC),
    ("atime", ATIME, MountFlags::empty()),
    ("noatime", ATIME, MountFlags::NOATIME),
    ("relatime", ATIME, MountFlags::RELATIME),
    ("norelatime", ATIME, MountFlags::empty()),
    ("strictatime", ATIME, MountFlags::STRICTATIME),
    ("nostrictatime", ATIME, MountFlags::empty()),
    ("diratime", MountFlags::NODIRATIME, MountFlags::empty()),
    ("nodiratime", MountFlags::NODIRATIME, MountFlags::NODIRATIME),
    ("sync", MountFlags::SYNCHRONOUS, MountFlags::SYNCHRONOUS),
    ("async", MountFlags::SYNCHRONOUS, MountFlags::empty()),
    ("dirsync", MountFlags::DIRSYNC, MountFlags::DIRSYNC),
    ("symfollow", MountFlags::NOSYMFOLLOW, MountFlags::empty()),
    ("nosymfollow", MountFlags::NOSYMFOLLOW, MountFlags::NOSYMFOLLOW),
];

const PROPAGATION: &[(&str, MountPropagationFlags)] = &[
    ("private", MountPropagationFlags::PRIVATE),
    ("rprivate", MountPropagationFlags::PRIVATE),
    ("shared", MountPropagationFlags::SHARED),
    ("rshared", MountPropagationFlags::SHARED),
    ("slave", MountPropagationFlags::DOWNSTREAM),
    ("rslave", MountPropagationFlags::DOWNSTREAM),
    ("unbindable", MountPropagationFlags::UNBINDABLE),
    ("runbindable", MountPropagationFlags::UNBINDABLE),
];

/// What the options said so far.
#[derive(Default)]
struct Draft {
    layers: Vec<PathBuf>,
    index: Option<PathBuf>,
    objects: Option<PathBuf>,
    image_layers: Option<PathBuf>,
    upper: Option<PathBuf>,
    work: Option<PathBuf>,
    owners: Owners,
    squash_to_root: bool,
    xattr_permissions: XattrPermissions,
    dir_nlink: DirNlink,
    no_acl: bool,
    no_fsync: bool,
    volatile: bool,
    user_xattr: bool,
    whiteouts: Whiteouts,
    leave: Option<Settle>,
    timeout: Option<Duration>,
    max_write: Option<u32>,
    threads: Option<NonZeroUsize>,
    clone_fd: bool,
    debug: bool,
    disabled: FeatureSet,
    log: Option<PathBuf>,
    mount: MountOptions,
    notes: Vec<String>,
}

pub(super) fn apply(line: MountLine) -> Result<Options, Failure> {
    let mut draft = Draft::default();
    for given in &line.options {
        draft.take(given)?;
    }
    draft.finish(line)
}

impl Draft {
    fn take(&mut self, given: &Given) -> Result<(), Failure> {
        match given.name.as_str() {
            "lowerdir" => self.layers = given.layers()?,
            "lowerdir+" => self.layers.push(given.path()?),
            "upperdir" => self.upper = Some(given.path()?),
            "workdir" => self.work = Some(given.path()?),
            "uidmapping" => self.owners.uids = given.ids()?,
            "gidmapping" => self.owners.gids = given.ids()?,
            "squash_to_root" => self.squash_to_root = given.bare()?,
            "squash_to_uid" => self.owners.squash_uid = Some(given.number(0..=u32::MAX - 1)?),
            "squash_to_gid" => self.owners.squash_gid = Some(given.number(0..=u32::MAX - 1)?),
            "xattr_permissions" if given.value.as_deref() == Some(b"1") => {
                return Err(given.bad("owners are not kept in a privileged attribute; 2 keeps them in a user's"));
            }
            "xattr_permissions" => {
                self.xattr_permissions =
                    given.one_of(&[("0", XattrPermissions::Unset), ("2", XattrPermissions::User)])?;
            }
            "static_nlink" if given.bare()? => self.dir_nlink = DirNlink::One,
            "plyfs.nlink" => {
                self.dir_nlink = given.one_of(&[("counted", DirNlink::Counted), ("one", DirNlink::One)])?;
            }
            "noacl" => self.no_acl = given.bare()?,
            "fsync" => self.no_fsync = given.one_of(&[("0", true), ("1", false)])?,
            "volatile" => self.volatile = given.bare()?,
            "userxattr" => self.user_xattr = given.bare()?,
            "timeout" => self.timeout = Some(given.seconds()?),
            "max_write" => self.max_write = Some(given.number(4096..=16 << 20)?),
            "max_read" => self.mount.max_read = Some(given.number(4096..=u32::MAX)?),
            "clone_fd" => self.clone_fd = given.bare()?,
            "debug" => self.debug = given.bare()?,
            "plyfs.index" => self.index = Some(given.path()?),
            "plyfs.objects" => self.objects = Some(given.path()?),
            "plyfs.layers" => self.image_layers = Some(given.path()?),
            "plyfs.log" => self.log = Some(given.path()?),
            "plyfs.disable" => self.disabled = given.features()?,
            "plyfs.whiteouts" => {
                self.whiteouts = given.one_of(&[("all", Whiteouts::Every), ("overlay", Whiteouts::Overlay)])?;
            }
            "plyfs.leave" => {
                let forms = [("overlay", Settle::AtRest), ("plain", Settle::Plain), ("aufs", Settle::Aufs)];
                self.leave = Some(given.one_of(&forms)?);
            }
            "plyfs.threads" => self.threads = NonZeroUsize::new(given.number(1..=64)? as usize),
            _ => return self.take_mount_option(given),
        }
        Ok(())
    }

    fn take_mount_option(&mut self, given: &Given) -> Result<(), Failure> {
        let name = given.name.as_str();
        if let Some((_, decides, on)) = MOUNT_FLAGS.iter().find(|(word, ..)| *word == name) {
            given.bare()?;
            let flags = &mut self.mount.flags;
            flags.chosen |= *decides;
            flags.on = (flags.on - *decides) | *on;
            return Ok(());
        }
        if let Some((_, propagation)) = PROPAGATION.iter().find(|(word, _)| *word == name) {
            given.bare()?;
            self.mount.propagation = Some(*propagation);
            return Ok(());
        }
        match name {
            "allow_other" if given.bare()? => self.mount.access = Access::Everybody,
            "allow_root" if given.bare()? => self.mount.access = Access::OwnerAndRoot,
            "default_permissions" => drop(given.bare()?),
            "fsname" => self.mount.fsname = Some(given.text()?),
            "subtype" => self.mount.subtype = Some(given.text()?),
            "context" | "fscontext" | "defcontext" | "rootcontext" => {
                given.value()?;
                self.mount.contexts.push(OsString::from(given.spelled()));
            }
            _ => return self.take_other(given),
        }
        Ok(())
    }

    /// Options that are noted or refused, and those that nobody knows.
    fn take_other(&mut self, given: &Given) -> Result<(), Failure> {
        // Comments for whoever reads /etc/fstab; mount(8) leaves `X-` and strips `x-`.
        if given.name.starts_with("x-") || given.name.starts_with("X-") || given.name == "comment" {
            return Ok(());
        }
        match Known::find(&given.name) {
            Some(known) if known.stance == Stance::Refused => Err(given.bad(known.meaning)),
            Some(known) if known.stance == Stance::Noted => {
                if given.name == "verity" && given.value.as_deref() == Some(b"require") {
                    return Err(given.bad("fs-verity digests are not checked; leave the option out"));
                }
                self.notes.push(format!("option '{}' has no effect: {}", given.shown(), known.meaning));
                Ok(())
            }
            _ => Err(Failure::new(format!("unknown option '{}': see --help", given.shown()))),
        }
    }

    fn finish(mut self, line: MountLine) -> Result<Options, Failure> {
        let lower = self.lower()?;
        let upper = self.upper_dirs()?;
        if self.squash_to_root {
            self.owners.squash_uid.get_or_insert(0);
            self.owners.squash_gid.get_or_insert(0);
        }
        let debug = self.debug || line.debug;
        Ok(Options {
            target: line.target.into(),
            source: line.source,
            stay: if line.foreground || debug { Stay::Foreground } else { Stay::Background },
            debug,
            lower,
            upper,
            owners: self.owners,
            xattr_permissions: self.xattr_permissions,
            dir_nlink: self.dir_nlink,
            no_acl: self.no_acl,
            durability: match (self.volatile, self.no_fsync) {
                (true, _) => Durability::Volatile,
                (false, true) => Durability::NoFsync,
                (false, false) => Durability::Full,
            },
            user_xattr: self.user_xattr,
            whiteouts: self.whiteouts,
            leave: self.leave.unwrap_or(Settle::AtRest),
            timeout: self.timeout,
            max_write: self.max_write,
            threads: self.threads.filter(|_| !line.single).unwrap_or(NonZeroUsize::MIN),
            clone_fd: self.clone_fd,
            disabled: self.disabled,
            log: self.log,
            mount: self.mount,
            notes: self.notes,
        })
    }

    fn lower(&mut self) -> Result<LowerDirs, Failure> {
        let layers = std::mem::take(&mut self.layers);
        let image = (self.index.take(), self.objects.take(), self.image_layers.take());
        match (layers.len(), image) {
            (0, (None, None, None)) => Err(Failure::new("no lower given: add -o lowerdir=DIR[:DIR...]")),
            (1..=MAX_LAYERS, (None, None, None)) => Ok(LowerDirs::Plain(layers)),
            (count, (None, None, None)) => Err(Failure::new(format!(
                "{count} layers in lowerdir=: the most is {MAX_LAYERS}; merge some of them first"
            ))),
            (0, (Some(index), Some(objects), layers)) => {
                let layers = layers.unwrap_or_else(|| objects.with_file_name("layers"));
                Ok(LowerDirs::Image(ImageLower { index, objects, layers }))
            }
            (0, (Some(_), None, _)) => Err(Failure::new("plyfs.index= needs plyfs.objects=DIR beside it")),
            (0, (None, ..)) => Err(Failure::new("plyfs.objects= and plyfs.layers= need plyfs.index=FILE beside them")),
            (_, _) => Err(Failure::new("both lowerdir= and plyfs.index= are given: leave one of them out")),
        }
    }

    fn upper_dirs(&mut self) -> Result<Option<UpperDirs>, Failure> {
        match (self.upper.take(), self.work.take()) {
            (Some(upper), Some(work)) => Ok(Some(UpperDirs { upper, work })),
            (None, None) => Ok(None),
            (Some(_), None) => {
                Err(Failure::new("upperdir= needs workdir=DIR beside it: an empty directory on the same filesystem"))
            }
            (None, Some(_)) => {
                // As kernel overlayfs has it.
                self.notes.push("option 'workdir=' has no effect without upperdir=".to_owned());
                Ok(None)
            }
        }
    }
}

impl Given {
    /// The option as the user typed it, cut to a length that a message can bear.
    fn shown(&self) -> String {
        let spelled = self.spelled();
        match spelled.char_indices().nth(100) {
            Some((cut, _)) => format!("{}...", &spelled[..cut]),
            None => spelled,
        }
    }

    fn bad(&self, why: impl std::fmt::Display) -> Failure {
        Failure::new(format!("option '{}': {why}", self.shown()))
    }

    /// Returns true, for an option that takes no value.
    fn bare(&self) -> Result<bool, Failure> {
        match self.value {
            None => Ok(true),
            Some(_) => Err(self.bad("takes no value")),
        }
    }

    fn value(&self) -> Result<&[u8], Failure> {
        self.value.as_deref().filter(|value| !value.is_empty()).ok_or_else(|| self.bad("needs a value"))
    }

    fn text(&self) -> Result<OsString, Failure> {
        Ok(OsString::from_vec(unescape(self.value()?)))
    }

    fn utf8(&self) -> Result<&str, Failure> {
        str::from_utf8(self.value()?).map_err(|_| self.bad("is not text"))
    }

    fn path(&self) -> Result<PathBuf, Failure> {
        self.checked_path(self.value()?)
    }

    fn checked_path(&self, escaped: &[u8]) -> Result<PathBuf, Failure> {
        let path = unescape(escaped);
        if path.len() > PATH_MAX {
            return Err(self.bad(format_args!("a path is longer than {PATH_MAX} bytes")));
        }
        Ok(PathBuf::from(OsString::from_vec(path)))
    }

    fn layers(&self) -> Result<Vec<PathBuf>, Failure> {
        split_colons(self.value()?).map(|layer| self.layer(layer)).collect()
    }

    fn layer(&self, escaped: &[u8]) -> Result<PathBuf, Failure> {
        match escaped {
            b"" => Err(self.bad("a directory is missing between two colons (data-only layers are not supported)")),
            [b'/', b'/', ..] => {
                Err(self.bad("layers from plugins ('//NAME/...') are not supported; for a plain path write one '/'"))
            }
            _ => self.checked_path(escaped),
        }
    }

    fn ids(&self) -> Result<IdMap, Failure> {
        IdMap::parse(self.utf8()?).map_err(|why| self.bad(why))
    }

    fn number(&self, range: RangeInclusive<u32>) -> Result<u32, Failure> {
        let number = self.utf8()?.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| self.bad(format_args!("needs a number from {} to {}", range.start(), range.end())))
    }

    fn seconds(&self) -> Result<Duration, Failure> {
        let seconds = self.utf8()?.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        seconds.ok_or_else(|| self.bad("needs a number of seconds"))
    }

    fn one_of<T: Copy>(&self, values: &[(&str, T)]) -> Result<T, Failure> {
        let value = self.utf8()?;
        let found = values.iter().find(|(word, _)| *word == value);
        found.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let words: Vec<_> = values.iter().map(|(word, _)| *word).collect();
            self.bad(format_args!("is none of {}", words.join(", ")))
        })
    }

    fn features(&self) -> Result<FeatureSet, Failure> {
        let names = String::from_utf8(unescape(self.value()?)).map_err(|_| self.bad("is not text"))?;
        FeatureSet::parse(&names).map_err(|name| {
            let known: Vec<_> = super::Feature::ALL.iter().map(|feature| feature.name()).collect();
            self.bad(format_args!("'{name}' is no feature; there are {}", known.join(", ")))
        })
    }
}
