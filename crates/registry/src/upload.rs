//! Blobs on their way to a registry: made while they are sent, so that none is held in memory or written down.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use layer::Digest;
use reqwest::header::{HeaderMap, LOCATION};
use reqwest::{Body, Method, Response, StatusCode, Url};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::client::{Ask, Place};
use crate::error::{Error, Result};
use crate::hosts::Host;
use crate::push::Compression;
use crate::repository::Repository;

/// Bytes per chunk.
const CHUNK: usize = 256 << 10;
/// Chunks on their way.
const DEPTH: usize = 4;

/// A blob as it went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// What came of asking for an upload.
pub(crate) enum Begun {
    /// The blob is there now, from another repository.
    Mounted,
    /// It can be sent to that address.
    At(Url),
}

impl Repository {
    /// Begins an upload; asks for the blob to be mounted from another repository first, if one is named.
    pub(crate) async fn begin(&self, host: &Host, mount: Option<(&Digest, &str)>, scopes: &[String]) -> Result<Begun> {
        let what = format!("push to {}", self.label());
        let path = match mount {
            Some((digest, from)) => host.path(&format!("blobs/uploads/?mount={digest}&from={from}")),
            None => host.path("blobs/uploads/"),
        };
        let ask = Ask { body: Some(Vec::new()), ..Ask::get(&path, scopes, &what).method(Method::POST) };
        let response = host.client.ask(&ask).await?;
        match response.status() {
            StatusCode::CREATED if mount.is_some() => Ok(Begun::Mounted),
            StatusCode::ACCEPTED => next(host, &response, &what).map(Begun::At),
            _ => Err(host.client.complaint(response, &what).await),
        }
    }

    /// Sends a blob that is at hand.
    pub(crate) async fn send_bytes(&self, host: &Host, bytes: &[u8], scopes: &[String]) -> Result<Sent> {
        let what = format!("push to {}", self.label());
        let digest = Digest::of(bytes);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let Begun::At(at) = self.begin(host, None, scopes).await? else {
                return Err(Error::invalid(what, "the registry mounted what it was not asked to"));
            };
            let body = Some(bytes.to_vec());
            let place = Place::Url(finished(&at, &digest));
            let ask = Ask { method: Method::PUT, place, scopes, headers: HeaderMap::new(), body, what: &what };
            let response = host.client.ask(&ask.header("content-type", "application/octet-stream")).await?;
            // What broke off was sent once more: the first time may have come through, or left its half in the upload.
            let is_spoilt = [StatusCode::BAD_REQUEST, StatusCode::NOT_FOUND, StatusCode::RANGE_NOT_SATISFIABLE]
                .contains(&response.status());
            let is_there = response.status() == StatusCode::CREATED
                || is_spoilt && self.has_blob(host, &digest, scopes).await?.is_some();
            if is_there {
                return Ok(Sent { digest, size: bytes.len() as u64 });
            }
            if !is_spoilt || attempt >= self.patience.attempts {
                return Err(host.client.complaint(response, &what).await);
            }
        }
    }

    /// Sends a blob that is made from `reader` while it goes.
    pub(crate) fn send_stream(
        &self,
        host: &Host,
        at: &Url,
        reader: &mut (dyn Read + Send),
        compression: Option<Compression>,
        scopes: &[String],
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Sent> {
        let what = format!("push to {}", self.label());
        let (to, from) = channel(DEPTH);
        std::thread::scope(|scope| {
            let maker = scope.spawn(move || make(reader, compression, to, progress));
            let sent = self.runtime.block_on(async {
                let sent = Arc::new(AtomicU64::new(0));
                let body = Body::wrap_stream(Chunks { from, sent: Arc::clone(&sent) });
                let response = tokio::select! {
                    response = host.client.send_stream(Method::PATCH, at, scopes, body) => response?,
                    () = standstill(&sent, self.patience.idle) => {
                        return Err(Error::Unreachable(format!("{what}: the registry takes nothing more")));
                    }
                };
                if let Some(wait) = host.client.plea(&response) {
                    tokio::time::sleep(wait).await;
                    // Then the upload is begun anew.
                    return Err(Error::Unreachable(host.client.complaint(response, &what).await.to_string()));
                }
                match response.status() {
                    StatusCode::ACCEPTED | StatusCode::NO_CONTENT | StatusCode::CREATED => next(host, &response, &what),
                    _ => Err(host.client.complaint(response, &what).await),
                }
            });
            let made = maker.join().unwrap_or_else(|_| Err(io::Error::other("the making of a layer panicked")));
            // What could not be made explains what could not be sent; but not the other way round.
            let made = match (made, sent) {
                (Ok(made), Ok(next)) => (made, next),
                (Err(cause), Err(error)) if cause.kind() == io::ErrorKind::BrokenPipe => return Err(error),
                (Err(cause), _) => return Err(Error::invalid(what, format!("a layer cannot be read: {cause}"))),
                (Ok(_), Err(error)) => return Err(error),
            };
            let (made, next) = made;
            self.runtime.block_on(async {
                let place = Place::Url(finished(&next, &made.digest));
                let ask = Ask {
                    method: Method::PUT,
                    place,
                    scopes,
                    headers: HeaderMap::new(),
                    body: Some(Vec::new()),
                    what: &what,
                };
                let response = host.client.ask(&ask).await?;
                match response.status() {
                    StatusCode::CREATED => Ok(made),
                    // Its answer may have been lost: then the upload is over, and the blob is there.
                    StatusCode::NOT_FOUND if self.has_blob(host, &made.digest, scopes).await?.is_some() => Ok(made),
                    // Else the registry has lost what it was sent.
                    StatusCode::NOT_FOUND => {
                        Err(Error::Unreachable(format!("{what}: {} lost the upload", host.client.host())))
                    }
                    _ => Err(host.client.complaint(response, &what).await),
                }
            })
        })
    }
}

