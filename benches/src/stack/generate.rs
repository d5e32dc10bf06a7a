//! Generated images: the same bytes for the same amounts, on every machine.

use std::io::{Read, Write};
use std::path::Path;

use anyhow::Result;
use tar::{Builder, EntryType, Header};

use super::layout::{Layout, Packing};
use crate::interrupt;
use crate::plan::Sizes;

/// The name of the large file of [`heavy`].
pub(crate) const BIG: &str = "big";
/// The directory of small files of [`heavy`], and its subdirectories.
pub(crate) const SMALL: &str = "small";
/// The directory with many entries of [`heavy`].
pub(crate) const BRANCH: &str = "branch";
/// Directories of a stack of [`deep`].
const DEEP_DIRS: u32 = 200;
/// Files in a subdirectory of [`SMALL`].
const SMALL_PER_DIR: u32 = 250;

/// Writes the layout of an image that looks like one: four layers, `files` files, of which higher layers replace and hide some.
pub(crate) fn sample(dir: &Path, files: u32) -> Result<()> {
    let mut layout = Layout::begin(dir)?;
    for number in 0..4 {
        layout.layer(Packing::Gzip, |out| sample_layer(&mut Tar::new(out), number, files))?;
    }
    layout.finish("sample", None)
}

fn sample_layer(tar: &mut Tar<'_>, number: u32, files: u32) -> Result<()> {
    let share = files / 4;
    for file in number * share..(number + 1) * share {
        interrupt::check()?;
        let parent = format!("usr/lib/package{:02}/part{}", file % 40, file / 40 % 8);
        tar.parents(&parent)?;
        tar.file(&format!("{parent}/file{file}"), sample_size(file), file.into())?;
        if file % 50 == 0 {
            tar.link(&format!("{parent}/link{file}"), &format!("file{file}"))?;
        }
    }
    if number > 0 {
        // A fiftieth of the layer below is replaced, another is removed.
        for file in ((number - 1) * share..number * share).step_by(50) {
            let parent = |file: u32| format!("usr/lib/package{:02}/part{}", file % 40, file / 40 % 8);
            tar.file(&format!("{}/file{file}", parent(file)), 5000, (file + files).into())?;
            tar.file(&format!("{}/.wh.file{}", parent(file + 1), file + 1), 0, 0)?;
        }
    }
    tar.end()
}

/// Most files of an image are small: 60% up to 4 KiB, 25% up to 16 KiB, 10% up to 64 KiB, 5% up to 512 KiB.
fn sample_size(file: u32) -> u64 {
    let random = u64::from(file).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
    match file % 20 {
        0..12 => random % (4 << 10),
        12..17 => random % (16 << 10),
        17..19 => random % (64 << 10),
        _ => random % (512 << 10),
    }
}

/// Writes the layout of a stack of `layers` layers. The merged tree is the same whatever their number: 200 directories with
/// `files` files of 1,000 bytes, file by file from another layer.
pub(crate) fn deep(dir: &Path, layers: u32, files: u32) -> Result<()> {
    let mut layout = Layout::begin(dir)?;
    for layer in 0..layers {
        interrupt::check()?;
        layout.layer(Packing::Plain, |out| {
            let mut tar = Tar::new(out);
            for file in (0..files).filter(|file| deep_layer(*file, layers) == layer) {
                let parent = format!("tree/dir{:03}", file % DEEP_DIRS);
                tar.parents(&parent)?;
                tar.file(&format!("{parent}/file{file}"), 1000, file.into())?;
            }
            tar.end()
        })?;
    }
    layout.finish("deep", None)
}

/// Spreads files over layers: those of one directory over as many as there are files in it, all directories over all layers.
fn deep_layer(file: u32, layers: u32) -> u32 {
    (file / DEEP_DIRS + file % DEEP_DIRS * 37) % layers
}

/// Writes the layout of one layer of what is expensive to change: a large file, many small ones, a directory with many entries.
pub(crate) fn heavy(dir: &Path, sizes: &Sizes) -> Result<()> {
    let mut layout = Layout::begin(dir)?;
    layout.layer(Packing::Plain, |out| {
        let mut tar = Tar::new(out);
        tar.file(BIG, sizes.big, 1)?;
        for file in 0..sizes.small {
            let name = small(file);
            tar.parents(&name[..name.rfind('/').unwrap_or(0)])?;
            tar.file(&name, 2000, file.into())?;
        }
        tar.parents(BRANCH)?;
        for file in 0..sizes.branch {
            tar.file(&format!("{BRANCH}/entry{file}"), 10, file.into())?;
        }
        tar.end()
    })?;
    layout.finish("heavy", None)
}

