//! Where else images may be had: containers' `registries.conf` (version 2) and containerd's `hosts.toml`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Value;

use crate::error::{Error, Result};

const REGISTRIES: &str = "/etc/containers/registries.conf";
const HOSTS: &str = "/etc/containerd/certs.d";

/// What the files of settings say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mirrors {
    registries: Vec<Registry>,
    hosts_dir: PathBuf,
}

/// `[[registry]]`
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct Registry {
    prefix: String,
    location: String,
    pub(crate) insecure: bool,
    pub(crate) blocked: bool,
    mirror_by_digest_only: bool,
    #[serde(rename = "mirror")]
    mirrors: Vec<Mirror>,
}

/// `[[registry.mirror]]`
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", default)]
struct Mirror {
    location: String,
    insecure: bool,
    pull_from_mirror: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RegistriesFile {
    registry: Vec<Registry>,
    /// Of version 1, which is not read.
    registries: Option<Value>,
}

/// `hosts.toml`
#[derive(Deserialize, Default)]
#[serde(default)]
struct HostsFile {
    server: Option<String>,
    /// In the order of the file.
    host: toml::Table,
    #[serde(flatten)]
    of_server: HostTable,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct HostTable {
    capabilities: Option<Vec<String>>,
    ca: Option<Value>,
    skip_verify: bool,
    override_path: bool,
    header: BTreeMap<String, Value>,
    client: Option<Value>,
}

/// A place to pull from, as a file of settings names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// With a scheme if the file has one; host, and a path that stands before the repository.
    pub(crate) location: String,
    /// The repository there; empty if the path says it all.
    pub(crate) repository: String,
    pub(crate) insecure: bool,
    pub(crate) ca_files: Vec<PathBuf>,
    pub(crate) tags: bool,
    pub(crate) digests: bool,
    pub(crate) push: bool,
    /// The path is the whole API's, `/v2` is not added.
    pub(crate) whole_path: bool,
    pub(crate) headers: Vec<(String, String)>,
    /// A mirror of containerd's kind is told which registry is meant.
    pub(crate) namespace: Option<String>,
}

impl Place {
    /// A repository at a host of which nothing else is said.
    pub(crate) fn of(host: &str, repository: &str) -> Self {
        Place {
            location: host.to_owned(),
            repository: repository.to_owned(),
            insecure: false,
            ca_files: Vec::new(),
            tags: true,
            digests: true,
            push: true,
            whole_path: false,
            headers: Vec::new(),
            namespace: None,
        }
    }
}

/// What the settings say of one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Route {
    /// In order; the registry itself comes after them.
    pub(crate) mirrors: Vec<Place>,
    /// The registry itself, if the settings say something of it.
    pub(crate) origin: Option<Place>,
}

impl Mirrors {
    pub(crate) fn read(registries_conf: Option<&Path>, hosts_dir: Option<&Path>) -> Result<Self> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let named = registries_conf.map(Path::to_owned).or_else(|| set("CONTAINERS_REGISTRIES_CONF"));
        let home = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
        let own = home.map(|dir| dir.join("containers/registries.conf")).filter(|path| path.is_file());
        let main = named.clone().or(own).unwrap_or_else(|| REGISTRIES.into());
        let mut registries = match fs::read_to_string(&main) {
            Ok(text) => read_registries(&text, &main)?,
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound && named.is_none() => Vec::new(),
            Err(cause) => return Err(Error::settings(main.display(), cause)),
        };
        for path in drop_ins(&main, named.is_some()) {
            let text = fs::read_to_string(&path).map_err(|cause| Error::settings(path.display(), cause))?;
            for registry in read_registries(&text, &path)? {
                registries.retain(|known| known.prefix != registry.prefix);
                registries.push(registry);
            }
        }
        Ok(Mirrors { registries, hosts_dir: hosts_dir.unwrap_or(Path::new(HOSTS)).to_owned() })
    }

    /// Returns what is said of a repository: `host`, `path` of it.
    pub(crate) fn route(&self, host: &str, path: &str) -> Result<Route> {
        if let Some(route) = self.hosts_toml(host, path)? {
            return Ok(route);
        }
        let name = format!("{host}/{path}");
        let matches = |registry: &&Registry| registry.rest(&name).is_some();
        let Some(registry) = self.registries.iter().filter(matches).max_by_key(|registry| registry.prefix.len()) else {
            return Ok(Route::default());
        };
        if registry.blocked {
            return Err(Error::settings(name, "registries.conf blocks this registry"));
        }
        Ok(registry.route(&name))
    }

    fn hosts_toml(&self, host: &str, path: &str) -> Result<Option<Route>> {
        let names = [host.to_owned(), format!("{}_", host.replace(':', "_")), "_default".to_owned()];
        let names = names.iter().filter(|name| !name.contains('/'));
        let Some(file) = names.map(|name| self.hosts_dir.join(name).join("hosts.toml")).find(|file| file.is_file())
        else {
            return Ok(None);
        };
        let text = fs::read_to_string(&file).map_err(|cause| Error::settings(file.display(), cause))?;
        read_hosts(&text, &file, host, path).map(Some)
    }
}

