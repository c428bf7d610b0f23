//! Proxies: which one a request takes, and what is said to it. Pure but for the stream that is handed in.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::net::Prefix;

/// The head of a proxy's answer: a status line and a few fields.
const HEAD_LIMIT: usize = 16 << 10;

/// What is spoken to a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP: `CONNECT` for https, the whole URL for http.
    Http,
    /// The same inside TLS.
    Https,
    /// SOCKS5 (RFC 1928); names are resolved by the proxy.
    Socks5,
}

/// A proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// What is spoken.
    pub protocol: Protocol,
    /// Name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// User and password.
    credentials: Option<(String, String)>,
}

/// Without credentials, in logs and reports as well.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.protocol {
            Protocol::Http => "http",
            Protocol::Https => "https",
            Protocol::Socks5 => "socks5",
        };
        write!(f, "{scheme}://{}:{}", bracketed(&self.host), self.port)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Proxy {
    /// Reads `http://`, `https://` or `socks5://`, `user:password@` if need be (percent-encoded), host and port.
    ///
    /// # Errors
    /// What is wrong, without the text, which may hold a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |reason: &str| format!("this is not the URL of a proxy: {reason}");
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| wrong("http://, https:// or socks5:// is missing"))?;
        let (protocol, default) = match scheme {
            "http" => (Protocol::Http, 80),
            "https" => (Protocol::Https, 443),
            "socks5" | "socks5h" => (Protocol::Socks5, 1080),
            _ => return Err(wrong("it begins with none of http://, https://, socks5://")),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if !authority.bytes().all(|byte| byte.is_ascii_graphic()) || authority.contains(['/', '?', '#']) {
            return Err(wrong("behind the host there is at most a port"));
        }
        let (user, address) = match authority.rsplit_once('@') {
            Some((user, address)) => (Some(user), address),
            None => (None, authority),
        };
        let (host, port) = split_port(address).ok_or_else(|| wrong("host or port cannot be read"))?;
        let credentials = match user.map(|user| user.split_once(':').unwrap_or((user, ""))) {
            None => None,
            Some((user, password)) => {
                let decoded = decode(user).zip(decode(password));
                Some(decoded.ok_or_else(|| wrong("user or password are not percent-encoded"))?)
            }
        };
        if protocol == Protocol::Socks5
            && credentials
                .as_ref()
                .is_some_and(|(u, p)| u.is_empty() || u.len() > 255 || p.len() > 255)
        {
            return Err(wrong("SOCKS5 takes a user of 1 to 255 bytes, and a password of at most 255"));
        }
        Ok(Self {
            protocol,
            host: host.to_owned(),
            port: port.unwrap_or(default),
            credentials,
        })
    }

    /// The value of `Proxy-Authorization`.
    pub(super) fn authorization(&self) -> Option<String> {
        let (user, password) = self.credentials.as_ref()?;
        Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
    }

    /// Opens a tunnel to `host` through an HTTP proxy.
    ///
    /// # Errors
    /// If it refuses, with its status, or the connection ends.
    pub(super) fn tunnel(&self, stream: &mut (impl Read + Write), host: &str, port: u16) -> io::Result<()> {
        let target = format!("{}:{port}", bracketed(host));
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
        if let Some(authorization) = self.authorization() {
            request += &format!("Proxy-Authorization: {authorization}\r\n");
        }
        stream.write_all((request + "\r\n").as_bytes())?;
        let mut head = Vec::new();
        // Byte by byte: what follows the head belongs to the tunnel.
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
            if head.len() > HEAD_LIMIT {
                return Err(io::Error::other("the proxy's answer has no end"));
            }
        }
        let line = String::from_utf8_lossy(&head);
        let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1));
        match status {
            Some(status) if status.len() == 3 && status.starts_with('2') => Ok(()),
            Some("407") => Err(io::Error::other("the proxy wants other credentials (407): check http.proxy")),
            Some(status) => Err(io::Error::other(format!(
                "the proxy refuses a tunnel to port {port}, with status {}",
                status.chars().take(3).collect::<String>()
            ))),
            None => Err(io::Error::other("the proxy does not answer as an HTTP proxy does")),
        }
    }

    /// Has a SOCKS5 proxy connect to `host` (RFC 1928, RFC 1929). A name is resolved by the proxy.
    ///
    /// # Errors
    /// If it refuses, in the words of the RFC, or the connection ends.
    pub(super) fn socks(&self, stream: &mut (impl Read + Write), host: &str, port: u16) -> io::Result<()> {
        let refused = |what: &str| Err(io::Error::other(format!("the SOCKS5 proxy {what}")));
        let method = if self.credentials.is_some() { 2 } else { 0 };
        stream.write_all(&[5, 1, method])?;
        match answer(stream)? {
            [5, chosen] if chosen == method => {}
            [5, 0xff] if method == 0 => return refused("wants credentials: put them into http.proxy"),
            [5, 0xff] => return refused("takes no user and password"),
            _ => return refused("does not answer as a SOCKS5 proxy does"),
        }
        if let Some((user, password)) = &self.credentials {
            let mut request = vec![1, user.len() as u8];
            request.extend_from_slice(user.as_bytes());
            request.push(password.len() as u8);
            request.extend_from_slice(password.as_bytes());
            stream.write_all(&request)?;
            if answer::<2>(stream)?[1] != 0 {
                return refused("refuses user and password");
            }
        }
        let mut request = vec![5, 1, 0];
        match host.parse() {
            Ok(IpAddr::V4(address)) => {
                request.push(1);
                request.extend_from_slice(&address.octets());
            }
            Ok(IpAddr::V6(address)) => {
                request.push(4);
                request.extend_from_slice(&address.octets());
            }
            Err(_) if host.len() <= 255 => {
                request.extend_from_slice(&[3, host.len() as u8]);
                request.extend_from_slice(host.as_bytes());
            }
            Err(_) => return Err(io::Error::other("the server's name is too long")),
        }
        request.extend_from_slice(&port.to_be_bytes());
        stream.write_all(&request)?;
        let [version, reply, _, kind] = answer(stream)?;
        if version != 5 {
            return refused("does not answer as a SOCKS5 proxy does");
        }
        match reply {
            0 => {}
            1 => return refused("has failed"),
            2 => return refused("does not allow this connection"),
            3 => return refused("cannot reach the network"),
            4 => return refused("cannot reach the host, or does not know it"),
            5 => return refused("was refused by the host"),
            6 => return refused("had no answer from the host in time"),
            other => return refused(&format!("refuses with code {other}")),
        }
        // The address that it connects from is of no use, and has to be read.
        let length = match kind {
            1 => 4,
            4 => 16,
            3 => usize::from(answer::<1>(stream)?[0]),
            _ => return refused("does not answer as a SOCKS5 proxy does"),
        };
        stream.read_exact(&mut vec![0; length + 2])
    }
}

