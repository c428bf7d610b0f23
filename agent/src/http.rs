//! HTTP: the only module that knows the client library. Every wait has a limit, redirects are few and never to plain HTTP, nothing is encoded.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};

use crate::formats::answer::looks_like_html;

/// More hops than any sane set-up has.
const REDIRECTS: u32 = 8;
/// Headers of an answer: a few hundred bytes are usual.
const HEADER_LIMIT: usize = 32 << 10;
/// A bundle of all public authorities has 220 KB.
const CA_LIMIT: u64 = 4 << 20;
/// Where NixOS and Debian keep the bundle of public authorities.
const CA_BUNDLES: &[&str] = &["/etc/ssl/certs/ca-bundle.crt", "/etc/ssl/certs/ca-certificates.crt"];

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Resolving a name, and connecting to one of its addresses.
    pub connect: Duration,
    /// Receiving nothing at all.
    pub stall: Duration,
}

/// Why a request failed, by what helps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpError {
    /// Trying again does not help.
    Fatal(String),
    /// The server says that it is not there.
    NotFound(String),
    /// Trying again may help, not before the given time if the server names one.
    Retryable(String, Option<Duration>),
}

impl std::fmt::Display for HttpError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fatal(what) | Self::NotFound(what) | Self::Retryable(what, _) => f.write_str(what),
        }
    }
}

impl std::error::Error for HttpError {}

/// A client, and what went through it.
#[derive(Debug)]
pub struct Client {
    agent: ureq::Agent,
    requests: AtomicU64,
    received: Arc<AtomicU64>,
}

/// A request.
#[derive(Debug, Clone, Default)]
pub struct Request<'a> {
    /// Where.
    pub url: &'a str,
    /// First and last byte that are wanted.
    pub range: Option<(u64, u64)>,
    /// Ask only for what has another entity tag.
    pub unless: Option<&'a str>,
    /// Limit for the whole answer.
    pub total: Option<Duration>,
}

/// The head of an answer with status 200, 206 or 304, and its body.
pub struct Response {
    /// 200, 206 or 304.
    pub status: u16,
    /// `ETag`.
    pub etag: Option<String>,
    /// All `Content-Range` headers.
    pub content_ranges: Vec<String>,
    /// `Content-Length`.
    pub content_length: Option<u64>,
    /// The body.
    pub body: Body,
}

/// A whole body, and its entity tag.
pub type Whole = (Vec<u8>, Option<String>);

/// A body; what is read from it is counted.
pub struct Body {
    reader: ureq::BodyReader<'static>,
    received: Arc<AtomicU64>,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.reader.read(buffer)?;
        self.received.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

impl Client {
    /// A client for these URLs: authorities are needed only if one of them is https.
    ///
    /// # Errors
    /// If https is used and no authorities are there.
    pub fn new(urls: &[String], ca_file: Option<&Path>, limits: Limits) -> Result<Self> {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(REDIRECTS)
            .max_response_header_size(HEADER_LIMIT)
            .user_agent(concat!("freshroot/", env!("CARGO_PKG_VERSION")))
            // What is compressed is the image; a second coat only costs time and hides lengths.
            .accept_encoding("identity")
            .proxy(None)
            .timeout_resolve(Some(limits.connect))
            .timeout_connect(Some(limits.connect))
            .timeout_recv_response(Some(limits.stall))
            .timeout_per_read(Some(limits.stall))
            .timeout_per_write(Some(limits.stall));
        // In any case: a plain server can redirect to https, and ureq panics on that without a provider and authorities.
        let certificates = match authorities(ca_file) {
            Ok(certificates) => certificates,
            Err(error) if urls.iter().any(|url| is_https(url)) => return Err(error),
            Err(error) => {
                log::debug!("a redirect to https would not be believed: {error:#}");
                Vec::new()
            }
        };
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(RootCerts::new_with_certs(&certificates));
        let config = config.tls_config(tls.build());
        Ok(Self {
            agent: config.build().new_agent(),
            requests: AtomicU64::new(0),
            received: Arc::new(AtomicU64::new(0)),
        })
    }

