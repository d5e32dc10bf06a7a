//! One host that speaks the registry protocol: requests with authentication, redirects and patience.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Body, Method, Response, StatusCode, Url};
use serde::Deserialize;

use crate::auth::{Auth, Ground, Unread};
use crate::challenge;
use crate::error::{Error, Result, causes, shown};
use crate::registries::Patience;
use crate::web::Web;

const REDIRECTS_MAX: usize = 10;
/// How much of an answer that is an error is read, in bytes.
const COMPLAINT_MAX: usize = 64 << 10;
/// A server that wants to be left alone for longer is told of.
const WAIT_MAX: Duration = Duration::from_secs(120);

/// A registry's host, or a mirror's.
pub(crate) struct Client {
    /// Where the API begins: `https://quay.io/v2/`.
    pub(crate) base: Url,
    pub(crate) web: Web,
    pub(crate) auth: Auth,
    pub(crate) patience: Patience,
    /// What its settings say to send along.
    pub(crate) headers: HeaderMap,
    /// It may turn out to speak without TLS: asked for by `--insecure`.
    pub(crate) may_be_plain: bool,
}

/// What is asked of a registry.
#[derive(Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) method: Method,
    /// Below the API's beginning, or an address that the registry gave.
    pub(crate) place: Place<'a>,
    /// What it takes to be allowed it: `repository:a/b:pull`.
    pub(crate) scopes: &'a [String],
    pub(crate) headers: HeaderMap,
    /// The body; a request with a body is sent once more only if it is at hand.
    pub(crate) body: Option<Vec<u8>>,
    /// What messages call it.
    pub(crate) what: &'a str,
}

#[derive(Clone, Debug)]
pub(crate) enum Place<'a> {
    Path(&'a str),
    Url(Url),
}

/// What stands before the body of an answer.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) headers: HeaderMap,
    pub(crate) url: Url,
}

/// Where an answer came from, after redirects, matters to nobody; what it says does.
#[derive(Deserialize)]
struct Complaint {
    #[serde(default)]
    errors: Vec<Reason>,
}

#[derive(Deserialize)]
struct Reason {
    code: Option<String>,
    message: Option<String>,
}

impl<'a> Ask<'a> {
    pub(crate) fn get(path: &'a str, scopes: &'a [String], what: &'a str) -> Self {
        Ask { method: Method::GET, place: Place::Path(path), scopes, headers: HeaderMap::new(), body: None, what }
    }

    pub(crate) fn method(self, method: Method) -> Self {
        Ask { method, ..self }
    }

    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.append(name, value);
        }
        self
    }
}

impl Client {
    /// The host with its port, for messages.
    pub(crate) fn host(&self) -> String {
        let host = self.base.host_str().unwrap_or_default();
        self.base.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }

    /// Finds out whether there is TLS, where it is allowed that there is none.
    pub(crate) async fn probe(&mut self) -> Result<()> {
        if !self.may_be_plain {
            return Ok(());
        }
        self.may_be_plain = false;
        if self.web.client("https")?.get(self.base.clone()).send().await.is_err()
            && self.base.set_scheme("http").is_err()
        {
            return Err(Error::settings(self.host(), "it cannot be asked without TLS"));
        }
        Ok(())
    }

    /// Asks until there is an answer that is neither a failure of the way nor a plea to come back later. Answers other than
    /// success are the caller's to judge: [`Client::complaint`].
    pub(crate) async fn ask(&self, ask: &Ask<'_>) -> Result<Response> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let wait = match self.once(ask).await {
                Ok(response) if is_for_later(response.status()) => {
                    let wait = asked_to_wait(response.headers()).unwrap_or_else(|| self.patience.pause(attempt));
                    if attempt >= self.patience.attempts || wait > WAIT_MAX {
                        return Ok(response);
                    }
                    log::info!("{}: {} says {}; trying again", ask.what, self.host(), response.status());
                    wait
                }
                Err(Error::Unreachable(why)) if attempt < self.patience.attempts => {
                    log::info!("{}: {why}; trying again", ask.what);
                    self.patience.pause(attempt)
                }
                other => return other,
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Asks for something short and reads it whole, at most so many bytes; an answer that breaks off is asked for again. Returns the
    /// head of the answer, too. Anything but 200 is an error.
    pub(crate) async fn ask_whole(&self, ask: &Ask<'_>, most: usize) -> Result<(Head, Vec<u8>)> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let response = self.ask(ask).await?;
            if response.status() != StatusCode::OK {
                return Err(self.complaint(response, ask.what).await);
            }
            let head = Head { headers: response.headers().clone(), url: response.url().clone() };
            match crate::auth::body(response, most).await {
                Ok(bytes) => return Ok((head, bytes)),
                Err(Unread::TooLong(why)) => return Err(Error::invalid(ask.what, why)),
                Err(Unread::Broken(why)) if attempt >= self.patience.attempts => {
                    return Err(Error::Unreachable(format!("{}: {}: {why}", ask.what, self.host())));
                }
                Err(Unread::Broken(why)) => {
                    log::info!("{}: {why}; trying again", ask.what);
                    tokio::time::sleep(self.patience.pause(attempt)).await;
                }
            }
        }
    }

