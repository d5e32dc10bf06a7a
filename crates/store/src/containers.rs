//! Containers: an image's writable layer each, and mounts of images: the records that protect what they use.
//!
//! `containers/<id>/meta.json` is the container; `upper` and `work` lie beside it. A container that is there is whole: it is
//! made in `ingest/` and renamed. A read-only mount of an image is a file in `mounts/`; it counts while its process lives.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use backing::override_stat::{self, Override};
use layer::index::Index;
use layer::{Dev, DiffId, Digest, FileType, Slot, Time};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags, setxattr, utimensat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::disk;
use crate::error::{Error, Result, shown};
use crate::images::{Image, ImageId};
use crate::lock::Lock;
use crate::process::Process;
use crate::store::Store;
use crate::time;

const RECORD: &str = "meta.json";
const NAME_MAX: usize = 128;

/// A container: one writable layer over an image.
#[derive(Clone, Debug)]
pub struct Container {
    /// 64 hex digits.
    pub id: String,
    /// Its name, unique in the store.
    pub name: String,
    /// The image that it was made from.
    pub image: ImageId,
    /// What the image was called then.
    pub image_name: String,
    /// The image's layers, base first.
    pub diff_ids: Vec<DiffId>,
    /// When it was made.
    pub created: Time,
    /// Its writable layer, in kernel overlayfs format.
    pub upper: PathBuf,
    /// The overlay's work directory.
    pub work: PathBuf,
    /// Where its daemon writes its log.
    pub log: PathBuf,
    /// The named volumes that it was run with.
    pub volumes: Vec<String>,
    /// Where it is mounted, or was when its daemon died.
    pub mount: Option<Mount>,
}

/// A mount, as its maker recorded it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The mount point.
    pub target: PathBuf,
    /// Who serves it (while it is being made: who makes it).
    pub process: Process,
    /// Where the daemon writes its log.
    pub log: PathBuf,
}

/// A read-only mount of an image.
#[derive(Clone, Debug)]
pub struct ImageMount {
    /// 64 hex digits.
    pub id: String,
    /// The image.
    pub image: ImageId,
    /// The image's layers, base first.
    pub diff_ids: Vec<DiffId>,
    /// Where, and by whom.
    pub mount: Mount,
}

#[derive(Serialize, Deserialize)]
struct ContainerRecord {
    id: String,
    name: String,
    image: String,
    image_name: String,
    diff_ids: Vec<String>,
    created: String,
    #[serde(default)]
    volumes: Vec<String>,
    mount: Option<Mount>,
}

#[derive(Serialize, Deserialize)]
struct MountRecord {
    image: String,
    diff_ids: Vec<String>,
    mount: Mount,
}

impl Mount {
    /// Tells whether the process that serves it lives.
    pub fn is_live(&self) -> bool {
        self.process.is_alive()
    }
}

impl Container {
    /// Returns the first 12 digits of the ID.
    pub fn short_id(&self) -> &str {
        &self.id[..12]
    }

    /// Tells whether it is mounted: the process that serves it lives.
    pub fn is_mounted(&self) -> bool {
        self.mount.as_ref().is_some_and(Mount::is_live)
    }
}

impl Store {
    /// Makes a container of `image`; without a name it gets one.
    ///
    /// The upper's root takes the mode of the image's root directory; as root also its owner, extended attributes and time.
    /// # Errors
    /// [`Error::Exists`] for a name that is taken, [`Error::Invalid`] for one that is none, [`Error::NotFound`] for an image that is
    /// gone.
    pub fn create_container(&self, image: &Image, name: Option<&str>) -> Result<Container> {
        self.create_container_with(image, name, &[])
    }

