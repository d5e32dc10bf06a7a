//! Who is told the password: the registry that it is for, the token server that it names, and nobody else.
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use common::{Packed, Reply, Request, Server, Shelf, Stage, image};
use registry::{AuthFiles, Credential, Error, PullOptions, Registries, Settings};
use serde_json::json;
use store::Silent;

/// `me:sesame`
const BASIC: &str = "Basic bWU6c2VzYW1l";
const TOKEN: &str = "Bearer a-token";

fn authorization(request: &Request) -> Option<&str> {
    request.headers.get("authorization").map(String::as_str)
}

fn as_me(stage: &Stage) -> Settings {
    let credential = Credential::Password { user: "me".into(), password: "sesame".into() };
    Settings { credential: Some(credential), ..stage.settings() }
}

fn shelf() -> (common::Image, Shelf) {
    let image = image(&["one", "two", "three"], "amd64", Packed::Gzip);
    let mut shelf = Shelf::default();
    shelf.image("a/b", "1", &image);
    (image, shelf)
}

/// A registry that wants a token, and the server that gives it out to those who have the password.
fn with_tokens(shelf: Shelf) -> (Server, Arc<Server>) {
    let tokens = Arc::new(Server::start(|request| match authorization(request) {
        Some(BASIC) => Reply::new(200, json!({ "access_token": "a-token", "expires_in": 300 }).to_string()),
        _ => Reply::new(401, ""),
    }));
    let realm = tokens.url("/token");
    let server = Server::start(move |request| match authorization(request) {
        Some(TOKEN) => shelf.answer(request),
        _ => Reply::new(401, "").with("www-authenticate", format!(r#"Bearer realm="{realm}",service="us""#)),
    });
    (server, tokens)
}

#[test]
fn a_token_is_fetched_once_for_a_pull() {
    let (image, shelf) = shelf();
    let (server, tokens) = with_tokens(shelf);
    let stage = Stage::new();
    let name = server.name("a/b:1");
    let registries = Registries::new(as_me(&stage)).unwrap();
    registries.pull(&stage.store, &name, &PullOptions::default(), &Silent).unwrap();
    stage.assert_whole(&name, &image);
    let asked = tokens.requests();
    assert_eq!(asked.len(), 1);
    assert!(asked[0].path.contains("service=us") && asked[0].path.contains("account=me"), "{}", asked[0].path);
    assert!(asked[0].path.contains("scope=repository%3Aa%2Fb%3Apull"), "{}", asked[0].path);
    // The registry itself sees the token, never the password.
    assert!(server.requests().iter().all(|request| matches!(authorization(request), None | Some(TOKEN))));
}

#[test]
fn without_a_password_or_with_a_wrong_one_the_message_tells_what_to_do() {
    let (_, shelf) = shelf();
    let (server, _tokens) = with_tokens(shelf);
    let stage = Stage::new();
    let pull = |settings: Settings| {
        let registries = Registries::new(settings).unwrap();
        registries.pull(&stage.store, &server.name("a/b:1"), &PullOptions::default(), &Silent).unwrap_err()
    };
    let error = pull(stage.settings());
    assert!(matches!(error, Error::Unauthorized(_)) && error.to_string().contains("plyfs login"), "{error}");
    let wrong = Credential::Password { user: "me".into(), password: "open-barley".into() };
    let error = pull(Settings { credential: Some(wrong), ..stage.settings() });
    assert!(matches!(error, Error::Unauthorized(_)) && error.to_string().contains("log in again"), "{error}");
    assert!(!error.to_string().contains("barley") && !format!("{error:?}").contains("barley"));
    stage.assert_clean();
}

#[test]
fn a_redirect_to_another_host_carries_no_credentials() {
    for bearer in [true, false] {
        let (image, shelf) = shelf();
        let behind = shelf.clone();
        // Another port is another host.
        let cdn = Arc::new(Server::start(move |request| behind.answer(request)));
        let to = cdn.url("");
        let front = move |request: &Request| match request.path.contains("/blobs/") {
            true => Reply::new(307, "").with("location", format!("{to}{}?signature=secret", request.path)),
            false => shelf.answer(request),
        };
        let tokens = Server::start(|_| Reply::new(200, r#"{"token":"a-token"}"#));
        let realm = tokens.url("/token");
        let server = Server::start(move |request| match authorization(request) {
            Some(TOKEN) if bearer => front(request),
            Some(BASIC) if !bearer => front(request),
            _ if bearer => Reply::new(401, "").with("www-authenticate", format!("Bearer realm=\"{realm}\"")),
            _ => Reply::new(401, "").with("www-authenticate", "Basic realm=x"),
        });
        let stage = Stage::new();
        let name = server.name("a/b:1");
        let registries = Registries::new(as_me(&stage)).unwrap();
        registries.pull(&stage.store, &name, &PullOptions::default(), &Silent).unwrap();
        stage.assert_whole(&name, &image);
        assert_eq!(cdn.requests().len(), 4);
        for request in cdn.requests() {
            assert_eq!(authorization(&request), None);
        }
    }
}

#[test]
fn a_token_server_out_of_reach_of_tls_is_not_told_the_password() {
    let (_, shelf) = shelf();
    for realm in ["file:///token", "ftp://127.0.0.1/token", "http://me:sesame@127.0.0.1/token", "not an address"] {
        let shelf = shelf.clone();
        let server = Server::start(move |request| match authorization(request) {
            None => Reply::new(401, "").with("www-authenticate", format!("Bearer realm=\"{realm}\"")),
            Some(_) => shelf.answer(request),
        });
        let stage = Stage::new();
        let registries = Registries::new(as_me(&stage)).unwrap();
        let error = registries.pull(&stage.store, &server.name("a/b:1"), &PullOptions::default(), &Silent).unwrap_err();
        assert!(error.to_string().contains("token server"), "{realm}: {error}");
        assert!(server.requests().iter().all(|request| authorization(request).is_none()));
    }
}

#[test]
fn a_login_is_tried_before_it_is_kept_and_used_afterwards() {
    let (image, shelf) = shelf();
    let server = Server::start(move |request| match authorization(request) {
        Some(BASIC) => shelf.answer(request),
        _ => Reply::new(401, "").with("www-authenticate", "Basic realm=\"x\""),
    });
    let stage = Stage::new();
    let host = server.address.to_string();
    let registries = stage.registries();
    let error = registries.login(&host, "me", "wrong").unwrap_err();
    assert!(error.to_string().contains("the name or the password is wrong"), "{error}");
    let file = stage.dir.path().join("auth.json");
    assert!(!file.exists());
    registries.login(&host, "me", "sesame").unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let name = server.name("a/b:1");
    stage.registries().pull(&stage.store, &name, &PullOptions::default(), &Silent).unwrap();
    stage.assert_whole(&name, &image);
    assert!(AuthFiles::only(&file).forget(&host).unwrap());
    assert!(stage.registries().pull(&stage.store, &name, &PullOptions::default(), &Silent).is_err());
}

#[test]
fn a_search_uses_the_form_or_else_the_catalog() {
    let form = Server::start(|request| match request.path.as_str() {
        "/v1/search?q=red&n=25" => Reply::new(
            200,
            json!({ "results": [
                { "name": "redis", "description": "Fast", "star_count": 9, "is_official": true },
                { "name": "my/red", "description": null, "star_count": 1 },
                { "name": "blue", "description": "it says red", "star_count": 99 },
            ]})
            .to_string(),
        ),
        _ => Reply::new(404, ""),
    });
    let catalog = Server::start(|request| match request.path.as_str() {
        "/v2/_catalog?n=1000" => Reply::new(200, r#"{"repositories":["a/redis","blue"]}"#)
            .with("link", r#"</v2/_catalog?n=1000&last=blue>; rel="next""#),
        "/v2/_catalog?n=1000&last=blue" => Reply::new(200, r#"{"repositories":["infrared"]}"#),
        _ => Reply::new(404, ""),
    });
    let registries = Stage::new().registries();
    let names = |server: &Server, options: &registry::SearchOptions| -> Vec<String> {
        let found = registries.search(&format!("{}/red", server.address), options).unwrap();
        found
            .into_iter()
            .map(|one| one.name.strip_prefix(&format!("{}/", server.address)).unwrap().to_owned())
            .collect()
    };
    let all = registry::SearchOptions::default();
    assert_eq!(names(&form, &all), ["redis", "my/red"]);
    assert_eq!(names(&form, &registry::SearchOptions { stars: 5, ..all.clone() }), ["redis"]);
    assert_eq!(names(&form, &registry::SearchOptions { official: Some(false), ..all.clone() }), ["my/red"]);
    assert_eq!(names(&catalog, &all), ["a/redis", "infrared"]);
    assert_eq!(names(&catalog, &registry::SearchOptions { limit: Some(1), ..all.clone() }), ["a/redis"]);
    assert!(registries.search("x", &registry::SearchOptions { limit: Some(101), ..all }).is_err());
}
