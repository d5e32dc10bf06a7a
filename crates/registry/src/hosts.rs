//! Which hosts a repository is asked of, and how each is spoken to.

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use store::Reference;

use crate::auth::Auth;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::mirrors::{Mirrors, Place};
use crate::registries::Settings;
use crate::web::{Trust, Web};

/// Where Docker Hub's registry really is.
const DOCKER_HUB: &str = "registry-1.docker.io";

/// A host that holds a repository.
pub(crate) struct Host {
    pub(crate) client: Client,
    /// The repository's path there.
    pub(crate) repository: String,
    /// What a mirror must be told: which registry is meant.
    namespace: Option<String>,
    tags: bool,
    digests: bool,
}

/// What is wanted of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Serves {
    /// What a tag is now.
    Tags,
    /// What a digest names.
    Digests,
}

impl Host {
    pub(crate) fn serves(&self, what: Serves) -> bool {
        match what {
            Serves::Tags => self.tags,
            Serves::Digests => self.digests,
        }
    }

    /// The path of something of the repository, below the API's beginning.
    pub(crate) fn path(&self, rest: &str) -> String {
        let path = format!("{}/{rest}", self.repository);
        match &self.namespace {
            Some(namespace) if path.contains('?') => format!("{path}&ns={namespace}"),
            Some(namespace) => format!("{path}?ns={namespace}"),
            None => path,
        }
    }

    pub(crate) fn pull_scope(&self) -> Vec<String> {
        vec![format!("repository:{}:pull", self.repository)]
    }
}

/// Returns the hosts of a reference: mirrors first, its registry last.
pub(crate) fn of(reference: &Reference, settings: &Settings, mirrors: &Mirrors) -> Result<Vec<Host>> {
    let route = mirrors.route(reference.domain(), reference.path())?;
    let mut hosts = Vec::new();
    for place in &route.mirrors {
        hosts.push(mirror(place, settings)?);
    }
    let own = route.origin.unwrap_or_else(|| Place::of(reference.domain(), reference.path()));
    hosts.push(origin(&own, settings)?);
    Ok(hosts)
}

/// The client for a registry that is meant as a whole: to log in, to search.
pub(crate) fn registry(domain: &str, settings: &Settings, mirrors: &Mirrors) -> Result<Client> {
    let own = mirrors.route(domain, "")?.origin;
    let (insecure, ca_files) = own.map(|place| (place.insecure, place.ca_files)).unwrap_or_default();
    let place = Place { insecure, ca_files, ..Place::of(domain, "") };
    client(&place, domain.to_owned(), settings)
}

/// The registry itself: it has everything.
fn origin(place: &Place, settings: &Settings) -> Result<Host> {
    Ok(Host { namespace: None, tags: true, digests: true, ..host(place, settings)? })
}

/// A mirror is trusted no further than its own entry says: neither the command line's password nor its `--insecure` is for it.
fn mirror(place: &Place, settings: &Settings) -> Result<Host> {
    host(place, &Settings { credential: None, plain_http: false, insecure: false, ..settings.clone() })
}

fn host(place: &Place, settings: &Settings) -> Result<Host> {
    Ok(Host {
        client: client(place, account(place), settings)?,
        repository: place.repository.clone(),
        namespace: place.namespace.clone(),
        tags: place.tags,
        digests: place.digests,
    })
}

/// Under which name credentials for a place are kept.
fn account(place: &Place) -> String {
    let bare = place.location.split_once("://").map_or(place.location.as_str(), |(_, bare)| bare);
    let host = bare.split('/').next().unwrap_or(bare);
    let host = if host == DOCKER_HUB { "docker.io" } else { host };
    format!("{host}/{}", place.repository)
}

/// The client for a place; its credentials are those kept for `account`.
fn client(place: &Place, account: String, settings: &Settings) -> Result<Client> {
    let location = place.location.as_str();
    let blind = place.insecure || settings.insecure;
    let files = settings.ca_files.iter().chain(&place.ca_files).cloned().collect();
    let trust = if blind { Trust::Blind } else { Trust::Verify(files) };
    let web = Web::new(trust, settings.patience.idle);
    let base = match location.split_once("://") {
        Some(_) => address(location)?,
        None => {
            let host = if location == "docker.io" { DOCKER_HUB } else { location };
            let scheme = if settings.plain_http { "http" } else { "https" };
            address(&format!("{scheme}://{host}"))?
        }
    };
    let base = match place.whole_path {
        true => with_slash(base),
        false => with_slash(base).join("v2/").map_err(|why| Error::settings(location, why))?,
    };
    let mut extra = HeaderMap::new();
    for (name, value) in &place.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|why| Error::settings(location, why))?;
        let mut value = HeaderValue::from_str(value).map_err(|why| Error::settings(location, why))?;
        value.set_sensitive(true);
        extra.append(name, value);
    }
    let auth = Auth::new(account, settings.auth_files.clone(), settings.credential.clone());
    let fallback = blind && base.scheme() == "https" && !location.contains("://");
    Ok(Client { base, web, auth, patience: settings.patience, headers: extra, may_be_plain: fallback })
}

fn address(text: &str) -> Result<Url> {
    let url = Url::parse(text).map_err(|why| Error::settings(text, why))?;
    match matches!(url.scheme(), "http" | "https") && url.host_str().is_some() && url.username().is_empty() {
        true => Ok(url),
        false => Err(Error::settings(text, "it is no address of a registry")),
    }
}

fn with_slash(mut url: Url) -> Url {
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    url
}
