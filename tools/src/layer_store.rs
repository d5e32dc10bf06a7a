//! `plyfs layer-store`: the store's layers as directories, for the images of podman, buildah and CRI-O to stand on.

use std::fs::File;
use std::io::{self, Seek};

use anyhow::{Context, Result, anyhow};
use layer::{DiffId, Digest};
use mountd::Failure;
use mountd::options::StoreDirs;
use mountd::shelf::{self, Lender, Offer};
use serde_json::json;
use store::{Lendable, Store};

use crate::cli::LayerStoreArgs;
use crate::namespace;

/// `plyfs layer-store`
pub(crate) fn serve(store: Store, args: &LayerStoreArgs) -> Result<()> {
    namespace::open_fuse_device()?;
    let target = std::path::absolute(&args.target).with_context(|| args.target.display().to_string())?;
    let dirs = StoreDirs { objects: store.root().join("objects"), layers: store.root().join("layers") };
    shelf::serve(&target, dirs, Layers(store)).map_err(|failure| anyhow!("{failure}"))
}

/// Lends the store's layers.
struct Layers(Store);

impl Lender for Layers {
    fn find(&self, digest: &Digest) -> Result<Option<Offer>, Failure> {
        let Some(found) = self.0.lendable(digest).map_err(Failure::new)? else { return Ok(None) };
        let kept = self.0.kept_blob(digest).map_err(Failure::new)?.is_some();
        Ok(Some(offer(&found, kept)))
    }

    fn blob(&self, offer: &Offer) -> Result<File, Failure> {
        match self.0.kept_blob(&offer.digest).map_err(Failure::new)? {
            Some(file) => Ok(file),
            None => self.tar(&offer.layer).map_err(Failure::new),
        }
    }

    fn begin_use(&self, offer: &Offer) -> Result<(), Failure> {
        match self.0.lendable(&offer.digest).map_err(Failure::new)? {
            Some(found) => self.0.lend(&found).map_err(Failure::new),
            None => Err(Failure::new(format!("layer {} is not in the store any more", offer.layer))),
        }
    }

    fn end_use(&self, offer: &Offer) -> Result<(), Failure> {
        self.0.give_back(&offer.layer).map_err(Failure::new)
    }
}

impl Layers {
    /// Makes the layer's tar again, in a file without a name.
    fn tar(&self, layer: &DiffId) -> io::Result<File> {
        let mut file = tempfile::tempfile_in("/var/tmp")?;
        self.0.layer_tar(layer, &mut io::BufWriter::new(&mut file)).map_err(io::Error::other)?;
        file.rewind()?;
        Ok(file)
    }
}

/// What containers/storage notes of a layer (`Layer` in its layers.go): the digests and sizes of the blob as it travelled and of the
/// tar in it, and how what we call `blob` is compressed.
fn offer(found: &Lendable, kept: bool) -> Offer {
    let compression = match found.blob.media_type.as_deref() {
        _ if !kept => Compression::None,
        Some(kind) if kind.ends_with("gzip") => Compression::Gzip,
        Some(kind) if kind.ends_with("zstd") => Compression::Zstd,
        _ => Compression::None,
    };
    let info = json!({
        "compressed-diff-digest": found.blob.digest.to_string(),
        "compressed-size": found.blob.size,
        "diff-digest": found.layer.to_string(),
        "diff-size": found.size,
        "compression": compression as u8,
    });
    Offer {
        layer: found.layer,
        digest: found.blob.digest,
        info: info.to_string().into_bytes(),
        blob_len: if kept { found.blob.size } else { found.size },
    }
}

/// In the numbers of containers/storage (pkg/archive, `Compression`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    None = 0,
    Gzip = 2,
    Zstd = 4,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_told_as_containers_storage_notes_it() {
        let descriptor = |kind: &str| store::manifest::Descriptor {
            media_type: Some(kind.to_owned()),
            digest: Digest::of(b"blob"),
            size: 7,
            annotations: Default::default(),
            platform: None,
            data: None,
        };
        let told = |kind: &str, kept| {
            let found = Lendable { layer: DiffId(Digest::of(b"tar")), blob: descriptor(kind), size: 10_240 };
            let offer = offer(&found, kept);
            let info: serde_json::Value = serde_json::from_slice(&offer.info).unwrap();
            assert_eq!(info["compressed-diff-digest"], Digest::of(b"blob").to_string());
            assert_eq!(info["diff-digest"], Digest::of(b"tar").to_string());
            assert_eq!((&info["compressed-size"], &info["diff-size"]), (&json!(7), &json!(10_240)));
            (info["compression"].as_u64().unwrap(), offer.blob_len)
        };
        assert_eq!(told("application/vnd.oci.image.layer.v1.tar+gzip", false), (0, 10_240));
        assert_eq!(told("application/vnd.oci.image.layer.v1.tar+gzip", true), (2, 7));
        assert_eq!(told("application/vnd.oci.image.layer.v1.tar+zstd", true), (4, 7));
        assert_eq!(told("application/vnd.docker.image.rootfs.diff.tar.gzip", true), (2, 7));
        assert_eq!(told("application/vnd.oci.image.layer.v1.tar", true), (0, 7));
    }
}
