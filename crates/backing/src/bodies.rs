//! Where the bodies of files are: open lower files, and the store's bodies of an image.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use layer::{DiffId, Digest, LayerNo};
use overlay::folded::Bodies;
use overlay::upper::Seek;
use overlay::{LowerFile, Result};
use rustix::fs::{OFlags, SeekFrom};
use rustix::io::Errno;

use crate::mmap::Map;
use crate::readonly::{KeptBy, ReadOnly};
use crate::sys;

/// A lower file on the disk, open for reading. Copies share one descriptor.
#[derive(Clone, Debug)]
pub struct File(Arc<OwnedFd>);

impl File {
    /// Takes a descriptor that is open for reading.
    pub fn new(fd: OwnedFd) -> Self {
        File(Arc::new(fd))
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl LowerFile for File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        sys::read_at(self, buf, offset).map_err(|failed| sys::fault("read", "a lower file", failed))
    }

    // Where the descriptor's own position is does not matter: reads name theirs.
    fn seek(&self, offset: u64, what: Seek, _size: u64) -> Result<u64> {
        let to = match what {
            Seek::Data => SeekFrom::Data(offset),
            Seek::Hole => SeekFrom::Hole(offset),
        };
        match rustix::fs::seek(self, to) {
            Err(Errno::NXIO) => Err(overlay::Errno::ENXIO.into()),
            found => found.map_err(|failed| sys::fault("seek in", "a lower file", failed)),
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }
}

/// The bodies of one image of the store: `<layers>/<diffID>/bodies`, each mapped when it is first needed, and
/// `<objects>/ab/cdef...`, opened one by one.
#[derive(Debug)]
pub struct StoreBodies {
    layers: ReadOnly,
    objects: ReadOnly,
    diff_ids: Vec<DiffId>,
    maps: Vec<OnceLock<Map>>,
}

impl StoreBodies {
    /// Opens the two directories; `diff_ids` are the layers in the order of the folded index.
    ///
    /// # Errors
    /// A fault that names the directory which cannot be opened.
    pub fn open(layers: &Path, objects: &Path, diff_ids: impl IntoIterator<Item = DiffId>) -> Result<Self> {
        let open = |path: &Path| ReadOnly::open(path).map_err(|failed| sys::fault("open", path.display(), failed));
        let diff_ids: Vec<_> = diff_ids.into_iter().collect();
        let maps = diff_ids.iter().map(|_| OnceLock::new()).collect();
        Ok(StoreBodies { layers: open(layers)?, objects: open(objects)?, diff_ids, maps })
    }

    /// Tells who keeps the store from being written.
    pub fn kept_by(&self) -> KeptBy {
        self.objects.kept_by()
    }

    fn map(&self, diff_id: &DiffId) -> rustix::io::Result<Map> {
        let path = format!("{}/bodies", diff_id.0.hex());
        Map::of(sys::open_beneath(&self.layers, path.as_bytes(), OFlags::RDONLY | OFlags::NONBLOCK)?)
    }
}

impl Bodies for StoreBodies {
    type File = File;

    fn bodies(&self, layer: LayerNo) -> Result<&[u8]> {
        let missing = || sys::fault("map the bodies of layer", layer.0, Errno::NOENT);
        let index = usize::from(layer.0);
        let (diff_id, map) = self.diff_ids.get(index).zip(self.maps.get(index)).ok_or_else(missing)?;
        if let Some(map) = map.get() {
            return Ok(map.as_ref());
        }
        // Two threads may both map it; one map is dropped.
        let new = self.map(diff_id).map_err(|failed| sys::fault("map the bodies of layer", diff_id, failed))?;
        Ok(map.get_or_init(|| new).as_ref())
    }

    fn object(&self, digest: &Digest) -> Result<File> {
        let hex = digest.hex();
        let path = format!("{}/{}", &hex[..2], &hex[2..]);
        sys::open_beneath(&self.objects, path.as_bytes(), OFlags::RDONLY | OFlags::NONBLOCK)
            .map(File::new)
            .map_err(|failed| sys::fault("open object", digest, failed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &File, offset: u64) -> Vec<u8> {
        let mut buf = [0; 16];
        let len = file.read_at(&mut buf, offset).unwrap();
        buf[..len].to_vec()
    }

    #[test]
    fn bodies_and_objects_are_found_by_their_hashes() {
        let root = tempfile::tempdir().unwrap();
        let (layers, objects) = (root.path().join("layers"), root.path().join("objects"));
        let (one, two) = (DiffId(Digest::of(b"one")), DiffId(Digest::of(b"two")));
        let object = Digest::of(b"content");
        std::fs::create_dir_all(layers.join(one.0.hex())).unwrap();
        std::fs::write(layers.join(one.0.hex()).join("bodies"), b"small bodies").unwrap();
        std::fs::create_dir_all(objects.join(&object.hex()[..2])).unwrap();
        std::fs::write(objects.join(&object.hex()[..2]).join(&object.hex()[2..]), b"content").unwrap();

        let bodies = StoreBodies::open(&layers, &objects, [one, two]).unwrap();
        assert_eq!(bodies.bodies(LayerNo(0)).unwrap(), b"small bodies");
        assert_eq!(bodies.bodies(LayerNo(0)).unwrap().as_ptr(), bodies.bodies(LayerNo(0)).unwrap().as_ptr());
        let file = bodies.object(&object).unwrap();
        assert_eq!(
            (read(&file, 0), read(&file.clone(), 3), read(&file, 7)),
            (b"content".into(), b"tent".into(), vec![])
        );
        assert_eq!(file.seek(0, Seek::Hole, 7).unwrap(), 7);
        assert_eq!(file.seek(7, Seek::Data, 7).unwrap_err().errno(), overlay::Errno::ENXIO);

        // What is missing is a fault, not an empty body.
        assert_eq!(bodies.bodies(LayerNo(1)).unwrap_err().errno(), overlay::Errno::EIO);
        assert_eq!(bodies.bodies(LayerNo(2)).unwrap_err().errno(), overlay::Errno::EIO);
        let fault = bodies.object(&Digest::of(b"other")).unwrap_err();
        assert!(fault.to_string().starts_with(&format!("open object {}", Digest::of(b"other"))), "{fault}");
        assert!(StoreBodies::open(&layers, &root.path().join("none"), []).unwrap_err().to_string().contains("none"));
    }
}
