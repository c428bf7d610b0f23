//! How the client library reaches a server: the only module that uses what the library calls «unversioned» (ureq is pinned to 3.5 for it). It has
//! everything by its own: addresses raced, proxies, TLS by a clock that is not behind.

use std::cell::Cell;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, recv};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::time::Duration as Span;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport};

use super::dial::dial;
use super::proxy::{Protocol, Proxy, Routes, bracketed};
use super::tls::{Tls, within};

/// A head that is sent has some hundred bytes; one with a token, some thousand.
const OUTPUT_BUFFER: usize = 32 << 10;
/// So soon after the first read a second one has the time of a first: a socket need not be told another limit each time.
const AT_ONCE: Duration = Duration::from_millis(100);
/// Where nothing comes for so long, it is looked whether anything still can.
const LOOK: Duration = Duration::from_secs(1);

thread_local! {
    /// Since when whoever asks or reads in this thread has been given nothing; none: nobody does.
    static NOTHING_SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Asks, or reads once from a body. Meanwhile the library reads what it hands to nobody: the body of a redirect, or what follows the last piece of a body.
/// It sees no end of that as long as bytes come. So all of it together may take as long as one read.
pub(super) fn in_one_go<T>(act: impl FnOnce() -> T) -> T {
    NOTHING_SINCE.set(Some(Instant::now()));
    let done = act();
    NOTHING_SINCE.set(None);
    done
}

/// Finds the addresses to connect to: the server's, or those of the proxy on the way.
#[derive(Debug)]
pub(super) struct Resolve {
    pub routes: Arc<Routes>,
}

impl Resolver for Resolve {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let proxy = self.routes.of(host(uri));
        let way = proxy.map(|proxy| format!("http://{}:{}", bracketed(&proxy.host), proxy.port).parse::<Uri>());
        let found = match way.transpose().map_err(|_| Error::InvalidProxyUrl)? {
            Some(proxy) => DefaultResolver::default().resolve(&proxy, config, timeout),
            None => DefaultResolver::default().resolve(uri, config, timeout),
        };
        found.map_err(|error| match (proxy, error) {
            (Some(proxy), Error::HostNotFound | Error::Io(_)) => io::Error::other(format!("the proxy {proxy} has no address")).into(),
            (_, error) => error,
        })
    }
}

/// Connects to servers.
#[derive(Debug)]
pub(super) struct Connect {
    pub routes: Arc<Routes>,
    pub tls: Arc<Tls>,
}

impl Connector<()> for Connect {
    type Out = Line;

    fn connect(&self, details: &ConnectionDetails<'_>, _: Option<()>) -> Result<Option<Line>, Error> {
        let host = host(details.uri);
        let proxy = self.routes.of(host);
        let named = |error: Error| match proxy {
            Some(proxy) => self.through(proxy, error),
            None => error,
        };
        let mut wire = self.reach(details, proxy).map_err(named)?;
        let secure = details.needs_tls();
        let port = details.uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let mut forward = None;
        match proxy.map(|proxy| (proxy, proxy.protocol)) {
            None => {}
            Some((proxy, Protocol::Socks5)) => proxy.socks(&mut wire, host, port).map_err(|error| named(io(error)))?,
            Some((proxy, Protocol::Http | Protocol::Https)) if secure => {
                proxy.tunnel(&mut wire, host, port).map_err(|error| named(io(error)))?;
            }
            Some((proxy, Protocol::Http | Protocol::Https)) => {
                forward = Some(Forward {
                    origin: format!("http://{}:{port}", bracketed(host)),
                    authorization: proxy.authorization(),
                });
            }
        }
        if secure {
            wire = self.secure(wire, host)?;
        }
        Ok(Some(Line {
            wire,
            forward,
            buffers: LazyBuffers::new(details.config.input_buffer_size(), OUTPUT_BUFFER),
        }))
    }
}

impl Connect {
    /// What goes wrong on the way to the proxy is told as that.
    #[allow(clippy::wildcard_enum_match_arm, reason = "the library's enum may grow; the rest names itself")]
    fn through(&self, proxy: &Proxy, error: Error) -> Error {
        match error {
            Error::Io(error) => io::Error::new(error.kind(), format!("through the proxy {proxy}: {error}")).into(),
            Error::Other(error) => match error.downcast::<rustls::Error>() {
                Ok(error) => Error::Other(format!("the proxy {proxy}: {}", self.tls.explain(&error)).into()),
                Err(other) => Error::Other(other),
            },
            other => other,
        }
    }

