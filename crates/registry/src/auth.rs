//! Who asks: the credentials for one host, and the tokens that they were exchanged for.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use reqwest::header::HeaderValue;
use reqwest::{Response, Url};
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::challenge::Challenge;
use crate::credentials::{AuthFiles, Credential};
use crate::error::{Error, Result, causes, shown};
use crate::web::Web;

/// How long a token is good unless the server says (distribution, token specification).
const TOKEN_LIFE: u64 = 60;
/// A token is not used in its last seconds.
const MARGIN: Duration = Duration::from_secs(5);
/// The longest answer of a token server, in bytes.
const ANSWER_MAX: usize = 1 << 20;

/// The state of authentication at one host.
pub(crate) struct Auth {
    /// As references and files of credentials spell it, with the repository: `quay.io/a/b`.
    account: String,
    files: AuthFiles,
    /// What was given on the command line.
    given: Option<Credential>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    credential: Option<Option<Credential>>,
    challenge: Option<Challenge>,
    tokens: HashMap<String, Token>,
}

#[derive(Clone)]
struct Token {
    header: HeaderValue,
    expires: Instant,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// Whether a registry is spoken to without TLS, and on which host: it bounds where a token server may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ground<'a> {
    pub(crate) url: &'a Url,
    pub(crate) web: &'a Web,
}

impl Auth {
    pub(crate) fn new(account: String, files: AuthFiles, given: Option<Credential>) -> Self {
        Auth { account, files, given, state: Mutex::default() }
    }

    /// Returns what to send beforehand: what was asked for last time.
    pub(crate) async fn known(&self, scopes: &[String], ground: Ground<'_>) -> Result<Option<HeaderValue>> {
        let mut state = self.state.lock().await;
        match state.challenge.clone() {
            None => Ok(None),
            Some(challenge) => self.answer_one(&mut state, &challenge, scopes, ground).await,
        }
    }

    /// Answers a 401; `None` if there is nothing to answer with. `sent` is what was not enough.
    pub(crate) async fn answer(
        &self,
        challenges: Vec<Challenge>,
        scopes: &[String],
        sent: Option<&HeaderValue>,
        ground: Ground<'_>,
    ) -> Result<Option<HeaderValue>> {
        let mut state = self.state.lock().await;
        // A token may have expired early, or be for less than is needed.
        if let Some(sent) = sent {
            state.tokens.retain(|_, token| token.header != *sent);
        }
        let bearer = challenges.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        let Some(challenge) = bearer.or(challenges.first()).cloned() else { return Ok(None) };
        let header = self.answer_one(&mut state, &challenge, scopes, ground).await?;
        state.challenge = Some(challenge);
        Ok(header.filter(|header| Some(header) != sent))
    }

    async fn answer_one(
        &self,
        state: &mut State,
        challenge: &Challenge,
        scopes: &[String],
        ground: Ground<'_>,
    ) -> Result<Option<HeaderValue>> {
        if state.credential.is_none() {
            let found = match &self.given {
                Some(given) => Some(given.clone()),
                None => self.files.find(&self.account)?,
            };
            state.credential = Some(found);
        }
        let credential = state.credential.clone().flatten();
        match challenge {
            Challenge::Basic => match &credential {
                Some(Credential::Password { user, password }) => Ok(Some(basic(user, password)?)),
                _ => Ok(None),
            },
            Challenge::Bearer { realm, service, scope, .. } => {
                if let Some(Credential::Bearer(token)) = &credential {
                    return bearer(token).map(Some);
                }
                let mut wanted = scopes.to_vec();
                if wanted.is_empty() {
                    wanted.extend(scope.clone());
                }
                let key = wanted.join(" ");
                if let Some(token) = state.tokens.get(&key).filter(|token| token.expires > Instant::now() + MARGIN) {
                    return Ok(Some(token.header.clone()));
                }
                let token = fetch(realm, service.as_deref(), &wanted, credential.as_ref(), ground).await?;
                let header = token.header.clone();
                state.tokens.insert(key, token);
                Ok(Some(header))
            }
        }
    }
}

