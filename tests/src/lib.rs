//! What the mounted tests, the suites and the model share.

pub mod model;

/// Tells that a test cannot run here: it passes, but `./test` lists it; where nothing may be skipped, it fails.
///
/// # Panics
/// With `PLYFS_TEST_NO_SKIPS` set, or if the list cannot be written.
pub fn skip(test: &str, why: &str) {
    use std::io::Write;
    assert!(std::env::var_os("PLYFS_TEST_NO_SKIPS").is_none(), "{test}: {why}");
    println!("{test}: skipped: {why}");
    if let Some(file) = std::env::var_os("PLYFS_SKIPS") {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(file);
        let told = file.and_then(|mut file| file.write_all(format!("plyfs-tests {test}: {why}\n").as_bytes()));
        told.unwrap_or_else(|error| panic!("the list of what was skipped: {error}"));
    }
}
