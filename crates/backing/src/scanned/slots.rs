//! Everything found so far, by slot and by number: it only grows, and reading takes no lock.

use std::collections::HashMap;
use std::sync::atomic::AtomicU8;

use layer::{Dev, FileType, Ino, Name, Slot, Stat, Time};
use parking_lot::Mutex;

use super::listing::Dir;
use super::tables::{Growing, Numbers};

/// The root's number.
pub(super) const ROOT: Ino = Ino(1);
/// Numbers have 62 bits: 8 for the device, as a position in the list of the layers' devices, 54 for its inode number.
const INODE_BITS: u32 = 54;
/// The device bits of numbers that are made up, because the inode's own does not fit or is taken.
const MADE_UP: u64 = 255;

/// Where a slot's first name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) parent: Slot,
    /// Which of the parent's entries.
    pub(super) position: u32,
    /// Which layer it comes from; 0 is the topmost.
    pub(super) layer: u16,
}

/// One inode of the merged tree.
#[derive(Debug)]
pub(super) struct Node {
    number: Ino,
    size: u64,
    blocks: u64,
    seconds: [i64; 3],
    nanoseconds: [u32; 3],
    nlink: u32,
    uid: u32,
    gid: u32,
    perm: u16,
    kind: FileType,
    /// What is known of its extended attributes.
    pub(super) xattrs: AtomicU8,
    pub(super) content: Content,
    // A `Place`, apart so that it leaves no gap.
    layer: u16,
    parent: Slot,
    position: u32,
    pub(super) dir: Option<Box<Dir>>,
}

/// What belongs to a node of one kind alone.
pub(super) enum What {
    Dir(Box<Dir>),
    /// Anything but a directory.
    File(Content),
}

/// Where a regular file's content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// In the file itself.
    Here,
    /// In a file further down: this one has the metadata only.
    Below,
}

/// What is known of a node's extended attributes.
pub(super) mod xattrs {
    pub(crate) const UNKNOWN: u8 = 0;
    pub(crate) const NONE: u8 = 1;
    pub(crate) const SOME: u8 = 2;
}

impl Node {
    pub(super) fn new(number: Ino, stat: &Stat, place: Place, what: What) -> Self {
        let (content, dir) = match what {
            What::Dir(dir) => (Content::Here, Some(dir)),
            What::File(content) => (content, None),
        };
        let device = matches!(stat.kind, FileType::Char | FileType::Block);
        Node {
            number,
            // A device node has no size: its device number is kept there.
            size: if device { u64::from(stat.rdev.major) << 32 | u64::from(stat.rdev.minor) } else { stat.size },
            blocks: stat.blocks,
            seconds: [stat.atime.sec, stat.mtime.sec, stat.ctime.sec],
            nanoseconds: [stat.atime.nsec, stat.mtime.nsec, stat.ctime.nsec],
            nlink: stat.nlink,
            uid: stat.uid,
            gid: stat.gid,
            perm: stat.perm,
            kind: stat.kind,
            xattrs: AtomicU8::new(xattrs::UNKNOWN),
            content,
            layer: place.layer,
            parent: place.parent,
            position: place.position,
            dir,
        }
    }

    pub(super) fn number(&self) -> Ino {
        self.number
    }

    pub(super) fn kind(&self) -> FileType {
        self.kind
    }

    pub(super) fn place(&self) -> Place {
        Place { parent: self.parent, position: self.position, layer: self.layer }
    }

    pub(super) fn nlink(&self) -> u32 {
        self.nlink
    }

    pub(super) fn stat(&self) -> Stat {
        let device = matches!(self.kind, FileType::Char | FileType::Block);
        let time = |which: usize| Time { sec: self.seconds[which], nsec: self.nanoseconds[which] };
        Stat {
            ino: self.number,
            kind: self.kind,
            perm: self.perm,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: if device {
                Dev { major: (self.size >> 32) as u32, minor: self.size as u32 }
            } else {
                Dev::default()
            },
            size: if device { 0 } else { self.size },
            blocks: self.blocks,
            atime: time(0),
            mtime: time(1),
            ctime: time(2),
        }
    }
}

/// An inode on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Backing {
    pub(super) dev: u64,
    pub(super) ino: u64,
}

/// The nodes found so far.
#[derive(Debug)]
pub(super) struct Slots {
    nodes: Growing<Node>,
    numbers: Numbers,
    /// The layers' devices; the position is part of a number.
    devices: Vec<u64>,
    adding: Mutex<Adding>,
}

/// What only those who add need.
#[derive(Debug, Default)]
pub(super) struct Adding {
    len: u32,
    /// Files whose number is made up.
    made_up: HashMap<Backing, Slot>,
}

