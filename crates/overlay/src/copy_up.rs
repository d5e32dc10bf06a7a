//! Copy-up: the first change to a lower inode brings it into the upper, whole or as metadata alone, in one step.
//!
//! A crash before the step leaves the lower inode visible and nothing in the upper; the directory above keeps its times.

use std::sync::Arc;

use layer::{FileType, Ino, Name, NameBuf, Slot, Stat};

use crate::error::{Errno, Error, Result};
use crate::lower::{Body, Lower};
use crate::names::Names;
use crate::node::{InUpper, Node, OpenBody, Place};
use crate::partial::BLOCK;
use crate::union::Overlay;
use crate::upper::{CopyUp, New, Origin, Over, SetAttr, SetTime, Source, Target, Upper, What};

/// How much of a regular file a copy-up brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// What a link count needs: the body stays below, however small it is.
    Links,
    /// Owner, mode, times, attributes; a large body stays below.
    Metadata,
    /// A body that can be written: the whole of a small one, shared blocks or parts of a large one.
    Writable,
    /// The body is about to be thrown away (`O_TRUNC`): an empty file will do.
    Empty,
}

/// The open file of a copy that was just made, if it is a whole regular file.
pub(crate) type Fresh<U> = Option<Arc<<U as Upper>::File>>;

/// The node of a copy, and its file.
pub(crate) type CopiedUp<L, U> = (Arc<Node<L, U>>, Fresh<U>);

pub(crate) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

impl<L: Lower, U: Upper> Overlay<L, U> {
    /// Brings an inode into the upper, and returns its node.
    ///
    /// # Errors
    /// `EROFS` without an upper; `ENOSPC`, `EDQUOT` from the upper's filesystem, with the tree unchanged.
    pub(crate) fn copy_up(&self, id: Ino, depth: Depth) -> Result<Arc<Node<L, U>>> {
        self.copy_up_to_open(id, depth).map(|(node, _)| node)
    }

    /// The same; returns also the file of a whole copy that was just made.
    pub(crate) fn copy_up_to_open(&self, id: Ino, depth: Depth) -> Result<CopiedUp<L, U>> {
        self.writable()?;
        let node = self.node(id)?;
        if node.kind == FileType::Dir {
            return Ok((self.dir_in_upper(id)?, None));
        }
        if self.copied(&node, depth) {
            return Ok((node, None));
        }
        let fresh = self.copy_once(&node, depth)?;
        Ok((node, fresh))
    }

    /// The same for what a name of the lower leads to. The number may still be in use for readers who were left behind with the
    /// old bytes ([`Overlay::detach`]): the name leads to the copy.
    pub(crate) fn copy_up_named(&self, slot: Slot, depth: Depth) -> Result<Arc<Node<L, U>>> {
        let id = self.id_of(slot);
        if !self.indexed.read().contains(&id) {
            return self.copy_up(id, depth);
        }
        let node = self.indexed_node(id, slot)?;
        if !self.copied(&node, depth) {
            self.copy_once(&node, depth)?;
        }
        Ok(node)
    }

    /// Copies an inode up, and leaves its open readers with the lower body.
    pub(crate) fn copy_up_apart(&self, node: &Arc<Node<L, U>>, depth: Depth) -> Result<()> {
        let _copying = node.copying.lock();
        self.copy_locked(node, depth).map(drop)
    }

    fn copy_once(&self, node: &Arc<Node<L, U>>, depth: Depth) -> Result<Fresh<U>> {
        let _copying = node.copying.lock();
        let fresh = self.copy_locked(node, depth)?;
        if !self.copied(node, Depth::Writable) {
            return Ok(None);
        }
        self.switch_open_body(node, fresh)
    }