/// `registries.conf.d/*.conf` beside the file, in order.
fn drop_ins(main: &Path, named: bool) -> Vec<PathBuf> {
    if named {
        return Vec::new();
    }
    let dir = main.with_extension("conf.d");
    let entries = fs::read_dir(dir).map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect());
    let mut paths: Vec<PathBuf> = entries.unwrap_or_default();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
    paths.sort();
    paths
}

fn read_registries(text: &str, path: &Path) -> Result<Vec<Registry>> {
    let file: RegistriesFile = toml::from_str(text).map_err(|why| Error::settings(path.display(), why.message()))?;
    if file.registries.is_some() {
        return Err(Error::settings(path.display(), "it is of version 1; write [[registry]] tables (version 2)"));
    }
    let mut registries = file.registry;
    for registry in &mut registries {
        if registry.prefix.is_empty() {
            registry.prefix = registry.location.clone();
        }
        if registry.location.is_empty() && !registry.prefix.starts_with("*.") {
            registry.location = registry.prefix.clone();
        }
    }
    registries.retain(|registry| !registry.prefix.is_empty());
    Ok(registries)
}

impl Registry {
    /// What follows the prefix in a name; `None` if the name does not begin with it.
    fn rest<'a>(&self, name: &'a str) -> Option<&'a str> {
        if let Some(suffix) = self.prefix.strip_prefix('*') {
            let (host, _) = name.split_once('/')?;
            let host = host.split(':').next().unwrap_or(host);
            return (suffix.starts_with('.') && host.ends_with(suffix)).then_some(name);
        }
        let rest = name.strip_prefix(self.prefix.as_str())?;
        (rest.is_empty() || rest.starts_with('/')).then(|| rest.trim_start_matches('/'))
    }

    fn route(&self, name: &str) -> Route {
        let rest = self.rest(name).unwrap_or_default();
        let place = |location: &str, insecure: bool| {
            // The location's own path stands before what follows the prefix.
            let full = match (location.is_empty(), rest.is_empty()) {
                (true, _) => rest.to_owned(),
                (_, true) => location.to_owned(),
                _ => format!("{location}/{rest}"),
            };
            let (host, repository) = full.split_once('/').unwrap_or((&full, ""));
            Place {
                location: host.to_owned(),
                repository: repository.to_owned(),
                insecure,
                ca_files: Vec::new(),
                tags: true,
                digests: true,
                push: false,
                whole_path: false,
                headers: Vec::new(),
                namespace: None,
            }
        };
        let mirrors = self.mirrors.iter().map(|mirror| {
            let when = match mirror.pull_from_mirror.as_str() {
                "" if self.mirror_by_digest_only => "digest-only",
                when => when,
            };
            let place = place(&mirror.location, mirror.insecure);
            Place { tags: when != "digest-only", digests: when != "tag-only", ..place }
        });
        Route { mirrors: mirrors.collect(), origin: Some(Place { push: true, ..place(&self.location, self.insecure) }) }
    }
}