/// Where the next step of an upload goes.
fn next(host: &Host, response: &Response, what: &str) -> Result<Url> {
    let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
    let location = location.and_then(|location| response.url().join(location).ok());
    let location = location.ok_or_else(|| Error::invalid(what, "the registry does not say where to send to"))?;
    crate::client::allow(&host.client.base, &location).map_err(|why| Error::invalid(what, why))?;
    Ok(location)
}

/// The address that ends an upload.
fn finished(at: &Url, digest: &Digest) -> Url {
    let mut at = at.clone();
    at.query_pairs_mut().append_pair("digest", &digest.to_string());
    at
}

/// Reads, compresses, hashes and passes on; on its own thread.
fn make(
    reader: &mut (dyn Read + Send),
    compression: Option<Compression>,
    to: Sender<io::Result<Vec<u8>>>,
    progress: &(dyn Fn(u64) + Sync),
) -> io::Result<Sent> {
    let mut pipe = Pipe { to: to.clone(), hash: Sha256::new(), size: 0, chunk: Vec::with_capacity(CHUNK) };
    let mut reader = Counted { reader, done: 0, progress };
    let made = match compression {
        None => io::copy(&mut reader, &mut pipe).map(drop),
        Some(Compression::Gzip(level)) => {
            let mut encoder = flate2::write::GzEncoder::new(&mut pipe, flate2::Compression::new(level.min(9)));
            io::copy(&mut reader, &mut encoder).and_then(|_| encoder.finish().map(drop))
        }
        Some(Compression::Zstd(level)) => {
            let level = i32::try_from(level).unwrap_or(3);
            zstd::stream::write::Encoder::new(&mut pipe, level)
                .and_then(|mut encoder| io::copy(&mut reader, &mut encoder).and_then(|_| encoder.finish().map(drop)))
        }
    };
    let made = made.and_then(|()| pipe.flush());
    if let Err(cause) = &made
        && cause.kind() != io::ErrorKind::BrokenPipe
    {
        // The body must not end as if all had been said. If nobody listens, nobody is misled.
        to.blocking_send(Err(io::Error::other("given up"))).ok();
    }
    made.map(|()| Sent { digest: Digest::from_bytes(pipe.hash.finalize().into()), size: pipe.size })
}

struct Counted<'a> {
    reader: &'a mut (dyn Read + Send),
    done: u64,
    progress: &'a (dyn Fn(u64) + Sync),
}

impl Read for Counted<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.reader.read(buf)?;
        self.done += len as u64;
        (self.progress)(self.done);
        Ok(len)
    }
}

/// The writing end of a body.
struct Pipe {
    to: Sender<io::Result<Vec<u8>>>,
    hash: Sha256,
    size: u64,
    chunk: Vec<u8>,
}

impl Write for Pipe {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let len = buf.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&buf[..len]);
        if self.chunk.len() == CHUNK {
            self.flush()?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK));
        self.hash.update(&chunk);
        self.size += chunk.len() as u64;
        self.to.blocking_send(Ok(chunk)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// The reading end of a body.
struct Chunks {
    from: Receiver<io::Result<Vec<u8>>>,
    /// How many chunks went.
    sent: Arc<AtomicU64>,
}

/// Ends when no chunk went for so long.
async fn standstill(sent: &AtomicU64, idle: Duration) {
    let mut before = None;
    loop {
        let now = sent.load(Ordering::Relaxed);
        if before == Some(now) {
            return;
        }
        before = Some(now);
        tokio::time::sleep(idle).await;
    }
}

impl Stream for Chunks {
    type Item = io::Result<Vec<u8>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.from.poll_recv(cx);
        if next.is_ready() {
            self.sent.fetch_add(1, Ordering::Relaxed);
        }
        next
    }
}
