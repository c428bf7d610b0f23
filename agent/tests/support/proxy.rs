//! A proxy: HTTP (whole URLs and tunnels) and SOCKS5. It knows every name to be this machine, so that only who asks it finds a server by name.
#![allow(dead_code, reason = "each test program uses its share")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Nothing in a test takes so long; what does hangs.
const HANG: Duration = Duration::from_secs(10);

/// What the proxy speaks, and whom it lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// HTTP, everybody.
    Open,
    /// HTTP, the user `me` with the password `word`.
    Closed,
    /// HTTP, nobody.
    Refusing,
    /// HTTP, everybody, but whoever asks for a part asks for the whole.
    WithoutRanges,
    /// SOCKS5, everybody.
    Socks,
    /// SOCKS5, the user `me` with the password `word`.
    SocksClosed,
}

struct Shared {
    manner: Manner,
    asked: Mutex<Vec<String>>,
    over: AtomicBool,
}

/// The proxy; ends when it is dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    listening: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts a proxy.
    pub fn new(manner: Manner) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            manner,
            asked: Mutex::new(Vec::new()),
            over: AtomicBool::new(false),
        });
        let inside = Arc::clone(&shared);
        let listening = std::thread::spawn(move || {
            let mut connections = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                if inside.over.load(Ordering::SeqCst) {
                    break;
                }
                let inside = Arc::clone(&inside);
                connections.push(std::thread::spawn(move || serve(&inside, stream)));
            }
            for connection in connections {
                connection.join().unwrap();
            }
        });
        Self {
            address,
            shared,
            listening: Some(listening),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it was asked for: `GET <url>`, `CONNECT <host>:<port>`, `SOCKS <host>:<port>`.
    pub fn asked(&self) -> Vec<String> {
        self.shared.asked.lock().unwrap().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        if let Some(listening) = self.listening.take() {
            assert!(listening.join().is_ok() || std::thread::panicking(), "the proxy died");
        }
    }
}

fn serve(shared: &Shared, mut client: TcpStream) {
    client.set_read_timeout(Some(HANG)).unwrap();
    client.set_write_timeout(Some(HANG)).unwrap();
    match shared.manner {
        Manner::Socks | Manner::SocksClosed => socks(shared, client),
        Manner::Open | Manner::Closed | Manner::Refusing | Manner::WithoutRanges => {
            let Some(head) = read_head(&mut client) else { return };
            http(shared, client, &head);
        }
    }
}

fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        bytes.push(byte[0]);
    }
    Some(String::from_utf8(bytes).unwrap())
}

fn http(shared: &Shared, mut client: TcpStream, head: &str) {
    let (line, fields) = head.split_once("\r\n").unwrap();
    let words: Vec<&str> = line.split(' ').collect();
    shared.asked.lock().unwrap().push(format!("{} {}", words[0], words[1]));
    let known = fields.contains("Proxy-Authorization: Basic bWU6d29yZA==\r\n");
    let refusal = match shared.manner {
        Manner::Refusing => Some("403 Forbidden"),
        Manner::Closed if !known => Some("407 Proxy Authentication Required"),
        Manner::Open | Manner::Closed | Manner::WithoutRanges | Manner::Socks | Manner::SocksClosed => None,
    };
    if let Some(refusal) = refusal {
        let answer = format!("HTTP/1.1 {refusal}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        client.write_all(answer.as_bytes()).unwrap();
        return;
    }
    if words[0] == "CONNECT" {
        let server = dial(words[1]);
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").unwrap();
        relay(client, server);
    } else {
        let rest = words[1].strip_prefix("http://").unwrap();
        let (host, path) = rest.split_once('/').unwrap();
        let mut server = dial(host);
        let fields = fields.replace("Proxy-Authorization: Basic bWU6d29yZA==\r\n", "");
        let stripped = |line: &&str| {
            let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
            shared.manner == Manner::WithoutRanges && (name == "range" || name == "if-range")
        };
        let fields: String = fields.split_inclusive("\r\n").filter(|line| !stripped(line)).collect();
        server
            .write_all(format!("{} /{path} HTTP/1.1\r\n{fields}", words[0]).as_bytes())
            .unwrap();
        relay(client, server);
    }
}

fn socks(shared: &Shared, mut client: TcpStream) {
    let method = if shared.manner == Manner::SocksClosed { 2 } else { 0 };
    let [5, count] = take(&mut client) else { panic!("not SOCKS5") };
    let mut offered = vec![0; count as usize];
    client.read_exact(&mut offered).unwrap();
    if !offered.contains(&method) {
        client.write_all(&[5, 0xff]).unwrap();
        return;
    }
    client.write_all(&[5, method]).unwrap();
    if method == 2 {
        let [1, length] = take(&mut client) else { panic!("not RFC 1929") };
        let user = text(&mut client, length);
        let [length] = take(&mut client);
        let password = text(&mut client, length);
        let known = (user.as_str(), password.as_str()) == ("me", "word");
        client.write_all(&[1, u8::from(!known)]).unwrap();
        if !known {
            return;
        }
    }
    let [5, 1, 0, kind] = take(&mut client) else {
        panic!("not a request to connect")
    };
    let host = match kind {
        1 => Ipv4Addr::from(take::<4>(&mut client)).to_string(),
        3 => {
            let [length] = take(&mut client);
            text(&mut client, length)
        }
        other => panic!("addresses of kind {other} are not used here"),
    };
    let target = format!("{host}:{}", u16::from_be_bytes(take(&mut client)));
    shared.asked.lock().unwrap().push(format!("SOCKS {target}"));
    let server = dial(&target);
    client.write_all(&[5, 0, 0, 1, 127, 0, 0, 1, 0, 0]).unwrap();
    relay(client, server);
}

fn take<const N: usize>(stream: &mut TcpStream) -> [u8; N] {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn text(stream: &mut TcpStream, length: u8) -> String {
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// Whatever the host, its port on this machine.
fn dial(target: &str) -> TcpStream {
    let port: u16 = target.rsplit_once(':').unwrap().1.parse().unwrap();
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    stream.set_write_timeout(Some(HANG)).unwrap();
    stream
}

/// Both ways, until both sides have ended. Who goes away in between ends it, too.
fn relay(client: TcpStream, server: TcpStream) {
    std::thread::scope(|scope| {
        let one_way = |mut from: TcpStream, mut to: TcpStream| {
            drop(std::io::copy(&mut from, &mut to));
            drop(to.shutdown(Shutdown::Write));
        };
        let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        scope.spawn(move || one_way(from, to));
        one_way(server, client);
    });
}
