//! `freshroot-publish serve`: a static file server for a lab, a demo and the tests, with ranges, strong entity tags and an honest log.

mod account;
mod answer;
mod body;
mod boot_api;
mod file;

use std::convert::Infallible;
use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use account::{Account, Counted, Entry};
use answer::{Answer, Asked, answer};
use body::{Body, Pace};

/// How long a client may take for the head of a request, the idle time of a kept connection included.
const HEAD_LIMIT: Duration = Duration::from_secs(60);
/// How long sent bytes may stay unacknowledged, an unread window included, before the kernel gives the connection up.
const UNACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(120);
/// Connections at once: a file or two each, within the usual limit of 1024 descriptors.
const CONNECTIONS: usize = 400;
/// Pause after `accept` failed for want of descriptors or memory, which only others can give back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How to serve.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to listen. Port 0: the kernel chooses, and the first line on stdout says which.
    pub listen: SocketAddr,
    /// A file that is to hold the port, once connections are accepted.
    pub port_file: Option<PathBuf>,
    /// Bytes per second, for all connections together.
    pub rate: Option<NonZeroU64>,
    /// What the URLs in answers to Pixiecore begin with; none: the host that a request names.
    pub url: Option<String>,
}

struct Served {
    root: OwnedFd,
    pace: Option<Arc<Pace>>,
    url: Option<String>,
}

/// Serves the folder `root` until the process is ended.
pub fn serve(root: &Path, options: &Options) -> Result<()> {
    let folder = File::open(root).with_context(|| format!("opening the folder {}", root.display()))?;
    anyhow::ensure!(folder.metadata()?.is_dir(), "{} is not a folder", root.display());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the server's threads")?;
    runtime.block_on(async {
        let pace = options.rate.map(|rate| Arc::new(Pace::new(rate)));
        let served = Arc::new(Served {
            root: folder.into(),
            pace,
            url: options.url.clone(),
        });
        let listener = TcpListener::bind(options.listen)
            .await
            .with_context(|| format!("listening on {}", options.listen))?;
        announce(&listener, options.port_file.as_deref())?;
        accept(listener, served).await
    })
}

fn announce(listener: &TcpListener, port_file: Option<&Path>) -> Result<()> {
    let address = listener.local_addr().context("reading the address that was bound")?;
    if let Some(path) = port_file {
        // Renamed into place, so that whoever waits for the file never reads half a number.
        let mut name = path.as_os_str().to_owned();
        name.push(".new");
        std::fs::write(&name, format!("{}\n", address.port())).with_context(|| format!("writing {}", Path::new(&name).display()))?;
        std::fs::rename(&name, path).with_context(|| format!("writing {}", path.display()))?;
    }
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "listening on http://{address}")
        .and_then(|()| stdout.flush())
        .context("writing to stdout")
}