    /// A connection to the server, or to the proxy before it.
    fn reach(&self, details: &ConnectionDetails<'_>, proxy: Option<&Proxy>) -> Result<Wire, Error> {
        let limit = time(details.timeout.after);
        let deadline = limit.map(|limit| Instant::now() + limit);
        let stream = dial(&details.addrs, deadline)?;
        let mut wire = Wire::Tcp(Tcp::new(stream));
        // What is said before a request has the limit of connecting, too.
        wire.allow(deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())));
        match proxy {
            Some(proxy) if proxy.protocol == Protocol::Https => self.secure(wire, &proxy.host),
            Some(_) | None => Ok(wire),
        }
    }

    fn secure(&self, mut wire: Wire, host: &str) -> Result<Wire, Error> {
        let config = self.tls.config().map_err(|why| Error::Other(why.into()))?;
        let name = ServerName::try_from(host.to_owned()).map_err(|_| Error::Tls("the server's name cannot stand in a certificate"))?;
        let mut session = ClientConnection::new(config, name).map_err(tls)?;
        match session.complete_io(&mut wire) {
            Ok(_) => Ok(Wire::Tls(Box::new(StreamOwned::new(session, wire)))),
            Err(error) => Err(within(error).map_or_else(io, tls)),
        }
    }
}

/// The host of a URL, without brackets.
fn host(uri: &Uri) -> &str {
    uri.host().unwrap_or("").trim_start_matches('[').trim_end_matches(']')
}

/// An error of the TLS library, for whoever explains it.
fn tls(error: rustls::Error) -> Error {
    Error::Other(Box::new(error))
}

/// A read or write that took too long is told as such.
fn io(error: io::Error) -> Error {
    if is_late(&error) {
        io::Error::new(io::ErrorKind::TimedOut, "there was no answer in time").into()
    } else {
        error.into()
    }
}

const fn time(span: Span) -> Option<Duration> {
    match span {
        Span::Exact(time) => Some(time),
        Span::NotHappening => None,
    }
}

/// A socket whose reads and writes end in time.
struct Tcp {
    stream: TcpStream,
    /// How long all reads and writes may take from now on, and since when.
    allowed: Option<Duration>,
    since: Option<Instant>,
    /// What the socket was told, so that it is told only when that changes.
    read: Option<Duration>,
    write: Option<Duration>,
}

impl Tcp {
    const fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            allowed: None,
            since: None,
            read: None,
            write: None,
        }
    }

    /// What is left of the time. A first read of its time needs no other limit than the one before it had: mostly the socket has it already.
    fn left(&mut self) -> io::Result<Option<Duration>> {
        let Some(allowed) = self.allowed else { return Ok(None) };
        let left = match self.since {
            None => {
                self.since = Some(Instant::now());
                allowed
            }
            Some(since) => allowed.saturating_sub(since.elapsed()),
        };
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Some(left))
    }

    /// An error once the address that the connection comes from is not the machine's any more: the kernel keeps such a connection, and nothing arrives on
    /// it ever again.
    fn has_its_address(&self) -> io::Result<()> {
        let mut address = self.stream.local_addr()?;
        address.set_port(0);
        match UdpSocket::bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Err(io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                format!("the machine's address {} is gone", address.ip()),
            )),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// Nothing came within the time that the socket was told.
fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

impl Read for Tcp {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let left = self.left()?;
            let look = Some(left.map_or(LOOK, |left| left.min(LOOK)));
            if look != self.read {
                self.stream.set_read_timeout(look)?;
                self.read = look;
            }
            match self.stream.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_late(&error) && left != look => self.has_its_address()?,
                other => return other,
            }
        }
    }
}

impl Write for Tcp {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let left = self.left()?;
        if left != self.write {
            self.stream.set_write_timeout(left)?;
            self.write = left;
        }
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// A connection, inside TLS or not, which may be inside TLS to a proxy again.
enum Wire {
    Tcp(Tcp),
    Tls(Box<StreamOwned<ClientConnection, Self>>),
}

impl Wire {
    fn tcp(&mut self) -> &mut Tcp {
        match self {
            Self::Tcp(tcp) => tcp,
            Self::Tls(stream) => stream.sock.tcp(),
        }
    }

