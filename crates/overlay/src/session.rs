//! What a union knows beyond its two sides, written out and taken up again: inodes that the kernel was told of, what became of
//! them, who has them open, and the positions of names in directories.
//!
//! Whoever keeps a mount alive over the death of its daemon hands the next one the upper, these bytes, and the descriptors of open
//! files that have no name. Everything else is found again by name. Nothing may change in between.
//!
//! The form is little-endian, field after field, under a magic and a version.

mod form;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use layer::{FileType, Ino, NameBuf, Slot, TreePath};

use crate::error::{Errno, Error, Result};
use crate::lower::{Body, Lower};
use crate::names::Names;
use crate::node::{InUpper, Last, Node, OpenBody, Place, ROOT};
use crate::partial::Partial;
use crate::union::{Options, Overlay};
use crate::upper::{Target, Upper};
use form::{In, Out};

/// A session in its written form.
pub struct Written<F> {
    /// All but the files.
    pub bytes: Vec<u8>,
    /// Open files of the upper that have no name; `bytes` speaks of them by position.
    pub files: Vec<Arc<F>>,
}

/// Where the body of an open file is, as written.
enum WrittenBody {
    Closed,
    Mapped,
    Lower,
    /// The upper's file: handed over, or to be opened by name.
    Upper(Option<usize>),
    Partial(Option<usize>, u64),
}

impl<L: Lower, U: Upper> Overlay<L, U> {
    /// Writes the session down. No operation may be under way, and none follow.
    ///
    /// # Errors
    /// Faults of the lower.
    pub fn write_session(&self) -> Result<Written<U::File>> {
        let (mut out, mut files) = (Out::new(), Vec::new());
        out.number(self.lower.key());
        out.number(self.spares.load(Ordering::Relaxed));
        let mut stand_ins: Vec<_> = self.stand_ins.read().iter().map(|(backing, id)| (*backing, *id)).collect();
        stand_ins.sort_unstable();
        out.all(stand_ins.iter(), |out, (backing, id)| {
            out.number(*backing);
            out.number(id.0);
        });
        let mut indexed: Vec<_> = self.indexed.read().iter().copied().collect();
        indexed.sort_unstable();
        out.all(indexed.iter(), |out, id| out.number(id.0));
        let mut told = Vec::new();
        self.nodes.each_told(|slot, count| told.push((slot, count)));
        out.each(told.iter(), |out, (slot, count)| {
            self.write_slot(out, *slot)?;
            out.small(*count);
            Ok(())
        })?;
        let mut nodes = Vec::new();
        self.nodes.for_each(|node| nodes.push(node.clone()));
        nodes.sort_by_key(|node| node.id);
        // The nodes first, so that they can be named: then what they hold.
        out.each(nodes.iter(), |out, node| self.write_node(out, node))?;
        for node in &nodes {
            write_place(&mut out, node, &mut files);
            write_body(&mut out, node, &mut files);
            write_names(&mut out, node);
        }
        Ok(Written { bytes: out.bytes, files })
    }

    /// Joins the two sides again as they were when `written` was made of their union.
    ///
    /// # Errors
    /// A fault when the bytes are not a session, are one of other layers, or name what is not there.
    pub fn resume(lower: L, upper: Option<U>, options: Options, written: Written<U::File>) -> Result<Self> {
        let this = Self::joined(lower, upper, options)?;
        let mut form = In::new(&written.bytes)?;
        if form.number()? != this.lower.key() {
            return Err(wrong("it is of other layers"));
        }
        this.spares.store(form.number()?, Ordering::Relaxed);
        form.each(|form| {
            let (backing, id) = (form.number()?, Ino(form.number()?));
            this.stand_ins.write().insert(backing, id);
            Ok(())
        })?;
        form.each(|form| {
            this.indexed.write().insert(Ino(form.number()?));
            Ok(())
        })?;
        form.each(|form| {
            let slot = this.read_slot(form)?;
            this.nodes.told_before(slot, form.small()?);
            Ok(())
        })?;
        let mut nodes = Vec::new();
        form.each(|form| {
            nodes.push(this.read_node(form)?);
            Ok(())
        })?;
        let mut bodies = Vec::new();
        for node in &nodes {
            this.read_place(&mut form, node, &written.files)?;
            bodies.push((form.small()?, read_body(&mut form)?));
            read_names(&mut form, node)?;
        }
        form.end()?;
        // Opened when every name leads where it led.
        for (node, (count, body)) in nodes.iter().zip(bodies) {
            let body = this.open_again(node, body, &written.files)?;
            let mut open = node.open.write();
            (open.count, open.body) = (count, body);
        }
        Ok(this)
    }

    /// A slot is written as its number, with the path where the lower finds numbers only of what it has read.
    fn write_slot(&self, out: &mut Out, slot: Slot) -> Result<()> {
        out.number(self.id_of(slot).0);
        if !self.lower.finds_all_numbers() {
            out.text(self.lower.path(slot)?.as_bytes());
        }
        Ok(())
    }

