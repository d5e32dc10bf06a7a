//! Searching: by Docker Hub's form where a registry has it, else in its catalog.

use reqwest::{StatusCode, Url};
use serde::Deserialize;

use crate::client::{Ask, Client, Place};
use crate::error::{Error, Result};
use crate::registries::Registries;
use crate::repository::pages;

/// Where Docker Hub is searched.
const HUB: &str = "index.docker.io";
const LIMIT: usize = 25;
const LIMIT_MAX: usize = 100;
const ANSWER_MAX: usize = 4 << 20;

/// What is searched for.
#[derive(Clone, Debug, Default)]
pub struct SearchOptions {
    /// How many at most; 25 unless told, 100 at most.
    pub limit: Option<usize>,
    /// With so many stars at least.
    pub stars: u64,
    /// Only official ones, or only others.
    pub official: Option<bool>,
}

/// A repository that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name; with the host, unless that is Docker Hub's.
    pub name: String,
    /// What its owner says of it.
    pub description: String,
    /// How many people like it.
    pub stars: u64,
    /// Whether Docker vouches for it.
    pub official: bool,
}

#[derive(Deserialize)]
struct HubAnswer {
    #[serde(default)]
    results: Vec<HubResult>,
}

#[derive(Deserialize)]
struct HubResult {
    name: String,
    description: Option<String>,
    #[serde(default)]
    star_count: u64,
    #[serde(default)]
    is_official: bool,
}

#[derive(Deserialize)]
struct Catalog {
    repositories: Option<Vec<String>>,
}

impl Registries {
    /// Searches `[REGISTRY/]TERM`; the term must be part of the name.
    ///
    /// # Errors
    /// The registry's; a limit that is none.
    pub fn search(&self, term: &str, options: &SearchOptions) -> Result<Vec<Found>> {
        let limit = options.limit.unwrap_or(LIMIT);
        if limit == 0 || limit > LIMIT_MAX {
            return Err(Error::settings("search", format!("the limit is from 1 to {LIMIT_MAX}, not {limit}")));
        }
        let is_host = |first: &str| first == "localhost" || first.contains(['.', ':']);
        let (domain, term) = match term.split_once('/') {
            Some((first, rest)) if is_host(first) => (first, rest),
            _ => ("docker.io", term),
        };
        let hub = domain == "docker.io";
        let client = self.registry(if hub { HUB } else { domain })?;
        let mut found = match self.runtime.block_on(by_form(&client, term, limit))? {
            Some(found) => found,
            None => self.runtime.block_on(by_catalog(&client, term, limit))?,
        };
        let wanted = term.to_lowercase();
        found.retain(|one| {
            one.name.to_lowercase().contains(&wanted)
                && one.stars >= options.stars
                && options.official.is_none_or(|official| official == one.official)
        });
        found.truncate(limit);
        if !hub {
            found.iter_mut().for_each(|one| one.name = format!("{domain}/{}", one.name));
        }
        Ok(found)
    }
}

/// By `/v1/search`; `None` where there is none.
async fn by_form(client: &Client, term: &str, limit: usize) -> Result<Option<Vec<Found>>> {
    let what = format!("search at {}", client.host());
    let mut url: Url = client.base.join("/v1/search").map_err(|why| Error::invalid(&what, why))?;
    url.query_pairs_mut().append_pair("q", term).append_pair("n", &limit.to_string());
    let response = client.ask(&Ask { place: Place::Url(url), ..Ask::get("", &[], &what) }).await?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => return Ok(None),
        _ => return Err(client.complaint(response, &what).await),
    }
    let bytes =
        crate::auth::body(response, ANSWER_MAX).await.map_err(|why| Error::Unreachable(format!("{what}: {why}")))?;
    // A front end may answer anything with its own page.
    let Ok(answer) = serde_json::from_slice::<HubAnswer>(&bytes) else { return Ok(None) };
    let found = answer.results.into_iter().map(|one| Found {
        name: one.name,
        description: one.description.unwrap_or_default(),
        stars: one.star_count,
        official: one.is_official,
    });
    Ok(Some(found.collect()))
}

/// By `/v2/_catalog`, page by page until there is enough.
async fn by_catalog(client: &Client, term: &str, limit: usize) -> Result<Vec<Found>> {
    let what = format!("catalog of {}", client.host());
    let scopes = ["registry:catalog:*".to_owned()];
    let wanted = term.to_lowercase();
    let mut found: Vec<Found> = Vec::new();
    pages(client, "_catalog?n=1000", &scopes, &what, &mut |bytes| {
        let page: Catalog = serde_json::from_slice(bytes).map_err(|why| why.to_string())?;
        let names = page.repositories.unwrap_or_default().into_iter().filter(|name| name.contains(&wanted));
        found.extend(names.map(|name| Found { name, description: String::new(), stars: 0, official: false }));
        Ok(found.len() < limit)
    })
    .await?;
    Ok(found)
}
