//! TLS: whom it believes, by which clock, and as whom it presents itself. Files are read at the first https connection: a machine that asks plain
//! servers needs none of them.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result, bail};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::time_provider::TimeProvider;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::date;
use crate::clock::Clock;
use crate::digest::Digest;

/// A bundle of all public authorities has 220 KB.
const PEM_LIMIT: u64 = 4 << 20;
/// Where NixOS and Debian keep the bundle of public authorities.
const CA_BUNDLES: &[&str] = &["/etc/ssl/certs/ca-bundle.crt", "/etc/ssl/certs/ca-certificates.crt"];
/// Servers whose clocks and ours are at odds by less than that mean the same time.
const CLOSE: u64 = 24 * 3600;

/// What the settings say about TLS.
#[derive(Debug, Clone, Default)]
pub struct TlsOptions {
    /// PEM file with the authorities; none: the system's bundle.
    pub ca_file: Option<PathBuf>,
    /// SHA-256 digests of the public keys (`SubjectPublicKeyInfo`) that a server may have; none: any that an authority vouches for.
    pub pinned_public_keys: Vec<Digest>,
    /// PEM files with the client's certificate, its intermediates behind it, and with its key.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// The clock that certificates are measured by.
    pub clock: Clock,
}

/// TLS for one client.
#[derive(Debug)]
pub(super) struct Tls {
    options: TlsOptions,
    config: OnceLock<Result<Arc<ClientConfig>, String>>,
}

impl Tls {
    pub(super) const fn new(options: TlsOptions) -> Self {
        Self {
            options,
            config: OnceLock::new(),
        }
    }

    /// The library's configuration, made at the first call.
    ///
    /// # Errors
    /// Why there can be no TLS, the same each time.
    pub(super) fn config(&self) -> Result<Arc<ClientConfig>, String> {
        self.config
            .get_or_init(|| config(&self.options).map(Arc::new).map_err(|error| format!("{error:#}")))
            .clone()
    }

    /// What a failed handshake means: a time that is wrong is told with the clock that was used.
    #[allow(
        clippy::wildcard_enum_match_arm,
        reason = "the library's enum may grow; what is new says what it is"
    )]
    pub(super) fn explain(&self, error: &rustls::Error) -> String {
        let clock = self.options.clock;
        let rustls::Error::InvalidCertificate(found) = error else {
            return format!("TLS: {error}");
        };
        let told = match found {
            CertificateError::ExpiredContext { not_after, .. } => Some(format!("expired at {}", date::show(not_after.as_secs()))),
            CertificateError::NotValidYetContext { not_before, .. } => {
                Some(format!("is valid from {} on", date::show(not_before.as_secs())))
            }
            CertificateError::Expired => Some("has expired".to_owned()),
            CertificateError::NotValidYet => Some("is not valid yet".to_owned()),
            _ => None,
        };
        match (told, found) {
            (Some(told), _) => format!("the server's certificate {told}; {}", clock_in_words(clock)),
            (None, CertificateError::UnknownIssuer) => {
                "the server's certificate is signed by no authority that is trusted here: check http.caFile".to_owned()
            }
            (None, CertificateError::ApplicationVerificationFailure) => {
                "the server's public key is none of http.pinnedPublicKeys".to_owned()
            }
            (None, other) => format!("the server's certificate is refused: {other}"),
        }
    }
}

fn clock_in_words(clock: Clock) -> String {
    let (machine, now) = ((clock.machine)(), clock.now());
    if now.saturating_sub(machine) > CLOSE {
        format!(
            "this machine's clock says {}, which cannot be, and {} was taken instead, the latest time that is signed: set the clock, or, if a release bears a wrong date, see freshroot.reset-floor",
            date::show(machine),
            date::show(now)
        )
    } else {
        format!("this machine's clock says {}: check both", date::show(now))
    }
}

fn config(options: &TlsOptions) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    // With keys that are pinned and no authority named, the keys alone decide: the system's authorities have no say in them.
    let authorities = match (&options.ca_file, options.pinned_public_keys.as_slice()) {
        (None, [_, ..]) => None,
        (path, _) => Some(authorities(path.as_deref(), &provider)?),
    };
    let verifier = Verifier {
        authorities,
        pinned: options.pinned_public_keys.clone(),
        provider: Arc::clone(&provider),
    };
    let builder = ClientConfig::builder_with_details(provider, Arc::new(options.clock))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    match &options.client_certificate {
        None => Ok(builder.with_no_client_auth()),
        Some((certificate, key)) => {
            let chain = certificates(certificate)?;
            let secret = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| anyhow::anyhow!("{}: {error}", key.display()))?;
            builder.with_client_auth_cert(chain, secret).with_context(|| {
                format!(
                    "using the client certificate {} with its key {}",
                    certificate.display(),
                    key.display()
                )
            })
        }
    }
}

fn authorities(ca_file: Option<&Path>, provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>> {
    let path = match ca_file {
        Some(path) => path.to_owned(),
        None => CA_BUNDLES.iter().map(PathBuf::from).find(|path| path.exists()).with_context(|| {
            format!(
                "no certificate authorities are there: set http.caFile or http.pinnedPublicKeys, or put a bundle at {}",
                CA_BUNDLES[0]
            )
        })?,
    };
    let mut store = RootCertStore::empty();
    // A bundle may hold what this library cannot read; what is left counts.
    let (added, ignored) = store.add_parsable_certificates(certificates(&path)?);
    if added == 0 {
        bail!("{} holds no certificate that can be used", path.display());
    }
    if ignored > 0 {
        log::debug!("{}: {ignored} certificates cannot be read", path.display());
    }
    Ok(WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider)).build()?)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let pem = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
    if found.is_empty() {
        bail!("{} holds no certificate", path.display());
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    file.take(PEM_LIMIT)
        .read_to_end(&mut bytes)
        .with_context(|| format!("reading {}", path.display()))?;
    Ok(bytes)
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(self.now())))
    }
}

/// Authorities, pinned keys, or both. Pinned keys alone are what RFC 7671, 5.1, makes of DANE-EE(3): neither name nor dates count then, so that a
/// machine without a clock and a server without a name can be sure of each other.
#[derive(Debug)]
struct Verifier {
    authorities: Option<Arc<WebPkiServerVerifier>>,
    pinned: Vec<Digest>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(authorities) = &self.authorities {
            authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        }
        if !self.pinned.is_empty() || self.authorities.is_none() {
            let key = ParsedCertificate::try_from(end_entity)?.subject_public_key_info();
            if !self.pinned.contains(&Digest::of(key.as_ref())) {
                return Err(CertificateError::ApplicationVerificationFailure.into());
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The library's own error in one of reading or writing, where there is one.
pub(super) fn within(error: io::Error) -> Result<rustls::Error, io::Error> {
    if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) {
        // What was looked for is there.
        match error.into_inner().map(|inner| inner.downcast::<rustls::Error>()) {
            Some(Ok(inner)) => Ok(*inner),
            Some(Err(other)) => Err(io::Error::other(other)),
            None => Err(io::ErrorKind::Other.into()),
        }
    } else {
        Err(error)
    }
}
