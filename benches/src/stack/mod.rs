//! The layers that contestants mount: one image in every form that one of them wants.
//!
//! The source is always a store: a named image lies in the user's, everything else is loaded into one of ours first. Plain
//! directories are unpacked from what the store gives back, once.

mod generate;
mod layout;
mod unpack;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use layer::DiffId;
use store::{Image, LoadOptions, Lower, Silent, Source, Store};

use crate::machine;
use crate::plan::{Input, Sizes};
use crate::scratch::Scratch;

pub(crate) use generate::{BIG, BRANCH, Noise, small};
use layout::{Layout, Packing};
use unpack::{Form, Lost, Spelling, Unpacker};

/// Which layers a scene is played on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// The image that was asked for.
    Image,
    /// A generated stack of so many layers.
    Deep(u32),
    /// What is expensive to change.
    Heavy,
}

/// Writes the layout of the generated image; its reference is `sample`.
pub(crate) fn write_sample(dir: &Path, sizes: &Sizes) -> Result<()> {
    generate::sample(dir, sizes.sample)
}

/// In which forms a stack is wanted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Forms {
    /// A directory for each layer.
    pub(crate) layers: bool,
    /// One directory with all.
    pub(crate) merged: bool,
}

/// One image, in the forms that contestants mount.
#[derive(Debug)]
pub(crate) struct Stack {
    /// What reports call it.
    pub(crate) name: String,
    /// How many layers it has.
    pub(crate) depth: usize,
    /// In a store.
    pub(crate) stored: Option<Stored>,
    /// A directory for each layer, topmost first; empty if not wanted.
    pub(crate) layers: Vec<PathBuf>,
    /// One directory with all.
    pub(crate) merged: Option<PathBuf>,
    /// What could not be kept in the directories, in words.
    pub(crate) lost: Option<String>,
}

/// An image in a store.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) store: Store,
    pub(crate) image: Image,
    pub(crate) lower: Lower,
}

impl Stack {
    /// Makes the stack of `input`.
    pub(crate) fn of_input(
        input: &Input,
        users_store: &Path,
        sizes: &Sizes,
        scratch: &Scratch,
        forms: Forms,
    ) -> Result<Self> {
        match input {
            Input::Dirs(dirs) => Stack::of_dirs(dirs),
            Input::Generated => {
                let layout = scratch.fresh("sample")?;
                write_sample(&layout, sizes)?;
                Stack::of_layout(&layout, "generated image", scratch, forms)
            }
            Input::Loaded(name) => {
                let store = Store::open(users_store)?;
                let image = store.image(name)?;
                Stack::of_stored(Stored::new(store, image)?, scratch, forms)
            }
            Input::Source(text) => {
                let source = Source::parse(text)?;
                Stack::of_stored(Stored::load(&source, text, scratch)?, scratch, forms)
            }
        }
    }

    /// Makes a generated stack.
    pub(crate) fn generated(kind: Kind, sizes: &Sizes, scratch: &Scratch, forms: Forms) -> Result<Self> {
        let layout = scratch.fresh("layout")?;
        let name = match kind {
            Kind::Deep(layers) => {
                generate::deep(&layout, layers, sizes.deep)?;
                format!("stack of {layers}")
            }
            Kind::Heavy => {
                generate::heavy(&layout, sizes)?;
                "heavy files".to_string()
            }
            Kind::Image => bail!("an image is not generated here"),
        };
        Stack::of_layout(&layout, &name, scratch, forms)
    }

    /// Tells how much disk making it takes, in bytes, as far as that is known beforehand.
    pub(crate) fn room(kind: Kind, sizes: &Sizes) -> u64 {
        match kind {
            // The layout, the store, the layers' directories, the merged one, and a copied-up file.
            Kind::Heavy => 5 * sizes.big + u64::from(sizes.small + sizes.branch) * 4 * 4096,
            Kind::Deep(_) => u64::from(sizes.deep) * 4 * 4096,
            Kind::Image => 0,
        }
    }

    fn of_layout(layout: &Path, name: &str, scratch: &Scratch, forms: Forms) -> Result<Self> {
        let source = Source::parse(&format!("oci:{}", layout.display()))?;
        let stored = Stored::load(&source, name, scratch)?;
        std::fs::remove_dir_all(layout)?;
        Ok(Stack { name: name.to_string(), ..Stack::of_stored(stored, scratch, forms)? })
    }