/// Returns the path of a small file of [`heavy`].
pub(crate) fn small(file: u32) -> String {
    format!("{SMALL}/{}/file{file}", file / SMALL_PER_DIR)
}

/// A tar stream, a line per entry.
struct Tar<'a> {
    builder: Builder<&'a mut dyn Write>,
    dirs: std::collections::HashSet<String>,
}

impl<'a> Tar<'a> {
    fn new(out: &'a mut dyn Write) -> Self {
        Tar { builder: Builder::new(out), dirs: std::collections::HashSet::new() }
    }

    /// Adds a directory and those above it, if they are not there yet.
    fn parents(&mut self, path: &str) -> Result<()> {
        if path.is_empty() || !self.dirs.insert(path.into()) {
            return Ok(());
        }
        if let Some((above, _)) = path.rsplit_once('/') {
            self.parents(above)?;
        }
        let mut header = header(EntryType::Directory, 0o755, 0);
        Ok(self.builder.append_data(&mut header, path, std::io::empty())?)
    }

    fn file(&mut self, path: &str, size: u64, seed: u64) -> Result<()> {
        let mut header = header(EntryType::Regular, 0o644, size);
        Ok(self.builder.append_data(&mut header, path, Noise::new(seed).text().take(size))?)
    }

    fn link(&mut self, path: &str, target: &str) -> Result<()> {
        Ok(self.builder.append_link(&mut header(EntryType::Symlink, 0o777, 0), path, target)?)
    }

    fn end(&mut self) -> Result<()> {
        Ok(self.builder.finish()?)
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header
}

/// Bytes that do not repeat (xorshift64*).
pub(crate) struct Noise {
    state: u64,
    /// Which bits of each byte vary: fewer compress better.
    mask: u64,
}

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Noise { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, mask: u64::MAX }
    }

    /// Noise that compresses to about a half, as the files of images do.
    fn text(self) -> Self {
        Noise { mask: 0x0f0f_0f0f_0f0f_0f0f, ..self }
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

impl Read for Noise {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        for chunk in buf.chunks_mut(8) {
            let word = (self.next() & self.mask).to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        Ok(buf.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::{LoadOptions, Silent, Source, Store};

    fn loaded(write: impl FnOnce(&Path) -> Result<()>) -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let layout = dir.path().join("layout");
        write(&layout).unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let source = Source::parse(&format!("oci:{}", layout.display())).unwrap();
        store.load(&source, &LoadOptions::default(), &Silent).unwrap();
        (dir, store)
    }

    fn rows(store: &Store) -> u32 {
        let image = store.images().unwrap().remove(0);
        let bytes = std::fs::read(store.lower(&image).unwrap().index).unwrap();
        layer::index::Index::open(bytes).unwrap().len()
    }

    #[test]
    fn a_deep_stack_is_the_same_tree_whatever_its_depth() {
        let shallow = loaded(|dir| deep(dir, 1, 600));
        let steep = loaded(|dir| deep(dir, 3, 600));
        assert_eq!(rows(&shallow.1), 1 + 1 + 200 + 600);
        assert_eq!(rows(&steep.1), rows(&shallow.1));
        assert_eq!(steep.1.images().unwrap()[0].diff_ids.len(), 3);
    }

    #[test]
    fn generated_images_load() {
        let sample = loaded(|dir| sample(dir, 400));
        // The root, usr, usr/lib, 40 packages with their parts, 400 files less 6 hidden, 8 links.
        let dirs = 3 + 40 + 320;
        assert_eq!(rows(&sample.1), dirs + 400 - 6 + 8);
        let sizes = Sizes { big: 100_000, small: 300, branch: 10, ..crate::Length::Quick.sizes() };
        let heavy = loaded(|dir| heavy(dir, &sizes));
        assert_eq!(rows(&heavy.1), 1 + 1 + (1 + 2 + 300) + (1 + 10));
    }
}