fn read_hosts(text: &str, path: &Path, host: &str, repository: &str) -> Result<Route> {
    let failed = |why: String| Error::settings(path.display(), why);
    let file: HostsFile = toml::from_str(text).map_err(|why| failed(why.message().to_owned()))?;
    let place = |location: &str, table: HostTable| {
        let can = |what: &str| table.capabilities.as_ref().is_none_or(|all| all.iter().any(|known| known == what));
        if table.client.is_some() {
            return Err(failed(format!("client certificates, as for {location}, are not supported")));
        }
        let dir = path.parent().unwrap_or(Path::new("/"));
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let many = |value: &Value| match value {
            Value::Array(all) => all.iter().filter_map(text).collect::<Vec<_>>(),
            one => text(one).into_iter().collect(),
        };
        Ok(Place {
            location: location.trim_end_matches('/').to_owned(),
            repository: repository.to_owned(),
            insecure: table.skip_verify,
            ca_files: table.ca.as_ref().map(many).unwrap_or_default().iter().map(|file| dir.join(file)).collect(),
            tags: can("resolve"),
            digests: can("pull"),
            push: can("push"),
            whole_path: table.override_path,
            headers: table
                .header
                .iter()
                .flat_map(|(name, value)| many(value).into_iter().map(move |value| (name.clone(), value)))
                .collect(),
            namespace: Some(host.to_owned()),
        })
    };
    let mut mirrors = Vec::new();
    for (location, table) in file.host {
        let table: HostTable = table.try_into().map_err(|why: toml::de::Error| failed(why.message().to_owned()))?;
        mirrors.push(place(&location, table)?);
    }
    let origin = match file.server {
        Some(server) => Some(Place { namespace: None, ..place(&server, file.of_server)? }),
        None => None,
    };
    Ok(Route { mirrors, origin })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONF: &str = r#"
        unqualified-search-registries = ["docker.io"]
        [[registry]]
        location = "docker.io"
        [[registry.mirror]]
        location = "mirror.example:5000/hub"
        insecure = true
        [[registry.mirror]]
        location = "digests.example"
        pull-from-mirror = "digest-only"
        [[registry]]
        prefix = "docker.io/private"
        location = "other.example/mine"
        [[registry]]
        prefix = "*.bad.example"
        blocked = true
    "#;

    fn mirrors(text: &str) -> Mirrors {
        Mirrors { registries: read_registries(text, Path::new("x")).unwrap(), hosts_dir: "/nonexistent".into() }
    }

    #[test]
    fn registries_conf_names_mirrors_and_moves_prefixes() {
        let all = mirrors(CONF);
        let route = all.route("docker.io", "library/redis").unwrap();
        let places: Vec<_> = route
            .mirrors
            .iter()
            .chain(&route.origin)
            .map(|place| (place.location.as_str(), place.repository.as_str(), place.insecure, place.tags))
            .collect();
        assert_eq!(
            places,
            [
                ("mirror.example:5000", "hub/library/redis", true, true),
                ("digests.example", "library/redis", false, false),
                ("docker.io", "library/redis", false, true),
            ]
        );
        let moved = all.route("docker.io", "private/app").unwrap().origin.unwrap();
        assert_eq!((moved.location.as_str(), moved.repository.as_str()), ("other.example", "mine/app"));
        assert_eq!(all.route("quay.io", "a/b").unwrap(), Route::default());
        assert!(all.route("docker.io", "privateer/app").unwrap().mirrors.len() == 2);
        assert!(all.route("very.bad.example", "a").unwrap_err().to_string().contains("blocks"));
        assert!(read_registries("[registries.search]\nregistries = ['a']", Path::new("x")).is_err());
    }

    const HOSTS_TOML: &str = r#"
        server = "https://registry-1.docker.io"
        [host."http://mirror.example:5000"]
        capabilities = ["pull", "resolve"]
        [host."https://second.example/v2/cache"]
        capabilities = ["pull"]
        skip_verify = true
        override_path = true
        ca = ["a.pem", "/b.pem"]
        [host."https://second.example/v2/cache".header]
        x-team = "blue"
    "#;

    #[test]
    fn hosts_toml_names_mirrors_in_order() {
        let route =
            read_hosts(HOSTS_TOML, Path::new("/etc/c/docker.io/hosts.toml"), "docker.io", "library/redis").unwrap();
        let names: Vec<&str> = route.mirrors.iter().map(|place| place.location.as_str()).collect();
        assert_eq!(names, ["http://mirror.example:5000", "https://second.example/v2/cache"]);
        assert!(route.mirrors[0].tags && !route.mirrors[0].push && !route.mirrors[1].tags);
        assert!(route.mirrors[1].insecure && route.mirrors[1].whole_path);
        assert_eq!(route.mirrors[1].ca_files, [PathBuf::from("/etc/c/docker.io/a.pem"), "/b.pem".into()]);
        assert_eq!(route.mirrors[1].headers, [("x-team".to_owned(), "blue".to_owned())]);
        assert_eq!(route.mirrors[0].namespace.as_deref(), Some("docker.io"));
        assert_eq!(route.origin.unwrap().location, "https://registry-1.docker.io");
    }

    proptest! {
        #[test]
        fn mutated_settings_are_read_or_refused(at in 0usize..600, with in any::<char>()) {
            for text in [CONF, HOSTS_TOML] {
                let mut chars: Vec<char> = text.chars().collect();
                let at = at % chars.len();
                chars[at] = with;
                let text: String = chars.into_iter().collect();
                if let Ok(registries) = read_registries(&text, Path::new("x")) {
                    let all = Mirrors { registries, hosts_dir: "/nonexistent".into() };
                    all.route("docker.io", "library/redis").ok();
                }
                read_hosts(&text, Path::new("/x"), "docker.io", "library/redis").ok();
            }
        }
    }
}