    fn copy_locked(&self, node: &Arc<Node<L, U>>, depth: Depth) -> Result<Fresh<U>> {
        if self.copied(node, depth) {
            return Ok(None);
        }
        node.unnamed.store(true, std::sync::atomic::Ordering::Relaxed);
        let slot = node.slot.ok_or(Error::Answer(Errno::ESTALE))?;
        if node.in_upper() && self.heal_cut(node, slot)? {
            return Ok(None);
        }
        if depth == Depth::Writable && self.lazily(slot)? {
            if !node.in_upper() {
                self.copy_file(node, slot, Depth::Links)?;
            }
            return self.make_writable(node, slot).map(|()| None);
        }
        if node.in_upper() {
            return self.fill(node, slot, depth).map(|()| None);
        }
        self.copy_file(node, slot, depth)
    }

    fn copied(&self, node: &Node<L, U>, depth: Depth) -> bool {
        match &*node.place.read() {
            Place::Upper(up) => match depth {
                Depth::Links | Depth::Metadata => true,
                Depth::Writable => up.body_below.is_none() || up.partial.is_some(),
                Depth::Empty => up.body_below.is_none(),
            },
            Place::Gone(_) => true,
            Place::Lower { .. } => false,
        }
    }

    /// Tells whether a body is large enough to be copied piece by piece, and the upper's blocks small enough.
    fn lazily(&self, slot: Slot) -> Result<bool> {
        let stat = self.lower.stat(slot)?;
        let large = self.options.lazy && stat.kind == FileType::File && stat.size >= self.options.lazy_min;
        Ok(large
            && u64::from(self.writable()?.statfs()?.block) <= BLOCK
            && matches!(self.lower.body(slot)?, Body::File(_)))
    }

    /// Finishes what a crash cut off: a metadata-only copy that is empty was about to lose its body. Tells whether it was so.
    pub(crate) fn heal_cut(&self, node: &Arc<Node<L, U>>, slot: Slot) -> Result<bool> {
        let waits = matches!(&*node.place.read(), Place::Upper(up) if up.body_below.is_some() && up.partial.is_none());
        if !waits || self.lower.stat(slot)?.size == 0 {
            return Ok(false);
        }
        let size = {
            let _path = self.path.read();
            self.with_target(node, |upper, target| upper.stat(target))?.size
        };
        if size == 0 {
            self.fill(node, slot, Depth::Empty)?;
        }
        Ok(size == 0)
    }

    /// Completes a metadata-only copy.
    pub(crate) fn fill(&self, node: &Arc<Node<L, U>>, slot: Slot, depth: Depth) -> Result<()> {
        let partial = matches!(&*node.place.read(), Place::Upper(up) if up.partial.is_some());
        if partial && depth != Depth::Empty {
            return self.fill_partial(node, slot);
        }
        let size = match depth {
            Depth::Empty => 0,
            _ => self.lower.stat(slot)?.size,
        };
        let body = self.lower.body(slot)?;
        let source = match depth {
            Depth::Empty => Source::Empty,
            _ => source_of(&body),
        };
        let _path = self.path.read();
        self.with_target(node, |upper, target| {
            upper.fill(target, source, size)?;
            if partial { upper.finish_partial(target) } else { Ok(()) }
        })?;
        if let Place::Upper(up) = &mut *node.place.write() {
            (up.body_below, up.partial) = (None, None);
        }
        Ok(())
    }

    /// Completes a partial copy, through the body that handles have open if there is one.
    fn fill_partial(&self, node: &Arc<Node<L, U>>, slot: Slot) -> Result<()> {
        let limit = match &*node.place.read() {
            Place::Upper(up) => up.partial.unwrap_or(0),
            _ => return Err(Errno::ESTALE.into()),
        };
        let open = node.open.read().body.clone();
        let body = match open {
            OpenBody::Partial(_) => open,
            _ => self.open_partial(node, slot, limit)?,
        };
        match body {
            OpenBody::Partial(partial) => self.complete(node, &partial),
            _ => Ok(()),
        }
    }

