//! Any bytes as a layer: taken in and given back bit by bit, or refused with nothing left.
//!
//! Checksums would stop nearly every input at the door, so that of each block that looks like a header is made right first.

#![no_main]

use std::io::{self, Read};
use std::sync::Arc;

use layer::Digest;
use libfuzzer_sys::fuzz_target;
use store::{Arrival, Blobs, LoadOptions, Reference, Removal, Silent, Store};

struct One(Vec<u8>);

impl Blobs for One {
    fn open(&self, _: &Digest, _: u64) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(io::Cursor::new(self.0.clone())))
    }
}

fn sealed(data: &[u8]) -> Vec<u8> {
    let mut tar = data.to_vec();
    for block in tar.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    tar
}

fn descriptor(media_type: &str, bytes: &[u8]) -> String {
    format!(r#"{{"mediaType":"{media_type}","digest":"{}","size":{}}}"#, Digest::of(bytes), bytes.len())
}

fuzz_target!(|data: &[u8]| {
    let tar = sealed(data);
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        Digest::of(&tar)
    );
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
        descriptor("application/vnd.oci.image.config.v1+json", config.as_bytes()),
        descriptor("application/vnd.oci.image.layer.v1.tar", &tar)
    );
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(&dir.path().join("store")).expect("a store");
    let name = Reference::parse("fuzz").expect("a name");
    let arrival =
        Arrival { names: vec![name], manifest: manifest.into_bytes(), config: config.into_bytes(), index: None };
    let blobs: Arc<dyn Blobs> = Arc::new(One(tar.clone()));
    match store.receive(vec![arrival], &blobs, "fuzz", &LoadOptions::default(), &Silent) {
        Ok(loaded) => {
            let mut back = Vec::new();
            store.layer_tar(&loaded[0].layers[0].diff_id, &mut back).expect("what was taken comes back");
            assert_eq!(back, tar);
            store.remove_image("fuzz", Removal::Ask).expect("it can be removed");
        }
        Err(_) => assert!(store.images().expect("a list").is_empty()),
    }
    let layers = std::fs::read_dir(store.root().join("layers")).expect("a directory");
    assert_eq!(layers.count(), 0);
});
