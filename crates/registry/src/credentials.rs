//! Names and passwords as docker and podman keep them: `config.json`, `auth.json`, and credential helpers.
//!
//! Nothing here shows a secret: no `Debug`, no message.

use std::fmt;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Map, Value, json};

use crate::error::{Error, Result, shown};

/// The longest file of credentials that is read, in bytes.
const FILE_MAX: u64 = 4 << 20;
/// What docker calls Docker Hub.
const DOCKER_HUB: [&str; 4] = ["docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"];
const DOCKER_KEY: &str = "https://index.docker.io/v1/";
/// The name under which helpers give out identity tokens.
const TOKEN_USER: &str = "<token>";

/// What proves who asks.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// Name and password.
    Password {
        /// Who.
        user: String,
        /// The secret.
        password: String,
    },
    /// A token that is exchanged for others at the token server.
    Identity(String),
    /// A token that the registry itself takes.
    Bearer(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Credential::Password { .. } => "Password(...)",
            Credential::Identity(_) => "Identity(...)",
            Credential::Bearer(_) => "Bearer(...)",
        })
    }
}

/// The files that credentials are kept in; the first that exists is written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthFiles {
    files: Vec<PathBuf>,
}

impl Default for AuthFiles {
    /// `REGISTRY_AUTH_FILE`; else podman's files, then docker's.
    fn default() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(file) = set("REGISTRY_AUTH_FILE") {
            return AuthFiles::only(file);
        }
        let home = set("HOME").unwrap_or_else(|| "/".into());
        let config = set("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config"));
        let run = set("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json"));
        let docker = set("DOCKER_CONFIG").unwrap_or_else(|| home.join(".docker"));
        let files = run.into_iter().chain([config.join("containers/auth.json"), docker.join("config.json")]);
        AuthFiles { files: files.collect() }
    }
}

impl AuthFiles {
    /// That file alone.
    pub fn only(file: impl Into<PathBuf>) -> Self {
        AuthFiles { files: vec![file.into()] }
    }

