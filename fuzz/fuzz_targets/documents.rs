//! Any bytes as a manifest, an index, a config and a name: read or refused; what is read as a name is written as it is read.

#![no_main]

use libfuzzer_sys::fuzz_target;
use store::{Reference, manifest};

fuzz_target!(|data: &[u8]| {
    for declared in [None, Some(manifest::OCI_MANIFEST), Some(manifest::OCI_INDEX), Some(manifest::DOCKER_LIST)] {
        manifest::read_document(data, "document", declared).ok();
    }
    manifest::read_config(data, "config").ok();
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(name) = Reference::parse(text) else { return };
    let again = Reference::parse(&name.to_string()).expect("a name that was written is one");
    assert_eq!(again, name);
});