fn answer<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A host that goes around the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exception {
    /// Every host.
    Any,
    /// This name and all below it; this address.
    Name(String),
    /// All addresses of a network.
    Network(Prefix),
}

impl Exception {
    /// Reads a name or a domain (a dot or `*.` before it makes no difference), an address, a network as `10.0.0.0/8`, or `*`.
    ///
    /// # Errors
    /// What is expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if text.contains('/') {
            return text.parse().map(Self::Network).map_err(|error| error.to_string());
        }
        let name = text.strip_prefix("*.").or_else(|| text.strip_prefix('.')).unwrap_or(text);
        let name = name.trim_matches(['[', ']']);
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
        if name.is_empty() || !name.bytes().all(good) {
            return Err(format!(
                "«{}» is neither a host, nor a domain, nor a network as 10.0.0.0/8",
                text.chars().take(80).collect::<String>()
            ));
        }
        Ok(Self::Name(name.to_ascii_lowercase()))
    }

    fn holds(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Network(network) => host.parse().is_ok_and(|address| network.contains(address)),
            Self::Name(name) => {
                let host = host.to_ascii_lowercase();
                let host = host.strip_suffix('.').unwrap_or(&host);
                let same_address = name.parse::<IpAddr>().is_ok_and(|address| host.parse() == Ok(address));
                same_address || host == name || host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'))
            }
        }
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Name(name) => f.write_str(name),
            Self::Network(network) => write!(f, "{network}"),
        }
    }
}