    /// Makes a container that is run with named volumes: they stay as long as it does.
    ///
    /// # Errors
    /// As [`Store::create_container`].
    pub fn create_container_with(&self, image: &Image, name: Option<&str>, volumes: &[String]) -> Result<Container> {
        volumes.iter().try_for_each(|volume| check_name("volume", volume).map(drop))?;
        let _store = Lock::shared(&self.layout().lock())?;
        let lower = self.lower(image)?;
        let _records = Lock::exclusive(&self.layout().records_lock())?;
        // Once more under the lock: from here on no removal can come between.
        let image = self.image_by_id(image.id)?;
        let others = self.containers()?;
        let id = disk::random_id()?;
        let name = match name {
            Some(name) => check_name("container", name)?,
            None => free_name(&id, &others),
        };
        if let Some(other) = others.iter().find(|other| other.name == name) {
            let why = format!(
                "the name {name} is taken by container {}; choose another, or plyfs rm {name}",
                other.short_id()
            );
            return Err(Error::Exists(why));
        }
        let record = ContainerRecord {
            id: id.clone(),
            name,
            image: image.id.to_string(),
            image_name: image.label(),
            diff_ids: image.diff_ids.iter().map(DiffId::to_string).collect(),
            created: time::rfc3339(time::now()),
            volumes: volumes.to_vec(),
            mount: None,
        };
        let unfinished = disk::unfinished(self.layout());
        let dir = self.layout().containers().join(&id);
        let made = fill(&unfinished, &record, &lower.index)
            .and_then(|()| fs::rename(&unfinished, &dir).map_err(Error::at("make", &dir)));
        if let Err(error) = made {
            disk::remove_tree(&unfinished).ok(); // already failing; else swept at the next start
            return Err(error);
        }
        disk::sync_dir(&self.layout().containers())?;
        read_container(&dir)?.ok_or_else(|| no_container(&id))
    }

    /// Returns all containers, the newest first.
    ///
    /// # Errors
    /// The disk; [`Error::Corrupt`] naming a record that is not as it was written.
    pub fn containers(&self) -> Result<Vec<Container>> {
        let dir = self.layout().containers();
        let mut all = Vec::new();
        for id in disk::names(&dir)? {
            all.extend(read_container(&dir.join(id))?);
        }
        all.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
        Ok(all)
    }

    /// Finds a container by name, ID, or a unique prefix of its ID.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`], and those of [`Store::containers`].
    pub fn container(&self, text: &str) -> Result<Container> {
        let all = self.containers()?;
        if let Some(named) = all.iter().find(|container| container.name == text) {
            return Ok(named.clone());
        }
        let mut with_prefix = all.iter().filter(|container| !text.is_empty() && container.id.starts_with(text));
        match (with_prefix.next(), with_prefix.next()) {
            (Some(container), None) => Ok(container.clone()),
            (Some(_), Some(_)) => {
                Err(Error::Ambiguous(format!("{text}: several containers have IDs that begin so; give more digits")))
            }
            (None, _) => Err(no_container(text)),
        }
    }

    /// Records where a container is mounted and by whom, or that it is mounted no more.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::InUse`] if it is mounted elsewhere.
    pub fn set_mount(&self, container: &Container, mount: Option<Mount>) -> Result<Container> {
        let _store = Lock::shared(&self.layout().lock())?;
        let _records = Lock::exclusive(&self.layout().records_lock())?;
        let dir = self.layout().containers().join(&container.id);
        let Some(now) = read_container(&dir)? else { return Err(no_container(&container.name)) };
        let elsewhere = |old: &Mount| mount.as_ref().is_some_and(|new| new.target != old.target) && old.is_live();
        if let Some(old) = now.mount.as_ref().filter(|old| elsewhere(old)) {
            return Err(Error::InUse(mounted(&now.name, old)));
        }
        let record = ContainerRecord { mount, ..to_record(&now) };
        disk::publish(self.layout(), &dir.join(RECORD), &to_json(&record)?)?;
        read_container(&dir)?.ok_or_else(|| no_container(&container.name))
    }

    /// Removes a container with all that it has written.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::InUse`] while it is mounted.
    pub fn remove_container(&self, text: &str) -> Result<Container> {
        let _store = Lock::shared(&self.layout().lock())?;
        let records = Lock::exclusive(&self.layout().records_lock())?;
        let container = self.container(text)?;
        if let Some(mount) = container.mount.as_ref().filter(|mount| mount.is_live()) {
            return Err(Error::InUse(mounted(&container.name, mount)));
        }
        if let Some(lease) = self.leases()?.into_iter().find(|lease| lease.container.as_ref() == Some(&container.id)) {
            let why =
                format!("container {} is in use by a running '{}'; wait until it is done", container.name, lease.doing);
            return Err(Error::InUse(why));
        }
        let (dir, trash) = (self.layout().containers().join(&container.id), self.layout().trash().join(&container.id));
        fs::rename(&dir, &trash).map_err(Error::at("remove", &dir))?;
        disk::sync_dir(&self.layout().containers())?;
        drop(records);
        disk::discard(&trash)?;
        Ok(container)
    }

    /// Records a read-only mount of an image, before the daemon starts, so that nobody removes what it uses.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an image that is gone.
    pub fn add_image_mount(&self, image: &Image, mount: Mount) -> Result<ImageMount> {
        let _store = Lock::shared(&self.layout().lock())?;
        let _records = Lock::exclusive(&self.layout().records_lock())?;
        let image = self.image_by_id(image.id)?;
        let added = ImageMount { id: disk::random_id()?, image: image.id, diff_ids: image.diff_ids, mount };
        self.write_image_mount(&added)?;
        Ok(added)
    }