    /// So long may the reads and writes take that follow, all together.
    fn allow(&mut self, time: Option<Duration>) {
        let tcp = self.tcp();
        tcp.allowed = time;
        tcp.since = None;
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(tcp) => tcp.write(buffer),
            Self::Tls(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(tcp) => tcp.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// What a plain request needs that goes through a proxy: the whole URL instead of its path (RFC 9112, 3.2.2).
struct Forward {
    origin: String,
    authorization: Option<String>,
}

impl Forward {
    /// The head of a request as the proxy wants it; nothing if these bytes begin none.
    fn rewritten(&self, head: &[u8]) -> Option<Vec<u8>> {
        let rest = head.strip_prefix(b"GET ").filter(|rest| rest.starts_with(b"/"))?;
        let end = rest.windows(2).position(|pair| pair == b"\r\n")? + 2;
        let (line, fields) = rest.split_at(end);
        let authorization = self
            .authorization
            .iter()
            .map(|value| format!("Proxy-Authorization: {value}\r\n"))
            .collect::<String>();
        Some([b"GET ", self.origin.as_bytes(), line, authorization.as_bytes(), fields].concat())
    }
}

/// A connection, as the library wants it.
pub(super) struct Line {
    wire: Wire,
    forward: Option<Forward>,
    buffers: LazyBuffers,
}

/// Nothing of what goes through it is shown.
impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Line")
    }
}

impl Transport for Line {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let timeout = timeout.for_write();
        self.wire.allow(time(timeout.after));
        // What is sent is a request: its answer has its own time, also behind a redirect.
        NOTHING_SINCE.set(NOTHING_SINCE.get().map(|_| Instant::now()));
        let output = &self.buffers.output()[..amount];
        let written = match self.forward.as_ref().and_then(|forward| forward.rewritten(output)) {
            Some(head) => self.wire.write_all(&head),
            None => self.wire.write_all(output),
        };
        written.and_then(|()| self.wire.flush()).map_err(|error| late(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let one_read = timeout.per_read.and_then(time);
        let timeout = timeout.for_read();
        let waited = NOTHING_SINCE.get().map_or(Duration::ZERO, |since| since.elapsed());
        let rest = one_read
            .filter(|_| waited > AT_ONCE)
            .map(|one_read| one_read.saturating_sub(waited));
        self.wire.allow([rest, time(timeout.after)].into_iter().flatten().min());
        let length = self
            .wire
            .read(self.buffers.input_append_buf())
            .map_err(|error| late(error, timeout))?;
        self.buffers.input_appended(length);
        Ok(length > 0)
    }

    fn is_open(&mut self) -> bool {
        let mut byte = [0];
        // An idle server says nothing: what can be read is an end, or an answer to nobody.
        recv(&self.wire.tcp().stream, &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT).err() == Some(rustix::io::Errno::AGAIN)
    }

    fn is_tls(&self) -> bool {
        matches!(self.wire, Wire::Tls(_)) && self.forward.is_none()
    }
}

fn late(error: io::Error, timeout: NextTimeout) -> Error {
    if is_late(&error) {
        Error::Timeout(timeout.reason)
    } else {
        within(error).map_or_else(Error::from, tls)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_request_line_gets_the_whole_url_and_the_rest_stays() {
        let plain = Forward {
            origin: "http://[::1]:80".to_owned(),
            authorization: None,
        };
        let closed = Forward {
            origin: "http://host:8080".to_owned(),
            authorization: Some("Basic eA==".to_owned()),
        };
        for (forward, head, expected) in [
            (
                &plain,
                "GET /a HTTP/1.1\r\nhost: x\r\n\r\n",
                Some("GET http://[::1]:80/a HTTP/1.1\r\nhost: x\r\n\r\n"),
            ),
            (
                &closed,
                "GET /a?b HTTP/1.1\r\nhost: x\r\n\r\n",
                Some("GET http://host:8080/a?b HTTP/1.1\r\nProxy-Authorization: Basic eA==\r\nhost: x\r\n\r\n"),
            ),
            (&plain, "range: bytes=0-1\r\n\r\n", None),
            (&plain, "GET /a HTTP/1.1", None),
        ] {
            let rewritten = forward.rewritten(head.as_bytes()).map(|head| String::from_utf8(head).unwrap());
            assert_eq!(rewritten.as_deref(), expected);
        }
    }
}
