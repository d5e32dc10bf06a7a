//! Commands that speak to registries.

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use registry::{
    AuthFiles, Compression, Credential, LayerPushed, PullOptions, Pulled, PushOptions, PushProgress, Registries,
    SearchOptions, Settings,
};
use serde_json::{Value, json};
use store::{Platform, Reference, Store};

use crate::cli::FormatArg;
use crate::print::{self, Column, row, table};
use crate::progress;

/// How a registry is reached; the same for all commands that speak to one.
#[derive(Clone, Debug, Args)]
pub(crate) struct RegistryArgs {
    /// Speak plain HTTP, without TLS
    #[arg(long)]
    pub(crate) plain_http: bool,
    /// Take any certificate, and plain HTTP if there is no TLS
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Trust the certificates in this file (PEM) beside the system's
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Vec<PathBuf>,
    /// Where credentials are kept [default: $REGISTRY_AUTH_FILE, podman's auth.json, docker's config.json]
    #[arg(long, value_name = "FILE")]
    pub(crate) authfile: Option<PathBuf>,
    /// Name mirrors in this file [default: /etc/containers/registries.conf or yours]
    #[arg(long, value_name = "FILE")]
    pub(crate) registries_conf: Option<PathBuf>,
    /// Look for containerd's hosts.toml files here [default: /etc/containerd/certs.d]
    #[arg(long, value_name = "DIR")]
    pub(crate) hosts_dir: Option<PathBuf>,
}

