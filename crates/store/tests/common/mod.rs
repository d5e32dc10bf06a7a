//! Fixtures in code: tars member by member, OCI layouts and docker archives of them, and stores in temporary directories.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use layer::{DiffId, Digest};
use serde_json::{Value, json};
use store::{LoadOptions, Loaded, Silent, Source, Store};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A tar being written.
#[derive(Clone, Default)]
pub struct Tar(Vec<u8>);

impl Tar {
    pub fn new() -> Self {
        Tar::default()
    }

    /// A member of any kind: its header's fields, its body.
    pub fn member(mut self, path: &str, flag: u8, link: &str, body: &[u8]) -> Self {
        self.0.extend(header(path.as_bytes(), flag, link.as_bytes(), body.len() as u64));
        self.body(body)
    }

    pub fn file(self, path: &str, body: &[u8]) -> Self {
        self.member(path, b'0', "", body)
    }

    pub fn dir(self, path: &str) -> Self {
        self.member(path, b'5', "", b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.member(path, b'2', target, b"")
    }

    pub fn hardlink(self, path: &str, target: &str) -> Self {
        self.member(path, b'1', target, b"")
    }

    /// PAX records for the next member.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let text: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.member("pax", b'x', "", &text)
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Ends it as tar does.
    pub fn end(self) -> Vec<u8> {
        self.raw(&[0; 1024]).0
    }

    /// Leaves it without an end.
    pub fn open_end(self) -> Vec<u8> {
        self.0
    }

    fn body(mut self, body: &[u8]) -> Self {
        self.0.extend_from_slice(body);
        let len = self.0.len().next_multiple_of(512);
        self.0.resize(len, 0);
        self
    }
}

/// A GNU header; long names are cut.
pub fn header(path: &[u8], flag: u8, link: &[u8], size: u64) -> [u8; 512] {
    let mut block = [0; 512];
    block[..path.len().min(100)].copy_from_slice(&path[..path.len().min(100)]);
    block[100..107].copy_from_slice(if flag == b'5' { b"0000755" } else { b"0000644" });
    block[108..115].copy_from_slice(b"0000000");
    block[116..123].copy_from_slice(b"0000000");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[136..147].copy_from_slice(b"14000000000");
    block[156] = flag;
    block[157..157 + link.len().min(100)].copy_from_slice(&link[..link.len().min(100)]);
    block[257..265].copy_from_slice(b"ustar  \0");
    block[329..336].copy_from_slice(b"0000001");
    block[337..344].copy_from_slice(b"0000003");
    seal(block)
}

/// Gives a header its checksum.
pub fn seal(mut block: [u8; 512]) -> [u8; 512] {
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|&b| u64::from(b)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

pub fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let len = (1..).find(|len| len - len.to_string().len() == rest).unwrap();
    [len.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(len).collect()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// A layer: its tar, and how it travels.
#[derive(Clone)]
pub struct Layer {
    pub tar: Vec<u8>,
    pub blob: Vec<u8>,
    pub media_type: &'static str,
}

impl Layer {
    pub fn plain(tar: Vec<u8>) -> Self {
        Layer { blob: tar.clone(), tar, media_type: LAYER }
    }

    pub fn gzip(tar: Vec<u8>) -> Self {
        Layer { blob: gzip(&tar), tar, media_type: "application/vnd.oci.image.layer.v1.tar+gzip" }
    }

    pub fn diff_id(&self) -> DiffId {
        DiffId(Digest::of(&self.tar))
    }
}

pub fn config(layers: &[Layer]) -> Value {
    json!({
        "created": "2026-01-02T03:04:05Z", "os": "linux", "architecture": std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64"),
        "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| layer.diff_id().to_string()).collect::<Vec<_>>()},
        "history": layers.iter().enumerate().map(|(n, _)| json!({"created_by": format!("step {n}")})).collect::<Vec<_>>(),
    })
}

/// An OCI layout in a directory.
pub struct Layout {
    pub dir: tempfile::TempDir,
    pub index: Vec<Value>,
}

impl Layout {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let layout = Layout { dir, index: Vec::new() };
        layout.write_index();
        layout
    }

    /// A layout of one image.
    pub fn of(name: &str, layers: &[Layer]) -> Self {
        let mut layout = Layout::new();
        layout.image(name, layers);
        layout
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn source(&self) -> Source {
        Source::parse(&format!("oci:{}", self.path().display())).unwrap()
    }

    pub fn blob(&self, bytes: &[u8], media_type: &str) -> Value {
        let digest = Digest::of(bytes);
        fs::write(self.path().join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
    }

    /// Adds an image without listing it; returns its descriptor.
    pub fn manifest(&self, layers: &[Layer], config: &Value) -> Value {
        let config = self.blob(config.to_string().as_bytes(), CONFIG);
        let layers: Vec<Value> = layers.iter().map(|layer| self.blob(&layer.blob, layer.media_type)).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        self.blob(manifest.to_string().as_bytes(), MANIFEST)
    }

    pub fn image(&mut self, name: &str, layers: &[Layer]) -> Value {
        let descriptor = self.manifest(layers, &config(layers));
        self.list(descriptor.clone(), name);
        descriptor
    }

    /// Lists a descriptor in index.json.
    pub fn list(&mut self, mut descriptor: Value, name: &str) {
        if !name.is_empty() {
            descriptor["annotations"]["org.opencontainers.image.ref.name"] = name.into();
        }
        self.index.push(descriptor);
        self.write_index();
    }

    fn write_index(&self) {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": self.index});
        fs::write(self.path().join("index.json"), index.to_string()).unwrap();
    }

    /// The layout as a tar.
    pub fn archive(&self) -> Vec<u8> {
        files(self.path()).into_iter().fold(Tar::new(), |tar, (path, body)| tar.file(&path, &body)).end()
    }
}

/// A docker archive: `manifest.json` entries, files and links, in that order.
pub fn docker_archive(manifest: &Value, tar: Tar) -> Vec<u8> {
    tar.file("manifest.json", manifest.to_string().as_bytes()).end()
}

/// A store in a directory of its own.
pub struct TestStore {
    pub dir: tempfile::TempDir,
    pub store: Store,
}

impl TestStore {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        TestStore { dir, store }
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub fn try_load(&self, source: &Source) -> store::Result<Vec<Loaded>> {
        self.store.load(source, &LoadOptions::default(), &Silent)
    }

    pub fn load(&self, source: &Source) -> Vec<Loaded> {
        self.try_load(source).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Loads one image of these layers under that name.
    pub fn load_layers(&self, name: &str, layers: &[Layer]) -> Loaded {
        self.load(&Layout::of(name, layers).source()).remove(0)
    }

    /// What the store holds, by path: names and lengths; locks are left out.
    pub fn files(&self) -> BTreeMap<String, u64> {
        let mut all: BTreeMap<String, u64> =
            files(&self.root()).into_iter().map(|(path, body)| (path, body.len() as u64)).collect();
        all.retain(|path, _| !path.ends_with("lock"));
        all
    }

    pub fn tar(&self, layer: &DiffId) -> Vec<u8> {
        let mut tar = Vec::new();
        self.store.layer_tar(layer, &mut tar).unwrap();
        tar
    }
}

/// All regular files below a directory, by path.
pub fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(path) = pending.pop() {
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap().is_dir() {
                true => pending.push(entry.path()),
                false => {
                    let name = entry.path().strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                    all.insert(name, fs::read(entry.path()).unwrap());
                }
            }
        }
    }
    all
}
