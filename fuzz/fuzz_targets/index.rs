//! Any bytes as an index: opened or refused, and what is opened can be read and folded whole.
//!
//! The checksum would stop nearly every input at the door, so it is made right first, and so are the magic, the version and
//! the length.

#![no_main]

use layer::fixture::{read_everything, reseal};
use layer::index::{Index, IndexKind, MAGIC, VERSION};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(index) = Index::open(data) {
        read_everything(&index);
    }
    let mut bytes = data.to_vec();
    let len = bytes.len() as u64;
    if let Some(header) = bytes.first_chunk_mut::<32>() {
        header[..8].copy_from_slice(&MAGIC);
        header[16..20].copy_from_slice(&VERSION.to_le_bytes());
        header[24..].copy_from_slice(&len.to_le_bytes());
    }
    reseal(&mut bytes);
    let Ok(index) = Index::open(&bytes) else { return };
    read_everything(&index);
    if index.kind() == IndexKind::Layer
        && let Ok(folded) = overlay::fold::fold(&[&index, &index])
    {
        read_everything(&Index::open(folded).expect("what was folded is an index"));
    }
});