    fn of_stored(stored: Stored, scratch: &Scratch, forms: Forms) -> Result<Self> {
        let mut stack = Stack {
            name: stored.image.label(),
            depth: stored.image.diff_ids.len(),
            layers: Vec::new(),
            merged: None,
            lost: None,
            stored: None,
        };
        let mut lost = Lost::default();
        if forms.layers {
            let dir = scratch.fresh("l")?;
            for (number, diff_id) in stored.image.diff_ids.iter().enumerate() {
                let layer = dir.join(number.to_string());
                std::fs::create_dir(&layer)?;
                let mut unpacker = Unpacker::new(&layer, Form::Layer(spelling()), &stack.layers)?;
                read_layer(&stored.store, diff_id, |tar| unpacker.add(tar))?;
                lost = unpacker.lost.and(lost);
                stack.layers.insert(0, layer);
            }
        }
        if forms.merged {
            let dir = scratch.fresh("plain")?;
            for diff_id in &stored.image.diff_ids {
                let mut unpacker = Unpacker::new(&dir, Form::Merged, &[])?;
                read_layer(&stored.store, diff_id, |tar| unpacker.hide(tar))?;
                read_layer(&stored.store, diff_id, |tar| unpacker.add(tar))?;
                lost = unpacker.lost.and(lost);
            }
            stack.merged = Some(dir);
        }
        Ok(Stack { stored: Some(stored), lost: lost.in_words(), ..stack })
    }

    fn of_dirs(dirs: &[PathBuf]) -> Result<Self> {
        let find = |dir: &PathBuf| dir.canonicalize().with_context(|| dir.display().to_string());
        let layers = dirs.iter().map(find).collect::<Result<Vec<_>>>()?;
        let depth = layers.len();
        Ok(Stack { name: "directories".into(), depth, stored: None, layers, merged: None, lost: None })
    }
}

impl Stored {
    pub(crate) fn new(store: Store, image: Image) -> Result<Self> {
        let lower = store.lower(&image)?;
        Ok(Stored { store, image, lower })
    }

    /// Loads an image into a store of its own.
    pub(crate) fn load(source: &Source, text: &str, scratch: &Scratch) -> Result<Self> {
        let store = Store::open(&scratch.fresh("store")?)?;
        let loaded = store.load(source, &LoadOptions::default(), &Silent)?;
        let [only] = &loaded[..] else {
            bail!("{text}: it holds {} images; name one, as oci:DIR:REF", loaded.len());
        };
        let image = store.image_by_id(only.id)?;
        Stored::new(store, image)
    }

    /// Writes the image as an OCI layout with gzip layers.
    pub(crate) fn export(&self, dir: &Path, reference: &str) -> Result<()> {
        let mut layout = Layout::begin(dir)?;
        for diff_id in &self.image.diff_ids {
            layout.layer(Packing::Gzip, |out| Ok(self.store.layer_tar(diff_id, out)?))?;
        }
        layout.finish(reference, Some(&self.image.config))
    }
}

impl Lost {
    fn and(self, other: Lost) -> Lost {
        Lost {
            owners: self.owners || other.owners,
            devices: self.devices || other.devices,
            attributes: self.attributes || other.attributes,
        }
    }

    fn in_words(self) -> Option<String> {
        let lost = [(self.owners, "owners"), (self.devices, "devices"), (self.attributes, "some extended attributes")];
        let lost: Vec<&str> = lost.into_iter().filter(|(is_lost, _)| *is_lost).map(|(_, word)| word).collect();
        (!lost.is_empty()).then(|| lost.join(", "))
    }
}

/// Returns what may be made here.
fn spelling() -> Spelling {
    match (rustix::process::geteuid().is_root(), machine::is_host_namespace()) {
        (true, true) => Spelling::Trusted,
        (true, false) => Spelling::User,
        (false, _) => Spelling::Files,
    }
}

/// Reads a layer's tar out of the store, through a pipe.
fn read_layer(store: &Store, diff_id: &DiffId, read: impl FnOnce(&File) -> Result<()>) -> Result<()> {
    let (reader, writer): (OwnedFd, OwnedFd) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // Larger than the default of 64 KiB, if allowed.
    rustix::pipe::fcntl_setpipe_size(&writer, 1 << 20).ok();
    std::thread::scope(|scope| {
        let written = scope.spawn(move || {
            let mut writer = BufWriter::with_capacity(1 << 20, File::from(writer));
            store.layer_tar(diff_id, &mut writer)?;
            Ok::<(), anyhow::Error>(writer.flush()?)
        });
        let mut reader = File::from(reader);
        // A tar goes on behind its end, with zeros.
        let read = read(&reader).and_then(|()| Ok(std::io::copy(&mut reader, &mut std::io::sink())?));
        drop(reader);
        let written = written.join().unwrap_or_else(|_| bail!("reading a layer panicked"));
        // The reader's failure comes first: the writer's is its consequence.
        read.and(written).with_context(|| format!("unpack layer {diff_id}"))
    })
}
