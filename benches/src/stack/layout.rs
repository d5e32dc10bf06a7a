//! Writing an OCI layout: generated images, and images of the store for programs that want one.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use layer::{DiffId, Digest};
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// How a layer travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    Gzip,
    Plain,
}

/// An OCI layout with one image, being written.
pub(crate) struct Layout {
    dir: PathBuf,
    layers: Vec<LayerBlob>,
}

struct LayerBlob {
    diff_id: DiffId,
    digest: Digest,
    size: u64,
    packing: Packing,
}

impl Layout {
    /// Begins in the empty directory `dir`.
    pub(crate) fn begin(dir: &Path) -> Result<Self> {
        fs::create_dir_all(blobs(dir))?;
        Ok(Layout { dir: dir.to_path_buf(), layers: Vec::new() })
    }

    /// Adds a layer on top: the tar that `write` writes.
    pub(crate) fn layer(&mut self, packing: Packing, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        let path = self.dir.join("layer");
        let blob = Hashed::new(BufWriter::with_capacity(1 << 20, File::create(&path)?));
        let (diff_id, blob) = match packing {
            Packing::Plain => {
                let mut tar = blob;
                write(&mut tar)?;
                (None, tar)
            }
            Packing::Gzip => {
                let mut tar = Hashed::new(GzEncoder::new(blob, Compression::new(6)));
                write(&mut tar)?;
                let (gzip, diff_id, _) = tar.end();
                (Some(diff_id), gzip.finish()?)
            }
        };
        let (mut file, digest, size) = blob.end();
        file.flush()?;
        fs::rename(&path, blobs(&self.dir).join(digest.hex()))?;
        self.layers.push(LayerBlob { diff_id: DiffId(diff_id.unwrap_or(digest)), digest, size, packing });
        Ok(())
    }

    /// Writes the documents. Without a `config` a minimal one is made.
    pub(crate) fn finish(self, reference: &str, config: Option<&[u8]>) -> Result<()> {
        let diff_ids: Vec<_> = self.layers.iter().map(|layer| layer.diff_id.to_string()).collect();
        let minimal = json!({
            "architecture": architecture(), "os": "linux", "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = config.map_or_else(|| minimal.to_string().into_bytes(), <[u8]>::to_vec);
        let layers: Vec<_> = self.layers.iter().map(LayerBlob::descriptor).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": self.blob("application/vnd.oci.image.config.v1+json", &config)?,
            "layers": layers,
        });
        let mut manifest = self.blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes())?;
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": reference });
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
        fs::write(self.dir.join("index.json"), index.to_string())?;
        fs::write(self.dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(())
    }

    fn blob(&self, media_type: &str, bytes: &[u8]) -> Result<serde_json::Value> {
        let digest = Digest::of(bytes);
        fs::write(blobs(&self.dir).join(digest.hex()), bytes).context("write a document")?;
        Ok(json!({ "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len() }))
    }
}

impl LayerBlob {
    fn descriptor(&self) -> serde_json::Value {
        let media_type = match self.packing {
            Packing::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Packing::Plain => "application/vnd.oci.image.layer.v1.tar",
        };
        json!({ "mediaType": media_type, "digest": self.digest.to_string(), "size": self.size })
    }
}

fn blobs(dir: &Path) -> PathBuf {
    dir.join("blobs/sha256")
}

/// The word of OCI for the processor's kind.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// Passes bytes on and hashes them.
struct Hashed<W> {
    inner: W,
    hash: Sha256,
    len: u64,
}

impl<W> Hashed<W> {
    fn new(inner: W) -> Self {
        Hashed { inner, hash: Sha256::new(), len: 0 }
    }

    fn end(self) -> (W, Digest, u64) {
        (self.inner, Digest::from_bytes(self.hash.finalize().into()), self.len)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