impl Slots {
    pub(super) fn new(devices: Vec<u64>) -> Self {
        Slots { nodes: Growing::default(), numbers: Numbers::default(), devices, adding: Mutex::default() }
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Node> {
        self.nodes.get(slot.0)
    }

    /// Returns the slot that has the number `ino`.
    pub(super) fn by_number(&self, ino: Ino) -> Option<Slot> {
        if ino == ROOT {
            return Some(Slot(0));
        }
        self.numbers.find(ino, |slot| self.get(slot).map(Node::number))
    }

    /// Makes slots for what a directory holds; others see all of it or nothing: `publish` runs before anyone else adds.
    pub(super) fn add<T>(&self, add: impl FnOnce(&mut Adder<'_>) -> T) -> T {
        add(&mut Adder { slots: self, adding: &mut self.adding.lock() })
    }

    /// Returns the numbers that a file with this inode number may have: one for each of the layers' devices.
    pub(super) fn numbers_of(&self, ino: u64) -> Vec<Ino> {
        self.devices.iter().filter_map(|&dev| self.number(Backing { dev, ino })).collect()
    }

    fn number(&self, backing: Backing) -> Option<Ino> {
        let device = self.devices.iter().position(|&dev| dev == backing.dev)? as u64;
        let number = device << INODE_BITS | backing.ino;
        (device < MADE_UP && backing.ino >> INODE_BITS == 0 && number > ROOT.0).then_some(Ino(number))
    }
}

/// The right to add nodes.
pub(super) struct Adder<'a> {
    slots: &'a Slots,
    adding: &'a mut Adding,
}

/// No slot is left: 2^32 inodes.
#[derive(Debug)]
pub(super) struct Full;

impl Adder<'_> {
    /// Makes the root's node, the first.
    pub(super) fn root(&mut self, node: Node) -> Result<Slot, Full> {
        self.push(node)
    }

