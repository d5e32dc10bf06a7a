//! A registry in the test's own memory, that misbehaves when told to, and images for it.
#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use layer::Digest;
use registry::{AuthFiles, Patience, Registries, Settings};
use serde_json::{Value, json};
use store::{Reference, Store};

/// What was asked.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    /// By name in lower case.
    pub(crate) headers: HashMap<String, String>,
}

/// What is answered, and how it goes wrong.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) fault: Option<Fault>,
}

/// How an answer goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The connection breaks after so many bytes of the body.
    Cut(usize),
    /// Nothing more comes after so many bytes, for long.
    Stall(usize),
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Reply { status, headers: Vec::new(), body: body.into(), fault: None }
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) fn fault(self, fault: Fault) -> Self {
        Reply { fault: Some(fault), ..self }
    }
}

type Handler = Arc<dyn Fn(&Request) -> Reply + Send + Sync>;

/// An HTTP server on a port of its own, until it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    log: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let handler: Handler = Arc::new(handler);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (log, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (its_log, its_stop) = (Arc::clone(&log), Arc::clone(&stop));
        let accept = move || {
            for stream in listener.incoming() {
                if its_stop.load(Ordering::SeqCst) {
                    return;
                }
                let (handler, log, stop) = (Arc::clone(&handler), Arc::clone(&its_log), Arc::clone(&its_stop));
                // Ends with its connection.
                std::thread::spawn(move || serve(stream.unwrap(), &handler, &log, &stop));
            }
        };
        Server { address, log, stop, listener: Some(std::thread::spawn(accept)) }
    }

    /// What was asked so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// How often something with this in its path was asked for by GET.
    pub(crate) fn gets(&self, part: &str) -> usize {
        self.requests().iter().filter(|request| request.method == "GET" && request.path.contains(part)).count()
    }

    pub(crate) fn name(&self, rest: &str) -> Reference {
        Reference::parse(&format!("{}/{rest}", self.address)).unwrap()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        TcpStream::connect(self.address).ok(); // wakes the listener
        if let Some(listener) = self.listener.take() {
            listener.join().ok();
        }
    }
}

fn serve(stream: TcpStream, handler: &Handler, log: &Mutex<Vec<Request>>, stop: &AtomicBool) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    while let Some(request) = read_request(&mut reader) {
        log.lock().unwrap().push(request.clone());
        let reply = handler(&request);
        let length = reply.body.len();
        let mut head = format!("HTTP/1.1 {} X\r\n", reply.status);
        for (name, value) in &reply.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("content-length: {length}\r\n\r\n");
        let body = if request.method == "HEAD" { &[][..] } else { &reply.body[..] };
        let part = match reply.fault {
            Some(Fault::Cut(at) | Fault::Stall(at)) => &body[..at.min(body.len())],
            None => body,
        };
        // The client may have hung up: that is its right.
        if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(part)).is_err() {
            return;
        }
        match reply.fault {
            None => {}
            Some(Fault::Cut(_)) => return,
            Some(Fault::Stall(_)) => {
                for _ in 0..600 {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
                return;
            }
        }
    }
}

fn read_request(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|len| *len > 0)?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.trim().to_owned()),
            None => break,
        };
    }
    let len: u64 = headers.get("content-length").and_then(|len| len.parse().ok()).unwrap_or(0);
    std::io::copy(&mut reader.take(len), &mut std::io::sink()).ok()?;
    Some(Request { method, path, headers })
}

/// What a registry holds: answers by path, with the media type.
#[derive(Clone, Default)]
pub(crate) struct Shelf {
    pub(crate) answers: HashMap<String, (String, Vec<u8>)>,
}

/// An image and its parts.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) manifest: Vec<u8>,
    pub(crate) config: Vec<u8>,
    pub(crate) blobs: Vec<Vec<u8>>,
    pub(crate) diff_ids: Vec<Digest>,
}

pub(crate) const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// How a test compresses a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packed {
    Gzip,
    Zstd,
}

/// An image of one layer for each text: a file of that content, and some that does not compress.
pub(crate) fn image(texts: &[&str], architecture: &str, packed: Packed) -> Image {
    let tars: Vec<Vec<u8>> = texts.iter().map(|text| tar_of(text)).collect();
    let diff_ids: Vec<Digest> = tars.iter().map(|tar| Digest::of(tar)).collect();
    let blobs: Vec<Vec<u8>> = tars.iter().map(|tar| pack(tar, packed)).collect();
    let ids: Vec<String> = diff_ids.iter().map(Digest::to_string).collect();
    let config = json!({ "os": "linux", "architecture": architecture, "config": { "Env": ["A=b"] },
        "rootfs": { "type": "layers", "diff_ids": ids } });
    let config = config.to_string().into_bytes();
    let kind = match packed {
        Packed::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Packed::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
    };
    let layers: Vec<Value> = blobs.iter().map(|blob| descriptor(kind, blob)).collect();
    let manifest = json!({ "schemaVersion": 2, "mediaType": OCI,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config), "layers": layers });
    Image { manifest: manifest.to_string().into_bytes(), config, blobs, diff_ids }
}

