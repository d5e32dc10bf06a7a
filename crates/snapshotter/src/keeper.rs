//! What each request does to the store and to the mounts.
//!
//! The store's records are the truth: a server that is started again goes on where the last one stopped, and daemons of the
//! last one are still there.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use layer::{ChainId, Digest, Time};
use store::{Error, Mount, NewSnapshot, Process, Snapshot, SnapshotKind, Store};
use tonic::Status;

use crate::api::snapshots as api;
use crate::api::types::Mount as ApiMount;
use crate::filter::Filter;
use crate::{Form, Mounter};

/// containerd tells by this label which chain of layers it is about to fetch and unpack.
const TARGET: &str = "containerd.io/snapshot.ref";

type Labels = BTreeMap<String, String>;

/// Snapshots and their mounts.
pub(crate) struct Keeper {
    store: Store,
    form: Form,
    mounter: Box<dyn Mounter>,
    /// Held while a snapshot is mounted or its mount ended, so that it is mounted once.
    mounting: Mutex<()>,
}

impl Keeper {
    pub(crate) fn new(store: Store, form: Form, mounter: Box<dyn Mounter>) -> Self {
        Keeper { store, form, mounter, mounting: Mutex::new(()) }
    }

    /// Makes a layer to be written; or tells that it is here already, when the caller says which one it wants to make.
    pub(crate) fn prepare(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<ApiMount>, Status> {
        if let Some(target) = labels.get(TARGET)
            && self.adopt(target, parent, &labels)?
        {
            return Err(Status::already_exists(format!("snapshot {target}: the store has it")));
        }
        self.make(SnapshotKind::Active, key, parent, &labels)
    }

    pub(crate) fn view(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<ApiMount>, Status> {
        self.make(SnapshotKind::View, key, parent, &labels)
    }

    /// Commits the stack of layers that `target` stands for, if the store has it; tells whether it is committed.
    fn adopt(&self, target: &str, parent: &str, labels: &Labels) -> Result<bool, Status> {
        let Ok(chain) = target.parse::<Digest>() else { return Ok(false) };
        let parent = some(parent);
        let new = NewSnapshot { kind: SnapshotKind::Committed, key: target, parent, labels };
        match self.store.adopt_snapshot(&ChainId(chain), &new) {
            Ok(adopted) => Ok(adopted.is_some()),
            Err(Error::Exists(_)) => {
                let there = self.store.snapshot(target).map_err(status)?;
                let same = there.kind == SnapshotKind::Committed && there.parent.as_deref() == parent;
                Ok(same && there.labels.get(TARGET).is_some_and(|label| label == target))
            }
            Err(error) => Err(status(error)),
        }
    }

    fn make(&self, kind: SnapshotKind, key: &str, parent: &str, labels: &Labels) -> Result<Vec<ApiMount>, Status> {
        let new = NewSnapshot { kind, key, parent: some(parent), labels };
        let snapshot = self.store.prepare_snapshot(&new).map_err(status)?;
        self.mounts_of(&snapshot).inspect_err(|_| {
            if let Err(error) = self.store.remove_snapshot(key) {
                log::warn!("{key} could not be mounted, and stays: {error}");
            }
        })
    }

    pub(crate) fn mounts(&self, key: &str) -> Result<Vec<ApiMount>, Status> {
        let snapshot = self.store.snapshot(key).map_err(status)?;
        match snapshot.kind {
            SnapshotKind::Committed => Err(Status::failed_precondition(format!("snapshot {key}: not active or view"))),
            _ => self.mounts_of(&snapshot),
        }
    }

    fn mounts_of(&self, snapshot: &Snapshot) -> Result<Vec<ApiMount>, Status> {
        let mode = if snapshot.kind == SnapshotKind::Active { "rw" } else { "ro" };
        let bind = |path: &std::path::Path| ApiMount {
            r#type: "bind".into(),
            source: path.display().to_string(),
            target: String::new(),
            options: vec![mode.into(), "rbind".into()],
        };
        if snapshot.layers.is_empty() {
            return Ok(vec![bind(&snapshot.upper)]); // Nothing shows through.
        }
        match &self.form {
            Form::Bind => {
                self.mount(&snapshot.name).map_err(|error| Status::internal(format!("{error:#}")))?;
                Ok(vec![bind(&snapshot.target)])
            }
            Form::Fuse3 { program } => {
                let options = self.mounter.options(&self.store, snapshot);
                let options = options.map_err(|error| Status::internal(format!("{error:#}")))?;
                Ok(vec![ApiMount {
                    r#type: format!("fuse3.{program}"),
                    source: "overlay".into(),
                    target: String::new(),
                    options,
                }])
            }
        }
    }

    /// Mounts a snapshot unless that is done.
    fn mount(&self, name: &str) -> anyhow::Result<()> {
        let _mounting = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = self.store.snapshot(name)?;
        if snapshot.mount.as_ref().is_some_and(Mount::is_live) {
            return Ok(());
        }
        if let Some(dead) = &snapshot.mount {
            self.mounter.end(dead)?;
        }
        let mount = self.mounter.mount(&self.store, &snapshot)?;
        self.store.set_snapshot_mount(name, Some(mount))?;
        Ok(())
    }

    /// Ends the mount of a snapshot, if it has one.
    fn end(&self, snapshot: &Snapshot) -> Result<(), Status> {
        let _mounting = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mount) = &snapshot.mount else { return Ok(()) };
        self.mounter.end(mount).map_err(|error| Status::internal(format!("{error:#}")))?;
        self.store.set_snapshot_mount(&snapshot.name, None).map_err(status)?;
        Ok(())
    }

    pub(crate) fn commit(&self, name: &str, key: &str, labels: Labels) -> Result<(), Status> {
        let snapshot = self.store.snapshot(key).map_err(status)?;
        self.end(&snapshot)?;
        let is_ours = snapshot.mount.is_some() || snapshot.layers.is_empty();
        let is_at_rest = is_ours || self.mounter.is_at_rest(&snapshot).map_err(|e| Status::internal(e.to_string()))?;
        if !is_at_rest {
            // containerd has it mounted still: what is half copied is then read together with what it is copied from.
            let process = Process::own().ok_or_else(|| Status::internal("/proc: not mounted"))?;
            let mount = Mount { target: snapshot.target.clone(), process, log: snapshot.log.clone() };
            self.store.set_snapshot_mount(key, Some(mount)).map_err(status)?;
        }
        let committed = self.store.commit_snapshot(key, name, &labels).map_err(status);
        if committed.is_err() && !is_at_rest {
            self.store.set_snapshot_mount(key, None).map_err(status)?;
        }
        committed.map(drop)
    }

    pub(crate) fn remove(&self, key: &str) -> Result<(), Status> {
        let snapshot = self.store.snapshot(key).map_err(status)?;
        self.end(&snapshot)?;
        self.store.remove_snapshot(key).map(drop).map_err(status)
    }

    pub(crate) fn stat(&self, key: &str) -> Result<api::Info, Status> {
        self.store.snapshot(key).map(|snapshot| info(&snapshot)).map_err(status)
    }

    /// Changes labels: those that `paths` name (`labels`, `labels.NAME`), or without any, all. An empty one is taken away.
    pub(crate) fn update(&self, name: &str, given: Labels, paths: &[String]) -> Result<api::Info, Status> {
        if let Some(path) = paths.iter().find(|path| *path != "labels" && !path.starts_with("labels.")) {
            return Err(Status::invalid_argument(format!(
                "cannot change '{path}' of snapshot {name}: only its labels"
            )));
        }
        let change = |labels: &mut Labels| {
            if paths.is_empty() {
                *labels = given.clone();
            }
            for path in paths {
                match path.strip_prefix("labels.") {
                    None => *labels = given.clone(),
                    Some(label) => {
                        labels.insert(label.to_owned(), given.get(label).cloned().unwrap_or_default());
                    }
                }
            }
            labels.retain(|_, value| !value.is_empty());
        };
        self.store.label_snapshot(name, change).map(|snapshot| info(&snapshot)).map_err(status)
    }

    pub(crate) fn list(&self, filters: &[Filter]) -> Result<Vec<api::Info>, Status> {
        let all = self.store.snapshots().map_err(status)?;
        let matching = all.iter().filter(|snapshot| filters.is_empty() || filters.iter().any(|f| f.matches(snapshot)));
        Ok(matching.map(info).collect())
    }

    pub(crate) fn usage(&self, key: &str) -> Result<api::UsageResponse, Status> {
        let usage = self.store.snapshot_usage(key).map_err(status)?;
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        Ok(api::UsageResponse { size: number(usage.size), inodes: number(usage.inodes) })
    }

    /// Deletes the layers that no snapshot, image or container leads to any more.
    pub(crate) fn cleanup(&self) -> Result<(), Status> {
        self.store.gc().map(drop).map_err(status)
    }
}

fn some(name: &str) -> Option<&str> {
    Some(name).filter(|name| !name.is_empty())
}

fn info(snapshot: &Snapshot) -> api::Info {
    let time = |time: Time| Some(prost_types::Timestamp { seconds: time.sec, nanos: time.nsec as i32 });
    let kind = match snapshot.kind {
        SnapshotKind::View => api::Kind::View,
        SnapshotKind::Active => api::Kind::Active,
        SnapshotKind::Committed => api::Kind::Committed,
    };
    api::Info {
        name: snapshot.name.clone(),
        parent: snapshot.parent.clone().unwrap_or_default(),
        kind: kind.into(),
        created_at: time(snapshot.created),
        updated_at: time(snapshot.updated),
        labels: snapshot.labels.clone().into_iter().collect(),
    }
}

/// Returns the code that containerd expects for what the store said.
fn status(error: Error) -> Status {
    let text = error.to_string();
    match error {
        Error::NotFound(_) => Status::not_found(text),
        Error::Exists(_) => Status::already_exists(text),
        Error::InUse(_) => Status::failed_precondition(text),
        Error::Invalid { .. } | Error::Ambiguous(_) | Error::Unsupported { .. } => Status::invalid_argument(text),
        _ => Status::internal(text),
    }
}