    /// Returns the slot of what a directory has under `name`: hard links share one.
    ///
    /// What has one link alone can be seen at several places all the same (layers that overlap, redirects). It is several
    /// files then, as in the kernel's overlayfs; so is a directory.
    pub(super) fn add(
        &mut self,
        backing: Backing,
        stat: &Stat,
        (place, name): (Place, Name<'_>),
        what: What,
    ) -> Result<Slot, Full> {
        let linked = stat.nlink > 1 && stat.kind != FileType::Dir;
        let number = self.slots.number(backing);
        let known = number.and_then(|number| self.slots.by_number(number));
        if linked {
            // Another kind under the same number: the inode was freed and used again. It is another file then.
            let same = |slot: &Slot| self.slots.get(*slot).is_some_and(|node| node.kind == stat.kind);
            let made_up = self.adding.made_up.get(&backing).copied();
            if let Some(slot) = known.filter(same).or(made_up.filter(same)) {
                return Ok(slot);
            }
        }
        let free = number.filter(|_| known.is_none());
        let number = free.unwrap_or_else(|| {
            let parent = self.slots.get(place.parent).map_or(ROOT, Node::number);
            self.make_up(backing, (!linked).then_some((parent, name)))
        });
        let slot = self.push(Node::new(number, stat, place, what))?;
        if linked && free.is_none() {
            self.adding.made_up.insert(backing, slot);
        }
        Ok(slot)
    }

    fn push(&mut self, node: Node) -> Result<Slot, Full> {
        // The last number stands for "no slot" in `Numbers`.
        let slot = Slot(Some(self.adding.len).filter(|&len| len < u32::MAX - 1).ok_or(Full)?);
        let number = node.number;
        self.slots.nodes.set(slot.0, node);
        self.adding.len += 1;
        if number != ROOT {
            self.slots.numbers.insert(number, slot, slot.0, |slot| self.slots.get(slot).map(Node::number));
        }
        Ok(slot)
    }

    /// Makes up a number that is the same in every mount of the same directories, but for very rare collisions.
    fn make_up(&self, backing: Backing, at: Option<(Ino, Name<'_>)>) -> Ino {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        let device =
            self.slots.devices.iter().position(|&dev| dev == backing.dev).map_or(backing.dev, |index| index as u64);
        hash.update(&device.to_le_bytes());
        hash.update(&backing.ino.to_le_bytes());
        if let Some((parent, name)) = at {
            hash.update(&parent.0.to_le_bytes());
            hash.update(name.as_bytes());
        }
        let mut number = hash.digest();
        loop {
            let candidate = Ino(MADE_UP << INODE_BITS | number >> (64 - INODE_BITS));
            if self.slots.by_number(candidate).is_none() {
                return candidate;
            }
            number = number.wrapping_add(1 << (64 - INODE_BITS));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(kind: FileType) -> Stat {
        let time = |sec| Time { sec, nsec: 999_999_999 };
        let device = kind == FileType::Char;
        Stat {
            ino: Ino(7),
            kind,
            perm: 0o4755,
            nlink: 3,
            uid: u32::MAX,
            gid: 5,
            rdev: if device { Dev { major: 1 << 11, minor: u32::MAX } } else { Dev::default() },
            size: if device { 0 } else { u64::MAX },
            blocks: 1 << 40,
            atime: time(-5),
            mtime: time(1 << 40),
            ctime: time(0),
        }
    }

    fn place(position: u32) -> Place {
        Place { parent: Slot(0), position, layer: 0 }
    }

    fn dir() -> What {
        What::Dir(Box::new(Dir::new(vec![0], None)))
    }

    fn add(slots: &Slots, ino: u64, stat: &Stat, name: &str, what: What) -> (Slot, Ino) {
        let name = layer::NameBuf::new(name).unwrap();
        let backing = Backing { dev: 1, ino };
        let slot = slots.add(|adder| adder.add(backing, stat, (place(0), name.as_name()), what).unwrap());
        (slot, slots.get(slot).unwrap().number())
    }

    fn file(slots: &Slots, dev: u64, ino: u64) -> (Slot, Ino) {
        let at = (place(0), Name::new(b"f").unwrap());
        let what = What::File(Content::Here);
        let slot = slots.add(|adder| adder.add(Backing { dev, ino }, &stat(FileType::File), at, what).unwrap());
        (slot, slots.get(slot).unwrap().number())
    }

    #[test]
    fn attributes_come_back_as_they_were() {
        for kind in [FileType::File, FileType::Char, FileType::Socket] {
            let stat = stat(kind);
            assert_eq!(Node::new(Ino(7), &stat, place(0), What::File(Content::Here)).stat(), stat);
        }
        assert!(std::mem::size_of::<std::sync::OnceLock<Node>>() <= 104);
    }

    #[test]
    fn numbers_are_the_inodes_own_where_they_fit() {
        let slots = Slots::new(vec![100, 200]);
        assert_eq!(file(&slots, 100, 12).1, Ino(12));
        assert_eq!(file(&slots, 200, 12).1, Ino(1 << 54 | 12));
        assert_eq!(file(&slots, 200, 0).1, Ino(1 << 54));
        for (dev, ino) in [(100, 0), (100, 1), (100, 1 << 54), (300, 12), (300, u64::MAX)] {
            let (slot, number) = file(&slots, dev, ino);
            assert_eq!(number.0 >> 54, MADE_UP);
            assert!(number.0 < 1 << 62);
            assert_eq!(file(&slots, dev, ino), (slot, number), "one slot for all names");
            assert_eq!(slots.by_number(number), Some(slot));
        }
        assert_eq!(slots.by_number(Ino(13)), None);
    }

    #[test]
    fn what_is_seen_twice_without_being_linked_twice_is_two_files() {
        let slots = Slots::new(vec![1]);
        let once = Stat { nlink: 1, ..stat(FileType::File) };
        let all = [
            add(&slots, 9, &stat(FileType::Dir), "a", dir()),
            add(&slots, 9, &stat(FileType::Dir), "b", dir()),
            // A file under a directory's number does not become that directory.
            add(&slots, 9, &once, "c", What::File(Content::Here)),
            add(&slots, 9, &once, "d", What::File(Content::Here)),
            file(&slots, 1, 9),
        ];
        assert_eq!(all[0].1, Ino(9));
        for (index, one) in all.iter().enumerate() {
            assert_eq!(slots.by_number(one.1), Some(one.0));
            assert!(all[..index].iter().all(|other| other.0 != one.0 && other.1 != one.1));
        }
        assert_eq!(file(&slots, 1, 9), all[4]);
    }

    #[test]
    fn many_are_found_again_while_others_are_added() {
        let slots = Slots::new(vec![1]);
        let count = 20_000;
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let slots = &slots;
                scope.spawn(move || {
                    for i in 0..count {
                        let (slot, number) = file(slots, 1, 1000 + i * 2 + thread);
                        assert_eq!(number, Ino(1000 + i * 2 + thread));
                        assert_eq!(slots.by_number(number), Some(slot));
                    }
                });
            }
        });
        for ino in 1000..1000 + 2 * count {
            assert_eq!(slots.get(slots.by_number(Ino(ino)).unwrap()).unwrap().number(), Ino(ino));
        }
        assert_eq!(slots.by_number(Ino(999)), None);
    }
}