    /// Asks, with what is known of who asks; and once more if that is not enough.
    async fn once(&self, ask: &Ask<'_>) -> Result<Response> {
        let ground = Ground { url: &self.base, web: &self.web };
        let sent = self.auth.known(ask.scopes, ground).await?;
        let response = self.follow(ask, sent.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let headers = response.headers().get_all(WWW_AUTHENTICATE);
        let challenges = challenge::parse(headers.iter().filter_map(|header| header.to_str().ok()));
        match self.auth.answer(challenges, ask.scopes, sent.as_ref(), ground).await? {
            Some(header) => self.follow(ask, Some(&header)).await,
            None => Ok(response),
        }
    }

    /// Sends a request and follows redirects of what is only read. Credentials stay at the host that they are for.
    async fn follow(&self, ask: &Ask<'_>, authorization: Option<&HeaderValue>) -> Result<Response> {
        let mut at = match &ask.place {
            Place::Path(path) => self.base.join(path).map_err(|why| Error::invalid(ask.what, why))?,
            Place::Url(url) => url.clone(),
        };
        let mut authorization = authorization.filter(|_| is_same_host(&self.base, &at));
        let reads = matches!(ask.method, Method::GET | Method::HEAD);
        for _ in 0..=REDIRECTS_MAX {
            let client = self.web.client(at.scheme())?;
            let mut request = client.request(ask.method.clone(), at.clone()).headers(ask.headers.clone());
            if is_same_host(&self.base, &at) {
                request = request.headers(self.headers.clone());
            }
            if let Some(header) = authorization {
                request = request.header(AUTHORIZATION, header.clone());
            }
            if let Some(body) = &ask.body {
                request = request.body(body.clone());
            }
            let response = request.send().await.map_err(|cause| self.failed(&at, cause))?;
            let location = response.headers().get(LOCATION).filter(|_| reads && response.status().is_redirection());
            let Some(location) = location else {
                warn(&response);
                return Ok(response);
            };
            let next = location.to_str().ok().and_then(|location| at.join(location).ok());
            let next = next.ok_or_else(|| Error::invalid(ask.what, "redirected to something that is no address"))?;
            allow(&at, &next).map_err(|why| Error::invalid(ask.what, why))?;
            // Once away, always away: a host that is reached by a detour is told nothing.
            authorization = authorization.filter(|_| is_same_host(&at, &next));
            at = next;
        }
        Err(Error::invalid(ask.what, format!("redirected more than {REDIRECTS_MAX} times")))
    }

    /// Sends a body that is read but once. Nothing is repeated; the caller has asked something before, so who asks is known.
    pub(crate) async fn send_stream(
        &self,
        method: Method,
        url: &Url,
        scopes: &[String],
        body: Body,
    ) -> Result<Response> {
        let ground = Ground { url: &self.base, web: &self.web };
        let authorization = self.auth.known(scopes, ground).await?.filter(|_| is_same_host(&self.base, url));
        let client = self.web.upload_client(url.scheme())?;
        let mut request = client.request(method, url.clone()).header("content-type", "application/octet-stream");
        if let Some(header) = authorization {
            request = request.header(AUTHORIZATION, header);
        }
        request.body(body).send().await.map_err(|cause| self.failed(url, cause))
    }

    fn failed(&self, at: &Url, cause: reqwest::Error) -> Error {
        let why = causes(&cause.without_url());
        let hint = match at.scheme() {
            "https" if why.contains("certificate") || why.contains("UnknownIssuer") => {
                "; name its certificate with --ca-file, or do without with --insecure"
            }
            "https"
                if ["corrupt message", "InvalidContentType", "handshake eof"].iter().any(|sign| why.contains(sign)) =>
            {
                "; if it speaks plain HTTP, say --plain-http"
            }
            _ => "",
        };
        Error::Unreachable(format!("{}: {why}{hint}", origin(at)))
    }

    /// Tells how long a server wants to be left alone, if that is what it answers, and it is not too long.
    pub(crate) fn plea(&self, response: &Response) -> Option<Duration> {
        let wait = asked_to_wait(response.headers()).unwrap_or_default();
        (is_for_later(response.status()) && wait <= WAIT_MAX).then_some(wait)
    }

    /// Turns an answer that is no success into an error.
    pub(crate) async fn complaint(&self, response: Response, what: &str) -> Error {
        let status = response.status();
        let body = crate::auth::body(response, COMPLAINT_MAX).await.unwrap_or_default();
        let complaint = serde_json::from_slice(&body).unwrap_or(Complaint { errors: Vec::new() });
        let reasons: Vec<String> = complaint
            .errors
            .iter()
            .filter_map(|reason| reason.message.as_ref().or(reason.code.as_ref()))
            .cloned()
            .collect();
        let why = match reasons.is_empty() {
            true => String::new(),
            false => format!(" ({})", shown(&reasons.join("; "))),
        };
        let host = self.host();
        match status {
            StatusCode::NOT_FOUND => Error::NotFound(format!("{what}: {host} does not have it{why}")),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Error::Unauthorized(format!("{what}: {host} does not allow it{why}; log in with: plyfs login {host}"))
            }
            StatusCode::TOO_MANY_REQUESTS => {
                Error::Refused(format!("{what}: {host} says that there were too many requests{why}; try again later"))
            }
            status => Error::Refused(format!("{what}: {host} answers {status}{why}")),
        }
    }
}

