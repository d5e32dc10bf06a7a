//! One repository, at its registry and at the mirrors of that: manifests, blobs, tags.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use layer::Digest;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LINK};
use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;
use store::Reference;
use store::manifest::{self, DOCUMENT_MAX, Descriptor};
use tokio::runtime::Runtime;

use crate::client::{Ask, Client};
use crate::error::{Error, Result, shown};
use crate::hosts::{Host, Serves};
use crate::manifests::Fetched;
use crate::registries::Patience;

/// Everything that a manifest may be; the last ones so that an old image is told of, not just missing.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.v1+prettyjws;q=0.1, */*;q=0.1";
/// How the media types of docker's first manifests begin.
const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+";
const PAGES_MAX: usize = 1000;
const LIST_MAX: usize = 16 << 20;

/// A repository and where it can be read.
pub(crate) struct Repository {
    pub(crate) reference: Reference,
    /// Mirrors first, the registry itself last.
    pub(crate) hosts: Vec<Host>,
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) patience: Patience,
    /// The host that answered last.
    good: AtomicUsize,
}

/// The answer to a request for a blob, from some byte on.
pub(crate) struct Opened {
    pub(crate) response: Response,
    /// Where the answer begins: 0 if the server does not know ranges.
    pub(crate) at: u64,
}

#[derive(Deserialize)]
struct Tags {
    tags: Option<Vec<String>>,
}

impl Repository {
    pub(crate) fn new(reference: &Reference, hosts: Vec<Host>, runtime: Arc<Runtime>, patience: Patience) -> Self {
        Repository { reference: reference.clone(), hosts, runtime, patience, good: AtomicUsize::new(0) }
    }

    /// What messages call it.
    pub(crate) fn label(&self) -> String {
        self.reference.familiar_repository()
    }

    /// The registry itself: where pushes go.
    pub(crate) fn origin(&self) -> Result<&Host> {
        self.hosts.last().ok_or_else(|| Error::settings(self.label(), "its registry has no host"))
    }

    /// Tries the hosts in order, those that serve the like of it, beginning with the one that did last time.
    async fn any<T>(&self, serves: Serves, mut step: impl AsyncFnMut(&Host) -> Result<T>) -> Result<T> {
        let first = self.good.load(Ordering::Relaxed);
        let order = (first..self.hosts.len()).chain(0..first);
        let mut failures = Vec::new();
        for at in order.filter(|&at| self.hosts[at].serves(serves)) {
            match step(&self.hosts[at]).await {
                Ok(value) => {
                    self.good.store(at, Ordering::Relaxed);
                    return Ok(value);
                }
                Err(error) if error.is_for_next_mirror() => failures.push(error),
                Err(error) => return Err(error),
            }
        }
        // What the registry itself says counts; the mirrors' answers are for those who want to know.
        let last = failures.pop().ok_or_else(|| Error::settings(self.label(), "no host serves it"))?;
        failures.iter().for_each(|error| log::info!("mirror: {error}"));
        Err(last)
    }

    /// Fetches a manifest or an index, by tag or by digest, and verifies it.
    pub(crate) async fn manifest(&self, reference: &str, digest: Option<Digest>) -> Result<Fetched> {
        let serves = if digest.is_some() { Serves::Digests } else { Serves::Tags };
        self.any(serves, async |host: &Host| self.manifest_at(host, reference, digest).await).await
    }

    async fn manifest_at(&self, host: &Host, reference: &str, digest: Option<Digest>) -> Result<Fetched> {
        let what = match digest {
            Some(digest) => format!("{}@{digest}", self.label()),
            None => format!("{}:{reference}", self.label()),
        };
        let path = host.path(&format!("manifests/{reference}"));
        let scopes = host.pull_scope();
        let ask = Ask::get(&path, &scopes, &what).header("accept", ACCEPT);
        let (head, bytes) = host.client.ask_whole(&ask, DOCUMENT_MAX as usize).await?;
        let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let media_type =
            header(CONTENT_TYPE.as_str()).map(|text| text.split(';').next().unwrap_or_default().trim().to_owned());
        // The digest of schema 1 leaves the signatures out; whoever reads such a manifest refuses it by its name.
        let is_schema_1 = media_type.as_deref().is_some_and(|text| text.starts_with(SCHEMA_1));
        let stated = header("docker-content-digest").filter(|_| !is_schema_1);
        let found = Digest::of(&bytes);
        // The header may be of another algorithm; one of ours must be true.
        let stated = stated.and_then(|text| text.parse::<Digest>().ok());
        if let Some(expected) = digest.or(stated).filter(|expected| *expected != found) {
            return Err(Error::invalid(
                &what,
                format!("{} sent content with the digest {found}, not {expected}", host.client.host()),
            ));
        }
        Ok(Fetched { bytes, media_type: media_type.filter(|text| is_manifest_type(text)), digest: found })
    }

    /// Fetches a small blob whole, and verifies it.
    pub(crate) async fn document(&self, descriptor: &Descriptor, what: &str) -> Result<Vec<u8>> {
        if descriptor.size > DOCUMENT_MAX {
            return Err(Error::invalid(
                what,
                format!("it has {} bytes; at most {DOCUMENT_MAX} are read", descriptor.size),
            ));
        }
        if let Some(data) = &descriptor.data {
            check(data, descriptor, what)?;
            return Ok(data.clone());
        }
        self.any(Serves::Digests, async |host: &Host| {
            let path = host.path(&format!("blobs/{}", descriptor.digest));
            let scopes = host.pull_scope();
            let ask = Ask::get(&path, &scopes, what).header("accept-encoding", "identity");
            let (_, bytes) = host.client.ask_whole(&ask, descriptor.size as usize).await?;
            check(&bytes, descriptor, what)?;
            Ok(bytes)
        })
        .await
    }