    /// Lets handles that read the lower body go on with the upper's; returns the file if there are none.
    fn switch_open_body(&self, node: &Arc<Node<L, U>>, fresh: Fresh<U>) -> Result<Fresh<U>> {
        if node.kind != FileType::File || node.open.read().count == 0 {
            return Ok(fresh);
        }
        let partial = match &*node.place.read() {
            Place::Upper(up) => up.body_below.zip(up.partial),
            _ => None,
        };
        if let Some((slot, limit)) = partial {
            let body = self.open_partial(node, slot, limit)?;
            node.open.write().body = body;
            return Ok(None);
        }
        let file = match fresh {
            Some(file) => file,
            None => {
                let _path = self.path.read();
                Arc::new(self.with_target(node, |upper, target| upper.open(target))?)
            }
        };
        node.open.write().body = OpenBody::Upper(file);
        Ok(None)
    }

    fn copy_file(&self, node: &Arc<Node<L, U>>, slot: Slot, depth: Depth) -> Result<Fresh<U>> {
        let upper = self.writable()?;
        let stat = self.lower.stat(slot)?;
        let xattrs = self.lower_xattrs(slot)?;
        let target = match stat.kind {
            FileType::Symlink => Some(self.lower.link_target(slot)?),
            _ => None,
        };
        let path = self.lower_path(slot)?;
        let stays = stat.kind == FileType::File
            && match depth {
                Depth::Links => stat.size > 0,
                Depth::Metadata => stat.size > self.options.small,
                Depth::Writable | Depth::Empty => false,
            };
        let body = match stat.kind {
            FileType::File if depth != Depth::Empty && !stays => Some(self.lower.body(slot)?),
            _ => None,
        };
        let source = match (&body, stays) {
            (Some(body), _) => Some(source_of(body)),
            (None, true) => None,
            (None, false) => Some(Source::Empty),
        };
        let linked = stat.nlink > 1;
        let lower_names = if linked { self.names_still_below(slot, stat.nlink)? } else { 0 };
        let staged = upper.stage(&CopyUp {
            stat: &stat,
            xattrs: &xattrs,
            target: target.as_deref(),
            origin: Origin { key: self.lower.key(), ino: self.id_of(slot) },
            body: source,
            redirect: (stays && linked).then_some(path.as_slice()),
            lower_names,
            path: linked.then_some(path.as_slice()),
        })?;
        let body_below = stays.then_some(slot);
        node.unsynced.store(source.is_some(), std::sync::atomic::Ordering::Relaxed);
        if linked {
            let made = upper.publish_index(staged, node.id)?;
            node.backing.store(made.ino.0, std::sync::atomic::Ordering::Relaxed);
            self.remember_unmarked(node, made.ino);
            self.indexed.write().insert(node.id);
            *node.place.write() =
                Place::Upper(InUpper { names: Vec::new(), indexed: true, body_below, lower_names, partial: None });
            return Ok(None);
        }
        let (parent, name) = self.place_below(node, slot)?;
        let dir_node = self.dir_in_upper(parent)?;
        let _path = self.path.read();
        let dir = self.dir(&dir_node)?;
        let mut names = self.lock_names(&dir_node, &dir)?;
        let names = names.as_mut().ok_or(Error::Answer(Errno::ESTALE))?;
        if names.get(name.as_name()).is_some() {
            // Renamed or removed while the body was copied: the name is another's now.
            return Err(Errno::ESTALE.into());
        }
        if stays {
            self.mark_impure(&dir_node, &dir)?;
        }
        let (made, file) = self.keep_times(&dir, || upper.publish(staged, &dir, name.as_name()))?;
        names.set(name.as_name(), Some(stat.kind), Some(node.id));
        node.backing.store(made.ino.0, std::sync::atomic::Ordering::Relaxed);
        self.remember_unmarked(node, made.ino);
        *node.place.write() = Place::Upper(InUpper {
            names: vec![(dir_node.clone(), name)],
            indexed: false,
            body_below,
            lower_names: 0,
            partial: None,
        });
        Ok(file.filter(|_| !stays).map(Arc::new))
    }

