//! HTTP: the only module that knows the client library. Every wait has a limit, redirects are few and never to plain HTTP, nothing is encoded.

mod connect;
mod credentials;
pub mod date;
mod dial;
pub mod error;
mod meter;
pub mod proxy;
mod tls;

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ureq::config::RedirectAuthHeaders;

use crate::formats::answer::looks_like_html;
use connect::{Connect, Resolve, in_one_go};
use credentials::Authorization;
pub use error::{HttpError, cut, mirror_of, page_instead, without_credentials};
use error::{classify, refused};
pub use meter::Budget;
use meter::Meter;
use proxy::Routes;
use tls::Tls;
pub use tls::TlsOptions;

/// More hops than any sane set-up has.
const REDIRECTS: u32 = 8;
/// Headers of an answer: a few hundred bytes are usual.
const HEADER_LIMIT: usize = 32 << 10;
/// As many connections to one server are kept for the next request: more ranges are never asked for at once.
const CONNECTIONS: usize = 16;
/// An entity tag or a date that is longer is no use, and costs memory.
const VALIDATOR_LIMIT: usize = 256;

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Resolving a name; then connecting to a server, all its addresses, proxy and TLS included.
    pub connect: Duration,
    /// Receiving nothing at all.
    pub stall: Duration,
}

/// How servers are reached, and which are believed.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long things may take.
    pub limits: Limits,
    /// TLS.
    pub tls: TlsOptions,
    /// File with credentials for https servers.
    pub credentials_file: Option<PathBuf>,
    /// Proxy and exceptions.
    pub routes: Routes,
    /// Bytes a second, all transfers together.
    pub rate_limit: Option<u64>,
    /// Bytes of bodies that the client may receive in its life.
    pub budget: Option<Budget>,
}

impl Options {
    /// With these limits, the system's authorities, and nothing else.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            tls: TlsOptions::default(),
            credentials_file: None,
            routes: Routes::default(),
            rate_limit: None,
            budget: None,
        }
    }
}

/// A client, and what went through it.
#[derive(Debug)]
pub struct Client {
    agent: ureq::Agent,
    tls: Arc<Tls>,
    options: Options,
    authorization: OnceLock<Result<Authorization, String>>,
    requests: AtomicU64,
    meter: Arc<Meter>,
}

/// A request.
#[derive(Debug, Clone, Default)]
pub struct Request<'a> {
    /// Where.
    pub url: &'a str,
    /// First and last byte that are wanted.
    pub range: Option<(u64, u64)>,
    /// The range is wanted only of the file that has this entity tag or date (`If-Range`); else the whole.
    pub if_range: Option<&'a str>,
    /// Ask only for what has another entity tag.
    pub unless: Option<&'a str>,
    /// A cache on the way has to ask the server whether what it has is still the newest.
    pub newest: bool,
    /// Limit for the whole answer.
    pub total: Option<Duration>,
}

/// The head of an answer with status 200, 206 or 304, or 416 to a request with a range, and its body.
pub struct Response {
    /// 200, 206, 304 or 416.
    pub status: u16,
    /// `ETag`.
    pub etag: Option<String>,
    /// `Last-Modified`.
    pub last_modified: Option<String>,
    /// `Date`.
    pub date: Option<String>,
    /// All `Content-Range` headers.
    pub content_ranges: Vec<String>,
    /// `Content-Length`.
    pub content_length: Option<u64>,
    /// The body.
    pub body: Body,
}

/// A whole body, and its entity tag.
pub type Whole = (Vec<u8>, Option<String>);

/// A body; what is read from it is counted, and slowed down or ended where the settings say so.
pub struct Body {
    reader: ureq::BodyReader<'static>,
    meter: Arc<Meter>,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let allowed = self.meter.allowance(buffer.len()).map_err(io::Error::other)?;
        let length = in_one_go(|| self.reader.read(&mut buffer[..allowed]))?;
        self.meter.count(length);
        Ok(length)
    }
}

impl Client {
    /// A client. Files are read when a request needs them: what is wrong with https leaves plain servers alone.
    pub fn new(options: Options) -> Self {
        let Limits { connect, stall } = options.limits;
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(REDIRECTS)
            // They are for the servers that are configured. The library's «same host» may have another port, and so be another server.
            .redirect_auth_headers(RedirectAuthHeaders::Never)
            .max_idle_connections(CONNECTIONS)
            .max_idle_connections_per_host(CONNECTIONS)
            .max_response_header_size(HEADER_LIMIT)
            .user_agent(concat!("freshroot/", env!("CARGO_PKG_VERSION")))
            // What is compressed is the image; a second coat only costs time and hides lengths.
            .accept_encoding("identity")
            // The environment of an initrd is the kernel's command line: nobody's proxy.
            .proxy(None)
            .timeout_resolve(Some(connect))
            .timeout_connect(Some(connect))
            .timeout_recv_response(Some(stall))
            .timeout_per_read(Some(stall))
            .timeout_per_write(Some(stall));
        let (routes, tls) = (Arc::new(options.routes.clone()), Arc::new(Tls::new(options.tls.clone())));
        let connector = Connect {
            routes: Arc::clone(&routes),
            tls: Arc::clone(&tls),
        };
        Self {
            agent: ureq::Agent::with_parts(config.build(), connector, Resolve { routes }),
            tls,
            authorization: OnceLock::new(),
            requests: AtomicU64::new(0),
            meter: Arc::new(Meter::new(options.rate_limit, options.budget)),
            options,
        }
    }