fn tar_of(text: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut noise = Vec::with_capacity(200_000);
    let mut state = Digest::of(text.as_bytes());
    while noise.len() < 200_000 {
        noise.extend_from_slice(state.as_bytes());
        state = Digest::of(state.as_bytes());
    }
    for (name, content) in [("text", text.as_bytes()), (&*format!("noise-{text}"), &noise)] {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header, name, content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn pack(bytes: &[u8], packed: Packed) -> Vec<u8> {
    match packed {
        Packed::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        Packed::Zstd => zstd::encode_all(bytes, 1).unwrap(),
    }
}

pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len() })
}

impl Image {
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    pub(crate) fn blob_path(&self, at: usize) -> String {
        format!("/blobs/{}", Digest::of(&self.blobs[at]))
    }
}

impl Shelf {
    /// Puts a document under a tag and under its digest.
    pub(crate) fn manifest(&mut self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) -> &mut Self {
        for reference in [tag.to_owned(), Digest::of(bytes).to_string()] {
            let path = format!("/v2/{repository}/manifests/{reference}");
            self.answers.insert(path, (media_type.to_owned(), bytes.to_vec()));
        }
        self
    }

    pub(crate) fn blob(&mut self, repository: &str, bytes: &[u8]) -> &mut Self {
        let path = format!("/v2/{repository}/blobs/{}", Digest::of(bytes));
        self.answers.insert(path, ("application/octet-stream".to_owned(), bytes.to_vec()));
        self
    }

    pub(crate) fn image(&mut self, repository: &str, tag: &str, image: &Image) -> &mut Self {
        self.manifest(repository, tag, OCI, &image.manifest).blob(repository, &image.config);
        for blob in &image.blobs {
            self.blob(repository, blob);
        }
        self
    }

    /// Answers as a registry does, ranges included.
    pub(crate) fn answer(&self, request: &Request) -> Reply {
        let path = request.path.split('?').next().unwrap_or_default();
        if path == "/v2/" {
            return Reply::new(200, "{}");
        }
        let Some((media_type, body)) = self.answers.get(path) else {
            return Reply::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#);
        };
        let from = request.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        match from.map(|from| from.parse::<usize>().unwrap()) {
            Some(from) => Reply::new(206, &body[from..])
                .with("content-range", format!("bytes {from}-{}/{}", body.len() - 1, body.len())),
            None => Reply::new(200, body.clone()).with("content-type", media_type.clone()),
        }
    }

    pub(crate) fn serve(self) -> Server {
        Server::start(move |request| self.answer(request))
    }
}

/// A store in a temporary directory.
pub(crate) struct Stage {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: Store,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("plyfs-test.").tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Stage { dir, store }
    }

    /// Speaks plain HTTP, knows no credentials, and has little patience.
    pub(crate) fn settings(&self) -> Settings {
        let conf = self.dir.path().join("registries.conf");
        if !conf.exists() {
            std::fs::write(&conf, "").unwrap();
        }
        Settings {
            plain_http: true,
            auth_files: AuthFiles::only(self.dir.path().join("auth.json")),
            registries_conf: Some(conf),
            hosts_dir: Some(self.dir.path().join("certs.d")),
            patience: Patience { attempts: 3, pause: Duration::from_millis(1), idle: Duration::from_secs(20) },
            ..Settings::default()
        }
    }

    pub(crate) fn registries(&self) -> Registries {
        Registries::new(self.settings()).unwrap()
    }

    /// The store holds nothing: no image, no layer, nothing unfinished.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        assert!(self.store.images().unwrap().is_empty());
        for dir in ["layers", "ingest", "images/manifests", "images/configs", "images/refs", "folded", "objects"] {
            let found: Vec<_> = std::fs::read_dir(self.store.root().join(dir)).unwrap().collect();
            assert!(found.is_empty(), "{dir}: {found:?}");
        }
    }

    /// The image is in the store, and each layer comes out as it went in.
    #[track_caller]
    pub(crate) fn assert_whole(&self, name: &Reference, image: &Image) {
        let found = self.store.image(&name.to_string()).unwrap();
        assert_eq!(found.id.0, Digest::of(&image.config));
        assert_eq!(found.manifest, image.manifest);
        assert_eq!(found.diff_ids.iter().map(|id| id.0).collect::<Vec<_>>(), image.diff_ids);
        for diff_id in &found.diff_ids {
            self.store.layer_tar(diff_id, &mut std::io::sink()).unwrap();
        }
    }
}
