//! The sample image: small, built in code, the same bytes every time, with one of everything that layers can do.

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result, bail};
use flate2::{Compression, GzBuilder};
use layer::Digest;
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use crate::cli::SampleArgs;

/// The name that the sample is loaded under.
pub(crate) const NAME: &str = "plyfs/sample:latest";

/// 2024-01-01T00:00:00Z: every file's time and the image's.
const CREATED: &str = "2024-01-01T00:00:00Z";
const MTIME: u64 = 1_704_067_200;

/// Owner of the files that are not root's.
const CLERK: u64 = 1000;

/// `plyfs sample`
pub(crate) fn write(args: &SampleArgs, out: &mut dyn Write) -> Result<()> {
    let archive = archive()?;
    match &args.output {
        Some(file) => std::fs::write(file, archive).with_context(|| file.display().to_string())?,
        None if io::stdout().is_terminal() => {
            bail!("sample: standard output is the terminal; type plyfs sample | plyfs load, or name a file with -o")
        }
        None => out.write_all(&archive)?,
    }
    Ok(())
}

/// Returns the image as an OCI archive (a tar of an OCI layout).
pub(crate) fn archive() -> io::Result<Vec<u8>> {
    let mut blobs = Vec::new();
    let (mut descriptors, mut diff_ids, mut history) = (Vec::new(), Vec::new(), Vec::new());
    for (step, tar) in layers()? {
        diff_ids.push(Digest::of(&tar).to_string());
        history.push(json!({"created": CREATED, "created_by": step}));
        let blob = gzip(&tar)?;
        descriptors.push(descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &blob));
        blobs.push(blob);
    }
    history.push(json!({"created": CREATED, "created_by": "CMD [\"cat\" \"/etc/motd\"]", "empty_layer": true}));

    let config = text(&json!({
        "created": CREATED,
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Cmd": ["cat", "/etc/motd"],
            "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
            "Labels": {"org.opencontainers.image.title": "plyfs sample"},
        },
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": history,
    }));
    let manifest = text(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": descriptors,
    }));
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": NAME});
    let index = text(&json!({"schemaVersion": 2, "manifests": [entry]}));
    blobs.extend([config, manifest]);
    layout(&index, &blobs)
}