    /// Records that another process serves a read-only mount from now on.
    ///
    /// # Errors
    /// The disk.
    pub fn set_image_mount(&self, changed: &ImageMount) -> Result<()> {
        let _store = Lock::shared(&self.layout().lock())?;
        self.write_image_mount(changed)
    }

    /// Returns the read-only mounts of images whose processes live.
    ///
    /// # Errors
    /// The disk; [`Error::Corrupt`] naming a record that is not as it was written.
    pub fn image_mounts(&self) -> Result<Vec<ImageMount>> {
        let dir = self.layout().mounts();
        let mut all = Vec::new();
        for id in disk::names(&dir)? {
            let path = dir.join(&id);
            let Some(bytes) = disk::read_if_there(&path)? else { continue };
            let corrupt =
                |why: String| Error::corrupt(path.display(), format!("{why}; delete it if nothing is mounted"));
            let record: MountRecord = serde_json::from_slice(&bytes).map_err(|why| corrupt(why.to_string()))?;
            let image = ImageId(record.image.parse().map_err(|why| corrupt(format!("{why}")))?);
            let diff_ids = read_ids(&record.diff_ids).map_err(corrupt)?;
            all.push(ImageMount { id, image, diff_ids, mount: record.mount });
        }
        all.retain(|mount| mount.mount.is_live());
        Ok(all)
    }

    /// Forgets a read-only mount.
    ///
    /// # Errors
    /// The disk.
    pub fn remove_image_mount(&self, id: &str) -> Result<()> {
        let path = self.layout().mounts().join(id);
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(Error::at("delete", &path)),
        }
    }

    /// Returns what is known of a container.
    pub fn inspect_container(&self, container: &Container) -> Value {
        json!({
            "Id": container.id,
            "Name": container.name,
            "Image": container.image.to_string(),
            "ImageName": container.image_name,
            "Created": time::rfc3339(container.created),
            "Upper": container.upper,
            "Work": container.work,
            "Log": container.log,
            "Volumes": container.volumes,
            "Layers": container.diff_ids.iter().map(DiffId::to_string).collect::<Vec<_>>(),
            "Mount": container.mount.as_ref().map(|mount| json!({
                "Target": mount.target,
                "Pid": mount.process.pid,
                "Live": mount.is_live(),
                "Log": mount.log,
            })),
        })
    }

    fn write_image_mount(&self, mount: &ImageMount) -> Result<()> {
        let record = MountRecord {
            image: mount.image.to_string(),
            diff_ids: mount.diff_ids.iter().map(DiffId::to_string).collect(),
            mount: mount.mount.clone(),
        };
        disk::publish(self.layout(), &self.layout().mounts().join(&mount.id), &to_json(&record)?)
    }
}

fn fill(dir: &Path, record: &ContainerRecord, index: &Path) -> Result<()> {
    disk::make_dir(dir)?;
    let upper = dir.join("upper");
    for path in [&upper, &dir.join("work")] {
        disk::make_dir(path)?;
    }
    dress_upper(&upper, index)?;
    let meta = dir.join(RECORD);
    let mut file = disk::create(&meta, 0o600)?;
    std::io::Write::write_all(&mut file, &to_json(record)?)
        .and_then(|()| file.sync_all())
        .map_err(Error::at("write", &meta))?;
    disk::sync_dir(dir)
}

/// Gives the upper's root what the image's root directory has: the union shows the upper's.
///
/// An ordinary user, and root of a namespace that does not map the owner, keeps the directory and records what it stands for.
pub(crate) fn dress_upper(upper: &Path, index: &Path) -> Result<()> {
    let bytes = fs::read(index).map_err(Error::at("read", index))?;
    let index = Index::open(bytes).map_err(|why| Error::corrupt(index.display(), why))?;
    let Some(root) = index.row(Slot(0)) else { return Ok(()) };
    let is_root = rustix::process::geteuid().is_root();
    for (name, value) in index.xattrs(Slot(0)) {
        match setxattr(upper, name, value, XattrFlags::empty()) {
            // Only root may set most of them, and not every filesystem has them.
            Err(Errno::PERM | Errno::OPNOTSUPP) if !is_root => {
                log::warn!("{}: '{}' is lost for want of privilege", upper.display(), shown(name));
            }
            set => set.map_err(Error::at("set an extended attribute of", upper))?,
        }
    }
    let owned = is_root && chown(upper, Some(root.uid()), Some(root.gid())).is_ok();
    let mut perm = root.perm();
    if !owned {
        let record = Override { uid: root.uid(), gid: root.gid(), perm, kind: Some((FileType::Dir, Dev::default())) };
        match setxattr(upper, override_stat::NAME, record.format().as_bytes(), XattrFlags::empty()) {
            // The record tells the mode; its owner must be able to write here.
            Ok(()) => perm |= 0o700,
            Err(Errno::OPNOTSUPP) => {}
            failed => failed.map_err(Error::at("set an extended attribute of", upper))?,
        }
    }
    fs::set_permissions(upper, fs::Permissions::from_mode(perm.into()))
        .map_err(Error::at("change the mode of", upper))?;
    let mtime = Timespec { tv_sec: root.mtime().sec, tv_nsec: root.mtime().nsec.into() };
    let times = Timestamps { last_access: mtime, last_modification: mtime };
    utimensat(CWD, upper, &times, AtFlags::empty()).map_err(Error::at("set the times of", upper))
}

