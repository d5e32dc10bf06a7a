//! Layers that another store's images stand on stay until they are given back.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::*;
use layer::Digest;
use store::{Removal, Repair};

#[test]
fn a_lent_layer_stays_until_it_is_given_back_as_often() {
    let test = TestStore::new();
    let one = Layer::gzip(Tar::new().file("small", b"small").file("large", &noise(1, 200_000)).end());
    test.load_layers("one", std::slice::from_ref(&one));
    let id = one.diff_id();
    let found = test.store.lendable(&Digest::of(&one.blob)).unwrap().unwrap();
    assert_eq!((found.layer, found.blob.size, found.size), (id, one.blob.len() as u64, one.tar.len() as u64));

    test.store.lend(&found).unwrap();
    test.store.lend(&found).unwrap();
    let removed = test.store.remove_image("one", Removal::Ask).unwrap();
    assert!(removed.image.is_some() && removed.deleted.is_empty(), "{removed:?}");
    test.store.give_back(&id).unwrap();
    assert!(test.store.gc().unwrap().layers.is_empty());
    assert_eq!(test.store.lent().unwrap(), [id]);
    // The manifest that named it is gone.
    let again = test.store.lendable(&Digest::of(&one.blob)).unwrap().unwrap();
    assert_eq!((again.layer, again.blob.size, &again.blob.media_type), (id, found.blob.size, &found.blob.media_type));
    assert!(test.store.fsck(Repair::No).unwrap().findings.is_empty());
    assert_eq!(test.tar(&id), one.tar);

    test.store.give_back(&id).unwrap();
    // Once too often is no debt.
    test.store.give_back(&id).unwrap();
    assert!(test.store.lent().unwrap().is_empty());
    assert_eq!(test.store.gc().unwrap().layers, [id]);
    assert!(test.store.lend(&found).unwrap_err().is_not_found());
    assert!(test.store.lendable(&Digest::of(&one.blob)).unwrap().is_none());
}

#[test]
fn a_layer_that_links_to_what_is_below_it_is_not_lent() {
    let test = TestStore::new();
    let base = Layer::gzip(Tar::new().file("file", b"content").end());
    let links = Layer::gzip(Tar::new().hardlink("other", "file").end());
    test.load_layers("one", &[base.clone(), links.clone()]);
    assert!(test.store.lendable(&Digest::of(&base.blob)).unwrap().is_some());
    assert!(test.store.lendable(&Digest::of(&links.blob)).unwrap().is_none());
    assert!(test.store.lendable(&Digest::of(b"another")).unwrap().is_none());
}