    fn read_slot(&self, form: &mut In<'_>) -> Result<Slot> {
        let id = Ino(form.number()?);
        let mut slot = self.lower.root();
        if self.lower.finds_all_numbers() {
            return self.slot_of(id).ok_or_else(|| wrong("it names a file that the lower does not have"));
        }
        let path = TreePath::parse(form.text()?).map_err(|_| wrong("a path is none"))?;
        for name in path.names() {
            slot = self.lower.lookup(slot, name)?.ok_or_else(|| wrong("the lower does not have a path"))?;
        }
        if self.id_of(slot) == id { Ok(slot) } else { Err(wrong("a file of the lower has another number")) }
    }

    fn write_node(&self, out: &mut Out, node: &Node<L, U>) -> Result<()> {
        out.number(node.id.0);
        out.number(node.shown.0);
        out.kind(Some(node.kind));
        out.number(node.backing.load(Ordering::Relaxed));
        out.number(node.lookups.load(Ordering::Relaxed));
        out.flag(node.unsynced.load(Ordering::Relaxed));
        out.flag(node.unnamed.load(Ordering::Relaxed));
        out.each(node.met.lock().iter(), |out, (parent, name)| {
            out.number(parent.0);
            out.text(name.as_bytes());
            Ok(())
        })?;
        out.flag(node.slot.is_some());
        node.slot.map_or(Ok(()), |slot| self.write_slot(out, slot))
    }

    /// Makes a node; where it is, is read when all are made.
    fn read_node(&self, form: &mut In<'_>) -> Result<Arc<Node<L, U>>> {
        let (id, shown) = (Ino(form.number()?), Ino(form.number()?));
        let kind = form.kind()?.ok_or_else(|| wrong("a node is of no kind"))?;
        let (backing, lookups) = (form.number()?, form.number()?);
        let (unsynced, unnamed) = (form.flag()?, form.flag()?);
        let mut met = Vec::new();
        form.each(|form| {
            met.push((Ino(form.number()?), form.name()?));
            Ok(())
        })?;
        let slot = if form.flag()? { Some(self.read_slot(form)?) } else { None };
        let fresh = || Node::new(id, shown, kind, slot, Place::Lower { seen: Vec::new() }, backing);
        // The root is there already, with its directory open.
        let node = self.nodes.get_or_insert(id, fresh);
        node.lookups.store(lookups, Ordering::Relaxed);
        node.unsynced.store(unsynced, Ordering::Relaxed);
        node.unnamed.store(unnamed, Ordering::Relaxed);
        *node.met.lock() = met;
        Ok(node)
    }

    fn read_place(&self, form: &mut In<'_>, node: &Arc<Node<L, U>>, files: &[Arc<U::File>]) -> Result<()> {
        let place = match form.byte()? {
            0 => {
                let mut seen = Vec::new();
                form.each(|form| {
                    seen.push((Ino(form.number()?), form.name()?));
                    Ok(())
                })?;
                Place::Lower { seen }
            }
            1 => {
                let mut names: Vec<(Arc<Node<L, U>>, NameBuf)> = Vec::new();
                form.each(|form| {
                    let parent = self.nodes.get(Ino(form.number()?)).ok_or_else(|| wrong("a directory is missing"))?;
                    names.push((parent, form.name()?));
                    Ok(())
                })?;
                let indexed = form.flag()?;
                let body_below =
                    if form.flag()? { Some(node.slot.ok_or_else(|| wrong("a body is missing"))?) } else { None };
                let lower_names = form.small()?;
                let partial = if form.flag()? { Some(form.number()?) } else { None };
                Place::Upper(InUpper { names, indexed, body_below, lower_names, partial })
            }
            2 => {
                let stat = form.stat()?;
                let file = handed(form.place()?, files)?;
                let mut xattrs = if form.flag()? { Some(Vec::new()) } else { None };
                if let Some(xattrs) = &mut xattrs {
                    form.each(|form| {
                        xattrs.push((form.text()?.to_vec(), form.text()?.to_vec()));
                        Ok(())
                    })?;
                }
                if form.flag()? {
                    let heir = self.nodes.get(Ino(form.number()?)).ok_or_else(|| wrong("an heir is missing"))?;
                    node.heir.get_or_init(|| heir);
                }
                Place::Gone(Box::new(Last { stat, file, xattrs }))
            }
            _ => return Err(wrong("a node is nowhere")),
        };
        // The root is where it is.
        if node.id != ROOT || self.upper.is_none() {
            *node.place.write() = place;
        }
        Ok(())
    }

    fn open_again(&self, node: &Arc<Node<L, U>>, body: WrittenBody, files: &[Arc<U::File>]) -> Result<OpenBody<L, U>> {
        let slot = || node.slot.ok_or_else(|| wrong("an open file is in no lower"));
        let below = || match self.lower.body(slot()?)? {
            Body::File(file) => Ok(file),
            Body::Bytes(_) => Err(wrong("an open file of the lower is none")),
        };
        Ok(match body {
            WrittenBody::Closed => OpenBody::Closed,
            WrittenBody::Mapped => OpenBody::Mapped(slot()?),
            WrittenBody::Lower => OpenBody::Lower(Arc::new(below()?)),
            WrittenBody::Upper(at) => OpenBody::Upper(self.upper_again(node, at, files)?),
            WrittenBody::Partial(at, limit) => {
                let file = self.upper_again(node, at, files)?;
                let size = self.writable()?.stat(Target::File(&*file))?.size;
                OpenBody::Partial(Arc::new(Partial::new(file, below()?, size, limit)?))
            }
        })
    }