/// Gets a token from the server that a registry named.
async fn fetch(
    realm: &str,
    service: Option<&str>,
    scopes: &[String],
    credential: Option<&Credential>,
    ground: Ground<'_>,
) -> Result<Token> {
    let what = format!("token server of {}", ground.url.host_str().unwrap_or_default());
    let mut url = Url::parse(realm).map_err(|why| Error::invalid(&what, format!("'{}': {why}", shown(realm))))?;
    crate::client::allow(ground.url, &url).map_err(|why| Error::invalid(&what, why))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Error::invalid(&what, "its address holds a name and a password"));
    }
    let client = ground.web.client(url.scheme())?;
    let request = if let Some(Credential::Identity(token)) = credential {
        let mut form = vec![("grant_type", "refresh_token"), ("refresh_token", token.as_str()), ("client_id", "plyfs")];
        form.extend(service.map(|service| ("service", service)));
        let scope = scopes.join(" ");
        form.push(("scope", &scope));
        let mut body = Url::parse("http://x/").map_err(|why| Error::invalid(&what, why))?;
        body.query_pairs_mut().extend_pairs(form);
        client
            .post(url)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body.query().unwrap_or_default().to_owned())
    } else {
        {
            let mut query = url.query_pairs_mut();
            query.extend_pairs(service.map(|service| ("service", service)));
            query.extend_pairs(scopes.iter().map(|scope| ("scope", scope.as_str())));
            if let Some(Credential::Password { user, .. }) = credential {
                query.append_pair("account", user);
            }
        }
        match credential {
            Some(Credential::Password { user, password }) => {
                client.get(url).header("authorization", basic(user, password)?)
            }
            _ => client.get(url),
        }
    };
    let failed = |cause: reqwest::Error| Error::Unreachable(format!("{what}: {}", causes(&cause.without_url())));
    let response = request.send().await.map_err(failed)?;
    match response.status().as_u16() {
        200 => {}
        401 | 403 => {
            let why = match credential {
                Some(_) => "it does not accept the name and the password; log in again: plyfs login",
                None => "it wants a name and a password; log in first: plyfs login",
            };
            return Err(Error::Unauthorized(format!("{what}: {why}")));
        }
        other => return Err(Error::Refused(format!("{what}: it answers {other}"))),
    }
    let body = body(response, ANSWER_MAX).await.map_err(|why| Error::Unreachable(format!("{what}: {why}")))?;
    let answer: Answer =
        serde_json::from_slice(&body).map_err(|_| Error::invalid(&what, "its answer is not the JSON of a token"))?;
    let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
    let token = token.ok_or_else(|| Error::invalid(&what, "its answer holds no token"))?;
    let life = Duration::from_secs(answer.expires_in.unwrap_or(TOKEN_LIFE).clamp(TOKEN_LIFE, 24 * 3600));
    Ok(Token { header: bearer(&token)?, expires: Instant::now() + life })
}

/// Why a body was not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unread {
    /// It may come the next time.
    #[error("{0}")]
    Broken(String),
    #[error("{0}")]
    TooLong(String),
}

/// Reads a whole body, of at most that many bytes.
pub(crate) async fn body(mut response: Response, most: usize) -> std::result::Result<Vec<u8>, Unread> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|cause| Unread::Broken(causes(&cause.without_url())))? {
        if bytes.len() + chunk.len() > most {
            return Err(Unread::TooLong(format!("the answer has more than {most} bytes")));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn basic(user: &str, password: &str) -> Result<HeaderValue> {
    secret(format!("Basic {}", crate::credentials::encode(&format!("{user}:{password}"))))
}

fn bearer(token: &str) -> Result<HeaderValue> {
    secret(format!("Bearer {token}"))
}

/// A header that no log shows.
fn secret(text: String) -> Result<HeaderValue> {
    let bad = |_| Error::invalid("credentials", "they hold characters that cannot be sent");
    let mut header = HeaderValue::from_str(&text).map_err(bad)?;
    header.set_sensitive(true);
    Ok(header)
}