/// Who asks, for commands that do not log in.
#[derive(Clone, Debug, Args)]
pub(crate) struct CredsArg {
    /// Name and password for this command alone; 'plyfs login' keeps them
    #[arg(long, value_name = "USER:PASSWORD")]
    pub(crate) creds: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// The image: [HOST[:PORT]/]NAME[:TAG][@DIGEST]
    #[arg(value_name = "NAME", required = true)]
    pub(crate) names: Vec<String>,
    /// Pull every tag of the repository
    #[arg(short, long)]
    pub(crate) all_tags: bool,
    /// For this platform instead of the host's: OS/ARCH[/VARIANT]
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,
    /// Print the name only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Keep the layers' blobs as they came, too: then a push gives the same manifest digest
    #[arg(long)]
    pub(crate) keep_blobs: bool,
    #[command(flatten)]
    pub(crate) creds: CredsArg,
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ManifestInspectArgs {
    /// The image: [HOST[:PORT]/]NAME[:TAG][@DIGEST]
    pub(crate) name: String,
    /// Show each manifest of an index as well, with its descriptor
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// Print the bytes as the registry sent them
    #[arg(long, conflicts_with = "verbose")]
    pub(crate) raw: bool,
    #[command(flatten)]
    pub(crate) creds: CredsArg,
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// The image's name: [HOST[:PORT]/]NAME[:TAG]
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Push it under this name instead
    #[arg(value_name = "DESTINATION", conflicts_with = "all_tags")]
    pub(crate) destination: Option<String>,
    /// Push every tag of the repository
    #[arg(short, long)]
    pub(crate) all_tags: bool,
    /// How layers are compressed that the registry lacks
    #[arg(long, value_name = "FORMAT", default_value = "gzip")]
    pub(crate) compression_format: CompressionFormat,
    /// How much: 0 to 9 for gzip, 1 to 22 for zstd [default: 6, 3]
    #[arg(long, value_name = "LEVEL")]
    pub(crate) compression_level: Option<u32>,
    /// Print the manifest's digest only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) creds: CredsArg,
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompressionFormat {
    /// What every registry and runtime knows.
    Gzip,
    /// Smaller and faster; the manifest is OCI's.
    Zstd,
}

#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// The registry [default: docker.io]
    #[arg(value_name = "REGISTRY")]
    pub(crate) host: Option<String>,
    /// The name
    #[arg(short, long, value_name = "USER")]
    pub(crate) username: Option<String>,
    /// The password; others on this machine can see it
    #[arg(short, long, value_name = "PASSWORD", conflicts_with = "password_stdin")]
    pub(crate) password: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    pub(crate) password_stdin: bool,
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

#[derive(Debug, Args)]
pub(crate) struct LogoutArgs {
    /// The registry [default: docker.io]
    #[arg(value_name = "REGISTRY", conflicts_with = "all")]
    pub(crate) host: Option<String>,
    /// Forget every registry
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Where credentials are kept [default: $REGISTRY_AUTH_FILE, podman's auth.json, docker's config.json]
    #[arg(long, value_name = "FILE")]
    pub(crate) authfile: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct SearchArgs {
    /// What is part of the name; at Docker Hub unless a registry is named
    #[arg(value_name = "[REGISTRY/]TERM")]
    pub(crate) term: String,
    /// How many at most: 1 to 100
    #[arg(long, value_name = "N", default_value_t = 25)]
    pub(crate) limit: usize,
    /// stars=N or is-official=true|false
    #[arg(short, long, value_name = "FILTER")]
    pub(crate) filter: Vec<String>,
    /// Print whole descriptions
    #[arg(long)]
    pub(crate) no_trunc: bool,
    #[command(flatten)]
    pub(crate) format: FormatArg,
    #[command(flatten)]
    pub(crate) creds: CredsArg,
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

impl RegistryArgs {
    fn settings(&self, creds: Option<&str>) -> Result<Settings> {
        let credential = match creds.map(|creds| creds.split_once(':')) {
            None => None,
            Some(Some((user, password))) if !user.is_empty() => {
                Some(Credential::Password { user: user.into(), password: password.into() })
            }
            Some(_) => bail!("--creds: it is spelt USER:PASSWORD"),
        };
        Ok(Settings {
            plain_http: self.plain_http,
            insecure: self.insecure,
            ca_files: self.ca_file.clone(),
            credential,
            auth_files: self.auth_files(),
            registries_conf: self.registries_conf.clone(),
            hosts_dir: self.hosts_dir.clone(),
            patience: registry::Patience::default(),
        })
    }

    fn auth_files(&self) -> AuthFiles {
        self.authfile.as_ref().map_or_else(AuthFiles::default, AuthFiles::only)
    }

    fn open(&self, creds: Option<&CredsArg>) -> Result<Registries> {
        Ok(Registries::new(self.settings(creds.and_then(|arg| arg.creds.as_deref()))?)?)
    }
}

/// `plyfs pull`
pub(crate) fn pull(store: &Store, args: &PullArgs, out: &mut dyn Write) -> Result<()> {
    let registries = args.registry.open(Some(&args.creds))?;
    let options = PullOptions {
        platform: args.platform.as_deref().map(Platform::parse).transpose()?,
        parallel: None,
        keep_blobs: args.keep_blobs,
    };
    for name in &args.names {
        for reference in wanted(&registries, name, args)? {
            if !args.quiet {
                let tag = reference.digest().map(|digest| digest.to_string());
                let tag = tag.as_deref().or(reference.tag()).unwrap_or("latest");
                writeln!(out, "{tag}: Pulling from {}", reference.path())?;
                out.flush()?;
            }
            let pulled = registries.pull(store, &reference, &options, &*progress::pull(args.quiet))?;
            announce(&pulled, args.quiet, out)?;
        }
    }
    Ok(())
}

/// The images that one argument means.
fn wanted(registries: &Registries, name: &str, args: &PullArgs) -> Result<Vec<Reference>> {
    let reference = Reference::parse(name)?;
    if !args.all_tags {
        return Ok(vec![reference]);
    }
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains([':', '@']) {
        bail!("{name}: with --all-tags, a name has neither tag nor digest");
    }
    let tags = registries.tags(&reference)?;
    if tags.is_empty() {
        bail!("{name}: it has no tags");
    }
    Ok(tags.iter().map(|tag| reference.with_tag(tag)).collect::<Result<_, _>>()?)
}

fn announce(pulled: &Pulled, quiet: bool, out: &mut dyn Write) -> Result<()> {
    if !quiet {
        let status = if pulled.up_to_date { "Image is up to date" } else { "Downloaded newer image" };
        writeln!(out, "Digest: {}", pulled.digest)?;
        writeln!(out, "Status: {status} for {}", pulled.name.familiar())?;
    }
    writeln!(out, "{}", pulled.name)?;
    Ok(())
}

/// `plyfs manifest inspect`
pub(crate) fn inspect(args: &ManifestInspectArgs, out: &mut dyn Write) -> Result<()> {
    let registries = args.registry.open(Some(&args.creds))?;
    let reference = Reference::parse(&args.name)?;
    let inspected = if args.verbose { registries.inspect_all(&reference)? } else { registries.inspect(&reference)? };
    if args.raw {
        out.write_all(&inspected.top.bytes)?;
        return Ok(());
    }
    let document: Value = serde_json::from_slice(&inspected.top.bytes)?;
    let shown = match (args.verbose, inspected.manifests.is_empty()) {
        (false, _) => document,
        (true, true) => {
            let media_type = document.get("mediaType").and_then(Value::as_str).map(str::to_owned);
            json!({
                "Ref": reference.to_string(),
                "Descriptor": {
                    "mediaType": media_type.or(inspected.top.media_type),
                    "digest": inspected.top.digest.to_string(),
                    "size": inspected.top.bytes.len(),
                },
                "Manifest": document,
            })
        }
        (true, false) => {
            let entry = |(descriptor, fetched): &(Value, registry::Fetched)| {
                Ok(json!({
                    "Ref": reference.pinned(fetched.digest).to_string(),
                    "Descriptor": descriptor,
                    "Manifest": serde_json::from_slice::<Value>(&fetched.bytes)?,
                }))
            };
            inspected.manifests.iter().map(entry).collect::<Result<Vec<_>>>()?.into()
        }
    };
    serde_json::to_writer_pretty(&mut *out, &shown)?;
    writeln!(out)?;
    Ok(())
}

/// `plyfs push`
pub(crate) fn push(store: &Store, args: &PushArgs, out: &mut dyn Write) -> Result<()> {
    let registries = args.registry.open(Some(&args.creds))?;
    let level = args.compression_level;
    let compression = match args.compression_format {
        CompressionFormat::Gzip if level.is_none_or(|level| level <= 9) => Compression::Gzip(level.unwrap_or(6)),
        CompressionFormat::Zstd if level.is_none_or(|level| (1..=22).contains(&level)) => {
            Compression::Zstd(level.unwrap_or(3))
        }
        _ => bail!("--compression-level: gzip has 0 to 9, zstd 1 to 22"),
    };
    let options = PushOptions { compression };
    for (name, target) in pushed_names(store, args)? {
        let image = store.image(&name.to_string())?;
        if !args.quiet {
            writeln!(out, "The push refers to repository [{}]", target.repository())?;
            out.flush()?;
        }
        let progress: Box<dyn PushProgress> = if args.quiet { Box::new(Unheard) } else { Box::new(PushLines) };
        let pushed = registries.push(store, &image, &target, &options, &*progress)?;
        match args.quiet {
            true => writeln!(out, "{}", pushed.digest)?,
            false => {
                let tag = pushed.name.tag().unwrap_or("latest");
                writeln!(out, "{tag}: digest: {} size: {}", pushed.digest, pushed.size)?;
            }
        }
    }
    Ok(())
}

/// The names to push, each with the name that it gets.
fn pushed_names(store: &Store, args: &PushArgs) -> Result<Vec<(Reference, Reference)>> {
    if !args.all_tags {
        let name = store.image(&args.name).map(|_| Reference::parse(&args.name));
        let target = args.destination.as_ref().unwrap_or(&args.name);
        return match name? {
            Ok(name) => Ok(vec![(name, Reference::parse(target)?)]),
            // By ID: the image has a name that leads to it, and the target has its own.
            Err(_) if args.destination.is_some() => {
                let image = store.image(&args.name)?;
                let name = image.names.first().cloned();
                let name = name.ok_or_else(|| anyhow::anyhow!("{}: give it a name first: plyfs tag", args.name))?;
                Ok(vec![(name, Reference::parse(target)?)])
            }
            Err(error) => Err(error.into()),
        };
    }
    let wanted = Reference::parse(&args.name)?;
    let mut names: Vec<Reference> = store.images()?.into_iter().flat_map(|image| image.names).collect();
    names.retain(|name| name.repository() == wanted.repository() && name.tag().is_some());
    names.sort();
    if names.is_empty() {
        bail!("no such image: {}", args.name);
    }
    Ok(names.into_iter().map(|name| (name.clone(), name)).collect())
}

/// Hears nothing.
struct Unheard;

impl PushProgress for Unheard {
    fn layer(&self, _layer: layer::DiffId, _event: LayerPushed) {}
}

/// Docker's lines, one for each layer once it is done.
struct PushLines;

impl PushProgress for PushLines {
    fn layer(&self, layer: layer::DiffId, event: LayerPushed) {
        let text = match event {
            LayerPushed::Sending { .. } => return,
            LayerPushed::Sent => "Pushed".to_owned(),
            LayerPushed::Exists => "Layer already exists".to_owned(),
            LayerPushed::Mounted(from) => format!("Mounted from {from}"),
        };
        // Progress that nobody can read is no reason to stop.
        std::io::stderr().write_all(format!("{}: {text}\n", &layer.0.hex()[..12]).as_bytes()).ok();
    }
}

const HUB: &str = "docker.io";

/// `plyfs login`
pub(crate) fn login(args: &LoginArgs, out: &mut dyn Write) -> Result<()> {
    let host = host_of(args.host.as_deref());
    let user = match &args.username {
        Some(user) => user.clone(),
        None if args.password_stdin => bail!("login: --password-stdin needs --username"),
        None => ask("Username: ")?,
    };
    let password = match &args.password {
        Some(password) => password.clone(),
        None if args.password_stdin => {
            let mut text = String::new();
            std::io::stdin().lock().take(64 << 10).read_to_string(&mut text)?;
            text.trim_end_matches(['\n', '\r']).to_owned()
        }
        None => hidden("Password: ")?,
    };
    if user.is_empty() || password.is_empty() || user.contains(':') {
        bail!("login: a name (without ':') and a password are needed");
    }
    let kept = args.registry.open(None)?.login(&host, &user, &password)?;
    if !kept.starts_with("the ") {
        log::info!("{kept}: the password is kept there, readable for you alone");
    }
    writeln!(out, "Login Succeeded")?;
    Ok(())
}

/// `plyfs logout`
pub(crate) fn logout(args: &LogoutArgs, out: &mut dyn Write) -> Result<()> {
    let files = args.authfile.as_ref().map_or_else(AuthFiles::default, AuthFiles::only);
    if args.all {
        files.forget_all()?;
        writeln!(out, "Removed login credentials for all registries")?;
        return Ok(());
    }
    let host = host_of(args.host.as_deref());
    match files.forget(&host)? {
        true => writeln!(out, "Removing login credentials for {host}")?,
        false => writeln!(out, "Not logged in to {host}")?,
    }
    Ok(())
}

/// The host in what people type: `https://quay.io/` is `quay.io`.
fn host_of(text: Option<&str>) -> String {
    let text = text.unwrap_or(HUB);
    let bare = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    match bare.split('/').next().unwrap_or(bare) {
        "index.docker.io" | "registry-1.docker.io" => HUB.to_owned(),
        host => host.to_owned(),
    }
}

fn ask(prompt: &str) -> Result<String> {
    let mut err = std::io::stderr();
    err.write_all(prompt.as_bytes())?;
    err.flush()?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

/// Asks without showing what is typed.
fn hidden(prompt: &str) -> Result<String> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        bail!("login: standard input is no terminal; give the password with --password-stdin");
    }
    let before = tcgetattr(&stdin)?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Now, &silent)?;
    let answer = ask(prompt);
    tcsetattr(&stdin, OptionalActions::Now, &before)?;
    std::io::stderr().write_all(b"\n")?;
    answer
}

/// `plyfs search`
pub(crate) fn search(args: &SearchArgs, out: &mut dyn Write) -> Result<()> {
    const DESCRIPTION_WIDTH: usize = 45;
    let mut options = SearchOptions { limit: Some(args.limit), ..SearchOptions::default() };
    for filter in &args.filter {
        match filter.split_once('=') {
            Some(("stars", stars)) if stars.parse::<u64>().is_ok() => options.stars = stars.parse()?,
            Some(("is-official", "true" | "1")) => options.official = Some(true),
            Some(("is-official", "false" | "0")) => options.official = Some(false),
            _ => bail!("--filter {filter}: it is stars=N or is-official=true|false"),
        }
    }
    let found = args.registry.open(Some(&args.creds))?.search(&args.term, &options)?;
    let rows = found.into_iter().map(|one| {
        let description = one.description.split_whitespace().collect::<Vec<_>>().join(" ");
        row! {
            Name: one.name,
            Description: if args.no_trunc { description } else { table::ellipsis(&description, DESCRIPTION_WIDTH) },
            StarCount: one.stars,
            IsOfficial: if one.official { "[OK]" } else { "" },
        }
    });
    let columns: &[Column] =
        &[("NAME", "Name"), ("DESCRIPTION", "Description"), ("STARS", "StarCount"), ("OFFICIAL", "IsOfficial")];
    print::rows(out, &args.format.format, columns, rows.collect())
}