async fn accept(listener: TcpListener, served: Arc<Served>) -> Result<()> {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.context("waiting for a free connection")?;
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                account::print(&format!("accepting a connection: {error}\n"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let served = Arc::clone(&served);
        tokio::spawn(async move {
            connection(stream, client, served).await;
            drop(place);
        });
    }
}

async fn connection(stream: TcpStream, client: SocketAddr, served: Arc<Served>) {
    let limit = u32::try_from(UNACKNOWLEDGED_LIMIT.as_millis()).unwrap_or(u32::MAX);
    let prepared = rustix::net::sockopt::set_tcp_user_timeout(&stream, limit).map_err(std::io::Error::from);
    if let Err(error) = prepared.and_then(|()| stream.set_nodelay(true)) {
        account::print(&format!("{client}: preparing the connection: {error}\n"));
        return;
    }
    let started = Instant::now();
    let account = Account::default();
    let io = TokioIo::new(Counted::new(stream, account.clone()));
    let service = hyper::service::service_fn(|request: Request<Incoming>| {
        let response = respond(&request, client, &served, &account);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT);
    // A client that went away shows in the log line of its request; only what is no request at all needs a line here.
    if let Err(error) = server.serve_connection(io, service).await
        && error.is_parse()
    {
        account::print(&format!("{client} - - 400 0 - {}\n", started.elapsed().as_millis()));
    }
}

fn respond(request: &Request<Incoming>, client: SocketAddr, served: &Served, account: &Account) -> Response<Body> {
    let started = Instant::now();
    let text = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let head = request.method() == Method::HEAD;
    let mut response = match (request.method(), boot_api::mac(request.uri().path())) {
        (&Method::GET | &Method::HEAD, Some(mac)) => {
            let base = boot_api::base(served.url.as_deref(), text(header::HOST));
            match boot_api::answer(served.root.as_fd(), mac, &base) {
                Ok(Some(json)) => json_response(json, head),
                // Anything else than 200 makes Pixiecore leave the machine alone.
                Ok(None) => empty(StatusCode::NOT_FOUND),
                Err(error) => {
                    account::print(&format!("{client}: answering Pixiecore: {error:#}\n"));
                    empty(StatusCode::INTERNAL_SERVER_ERROR)
                }
            }
        }
        (&Method::GET | &Method::HEAD, None) => match find(request.uri().path(), client, served) {
            Ok(found) => {
                let asked = Asked {
                    head,
                    range: text(header::RANGE),
                    if_range: text(header::IF_RANGE),
                    if_none_match: text(header::IF_NONE_MATCH),
                };
                file_response(asked, found, served)
            }
            Err(status) => empty(status),
        },
        (_, _) => {
            let mut response = empty(StatusCode::METHOD_NOT_ALLOWED);
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            response
        }
    };
    let length = if head {
        0
    } else {
        hyper::body::Body::size_hint(response.body()).lower()
    };
    // Said even where it is 0: a response to HEAD and a 404 are then told from an unframed one.
    if !head && response.status() != StatusCode::NOT_MODIFIED {
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    account.begin(Entry {
        client,
        method: request.method().to_string(),
        path: request.uri().path_and_query().map_or_else(|| "-".to_owned(), ToString::to_string),
        status: response.status().as_u16(),
        range: text(header::RANGE).map(str::to_owned),
        started,
        length,
    });
    response
}

/// The file that a path means, or the status that says why there is none.
fn find(path: &str, client: SocketAddr, served: &Served) -> Result<file::Found, StatusCode> {
    let path = file::relative(path).ok_or(StatusCode::NOT_FOUND)?;
    match file::open(served.root.as_fd(), &path) {
        Ok(found) => found.ok_or(StatusCode::NOT_FOUND),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Err(StatusCode::FORBIDDEN),
        Err(error) => {
            account::print(&format!("{client}: opening {path}: {error}\n"));
            Err(StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

fn json_response(json: Vec<u8>, head: bool) -> Response<Body> {
    let length = json.len();
    let mut response = Response::new(if head { Body::empty() } else { Body::bytes(json) });
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    response
}

fn file_response(asked: Asked<'_>, found: file::Found, served: &Served) -> Response<Body> {
    let size = found.size;
    let part = answer(asked, size, &found.etag);
    let (status, range) = match part {
        Answer::Whole => (StatusCode::OK, Some((0, size))),
        Answer::Part { start, length } => (StatusCode::PARTIAL_CONTENT, Some((start, length))),
        Answer::NotModified => (StatusCode::NOT_MODIFIED, None),
        Answer::Unsatisfiable => (StatusCode::RANGE_NOT_SATISFIABLE, None),
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let caching = if found.immutable {
        "public, max-age=31536000, immutable"
    } else {
        "no-cache"
    };
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
    let content_range = match part {
        Answer::Part { start, length } => Some(format!("bytes {start}-{}/{size}", start + length - 1)),
        Answer::Unsatisfiable => Some(format!("bytes */{size}")),
        Answer::Whole | Answer::NotModified => None,
    };
    // Both are made of hexadecimal digits, decimal digits and punctuation, which every header may hold.
    for (name, value) in [(header::ETAG, Some(found.etag)), (header::CONTENT_RANGE, content_range)] {
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            headers.insert(name, value);
        }
    }
    if let Some((start, length)) = range {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(found.content_type));
        if asked.head {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        } else {
            *response.body_mut() = Body::part(found.file, start, length, served.pace.clone());
        }
    }
    response
}