pub(crate) fn read_container(dir: &Path) -> Result<Option<Container>> {
    let path = dir.join(RECORD);
    let Some(bytes) = disk::read_if_there(&path)? else { return Ok(None) };
    let corrupt = |why: String| Error::corrupt(path.display(), why);
    let record: ContainerRecord = serde_json::from_slice(&bytes).map_err(|why| corrupt(why.to_string()))?;
    if record.id.len() != 64 || !dir.ends_with(&record.id) {
        return Err(corrupt(format!("it is the record of container '{}'", record.id)));
    }
    Ok(Some(Container {
        image: ImageId(record.image.parse().map_err(|why| corrupt(format!("{why}")))?),
        image_name: record.image_name,
        diff_ids: read_ids(&record.diff_ids).map_err(corrupt)?,
        created: time::parse_rfc3339(&record.created).ok_or_else(|| corrupt("'created' is no time".into()))?,
        upper: dir.join("upper"),
        work: dir.join("work"),
        log: dir.join("log"),
        volumes: record.volumes,
        mount: record.mount,
        id: record.id,
        name: record.name,
    }))
}

fn to_record(container: &Container) -> ContainerRecord {
    ContainerRecord {
        id: container.id.clone(),
        name: container.name.clone(),
        image: container.image.to_string(),
        image_name: container.image_name.clone(),
        diff_ids: container.diff_ids.iter().map(DiffId::to_string).collect(),
        created: time::rfc3339(container.created),
        volumes: container.volumes.clone(),
        mount: container.mount.clone(),
    }
}

pub(crate) fn read_ids(texts: &[String]) -> std::result::Result<Vec<DiffId>, String> {
    texts.iter().map(|text| text.parse::<Digest>().map(DiffId).map_err(|why| why.to_string())).collect()
}

pub(crate) fn to_json(record: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(record).map_err(|cause| Error::io("write a record", cause))
}

/// `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, as docker wants it.
pub(crate) fn check_name(of: &str, name: &str) -> Result<String> {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let inside = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    match first && inside && name.len() <= NAME_MAX {
        true => Ok(name.to_owned()),
        false => {
            let why = format!("1 to {NAME_MAX} of a-z A-Z 0-9 _ . -, the first a letter or digit");
            Err(Error::invalid(format!("{of} name '{}'", shown(name.as_bytes())), why))
        }
    }
}

fn free_name(id: &str, others: &[Container]) -> String {
    const FIRST: [&str; 16] = [
        "amber", "brisk", "calm", "deft", "early", "fair", "glad", "hazel", "ivory", "keen", "lucid", "mild", "noble",
        "quiet", "swift", "warm",
    ];
    const SECOND: [&str; 16] = [
        "alder", "birch", "cedar", "elm", "fir", "hemlock", "juniper", "larch", "maple", "oak", "pine", "rowan",
        "spruce", "walnut", "willow", "yew",
    ];
    let digit = |at: usize| usize::from_str_radix(&id[at..=at], 16).unwrap_or_default();
    let name = format!("{}-{}", FIRST[digit(0)], SECOND[digit(1)]);
    match others.iter().any(|other| other.name == name) {
        true => format!("{name}-{}", &id[2..8]),
        false => name,
    }
}

fn mounted(name: &str, mount: &Mount) -> String {
    format!("container {name} is mounted at {}; unmount it first: plyfs umount {name}", mount.target.display())
}

fn no_container(text: &str) -> Error {
    Error::NotFound(format!("no such container: {text}; 'plyfs ps -a' lists what is here"))
}
