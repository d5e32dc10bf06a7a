//! HTTP and TLS: one client for plain and for verified connections, made when first needed; redirects are left to the caller.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::error::{Error, Result, causes};

const CONNECT: Duration = Duration::from_secs(15);

/// How the other side's certificate is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// By the system's roots, and by those in these files.
    Verify(Vec<PathBuf>),
    /// Not at all.
    Blind,
}

/// Whether the client itself minds that nothing comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Silence {
    Bounded,
    Unbounded,
}

/// A client for one way of trusting.
#[derive(Debug)]
pub(crate) struct Web {
    trust: Trust,
    idle: Duration,
    /// With and without TLS, for answers and for uploads.
    clients: [OnceLock<reqwest::Client>; 4],
}

impl Web {
    /// `idle` is how long the other side may be silent.
    pub(crate) fn new(trust: Trust, idle: Duration) -> Self {
        Web { trust, idle, clients: Default::default() }
    }

    /// Returns the client for that scheme. The system's roots are read only where they are needed.
    pub(crate) fn client(&self, scheme: &str) -> Result<&reqwest::Client> {
        self.made(scheme == "https", Silence::Bounded)
    }

    /// As [`Web::client`], for a request whose answer comes only when a long body was sent: the caller watches that it gets on.
    pub(crate) fn upload_client(&self, scheme: &str) -> Result<&reqwest::Client> {
        self.made(scheme == "https", Silence::Unbounded)
    }

    fn made(&self, secure: bool, silence: Silence) -> Result<&reqwest::Client> {
        let slot = &self.clients[usize::from(secure) + 2 * usize::from(silence == Silence::Unbounded)];
        if let Some(client) = slot.get() {
            return Ok(client);
        }
        let client = self.build(secure, silence)?;
        Ok(slot.get_or_init(|| client))
    }

    fn build(&self, secure: bool, silence: Silence) -> Result<reqwest::Client> {
        let failed = |cause: &(dyn std::error::Error + 'static)| Error::settings("TLS", causes(cause));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|cause| failed(&cause))?;
        let config = match &self.trust {
            Trust::Verify(files) => {
                let roots = if secure { roots(files)? } else { RootCertStore::empty() };
                config.with_root_certificates(roots).with_no_client_auth()
            }
            Trust::Blind => {
                let any = Arc::new(AnyCertificate(provider));
                config.dangerous().with_custom_certificate_verifier(any).with_no_client_auth()
            }
        };
        let builder = reqwest::Client::builder();
        let builder = match silence {
            Silence::Bounded => builder.read_timeout(self.idle),
            Silence::Unbounded => builder,
        };
        builder
            .tls_backend_preconfigured(config)
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .connect_timeout(CONNECT.min(self.idle))
            .user_agent(concat!("plyfs/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|cause| failed(&cause))
    }
}

fn roots(files: &[PathBuf]) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(system.certs);
    for file in files {
        let text = std::fs::read(file).map_err(|cause| Error::settings(file.display(), cause))?;
        let mut found = 0;
        for certificate in CertificateDer::pem_slice_iter(&text) {
            let certificate = certificate.map_err(|cause| Error::settings(file.display(), cause))?;
            roots.add(certificate).map_err(|cause| Error::settings(file.display(), cause))?;
            found += 1;
        }
        if found == 0 {
            return Err(Error::settings(file.display(), "it holds no certificate in PEM form"));
        }
    }
    if roots.is_empty() {
        log::warn!("no root certificates were found; install ca-certificates, or name a file with --ca-file");
    }
    Ok(roots)
}

/// Takes any certificate: for `--insecure`.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