    /// Requests made so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Bytes of bodies received so far.
    pub fn received(&self) -> u64 {
        self.meter.received()
    }

    /// What bodies may be received in all; none: any.
    pub const fn budget(&self) -> Option<Budget> {
        self.options.budget
    }

    /// Bytes of bodies that may still be received; none: any number.
    pub fn budget_left(&self) -> Option<u64> {
        self.options.budget.map(|budget| budget.bytes().saturating_sub(self.received()))
    }

    /// Makes a GET request.
    ///
    /// # Errors
    /// In classes; any status but 200, 206 and 304 is an error, and 416 too unless a range was asked for.
    pub fn get(&self, request: &Request<'_>) -> Result<Response, HttpError> {
        let shown = without_credentials(request.url);
        self.meter.check().map_err(|spent| HttpError::Fatal(format!("{shown}: {spent}")))?;
        let authorization = self.authorization(request.url)?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        // A redirect must not lead from TLS to plain text.
        let mut builder = self
            .agent
            .get(request.url)
            .config()
            .https_only(is_https(request.url))
            .timeout_global(request.total)
            .build();
        if let Some(authorization) = authorization {
            builder = builder.header("Authorization", authorization.expose());
        }
        if let Some((first, last)) = request.range {
            builder = builder.header("Range", format!("bytes={first}-{last}"));
            if let Some(validator) = request.if_range {
                builder = builder.header("If-Range", validator);
            }
        }
        if let Some(etag) = request.unless {
            builder = builder.header("If-None-Match", etag);
        }
        if request.newest {
            // RFC 9111, 4.2.2: without word from the server a cache may take for fresh what has not changed for long. squid does, for a fifth of that time.
            builder = builder.header("Cache-Control", "max-age=0");
        }
        let response = in_one_go(|| builder.call()).map_err(|error| classify(&shown, &error, &self.tls))?;
        let status = response.status().as_u16();
        let text = |name: &str| {
            response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned)
        };
        let validator = |name: &str| text(name).filter(|text| text.len() <= VALIDATOR_LIMIT);
        if !(matches!(status, 200 | 206 | 304) || status == 416 && request.range.is_some()) {
            // The server's own time, where it tells it: ours may be any.
            let now = text("date")
                .and_then(|text| date::parse(&text))
                .unwrap_or_else(|| self.options.tls.clock.now());
            return Err(refused(&shown, status, text("retry-after").as_deref(), now));
        }
        if let Some(encoding) = text("content-encoding").filter(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
            return Err(HttpError::Fatal(format!(
                "{shown}: the answer is encoded ({encoding}), though identity was asked for: a proxy in between changes it"
            )));
        }
        Ok(Response {
            status,
            etag: validator("etag"),
            last_modified: validator("last-modified"),
            date: validator("date"),
            content_ranges: response
                .headers()
                .get_all("content-range")
                .iter()
                .map(|value| value.to_str().unwrap_or("").to_owned())
                .collect(),
            content_length: text("content-length").and_then(|length| length.parse().ok()),
            body: Body {
                reader: response.into_body().into_with_config().limit(u64::MAX).reader(),
                meter: Arc::clone(&self.meter),
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

    /// The credentials that go with a request: over TLS only, and a URL's own come first.
    fn authorization(&self, url: &str) -> Result<Option<&Authorization>, HttpError> {
        let Some(file) = self
            .options
            .credentials_file
            .as_ref()
            .filter(|_| is_https(url) && !has_userinfo(url))
        else {
            return Ok(None);
        };
        self.authorization
            .get_or_init(|| Authorization::read(file).map_err(|error| format!("{error:#}")))
            .as_ref()
            .map(Some)
            .map_err(|why| HttpError::Fatal(format!("{}: {why}", without_credentials(url))))
    }
}

fn is_https(url: &str) -> bool {
    url.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"))
}

fn has_userinfo(url: &str) -> bool {
    url.split_once("://")
        .is_some_and(|(_, rest)| rest.split(['/', '?', '#']).next().is_some_and(|authority| authority.contains('@')))
}