/// Returns what each layer does, and its tar.
fn layers() -> io::Result<[(&'static str, Vec<u8>); 4]> {
    let mut base = Tar::new();
    base.dir("etc", 0o755)?;
    base.file("etc/motd", 0o644, b"Welcome to the harbour.\n")?;
    base.file("etc/hostname", 0o644, b"harbour\n")?;
    base.dir("tmp", 0o1777)?;
    base.dir("dev", 0o755)?;
    base.node("dev/null", EntryType::Char, (1, 3))?;
    base.node("dev/initctl", EntryType::Fifo, (0, 0))?;
    for directory in ["usr", "usr/bin", "usr/share", "usr/share/doc", "var", "var/cache", "var/log"] {
        base.dir(directory, 0o755)?;
    }
    base.file("usr/bin/tide", 0o4755, b"#!/bin/sh\nexec cat /usr/share/tides.txt\n")?;
    base.file("usr/share/doc/README", 0o644, b"Read the tide table before you sail.\n")?;
    base.file("usr/share/doc/draft.txt", 0o644, b"An unfinished page.\n")?;
    for page in 1..=4 {
        base.file(&format!("var/cache/page{page}"), 0o644, format!("cached page {page}\n").as_bytes())?;
    }

    // The table is large enough to be an object of its own in the store, which every image that holds it shares.
    let mut tools = Tar::new();
    tools.file("usr/share/tides.txt", 0o644, &tide_table())?;
    tools.file("usr/bin/harbour", 0o755, b"#!/bin/sh\nexec cat /etc/motd\n")?;
    tools.link("usr/bin/pier", "usr/bin/harbour")?;
    tools.link("usr/bin/quay", "usr/bin/harbour")?;
    tools.symlink("usr/bin/dock", "harbour")?;
    tools.whiteout("usr/share/doc/.wh.draft.txt")?;

    let mut app = Tar::new();
    app.dir("var/cache", 0o755)?;
    app.whiteout("var/cache/.wh..wh..opq")?;
    app.file("var/cache/fresh", 0o644, b"the only page left\n")?;
    app.owned_dir("srv", 0o2775)?;
    app.owned_file("srv/ledger.csv", b"ship,berth\nHope,3\nPatience,5\n")?;
    app.owned_file("srv/notes.txt", b"Nothing to report.\n")?;

    let mut welcome = Tar::new();
    welcome.file("etc/motd", 0o644, b"Welcome to the harbour. The tide is high.\n")?;

    Ok([
        ("base: directories, devices, a setuid program", base.finish()?),
        ("tools: hard links, a large file; one page deleted (whiteout)", tools.finish()?),
        ("app: the cache emptied (opaque directory), files of user 1000", app.finish()?),
        ("welcome: /etc/motd replaced", welcome.finish()?),
    ])
}

/// Returns about 110 kB of text.
fn tide_table() -> Vec<u8> {
    let mut table = String::from("day  hour  metres\n");
    for hour in 0..365 * 24_u32 {
        let height = 2 + (hour * 7 % 12).abs_diff(6);
        table.push_str(&format!("{:3} {:2}   {height}\n", hour / 24 + 1, hour % 24));
    }
    table.into_bytes()
}

/// Returns this machine's architecture in Go's words, as OCI configs have it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// A layer being written.
struct Tar(Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Tar(Builder::new(Vec::new()))
    }

    fn dir(&mut self, path: &str, mode: u32) -> io::Result<()> {
        self.add(path, header(EntryType::Directory, mode, 0), b"")
    }

    fn owned_dir(&mut self, path: &str, mode: u32) -> io::Result<()> {
        self.add(path, header(EntryType::Directory, mode, CLERK), b"")
    }

    fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.add(path, header(EntryType::Regular, mode, 0), content)
    }

    fn owned_file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.add(path, header(EntryType::Regular, 0o640, CLERK), content)
    }

    fn whiteout(&mut self, path: &str) -> io::Result<()> {
        self.file(path, 0o600, b"")
    }

    fn node(&mut self, path: &str, kind: EntryType, (major, minor): (u32, u32)) -> io::Result<()> {
        let mut header = header(kind, 0o666, 0);
        header.set_device_major(major)?;
        header.set_device_minor(minor)?;
        self.add(path, header, b"")
    }

    fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.0.append_link(&mut header(EntryType::Link, 0o755, 0), path, target)
    }

    fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.0.append_link(&mut header(EntryType::Symlink, 0o777, 0), path, target)
    }

    fn add(&mut self, path: &str, mut header: Header, content: &[u8]) -> io::Result<()> {
        header.set_size(content.len() as u64);
        self.0.append_data(&mut header, path, content)
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        self.0.into_inner()
    }
}

fn header(kind: EntryType, mode: u32, owner: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(owner);
    header.set_gid(owner);
    header.set_mtime(MTIME);
    header.set_size(0);
    header
}

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::default());
    encoder.write_all(bytes)?;
    encoder.finish()
}

fn text(document: &Value) -> Vec<u8> {
    document.to_string().into_bytes()
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(blob).to_string(), "size": blob.len()})
}

/// Writes an OCI layout as a tar.
fn layout(index: &[u8], blobs: &[Vec<u8>]) -> io::Result<Vec<u8>> {
    let mut tar = Tar::new();
    tar.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    tar.file("index.json", 0o644, index)?;
    for directory in ["blobs", "blobs/sha256"] {
        tar.dir(directory, 0o755)?;
    }
    for blob in blobs {
        tar.file(&format!("blobs/sha256/{}", Digest::of(blob).hex()), 0o644, blob)?;
    }
    tar.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_is_the_same_every_time() {
        assert_eq!(Digest::of(&archive().unwrap()), Digest::of(&archive().unwrap()));
    }

    #[test]
    fn every_blob_lies_under_its_digest() {
        let bytes = archive().unwrap();
        let mut blobs = 0;
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            let mut content = Vec::new();
            io::Read::read_to_end(&mut entry, &mut content).unwrap();
            if let Some(hex) = path.strip_prefix("blobs/sha256/").filter(|hex| !hex.is_empty()) {
                assert_eq!(hex, Digest::of(&content).hex());
                blobs += 1;
            }
        }
        assert_eq!(blobs, 6, "four layers, config, manifest");
    }

    #[test]
    fn large_file_is_above_the_inline_threshold() {
        assert!(tide_table().len() > 64 * 1024);
    }
}