    /// Finds what is kept for a repository (`quay.io/a/b`), or a part of it, down to the host.
    ///
    /// # Errors
    /// A file that cannot be read or understood; a helper that fails.
    pub fn find(&self, repository: &str) -> Result<Option<Credential>> {
        for path in &self.files {
            let Some(file) = read(path)? else { continue };
            for key in keys(repository) {
                if let Some(helper) = helper_for(&file, &key)
                    && let Some(found) = ask_helper(&helper, &key)?
                {
                    return Ok(Some(found));
                }
                if let Some(found) = in_file(&file, &key, path)? {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    /// Keeps name and password for a registry; returns where.
    ///
    /// # Errors
    /// The disk; a helper that fails.
    pub fn keep(&self, registry: &str, user: &str, password: &str) -> Result<String> {
        let path = self.writable()?;
        let mut file = read(path)?.unwrap_or_default();
        let key = hub_key(registry, path);
        if let Some(helper) = helper_for(&file, registry) {
            let entry = json!({ "ServerURL": key, "Username": user, "Secret": password });
            run_helper(&helper, "store", &entry.to_string())?;
            return Ok(format!("the credential helper {helper}"));
        }
        let auths = object(&mut file, "auths", path)?;
        auths.insert(key, json!({ "auth": encode(&format!("{user}:{password}")) }));
        write(path, &file)?;
        Ok(path.display().to_string())
    }

    /// Forgets a registry in all files; tells whether anything was kept for it.
    ///
    /// # Errors
    /// As [`AuthFiles::keep`].
    pub fn forget(&self, registry: &str) -> Result<bool> {
        let mut found = false;
        for path in &self.files {
            let Some(mut file) = read(path)? else { continue };
            if let Some(helper) = helper_for(&file, registry)
                && ask_helper(&helper, registry)?.is_some()
            {
                run_helper(&helper, "erase", &hub_key(registry, path))?;
                found = true;
            }
            let Some(auths) = file.get_mut("auths").and_then(Value::as_object_mut) else { continue };
            let before = auths.len();
            auths.retain(|key, _| host_of(key) != canonical(registry));
            if auths.len() != before {
                write(path, &file)?;
                found = true;
            }
        }
        Ok(found)
    }

    /// Forgets every registry that is kept in the files themselves.
    ///
    /// # Errors
    /// As [`AuthFiles::keep`].
    pub fn forget_all(&self) -> Result<()> {
        for path in &self.files {
            let Some(mut file) = read(path)? else { continue };
            if file.remove("auths").is_some() {
                write(path, &file)?;
            }
        }
        Ok(())
    }

    fn writable(&self) -> Result<&Path> {
        // Podman's first file is gone with the session: without any file the next one is made.
        let there = self.files.iter().find(|path| path.is_file());
        let made = self.files.iter().rev().nth(1).or(self.files.first());
        there.or(made).map(PathBuf::as_path).ok_or_else(|| Error::settings("login", "there is no file to keep it in"))
    }
}

/// The keys under which something for a repository may be kept, the narrowest first.
fn keys(repository: &str) -> Vec<String> {
    let mut keys = vec![repository.to_owned()];
    let mut rest = repository;
    while let Some((shorter, _)) = rest.rsplit_once('/') {
        keys.push(shorter.to_owned());
        rest = shorter;
    }
    keys
}

/// Docker's name for Docker Hub in docker's file; podman's in podman's.
fn hub_key(registry: &str, path: &Path) -> String {
    let docker = path.file_name().is_some_and(|name| name == "config.json");
    match canonical(registry).as_str() {
        "docker.io" if docker => DOCKER_KEY.to_owned(),
        host => host.to_owned(),
    }
}

fn canonical(host: &str) -> String {
    if DOCKER_HUB.contains(&host) { "docker.io".to_owned() } else { host.to_owned() }
}

/// The host, or host and path, that a key of `auths` is for: `https://index.docker.io/v1/` is `docker.io`.
fn host_of(key: &str) -> String {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    match bare {
        // With a scheme docker means the host; without one, podman may mean a repository.
        Some(bare) => canonical(bare.split('/').next().unwrap_or_default()),
        None => match key.split_once('/') {
            Some((host, path)) => format!("{}/{}", canonical(host), path.trim_end_matches('/')),
            None => canonical(key),
        },
    }
}

fn in_file(file: &Map<String, Value>, wanted: &str, path: &Path) -> Result<Option<Credential>> {
    let Some(auths) = file.get("auths").and_then(Value::as_object) else { return Ok(None) };
    let wanted = host_of(wanted);
    let Some((key, entry)) = auths.iter().find(|(key, _)| host_of(key) == wanted) else { return Ok(None) };
    let text = |name: &str| entry.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(token) = text("identitytoken") {
        return Ok(Some(Credential::Identity(token.to_owned())));
    }
    if let Some(token) = text("registrytoken") {
        return Ok(Some(Credential::Bearer(token.to_owned())));
    }
    if let Some(auth) = text("auth") {
        let broken = || Error::settings(path.display(), format!("what is kept for {} is not readable", shown(key)));
        let bytes = decode(auth).ok_or_else(broken)?;
        let pair = String::from_utf8(bytes).map_err(|_| broken())?;
        let (user, password) = pair.trim_end_matches('\0').split_once(':').ok_or_else(broken)?;
        return Ok(Some(Credential::Password { user: user.to_owned(), password: password.to_owned() }));
    }
    let pair = text("username").zip(text("password"));
    Ok(pair.map(|(user, password)| Credential::Password { user: user.to_owned(), password: password.to_owned() }))
}

/// The helper that keeps what is for a registry.
fn helper_for(file: &Map<String, Value>, registry: &str) -> Option<String> {
    let helpers = file.get("credHelpers").and_then(Value::as_object);
    let own = helpers.and_then(|helpers| helpers.iter().find(|(key, _)| host_of(key) == host_of(registry)));
    let helper = own.map(|(_, helper)| helper).or_else(|| file.get("credsStore"));
    helper.and_then(Value::as_str).filter(|name| !name.is_empty()).map(str::to_owned)
}

fn ask_helper(helper: &str, registry: &str) -> Result<Option<Credential>> {
    let key = if canonical(registry) == "docker.io" { DOCKER_KEY } else { registry };
    let Some(answer) = run_helper(helper, "get", key)? else { return Ok(None) };
    let what = format!("credential helper {helper}");
    let answer: Value = serde_json::from_slice(&answer).map_err(|_| Error::settings(&what, "its answer is no JSON"))?;
    let text = |name: &str| answer.get(name).and_then(Value::as_str).map(str::to_owned);
    match (text("Username"), text("Secret")) {
        (Some(user), Some(token)) if user == TOKEN_USER => Ok(Some(Credential::Identity(token))),
        (Some(user), Some(password)) => Ok(Some(Credential::Password { user, password })),
        _ => Err(Error::settings(what, "its answer has no name and secret")),
    }
}

/// Runs `docker-credential-HELPER`; `None` if it has nothing for that.
fn run_helper(helper: &str, verb: &str, input: &str) -> Result<Option<Vec<u8>>> {
    let what = format!("credential helper {}", shown(helper));
    if !helper.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return Err(Error::settings(what, "its name is not one word"));
    }
    let program = format!("docker-credential-{helper}");
    let failed = |cause: std::io::Error| Error::settings(&what, format!("run {program}: {cause}"));
    let mut child = Command::new(&program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read what it is told tells by its answer.
        stdin.write_all(input.as_bytes()).ok();
    }
    let output = child.wait_with_output().map_err(failed)?;
    let said = String::from_utf8_lossy(&output.stdout).to_lowercase();
    match output.status.success() {
        true => Ok(Some(output.stdout)),
        false if said.contains("not found") => Ok(None),
        // What it said may hold a secret.
        false => Err(Error::settings(what, format!("'{program} {verb}' failed with {}", output.status))),
    }
}

fn read(path: &Path) -> Result<Option<Map<String, Value>>> {
    let broken = |why: String| Error::settings(path.display(), why);
    match fs::metadata(path) {
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(cause) if cause.kind() == std::io::ErrorKind::PermissionDenied => return Ok(None),
        Err(cause) => return Err(broken(cause.to_string())),
        Ok(metadata) if metadata.len() > FILE_MAX => return Err(broken("it is too long".into())),
        Ok(_) => {}
    }
    let text = fs::read(path).map_err(|cause| broken(cause.to_string()))?;
    if text.trim_ascii().is_empty() {
        return Ok(Some(Map::new()));
    }
    match serde_json::from_slice(&text) {
        Ok(Value::Object(file)) => Ok(Some(file)),
        // serde's message tells where, and quotes nothing but what was expected.
        Ok(_) => Err(broken("it is no JSON object".into())),
        Err(why) => Err(broken(format!("it is no JSON (line {}, column {})", why.line(), why.column()))),
    }
}

fn object<'a>(file: &'a mut Map<String, Value>, name: &str, path: &Path) -> Result<&'a mut Map<String, Value>> {
    let value = file.entry(name).or_insert_with(|| Value::Object(Map::new()));
    value.as_object_mut().ok_or_else(|| Error::settings(path.display(), format!("'{name}' in it is no object")))
}

/// Writes the file whole or not at all, for its owner alone.
fn write(path: &Path, file: &Map<String, Value>) -> Result<()> {
    let failed = |cause: std::io::Error| Error::settings(path.display(), cause);
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(dir).map_err(failed)?;
    // A link stays a link: people keep such files elsewhere.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let dir = target.parent().unwrap_or(dir);
    let mut unfinished = tempfile::Builder::new().prefix(".auth").tempfile_in(dir).map_err(failed)?;
    unfinished.as_file().set_permissions(fs::Permissions::from_mode(0o600)).map_err(failed)?;
    let text = serde_json::to_vec_pretty(file).map_err(|cause| failed(cause.into()))?;
    unfinished.write_all(&text).and_then(|()| unfinished.write_all(b"\n")).map_err(failed)?;
    unfinished.as_file().sync_all().map_err(failed)?;
    unfinished.persist(&target).map_err(|error| failed(error.error))?;
    Ok(())
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Standard base64 with padding (RFC 4648).
pub(crate) fn encode(text: &str) -> String {
    let mut out = String::new();
    for part in text.as_bytes().chunks(3) {
        let bits = part.iter().fold(0u32, |bits, &b| bits << 8 | u32::from(b)) << (8 * (3 - part.len()));
        for at in 0..4 {
            let six = bits >> (18 - 6 * at) & 63;
            out.push(if at <= part.len() { char::from(ALPHABET[six as usize]) } else { '=' });
        }
    }
    out
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let text = text.trim().trim_end_matches('=');
    let mut bytes = Vec::with_capacity(text.len());
    let (mut bits, mut count) = (0u32, 0);
    for c in text.bytes() {
        bits = bits << 6 | ALPHABET.iter().position(|&known| known == c)? as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn password(user: &str, password: &str) -> Option<Credential> {
        Some(Credential::Password { user: user.into(), password: password.into() })
    }

    #[test]
    fn base64_goes_there_and_back() {
        for text in ["", "a", "ab", "abc", "user:päss:word"] {
            assert_eq!(decode(&encode(text)).as_deref(), Some(text.as_bytes()));
        }
        assert_eq!(encode("user:password"), "dXNlcjpwYXNzd29yZA==");
        assert_eq!(decode("a b"), None);
    }

    #[test]
    fn the_narrowest_entry_of_docker_and_podman_files_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let file = json!({ "auths": {
            "https://index.docker.io/v1/": { "auth": encode("hub:a") },
            "quay.io": { "auth": encode("quay:b:c") },
            "quay.io/team": { "username": "team", "password": "d" },
            "https://old.example/v2/": { "auth": encode("old:e") },
            "localhost:5000": { "identitytoken": "f" },
            "broken.example": { "auth": "?" },
            "empty.example": {},
        }});
        fs::write(&path, file.to_string()).unwrap();
        let files = AuthFiles::only(&path);
        for (repository, found) in [
            ("docker.io/library/redis", password("hub", "a")),
            ("quay.io/a/b", password("quay", "b:c")),
            ("quay.io/team/x", password("team", "d")),
            ("quay.io/teams/x", password("quay", "b:c")),
            ("old.example/x", password("old", "e")),
            ("localhost:5000/x", Some(Credential::Identity("f".into()))),
            ("localhost:5001/x", None),
            ("empty.example/x", None),
        ] {
            assert_eq!(files.find(repository).unwrap(), found, "{repository}");
        }
        let error = files.find("broken.example/x").unwrap_err().to_string();
        assert!(error.contains("broken.example") && error.contains("config.json"), "{error}");
    }

    #[test]
    fn what_is_kept_is_found_for_its_owner_alone_and_what_else_there_is_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/auth.json");
        let files = AuthFiles::only(&path);
        files.keep("a.example", "me", "secret:word").unwrap();
        files.keep("docker.io", "hub", "x").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut file = read(&path).unwrap().unwrap();
        file.insert("HttpHeaders".into(), json!({ "X": "y" }));
        fs::write(&path, serde_json::to_vec(&file).unwrap()).unwrap();
        assert_eq!(files.find("a.example/b/c").unwrap(), password("me", "secret:word"));
        assert!(files.forget("a.example").unwrap());
        assert!(!files.forget("a.example").unwrap());
        assert_eq!(files.find("a.example/b/c").unwrap(), None);
        assert_eq!(files.find("docker.io/library/x").unwrap(), password("hub", "x"));
        assert_eq!(read(&path).unwrap().unwrap()["HttpHeaders"]["X"], "y");
        files.forget_all().unwrap();
        assert_eq!(files.find("docker.io/library/x").unwrap(), None);
        assert!(!format!("{:?}", password("me", "secret")).contains("secret"));
    }

    proptest! {
        #[test]
        fn mutated_files_are_read_or_refused(at in 0usize..200, with in any::<u8>()) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("config.json");
            let file = json!({ "auths": { "https://index.docker.io/v1/": { "auth": encode("hub:sesame") },
                "quay.io": { "username": "u", "password": "sesame" }}, "credHelpers": {} });
            let mut text = file.to_string().into_bytes();
            let at = at % text.len();
            text[at] = with;
            fs::write(&path, text).unwrap();
            for repository in ["docker.io/library/a", "quay.io/b"] {
                if let Err(error) = AuthFiles::only(&path).find(repository) {
                    prop_assert!(!error.to_string().contains("sesame"));
                }
            }
        }
    }
}