    fn upper_again(&self, node: &Arc<Node<L, U>>, at: Option<usize>, files: &[Arc<U::File>]) -> Result<Arc<U::File>> {
        if let Some(file) = handed(at, files)? {
            return Ok(file);
        }
        let _path = self.path.read();
        self.with_target(node, |upper, target| upper.open(target)).map(Arc::new)
    }
}

/// Returns the file that was handed over under a position.
fn handed<F>(at: Option<usize>, files: &[Arc<F>]) -> Result<Option<Arc<F>>> {
    at.map(|at| files.get(at).cloned().ok_or_else(|| wrong("an open file was not handed over"))).transpose()
}

fn write_place<L: Lower, U: Upper>(out: &mut Out, node: &Node<L, U>, files: &mut Vec<Arc<U::File>>) {
    match &*node.place.read() {
        Place::Lower { seen } => {
            out.byte(0);
            out.all(seen.iter(), |out, (parent, name)| {
                out.number(parent.0);
                out.text(name.as_bytes());
            });
        }
        Place::Upper(up) => {
            out.byte(1);
            out.all(up.names.iter(), |out, (parent, name)| {
                out.number(parent.id.0);
                out.text(name.as_bytes());
            });
            out.flag(up.indexed);
            out.flag(up.body_below.is_some());
            out.small(up.lower_names);
            out.flag(up.partial.is_some());
            up.partial.iter().for_each(|limit| out.number(*limit));
        }
        Place::Gone(last) => {
            out.byte(2);
            out.stat(&last.stat);
            out.place(last.file.as_ref().map(|file| hand_over(file, files)));
            out.flag(last.xattrs.is_some());
            if let Some(xattrs) = &last.xattrs {
                out.all(xattrs.iter(), |out, (name, value)| {
                    out.text(name);
                    out.text(value);
                });
            }
            out.flag(node.heir.get().is_some());
            node.heir.get().iter().for_each(|heir| out.number(heir.id.0));
        }
    }
}

fn hand_over<F>(file: &Arc<F>, files: &mut Vec<Arc<F>>) -> usize {
    files.push(file.clone());
    files.len() - 1
}

fn write_body<L: Lower, U: Upper>(out: &mut Out, node: &Node<L, U>, files: &mut Vec<Arc<U::File>>) {
    let named = matches!(&*node.place.read(), Place::Upper(up) if up.indexed || !up.names.is_empty());
    let open = node.open.read();
    out.small(open.count);
    let mut position = |file: &Arc<U::File>| if named { None } else { Some(hand_over(file, files)) };
    match &open.body {
        OpenBody::Closed => out.byte(0),
        OpenBody::Mapped(_) => out.byte(1),
        OpenBody::Lower(_) => out.byte(2),
        OpenBody::Upper(file) => {
            out.byte(3);
            out.place(position(file));
        }
        OpenBody::Partial(partial) => {
            out.byte(4);
            out.place(position(&partial.upper));
            out.number(partial.limit());
        }
    }
}

fn read_body(form: &mut In<'_>) -> Result<WrittenBody> {
    Ok(match form.byte()? {
        0 => WrittenBody::Closed,
        1 => WrittenBody::Mapped,
        2 => WrittenBody::Lower,
        3 => WrittenBody::Upper(form.place()?),
        4 => WrittenBody::Partial(form.place()?, form.number()?),
        _ => return Err(wrong("a body is nowhere")),
    })
}

fn write_names<L: Lower, U: Upper>(out: &mut Out, node: &Node<L, U>) {
    let names = node.names.read();
    out.flag(names.is_some());
    let Some(names) = &*names else { return };
    out.number(names.last_given());
    let entries: Vec<_> = names.after(0).collect();
    out.all(entries.iter(), |out, (name, entry)| {
        out.text(name.as_bytes());
        out.number(entry.seq);
        out.kind(entry.kind);
        out.number(entry.id.map_or(0, |id| id.0));
    });
}

fn read_names<L: Lower, U: Upper>(form: &mut In<'_>, node: &Node<L, U>) -> Result<()> {
    let mut names = None;
    if form.flag()? {
        let names = names.insert(Names::with_last(form.number()?));
        form.each(|form| {
            let (name, seq) = (form.name()?, form.number()?);
            let (kind, id): (Option<FileType>, _) = (form.kind()?, form.number()?);
            names.put_back(name, seq, kind, (id != 0).then_some(Ino(id)));
            Ok(())
        })?;
    }
    *node.names.write() = names;
    Ok(())
}

fn wrong(why: &'static str) -> Error {
    Error::fault("take up a session", Errno::EINVAL, why)
}
