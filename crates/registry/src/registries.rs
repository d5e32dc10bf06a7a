//! All registries: the settings, the runtime, and what people do with them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use store::Reference;
use tokio::runtime::Runtime;

use crate::client::Client;
use crate::credentials::{AuthFiles, Credential};
use crate::error::{Error, Result};
use crate::hosts;
use crate::mirrors::Mirrors;
use crate::repository::Repository;

/// How to reach registries.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Without TLS.
    pub plain_http: bool,
    /// Whatever the certificate; and without TLS where there is none.
    pub insecure: bool,
    /// Certificates to trust beside the system's.
    pub ca_files: Vec<PathBuf>,
    /// Name and password, instead of those in the files.
    pub credential: Option<Credential>,
    /// Where credentials are looked for.
    pub auth_files: AuthFiles,
    /// The file that names mirrors, instead of the usual ones.
    pub registries_conf: Option<PathBuf>,
    /// The directory of containerd's `hosts.toml` files, instead of the usual one.
    pub hosts_dir: Option<PathBuf>,
    /// How much trouble to bear.
    pub patience: Patience,
}

/// How much trouble to bear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How often a thing is tried before it has failed.
    pub attempts: u32,
    /// The pause before the second attempt; it doubles each time.
    pub pause: Duration,
    /// How long the other side may be silent.
    pub idle: Duration,
}

/// The way to all registries.
pub struct Registries {
    pub(crate) settings: Settings,
    pub(crate) mirrors: Mirrors,
    pub(crate) runtime: Arc<Runtime>,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { attempts: 5, pause: Duration::from_millis(500), idle: Duration::from_secs(30) }
    }
}

impl Patience {
    pub(crate) fn pause(&self, attempt: u32) -> Duration {
        self.pause.saturating_mul(1 << attempt.saturating_sub(1).min(6))
    }
}

impl std::fmt::Debug for Registries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registries").finish_non_exhaustive()
    }
}

impl Registries {
    /// Reads the files that name mirrors, and makes ready.
    ///
    /// # Errors
    /// A file of settings that cannot be read or understood.
    pub fn new(settings: Settings) -> Result<Self> {
        let mirrors = Mirrors::read(settings.registries_conf.as_deref(), settings.hosts_dir.as_deref())?;
        // One thread turns the wheels; those who read blobs wait on their own.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(4)
            .thread_name("registry")
            .enable_all()
            .build()
            .map_err(|cause| Error::settings("threads", cause))?;
        Ok(Registries { settings, mirrors, runtime: Arc::new(runtime) })
    }

    /// The repository that a reference is in, with its mirrors.
    pub(crate) fn repository(&self, reference: &Reference) -> Result<Arc<Repository>> {
        let mut hosts = hosts::of(reference, &self.settings, &self.mirrors)?;
        self.runtime.block_on(async {
            for host in &mut hosts {
                host.client.probe().await?;
            }
            Ok::<_, Error>(())
        })?;
        Ok(Arc::new(Repository::new(reference, hosts, Arc::clone(&self.runtime), self.settings.patience)))
    }

    /// The registry as a whole.
    pub(crate) fn registry(&self, domain: &str) -> Result<Client> {
        let mut client = hosts::registry(domain, &self.settings, &self.mirrors)?;
        self.runtime.block_on(client.probe())?;
        Ok(client)
    }
}