    /// Finds a name under which programs see a lower inode: the number of its directory, and the name.
    pub(crate) fn place_below(&self, node: &Node<L, U>, slot: Slot) -> Result<(Ino, NameBuf)> {
        if let Place::Lower { seen } = &*node.place.read()
            && let Some(place) = seen.first()
        {
            return Ok(place.clone());
        }
        if let Some(all) = self.lower.names(slot)? {
            for (dir, name) in all {
                if self.visible_below(dir, name.as_name())? {
                    return Ok((self.id_of(dir), name));
                }
            }
        }
        let path = self.lower.path(slot)?;
        let (_, name) = path.split_last().ok_or(Error::Answer(Errno::EINVAL))?;
        Ok((self.id_of(self.lower.parent(slot)?), name.to_buf()))
    }

    /// Brings a directory, and those above it, into the upper.
    ///
    /// # Errors
    /// `EROFS`; `ENOTDIR`; `ENOENT` for one that was removed; those of the upper's filesystem.
    pub(crate) fn dir_in_upper(&self, id: Ino) -> Result<Arc<Node<L, U>>> {
        let upper = self.writable()?;
        let node = self.node(id)?;
        if node.kind != FileType::Dir {
            return Err(Errno::ENOTDIR.into());
        }
        if node.in_upper() {
            return Ok(node);
        }
        if self.is_gone(&node) {
            return Err(Errno::ENOENT.into());
        }
        let slot = node.slot.ok_or(Error::Answer(Errno::ESTALE))?;
        let path = self.lower.path(slot)?;
        let (_, name) = path.split_last().ok_or(Error::Answer(Errno::EINVAL))?;
        let parent = self.dir_in_upper(self.id_of(self.lower.parent(slot)?))?;
        let stat = self.lower.stat(slot)?;
        let xattrs = self.lower_xattrs(slot)?;
        let new = New {
            what: What::Dir { opaque: false },
            perm: stat.perm,
            uid: stat.uid,
            gid: stat.gid,
            xattrs: &xattrs,
            times: Some((stat.atime, stat.mtime)),
        };
        let _path = self.path.read();
        let dir = self.dir(&parent)?;
        {
            let mut names = self.lock_names(&parent, &dir)?;
            let names = names.as_mut().ok_or(Error::Answer(Errno::ESTALE))?;
            if node.in_upper() {
                return Ok(node.clone());
            }
            if names.get(name).is_none() {
                self.mark_impure(&parent, &dir)?;
                let made = self.keep_times(&dir, || upper.make(&dir, name, &new, Over::Nothing))?;
                names.set(name, Some(FileType::Dir), Some(node.id));
                *node.names.write() = Some(Names::default());
                self.place_dir(&node, &parent, name, &made);
                return Ok(node.clone());
            }
        }
        // The upper had something there before this mount looked: that directory itself, or what hides it.
        match self.upper_node(&parent, name) {
            Ok((found, _)) if found.id == id => Ok(found),
            Ok(_) | Err(Error::Answer(_)) => Err(Errno::ENOENT.into()),
            Err(fault) => Err(fault),
        }
    }

    fn place_dir(&self, node: &Arc<Node<L, U>>, parent: &Arc<Node<L, U>>, name: Name<'_>, stat: &Stat) {
        node.backing.store(stat.ino.0, std::sync::atomic::Ordering::Relaxed);
        *node.place.write() = Place::Upper(InUpper {
            names: vec![(parent.clone(), name.to_buf())],
            indexed: false,
            body_below: None,
            lower_names: 0,
            partial: None,
        });
    }

    /// Marks a directory that something with a part in the lower is about to enter.
    pub(crate) fn mark_impure(&self, node: &Node<L, U>, dir: &U::Dir) -> Result<()> {
        use std::sync::atomic::Ordering::Relaxed;
        if !node.impure.load(Relaxed) {
            self.writable()?.set_impure(dir)?;
            node.impure.store(true, Relaxed);
        }
        Ok(())
    }