    /// Opens a blob from that byte on.
    pub(crate) async fn blob(&self, digest: &Digest, from: u64) -> Result<Opened> {
        let what = format!("blob {digest} of {}", self.label());
        self.any(Serves::Digests, async |host: &Host| self.blob_at(host, digest, from, &what).await).await
    }

    async fn blob_at(&self, host: &Host, digest: &Digest, from: u64, what: &str) -> Result<Opened> {
        let path = host.path(&format!("blobs/{digest}"));
        let scopes = host.pull_scope();
        let mut ask = Ask::get(&path, &scopes, what).header("accept-encoding", "identity");
        if from > 0 {
            ask = ask.header("range", &format!("bytes={from}-"));
        }
        let response = host.client.ask(&ask).await?;
        let at = match response.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT if from > 0 => range_start(&response)
                .filter(|start| *start == from)
                .ok_or_else(|| Error::invalid(what, "the registry sent another range than it was asked for"))?,
            _ => return Err(host.client.complaint(response, what).await),
        };
        Ok(Opened { response, at })
    }

    /// Tells whether the registry itself has a blob, and how long it is.
    pub(crate) async fn has_blob(&self, host: &Host, digest: &Digest, scopes: &[String]) -> Result<Option<u64>> {
        let what = format!("blob {digest} of {}", self.label());
        let path = host.path(&format!("blobs/{digest}"));
        let response = host.client.ask(&Ask::get(&path, scopes, &what).method(Method::HEAD)).await?;
        match response.status() {
            StatusCode::OK => {
                let len = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
                Ok(Some(len.unwrap_or(0)))
            }
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(host.client.complaint(response, &what).await),
        }
    }

    /// Lists the tags, in the registry's order.
    pub(crate) async fn tags(&self) -> Result<Vec<String>> {
        self.any(Serves::Tags, async |host: &Host| {
            let what = format!("tags of {}", self.label());
            let mut tags: Vec<String> = Vec::new();
            let scopes = host.pull_scope();
            let first = host.path("tags/list?n=1000");
            let mut take = |bytes: &[u8]| {
                let page: Tags = serde_json::from_slice(bytes).map_err(|why| why.to_string())?;
                tags.extend(page.tags.unwrap_or_default());
                Ok(true)
            };
            pages(&host.client, &first, &scopes, &what, &mut take).await?;
            // What is no tag cannot be asked for; it would only be a path.
            tags.retain(|tag| self.reference.with_tag(tag).is_ok());
            tags.sort_unstable();
            tags.dedup();
            Ok(tags)
        })
        .await
    }
}

/// Reads a list page by page; `take` says whether to go on.
pub(crate) async fn pages(
    client: &Client,
    first: &str,
    scopes: &[String],
    what: &str,
    take: &mut dyn FnMut(&[u8]) -> std::result::Result<bool, String>,
) -> Result<()> {
    let mut path = first.to_owned();
    for _ in 0..PAGES_MAX {
        let (head, bytes) = client.ask_whole(&Ask::get(&path, scopes, what), LIST_MAX).await?;
        let here = head.url;
        let next = head.headers.get(LINK).and_then(|link| next_link(link.to_str().ok()?)).map(str::to_owned);
        let go_on = take(&bytes).map_err(|why| Error::invalid(what, shown(&why)))?;
        let Some(next) = next.filter(|_| go_on) else { return Ok(()) };
        let next = here.join(&next).map_err(|why| Error::invalid(what, why))?;
        if !crate::client::is_same_host(&here, &next) || next.as_str() == here.as_str() {
            return Err(Error::invalid(what, "the next page is at another host, or is this one"));
        }
        path = next.to_string();
    }
    Err(Error::invalid(what, format!("more than {PAGES_MAX} pages")))
}

/// Reads `<address>; rel="next"`.
fn next_link(text: &str) -> Option<&str> {
    let (address, rest) = text.trim().strip_prefix('<')?.split_once('>')?;
    rest.contains("next").then_some(address)
}

fn is_manifest_type(text: &str) -> bool {
    [manifest::OCI_INDEX, manifest::OCI_MANIFEST, manifest::DOCKER_LIST, manifest::DOCKER_MANIFEST].contains(&text)
        || text.starts_with(SCHEMA_1)
}

/// Reads where a `Content-Range` begins: `bytes 100-199/200`.
fn range_start(response: &Response) -> Option<u64> {
    let text = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    text.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

fn check(bytes: &[u8], descriptor: &Descriptor, what: &str) -> Result<()> {
    if bytes.len() as u64 != descriptor.size {
        return Err(Error::invalid(what, format!("it should have {} bytes, but has {}", descriptor.size, bytes.len())));
    }
    match Digest::of(bytes) {
        found if found == descriptor.digest => Ok(()),
        found => Err(Error::invalid(what, format!("its content has the digest {found}, not {}", descriptor.digest))),
    }
}