/// Which way requests take.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    /// The proxy, if there is one.
    pub proxy: Option<Proxy>,
    /// Hosts that go around it.
    pub exceptions: Vec<Exception>,
}

impl Routes {
    /// The proxy for a host (without brackets); none: directly. This machine itself is never asked through a proxy.
    pub fn of(&self, host: &str) -> Option<&Proxy> {
        let around = is_this_machine(host) || self.exceptions.iter().any(|exception| exception.holds(host));
        self.proxy.as_ref().filter(|_| !around)
    }
}

fn is_this_machine(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
        || host.parse::<Ipv6Addr>().is_ok_and(|address| address.is_loopback())
}

/// A host as it stands in a URL.
pub(super) fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// Host, without brackets, and port.
fn split_port(address: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<Ipv6Addr>().ok()?;
            (host, port)
        }
        None => address.find(':').map_or((address, ""), |colon| address.split_at(colon)),
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => None,
        Some(number) => Some(number.parse().ok().filter(|port| *port > 0)?),
        None => return None,
    };
    (!host.is_empty()).then_some((host, port))
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
            bytes.push((digit(rest.next())? * 16 + digit(rest.next())?) as u8);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains(char::is_control))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    /// What the other side says, and what was said to it.
    struct Pipe {
        says: io::Cursor<Vec<u8>>,
        heard: Vec<u8>,
    }

    impl Pipe {
        fn new(says: &[u8]) -> Self {
            Self {
                says: io::Cursor::new(says.to_vec()),
                heard: Vec::new(),
            }
        }
    }

    impl Read for Pipe {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.says.read(buffer)
        }
    }

    impl Write for Pipe {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            self.heard.write(buffer)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn proxies_are_read_with_their_ports_and_shown_without_their_secrets() {
        for (text, shown) in [
            ("http://proxy", Some("http://proxy:80")),
            ("http://proxy:3128/", Some("http://proxy:3128")),
            ("https://user:p%40ss@proxy", Some("https://proxy:443")),
            ("socks5://10.0.0.1", Some("socks5://10.0.0.1:1080")),
            ("socks5://[fe80::1]:9", Some("socks5://[fe80::1]:9")),
            ("proxy:3128", None),
            ("ftp://proxy", None),
            ("http://", None),
            ("http://proxy:0", None),
            ("http://proxy:x", None),
            ("http://proxy/path", None),
            ("http://us%zz:x@proxy", None),
            ("http://pro xy", None),
            ("socks5://:secret@proxy", None),
        ] {
            let parsed = Proxy::parse(text);
            assert_eq!(parsed.as_ref().ok().map(ToString::to_string).as_deref(), shown, "{text}");
            assert!(
                !format!("{parsed:?}").contains("p@ss") && !format!("{parsed:?}").contains("%40"),
                "{parsed:?}"
            );
        }
        let proxy = Proxy::parse("https://user:p%40ss@proxy").unwrap();
        assert_eq!(proxy.authorization().unwrap(), "Basic dXNlcjpwQHNz");
    }

    #[test]
    fn exceptions_are_names_domains_addresses_and_networks() {
        for (exceptions, host, around) in [
            (&["lan.example"][..], "lan.example", true),
            (&[".lan.example"], "cache.LAN.example", true),
            (&["*.lan.example"], "cache.lan.example.", true),
            (&["lan.example"], "notlan.example", false),
            (&["10.0.0.0/8"], "10.1.2.3", true),
            (&["10.0.0.0/8"], "11.1.2.3", false),
            (&["10.0.0.0/8"], "ten.example", false),
            (&["2001:db8::/32"], "2001:db8::1", true),
            (&["[2001:db8::1]"], "2001:db8:0::1", true),
            (&["*"], "any.example", true),
            (&[], "any.example", false),
            (&[], "localhost", true),
            (&[], "127.3.2.1", true),
            (&[], "::1", true),
        ] {
            let routes = Routes {
                proxy: Some(Proxy::parse("http://proxy").unwrap()),
                exceptions: exceptions.iter().map(|text| Exception::parse(text).unwrap()).collect(),
            };
            assert_eq!(routes.of(host).is_none(), around, "{exceptions:?} {host}");
        }
        for bad in ["", "a b", "10.0.0.0/33", "http://a"] {
            assert!(Exception::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_tunnel_is_asked_for_with_credentials_and_leaves_what_follows() {
        let proxy = Proxy::parse("http://user:secret@proxy").unwrap();
        let mut pipe = Pipe::new(b"HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\nrest");
        proxy.tunnel(&mut pipe, "::1", 443).unwrap();
        assert_eq!(
            String::from_utf8(pipe.heard).unwrap(),
            "CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\nProxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n\r\n"
        );
        assert_eq!(pipe.says.position(), 47);
        for (says, words) in [
            (&b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"[..], "credentials (407)"),
            (b"HTTP/1.1 403 Forbidden\r\n\r\n", "status 403"),
            (b"SSH-2.0-x\r\n\r\n", "as an HTTP proxy"),
            (b"HTTP/1.1 200", "fill whole buffer"),
        ] {
            let error = proxy.tunnel(&mut Pipe::new(says), "host", 443).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let endless = vec![b'x'; HEAD_LIMIT + 2];
        assert!(
            proxy
                .tunnel(&mut Pipe::new(&endless), "host", 443)
                .unwrap_err()
                .to_string()
                .contains("no end")
        );
    }

    #[test]
    fn socks_speaks_as_the_rfcs_say() {
        let (open, closed) = (Proxy::parse("socks5://p").unwrap(), Proxy::parse("socks5://me:pw@p").unwrap());
        let mut pipe = Pipe::new(&[5, 0, 5, 0, 0, 1, 127, 0, 0, 1, 0, 80]);
        open.socks(&mut pipe, "host", 80).unwrap();
        assert_eq!(pipe.heard, [&[5, 1, 0, 5, 1, 0, 3, 4][..], b"host", &[0, 80]].concat());
        let mut pipe = Pipe::new(&[5, 2, 1, 0, 5, 0, 0, 3, 1, b'x', 0, 80, b'!']);
        closed.socks(&mut pipe, "192.0.2.1", 443).unwrap();
        assert_eq!(
            pipe.heard,
            [&[5, 1, 2, 1, 2][..], b"me", &[2], b"pw", &[5, 1, 0, 1, 192, 0, 2, 1, 1, 187]].concat()
        );
        assert_eq!(pipe.says.position(), 12, "what follows belongs to the connection");
        for (proxy, says, words) in [
            (&open, &[5, 0xff][..], "wants credentials"),
            (&closed, &[5, 0xff], "takes no user"),
            (&closed, &[5, 2, 1, 1], "refuses user"),
            (&open, &[5, 0, 5, 2, 0, 1], "does not allow"),
            (&open, &[5, 0, 5, 4, 0, 1], "cannot reach the host"),
            (&open, b"HTTP/1.1 400", "as a SOCKS5 proxy"),
            (&open, &[5, 0, 5, 0, 0, 9], "as a SOCKS5 proxy"),
            (&open, &[5], "fill whole buffer"),
        ] {
            let error = proxy.socks(&mut Pipe::new(says), "host", 80).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!(open.socks(&mut Pipe::new(&[5, 0]), &"x".repeat(256), 80).is_err());
    }

    proptest! {
        #[test]
        fn whatever_a_proxy_says_is_read_or_refused(says in proptest::collection::vec(any::<u8>(), 0..64)) {
            for text in ["http://p", "socks5://p", "socks5://u:p@p"] {
                let proxy = Proxy::parse(text).unwrap();
                let mut pipe = Pipe::new(&says);
                drop(if proxy.protocol == Protocol::Socks5 { proxy.socks(&mut pipe, "h", 1) } else { proxy.tunnel(&mut pipe, "h", 1) });
            }
        }

        #[test]
        fn no_text_makes_the_readers_panic(text in "\\PC{0,40}") {
            drop(Proxy::parse(&text));
            drop(Exception::parse(&text));
        }
    }
}