    /// Requests made so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Bytes of bodies received so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Makes a GET request.
    ///
    /// # Errors
    /// In classes; any status but 200, 206 and 304 is an error.
    pub fn get(&self, request: &Request<'_>) -> Result<Response, HttpError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let shown = without_credentials(request.url);
        // A redirect must not lead from TLS to plain text.
        let mut builder = self
            .agent
            .get(request.url)
            .config()
            .https_only(is_https(request.url))
            .timeout_global(request.total)
            .build();
        if let Some((first, last)) = request.range {
            builder = builder.header("Range", format!("bytes={first}-{last}"));
        }
        if let Some(etag) = request.unless {
            builder = builder.header("If-None-Match", etag);
        }
        let response = builder.call().map_err(|error| classify(&shown, &error))?;
        let status = response.status().as_u16();
        let text = |name: &str| {
            response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        if !matches!(status, 200 | 206 | 304) {
            return Err(refused(&shown, status, text("retry-after").as_deref()));
        }
        if let Some(encoding) = text("content-encoding").filter(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
            return Err(HttpError::Fatal(format!(
                "{shown}: the answer is encoded ({encoding}), though identity was asked for: a proxy in between changes it"
            )));
        }
        Ok(Response {
            status,
            etag: text("etag").filter(|etag| etag.len() <= 256),
            content_ranges: response
                .headers()
                .get_all("content-range")
                .iter()
                .map(|value| value.to_str().unwrap_or("").to_owned())
                .collect(),
            content_length: text("content-length").and_then(|length| length.parse().ok()),
            body: Body {
                reader: response.into_body().into_with_config().limit(u64::MAX).reader(),
                received: Arc::clone(&self.received),
            },
        })
    }

    /// The whole body of an answer, of at most `limit` bytes; nothing if it is not modified.
    ///
    /// # Errors
    /// In classes; a longer body is fatal.
    pub fn get_bytes(&self, request: &Request<'_>, limit: u64) -> Result<Option<Whole>, HttpError> {
        let response = self.get(request)?;
        if response.status == 304 {
            return Ok(None);
        }
        let shown = without_credentials(request.url);
        let mut bytes = Vec::new();
        response
            .body
            .take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| cut(&shown, &error))?;
        if looks_like_html(&bytes) {
            return Err(page_instead(&shown));
        }
        if bytes.len() as u64 > limit {
            return Err(HttpError::Fatal(format!("{shown}: the answer is longer than {limit} bytes")));
        }
        Ok(Some((bytes, response.etag)))
    }
}

/// A page of HTML where none was asked for.
pub fn page_instead(url: &str) -> HttpError {
    HttpError::Fatal(format!(
        "{url}: a page of HTML came instead: a captive portal, a proxy or an error page stands in between"
    ))
}

/// What a body's read error means.
pub fn cut(url: &str, error: &io::Error) -> HttpError {
    HttpError::Retryable(format!("{url}: the transfer broke: {error}"), None)
}

fn is_https(url: &str) -> bool {
    url.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"))
}

/// A URL as it may be printed: what stands before the `@` is nobody's business, and neither is a query.
pub fn without_credentials(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (authority, path) = rest.find(['/', '?', '#']).map_or((rest, ""), |end| rest.split_at(end));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    format!("{scheme}://{host}{path}")
}

fn authorities(ca_file: Option<&Path>) -> Result<Vec<Certificate<'static>>> {
    let path = match ca_file {
        Some(path) => path.to_owned(),
        None => CA_BUNDLES.iter().map(PathBuf::from).find(|path| path.exists()).with_context(|| {
            format!(
                "an https url is configured, and no certificate authorities are there: set http.caFile, or put a bundle at {}",
                CA_BUNDLES[0]
            )
        })?,
    };
    let mut pem = Vec::new();
    let file = std::fs::File::open(&path).with_context(|| format!("opening the certificate authorities {}", path.display()))?;
    file.take(CA_LIMIT)
        .read_to_end(&mut pem)
        .with_context(|| format!("reading the certificate authorities {}", path.display()))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&pem) {
        match item.with_context(|| format!("reading the certificate authorities {}", path.display()))? {
            PemItem::Certificate(certificate) => certificates.push(certificate),
            PemItem::PrivateKey(_) => bail!("{} holds a private key, which has no place among authorities", path.display()),
            // The enum of the library may grow.
            _ => {}
        }
    }
    if certificates.is_empty() {
        bail!("{} holds no certificate", path.display());
    }
    Ok(certificates)
}

#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "the library's enum may grow; whatever is new may be tried again"
)]
fn classify(url: &str, error: &ureq::Error) -> HttpError {
    let what = format!("{url}: {error}");
    match error {
        ureq::Error::BadUri(_)
        | ureq::Error::Http(_)
        | ureq::Error::TooManyRedirects
        | ureq::Error::LargeResponseHeader(..)
        | ureq::Error::TlsRequired => HttpError::Fatal(what),
        ureq::Error::RequireHttpsOnly(_) => HttpError::Fatal(format!("{url}: it redirects from https to plain http")),
        ureq::Error::RedirectFailed => HttpError::Fatal(format!("{url}: it redirects to nowhere")),
        // A certificate does not mend itself; a clock may.
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) | ureq::Error::Pem(_) => HttpError::Fatal(what),
        _ => HttpError::Retryable(what, None),
    }
}

fn refused(url: &str, status: u16, retry_after: Option<&str>) -> HttpError {
    let what = format!("{url}: the server answers {status}");
    match status {
        404 | 410 => HttpError::NotFound(what),
        408 | 425 | 429 | 500..=599 => HttpError::Retryable(
            what,
            retry_after.and_then(|seconds| seconds.trim().parse().ok()).map(Duration::from_secs),
        ),
        _ => HttpError::Fatal(what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_url_holds_no_secret() {
        for (url, shown) in [
            ("http://host/a/b", "http://host/a/b"),
            ("https://user:pass@host:8443/a?token=x", "https://host:8443/a"),
            ("http://a@b@host", "http://host"),
            ("http://host?token=x", "http://host"),
            ("http://[fe80::1]:80/x", "http://[fe80::1]:80/x"),
        ] {
            assert_eq!(without_credentials(url), shown);
        }
    }

    #[test]
    fn each_status_has_its_class() {
        for (status, class) in [
            (404, 'n'),
            (410, 'n'),
            (403, 'f'),
            (401, 'f'),
            (400, 'f'),
            (416, 'f'),
            (429, 'r'),
            (500, 'r'),
            (503, 'r'),
            (408, 'r'),
        ] {
            let found = match refused("u", status, None) {
                HttpError::Fatal(_) => 'f',
                HttpError::NotFound(_) => 'n',
                HttpError::Retryable(..) => 'r',
            };
            assert_eq!(found, class, "{status}");
        }
        assert_eq!(
            refused("u", 503, Some("7")),
            HttpError::Retryable("u: the server answers 503".to_owned(), Some(Duration::from_secs(7)))
        );
    }
}