/// `Warning: 299` is meant for people (distribution-spec, warnings).
fn warn(response: &Response) {
    for warning in response.headers().get_all("warning") {
        let text = warning.to_str().unwrap_or_default();
        if let Some(text) = text.strip_prefix("299 - ") {
            log::warn!("the registry says: {}", shown(text.trim_matches('"')));
        }
    }
}

/// Tells whether two addresses are of one server: what one may know, the other may.
pub(crate) fn is_same_host(one: &Url, other: &Url) -> bool {
    one.scheme() == other.scheme()
        && one.host_str() == other.host_str()
        && one.port_or_known_default() == other.port_or_known_default()
}

/// Tells why a server may not send us on to that address: out of TLS, or from outside into this machine.
pub(crate) fn allow(from: &Url, to: &Url) -> std::result::Result<(), String> {
    let where_to = origin(to);
    match (from.scheme(), to.scheme()) {
        (_, "https") | ("http", "http") => {}
        ("https", "http") => return Err(format!("it leads to {where_to}, out of TLS; that is not followed")),
        _ => return Err(format!("it leads to an address of the kind '{}'; that is not followed", shown(to.scheme()))),
    }
    match is_local(to) && !is_local(from) {
        true => Err(format!("it leads to {where_to}, on this machine; that is not followed")),
        false => Ok(()),
    }
}

fn is_local(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    if host == "localhost" || host.ends_with(".localhost") {
        return true;
    }
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_unspecified() || ip.is_link_local(),
        Ok(IpAddr::V6(ip)) => {
            let mapped =
                ip.to_ipv4_mapped().is_some_and(|ip| ip.is_loopback() || ip.is_unspecified() || ip.is_link_local());
            ip.is_loopback() || ip.is_unspecified() || mapped || ip.segments()[0] & 0xffc0 == 0xfe80
        }
        Err(_) => false,
    }
}

/// An address without what may be secret in it: paths and queries of redirects are signed.
fn origin(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}", url.scheme(), url.host_str().unwrap_or_default())
}

fn is_for_later(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// Reads `Retry-After`: seconds, or a date.
fn asked_to_wait(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let then = http_date(text)?;
    let now = SystemTime::UNIX_EPOCH.elapsed().ok()?.as_secs();
    Some(Duration::from_secs(then.saturating_sub(now)))
}

/// Reads `Sun, 06 Nov 1994 08:49:37 GMT` as seconds since the epoch.
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let parts: Vec<&str> = text.split(' ').collect();
    let [_, day, month, year, time, "GMT"] = parts[..] else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    let read = store::parse_rfc3339(&format!("{year}-{month:02}-{day}T{time}Z"))?;
    u64::try_from(read.sec).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn redirects_lead_neither_out_of_tls_nor_into_this_machine() {
        for (from, to, allowed) in [
            ("https://a.b/x", "https://c.d/y", true),
            ("https://a.b/x", "http://a.b/x", false),
            ("http://a.b/x", "http://c.d/x", true),
            ("http://a.b/x", "file:///etc/shadow", false),
            ("http://a.b/x", "ftp://c.d/", false),
            ("https://a.b/x", "https://127.0.0.1/x", false),
            ("https://a.b/x", "https://localhost:5000/x", false),
            ("https://a.b/x", "https://[::1]/x", false),
            ("https://a.b/x", "https://[::ffff:127.0.0.1]/x", false),
            ("https://a.b/x", "https://169.254.169.254/latest/meta-data", false),
            ("http://127.0.0.1:5000/x", "http://127.0.0.1:5001/x", true),
            ("http://localhost:5000/x", "http://127.0.0.2/x", true),
        ] {
            assert_eq!(allow(&url(from), &url(to)).is_ok(), allowed, "{from} -> {to}");
        }
    }

    #[test]
    fn a_host_is_scheme_name_and_port() {
        for (one, other, same) in [
            ("https://a.b/x", "https://a.b:443/y", true),
            ("https://a.b/x", "https://a.b:444/x", false),
            ("https://a.b/x", "http://a.b/x", false),
            ("https://a.b/x", "https://b.a.b/x", false),
        ] {
            assert_eq!(is_same_host(&url(one), &url(other)), same, "{one} {other}");
        }
    }

    #[test]
    fn times_to_come_back_are_read() {
        let wait = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_str(text).unwrap());
            asked_to_wait(&headers)
        };
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        for bad in ["soon", "", "-1", "Sun, 06 Nov", "Sun, 99 Nov 1994 08:49:37 GMT"] {
            assert_eq!(wait(bad), None, "{bad}");
        }
    }
}
