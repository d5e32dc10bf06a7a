//! Documents, configs, names and instructions of random and of nearly right bytes: each is read or refused, and none makes the
//! store panic. `PROPTEST_CASES=1000000 cargo test -p plyfs-store mutations` goes on for longer.

use proptest::prelude::*;

use crate::reference::Reference;
use crate::{json, manifest};

const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Right documents to begin with.
fn sample(number: usize) -> String {
    let layer = format!(
        r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{D}","size":7,"annotations":{{"a":null}},"data":"AA=="}}"#
    );
    match number {
        0 => format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"{}","digest":"{D}","size":2}},"layers":[{layer},{layer}]}}"#,
            manifest::OCI_MANIFEST,
            manifest::OCI_CONFIG
        ),
        1 => format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{{"mediaType":"{}","digest":"{D}","size":2,
            "platform":{{"os":"linux","architecture":"arm64","variant":"v8"}}}}]}}"#,
            manifest::OCI_INDEX,
            manifest::OCI_MANIFEST
        ),
        2 => format!(
            r#"{{"created":"2026-01-02T03:04:05.678+02:00","os":"linux","architecture":"amd64","config":{{"Env":["A=b"]}},
            "rootfs":{{"type":"layers","diff_ids":["{D}"]}},"history":[{{"created_by":"x","empty_layer":true}}]}}"#
        ),
        _ => r#"{"schemaVersion":1,"fsLayers":[{"blobSum":"x"}],"history":[{"v1Compatibility":"{}"}]}"#.to_owned(),
    }
}

fn read_all(bytes: &[u8]) {
    // Either answer is right; what counts is that there is one.
    drop(json::parse(bytes));
    drop(manifest::read_document(bytes, "x", None));
    drop(manifest::read_document(bytes, "x", Some(manifest::OCI_INDEX)));
    drop(manifest::read_config(bytes, "x"));
}

proptest! {
    #[test]
    fn mutated_documents_are_read_or_refused(
        number in 0usize..4,
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 0..12),
    ) {
        let mut bytes = sample(number).into_bytes();
        for (at, byte, how) in edits {
            if bytes.is_empty() {
                break;
            }
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 => drop(bytes.remove(at)),
                _ => bytes.extend_from_within(at..),
            }
        }
        read_all(&bytes);
    }

    #[test]
    fn random_documents_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        read_all(&bytes);
    }

    #[test]
    fn nested_documents_are_read_or_refused(depth in 0usize..20_000, open in prop::sample::select(vec!["[", "{\"a\":"])) {
        read_all(open.repeat(depth).as_bytes());
    }

    /// What is read as a name is read again from how it is written, and is the same.
    #[test]
    fn names_are_refused_or_read_back(text in "([a-zA-Z0-9._/:@-]{0,80})|(([a-z0-9]{1,5}[._/-]){0,4}[a-z0-9]{1,9}(:[a-zA-Z0-9._-]{1,20})?)") {
        if let Ok(name) = Reference::parse(&text) {
            prop_assert_eq!(&Reference::parse(&name.to_string()).unwrap(), &name);
            prop_assert_eq!(&Reference::parse(&name.familiar()).unwrap(), &name);
        }
    }

    #[test]
    fn random_names_are_refused_or_read_back(text in any::<String>()) {
        if let Ok(name) = Reference::parse(&text) {
            prop_assert_eq!(&Reference::parse(&name.to_string()).unwrap(), &name);
        }
    }
}