    /// Makes sure that the upper has an entry under a visible name; used before the name is moved or linked.
    pub(crate) fn name_in_upper(&self, parent: &Arc<Node<L, U>>, name: Name<'_>) -> Result<()> {
        let upper = self.writable()?;
        let view = {
            let _path = self.path.read();
            self.with_names(parent, |names| self.view(parent, names, name))?
        };
        let slot = match view.lower {
            _ if view.upper.is_some() => return Ok(()),
            Some(slot) => slot,
            None => return Err(Errno::ENOENT.into()),
        };
        let id = self.id_of(slot);
        if self.lower.stat(slot)?.kind == FileType::Dir {
            self.dir_in_upper(id)?;
            return Ok(());
        }
        let node = self.copy_up_named(slot, Depth::Metadata)?;
        let indexed = matches!(&*node.place.read(), Place::Upper(up) if up.indexed);
        if !indexed {
            return Ok(());
        }
        let _path = self.path.read();
        let dir = self.dir(parent)?;
        let mut names = self.lock_names(parent, &dir)?;
        let names = names.as_mut().ok_or(Error::Answer(Errno::ESTALE))?;
        if names.get(name).is_some() {
            return Ok(());
        }
        self.keep_times(&dir, || upper.link(Target::Index(id), &dir, name, Over::Nothing))?;
        names.set(name, Some(node.kind), Some(node.id));
        self.gain_upper_name(&node, parent, name);
        self.lose_lower_name(&node)
    }

    /// Notes one more name in the upper.
    pub(crate) fn gain_upper_name(&self, node: &Node<L, U>, parent: &Arc<Node<L, U>>, name: Name<'_>) {
        if let Place::Upper(up) = &mut *node.place.write() {
            up.names.push((parent.clone(), name.to_buf()));
        }
    }

    /// Notes one name less in the lower alone, of a hard-linked origin.
    pub(crate) fn lose_lower_name(&self, node: &Node<L, U>) -> Result<()> {
        let left = match &mut *node.place.write() {
            Place::Upper(up) => {
                up.lower_names = up.lower_names.saturating_sub(1);
                up.lower_names
            }
            _ => return Ok(()),
        };
        self.writable()?.set_lower_names(Target::Index(node.shown), left)
    }

    /// Runs a step that adds an entry for the union's own reasons, and gives the directory its times back.
    pub(crate) fn keep_times<T>(&self, dir: &U::Dir, step: impl FnOnce() -> Result<T>) -> Result<T> {
        let upper = self.writable()?;
        let before = upper.stat(Target::Dir(dir))?;
        let done = step()?;
        let times = SetAttr {
            atime: Some(SetTime::At(before.atime)),
            mtime: Some(SetTime::At(before.mtime)),
            ..SetAttr::default()
        };
        // The step is done and must be told: a time that could not be set back is no reason to lose sight of it.
        if let Err(error) = upper.set_attr(Target::Dir(dir), &times) {
            log::warn!("the times of a directory changed with a copy-up: {error}");
        }
        Ok(done)
    }

    pub(crate) fn lower_xattrs(&self, slot: Slot) -> Result<Xattrs> {
        let mut xattrs = Xattrs::new();
        self.lower.xattrs(slot, &mut |name, value| xattrs.push((name.to_vec(), value.to_vec())))?;
        Ok(xattrs)
    }

    /// The absolute path of a lower inode, as redirects spell it.
    pub(crate) fn lower_path(&self, slot: Slot) -> Result<Vec<u8>> {
        let mut path = vec![b'/'];
        path.extend_from_slice(self.lower.path(slot)?.as_bytes());
        Ok(path)
    }
}

fn source_of<'a, F: crate::lower::LowerFile>(body: &'a Body<'a, F>) -> Source<'a> {
    match body {
        Body::Bytes(bytes) => Source::Bytes(bytes),
        Body::File(file) => Source::File(file),
    }
}
