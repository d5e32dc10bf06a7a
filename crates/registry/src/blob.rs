//! A blob while it arrives: read as a stream, taken up again where it broke off.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use layer::Digest;
use reqwest::Response;
use store::Blobs;
use tokio::sync::Notify;

use crate::error::{Error, causes};
use crate::repository::Repository;

/// How often one blob may break off, even if a little comes each time.
const BREAKS_MAX: u32 = 200;

/// The blobs of a repository, until they are given up.
pub(crate) struct RemoteBlobs {
    repository: Arc<Repository>,
    stop: Arc<Stop>,
}

#[derive(Default)]
struct Stop {
    stopped: AtomicBool,
    notify: Notify,
}

struct Stream {
    repository: Arc<Repository>,
    stop: Arc<Stop>,
    digest: Digest,
    size: u64,
    /// How much was given out.
    at: u64,
    response: Option<Response>,
    /// How much of the answer was given out before already: from a server that does not know ranges.
    skip: u64,
    chunk: Vec<u8>,
    taken: usize,
    /// In a row, without a byte between.
    failures: u32,
    breaks: u32,
}

impl RemoteBlobs {
    pub(crate) fn new(repository: Arc<Repository>) -> Self {
        RemoteBlobs { repository, stop: Arc::default() }
    }
}

impl Blobs for RemoteBlobs {
    fn open(&self, digest: &Digest, size: u64) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(Stream {
            repository: Arc::clone(&self.repository),
            stop: Arc::clone(&self.stop),
            digest: *digest,
            size,
            at: 0,
            response: None,
            skip: 0,
            chunk: Vec::new(),
            taken: 0,
            failures: 0,
            breaks: 0,
        }))
    }

    fn give_up(&self) {
        self.stop.stopped.store(true, Ordering::SeqCst);
        self.stop.notify.notify_waiters();
    }
}

impl Stop {
    async fn wait(&self) {
        let mut notified = std::pin::pin!(self.notify.notified());
        notified.as_mut().enable();
        if !self.stopped.load(Ordering::SeqCst) {
            notified.await;
        }
    }
}

impl Stream {
    /// Gets the next chunk; `false` at the end.
    async fn next(&mut self) -> io::Result<bool> {
        loop {
            if self.response.is_none() && !self.open().await? {
                continue;
            }
            let Some(response) = &mut self.response else { continue };
            match response.chunk().await {
                Ok(Some(bytes)) => {
                    let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
                    self.skip -= skipped as u64;
                    if skipped == bytes.len() {
                        continue;
                    }
                    self.chunk.clear();
                    self.chunk.extend_from_slice(&bytes[skipped..]);
                    (self.taken, self.failures) = (0, 0);
                    return Ok(true);
                }
                Ok(None) if self.at >= self.size => return Ok(false),
                Ok(None) => self.broke("it ended too early".into()).await?,
                // All is there; how the connection ends is nobody's concern.
                Err(_) if self.at >= self.size => return Ok(false),
                Err(cause) => self.broke(causes(&cause.without_url())).await?,
            }
        }
    }

    /// Asks for the rest; `false` to try again.
    async fn open(&mut self) -> io::Result<bool> {
        match self.repository.blob(&self.digest, self.at).await {
            Ok(opened) => {
                self.skip = self.at - opened.at.min(self.at);
                let whole = opened.response.content_length().map(|len| opened.at.saturating_add(len));
                if let Some(whole) = whole.filter(|whole| *whole != self.size) {
                    let why = format!("it should have {} bytes, but the registry says {whole}", self.size);
                    return Err(io::Error::other(Error::invalid(format!("blob {}", self.digest), why)));
                }
                self.response = Some(opened.response);
                Ok(true)
            }
            // The client has tried several times itself.
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// The connection broke: pauses before it is taken up again, unless that was done too often.
    async fn broke(&mut self, why: String) -> io::Result<()> {
        let patience = self.repository.patience;
        self.response = None;
        self.failures += 1;
        self.breaks += 1;
        if self.failures >= patience.attempts || self.breaks >= BREAKS_MAX {
            let text = format!("the connection broke at byte {} of {}, again and again: {why}", self.at, self.size);
            return Err(io::Error::other(Error::Unreachable(text)));
        }
        log::info!("blob {}: broken off at byte {} of {}: {why}", self.digest, self.at, self.size);
        tokio::time::sleep(patience.pause(self.failures)).await;
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.chunk.len() {
            let (runtime, stop) = (Arc::clone(&self.repository.runtime), Arc::clone(&self.stop));
            let more = runtime.block_on(async {
                tokio::select! {
                    biased;
                    () = stop.wait() => Err(io::Error::other("given up")),
                    more = self.next() => more,
                }
            });
            if !more? {
                return Ok(0);
            }
        }
        let len = buf.len().min(self.chunk.len() - self.taken);
        buf[..len].copy_from_slice(&self.chunk[self.taken..self.taken + len]);
        self.taken += len;
        self.at += len as u64;
        Ok(len)
    }
}
