//! What a running command reads stays until it is done.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::io::Read;

use common::*;
use store::Removal;

fn layer(seed: u64) -> Layer {
    Layer::gzip(Tar::new().file("small", b"small").file("large", &noise(seed, 200_000)).end())
}

#[test]
fn a_leased_layer_outlives_its_image_and_goes_with_the_next_removal() {
    let test = TestStore::new();
    let one = layer(1);
    test.load_layers("one", std::slice::from_ref(&one));
    let lease = test.store.lease(&[one.diff_id()], "save one").unwrap();
    let removed = test.store.remove_image("one", Removal::Ask).unwrap();
    assert!(removed.image.is_some() && removed.deleted.is_empty(), "{removed:?}");
    assert!(test.store.gc().unwrap().layers.is_empty());
    let mut tar = Vec::new();
    test.store.open_layer(&one.diff_id()).unwrap().read_to_end(&mut tar).unwrap();
    assert_eq!(tar, one.tar);
    drop(lease);
    assert_eq!(test.store.gc().unwrap().layers, [one.diff_id()]);
}

#[test]
fn a_lease_whose_holder_was_killed_counts_for_nothing_and_is_swept() {
    let test = TestStore::new();
    let one = layer(1);
    test.load_layers("one", std::slice::from_ref(&one));
    let lease = test.store.lease(&[one.diff_id()], "save one").unwrap();
    let path = test.root().join("leases").read_dir().unwrap().next().unwrap().unwrap().path();
    let text = std::fs::read(&path).unwrap();
    drop(lease);
    assert!(!path.exists());
    std::fs::write(&path, text).unwrap();
    let removed = test.store.remove_image("one", Removal::Ask).unwrap();
    assert_eq!(removed.deleted, [one.diff_id()]);
    assert!(!path.exists());
}

#[test]
fn a_layers_stream_is_read_in_pieces_of_any_length_and_its_damage_is_told() {
    let test = TestStore::new();
    let sizes = [0usize, 1, 511, 65_536, 65_537, 700_000];
    let tar =
        sizes.iter().fold(Tar::new(), |tar, &size| tar.file(&format!("f{size}"), &noise(size as u64, size))).end();
    let layer = Layer::plain(tar);
    test.load_layers("one", std::slice::from_ref(&layer));
    let mut stream = test.store.open_layer(&layer.diff_id()).unwrap();
    assert_eq!(stream.size(), layer.tar.len() as u64);
    let (mut read, mut buf, mut step) = (Vec::new(), vec![0; 9000], 1);
    loop {
        let len = stream.read(&mut buf[..step]).unwrap();
        if len == 0 {
            break;
        }
        read.extend_from_slice(&buf[..len]);
        step = step % 8999 + 1;
    }
    assert_eq!(read, layer.tar);
    let bodies = test.root().join("layers").join(layer.diff_id().0.hex()).join("bodies");
    let mut bytes = std::fs::read(&bodies).unwrap();
    bytes[0] ^= 1;
    std::fs::remove_file(&bodies).unwrap();
    std::fs::write(&bodies, bytes).unwrap();
    let mut stream = test.store.open_layer(&layer.diff_id()).unwrap();
    let error = std::io::copy(&mut stream, &mut std::io::sink()).unwrap_err().to_string();
    assert!(error.contains("its content has changed"), "{error}");
}
