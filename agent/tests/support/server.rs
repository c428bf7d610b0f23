//! A server that misbehaves on purpose, on plain sockets. It answers one request per connection, as its script says, and counts.
#![allow(dead_code, reason = "each test program uses its share")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use freshroot::http::Client;

/// Nothing in a test takes so long; what does hangs.
const HANG: Duration = Duration::from_secs(10);

/// A request, as the script sees it.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Path and query.
    pub path: String,
    /// The number of requests for this path before this one.
    pub nth: usize,
    /// Header lines, names in lower case.
    pub headers: BTreeMap<String, String>,
}

impl Ask {
    /// First and last byte that are asked for.
    pub fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self.headers.get("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().unwrap(), last.parse().unwrap()))
    }
}

/// How the end of the body is told.
#[derive(Debug, Clone)]
pub enum Framing {
    /// The right `Content-Length`.
    Length,
    /// This `Content-Length`, once for each text.
    Claims(Vec<String>),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// Nothing: by closing the connection.
    Close,
}

/// What happens when the bytes that are to be sent are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// The connection is closed, as it should be.
    Close,
    /// The client reads all that was sent, then meets a reset.
    Reset,
    /// Nothing, until the client goes away.
    Stall,
    /// The same bytes again, until the client goes away.
    Endless,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Status code; 0 sends no head at all.
    pub status: u16,
    /// Header lines besides those of the framing.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// How its end is told.
    pub framing: Framing,
    /// Only so many bytes of the body are sent.
    pub send: usize,
    /// Between two pieces.
    pub pace: Option<Duration>,
    /// Bytes of a piece.
    pub piece: usize,
    /// What is sent in place of a head that is made of the rest.
    pub head: Option<Vec<u8>>,
    /// The head, too, is sent at that pace.
    pub slow_head: bool,
    /// After the last byte.
    pub then: Then,
}

impl Reply {
    /// A whole answer.
    pub fn new(status: u16, body: &[u8]) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.to_vec(),
            framing: Framing::Length,
            send: body.len(),
            pace: None,
            piece: 1,
            head: None,
            slow_head: false,
            then: Then::Close,
        }
    }

    /// No answer: the connection is closed or reset at once, or held.
    pub fn none(then: Then) -> Self {
        Self { then, ..Self::new(0, b"") }
    }

    /// With a header more.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With another framing.
    pub fn framing(self, framing: Framing) -> Self {
        Self { framing, ..self }
    }

    /// Only `send` bytes of the body, then something else.
    pub fn cut(self, send: usize, then: Then) -> Self {
        Self { send, then, ..self }
    }

    /// What an honest server answers.
    pub fn honest(files: &BTreeMap<String, Vec<u8>>, ask: &Ask) -> Self {
        match (files.get(&ask.path), ask.range()) {
            (None, _) => Self::new(404, b"not found"),
            (Some(body), None) => Self::new(200, body),
            (Some(body), Some((first, last))) => {
                let range = format!("bytes {first}-{last}/{}", body.len());
                Self::new(206, &body[first..=last]).header("Content-Range", &range)
            }
        }
    }
}

/// A request that was answered, and the bytes of the body that were sent.
#[derive(Debug, Clone)]
pub struct Served {
    /// The request.
    pub ask: Ask,
    /// Bytes of the body that were handed to the socket.
    pub sent: usize,
}

type Script = dyn Fn(&Ask) -> Reply + Send + Sync;

struct Shared {
    script: Box<Script>,
    served: Mutex<Vec<Served>>,
    client: OnceLock<Arc<Client>>,
    over: AtomicBool,
    /// The number of the connection after which the server is down.
    last: AtomicUsize,
}

/// The server; ends when it is dropped.
pub struct Server {
    address: SocketAddr,
    door: TcpListener,
    shared: Arc<Shared>,
    listening: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts a server.
    pub fn new(script: impl Fn(&Ask) -> Reply + Send + Sync + 'static) -> Self {
        Self::at(Ipv4Addr::LOCALHOST, script)
    }

    /// Starts a server at this address, in the network namespace of the thread.
    pub fn at(address: Ipv4Addr, script: impl Fn(&Ask) -> Reply + Send + Sync + 'static) -> Self {
        Self::on(address.into(), script)
    }

    /// The same, at an address of either family.
    pub fn on(address: IpAddr, script: impl Fn(&Ask) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(TcpListener::bind((address, 0)).unwrap(), script)
    }

    /// Comes up where another server went down.
    pub fn on_port(port: u16, script: impl Fn(&Ask) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap(), script)
    }

    fn listen(listener: TcpListener, script: impl Fn(&Ask) -> Reply + Send + Sync + 'static) -> Self {
        let address = listener.local_addr().unwrap();
        let door = listener.try_clone().unwrap();
        let shared = Arc::new(Shared {
            script: Box::new(script),
            served: Mutex::new(Vec::new()),
            client: OnceLock::new(),
            over: AtomicBool::new(false),
            last: AtomicUsize::new(usize::MAX),
        });
        let inside = Arc::clone(&shared);
        let listening = std::thread::spawn(move || {
            let mut connections = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                if inside.over.load(Ordering::SeqCst) {
                    break;
                }
                if connections.len() + 1 == inside.last.load(Ordering::SeqCst) {
                    // Who comes now is refused.
                    rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).unwrap();
                }
                let inside = Arc::clone(&inside);
                connections.push(std::thread::spawn(move || answer(&inside, stream)));
            }
            for connection in connections {
                connection.join().unwrap();
            }
        });
        Self {
            address,
            door,
            shared,
            listening: Some(listening),
        }
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Whose counter tells that bytes were read, before a reset throws away what was not.
    pub fn watch(&self, client: &Arc<Client>) {
        assert!(self.shared.client.set(Arc::clone(client)).is_ok());
    }

    /// Goes down with this connection, which is still answered.
    pub fn end_after(&self, connections: usize) {
        self.shared.last.store(connections, Ordering::SeqCst);
    }

    /// All that was answered so far.
    pub fn served(&self) -> Vec<Served> {
        self.shared.served.lock().unwrap().clone()
    }

    /// Requests so far.
    pub fn requests(&self) -> usize {
        self.served().len()
    }

    /// Bytes of bodies sent so far.
    pub fn sent(&self) -> usize {
        self.served().iter().map(|served| served.sent).sum()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        // Ends the wait for the next connection, from whichever namespace.
        let ended = rustix::net::shutdown(&self.door, rustix::net::Shutdown::Both);
        // One that went down is not connected any more.
        assert!(ended.is_ok() || ended == Err(rustix::io::Errno::NOTCONN), "{ended:?}");
        if let Some(listening) = self.listening.take() {
            let ended = listening.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the server died");
        }
    }
}

fn answer(shared: &Shared, mut stream: TcpStream) {
    stream.set_read_timeout(Some(HANG)).unwrap();
    stream.set_write_timeout(Some(HANG)).unwrap();
    stream.set_nodelay(true).unwrap();
    let Some(mut ask) = read_head(&mut stream) else { return };
    let number = {
        let mut served = shared.served.lock().unwrap();
        ask.nth = served.iter().filter(|served| served.ask.path == ask.path).count();
        served.push(Served { ask: ask.clone(), sent: 0 });
        served.len() - 1
    };
    let before = shared.client.get().map_or(0, |client| client.received());
    let reply = (shared.script)(&ask);
    let head = match &reply.head {
        Some(head) => head.clone(),
        None if reply.status == 0 => Vec::new(),
        None => head(&reply).into_bytes(),
    };
    let said = match reply.pace.filter(|_| reply.slow_head) {
        Some(pace) => trickle(&mut stream, head.chunks(1), pace, &|_| ()),
        None => stream.write_all(&head).is_ok(),
    };
    if !said {
        return;
    }
    let count = |length: usize| shared.served.lock().unwrap()[number].sent += length;
    let body = &reply.body[..reply.send];
    let complete = reply.send == reply.body.len() && reply.then == Then::Close;
    let sent = loop {
        let sent = match reply.pace {
            Some(pace) => trickle(&mut stream, body.chunks(reply.piece), pace, &count),
            None => send(&mut stream, body, &reply.framing, &count),
        };
        if !sent || reply.then != Then::Endless {
            break sent;
        }
    };
    if !sent {
        return;
    }
    match reply.then {
        Then::Close | Then::Endless => {
            if complete && matches!(reply.framing, Framing::Chunked) {
                // A client that went away already has what it wanted.
                drop(stream.write_all(b"0\r\n\r\n"));
            }
        }
        Then::Reset => {
            let client = shared.client.get().expect("a server that resets watches the client");
            let end = Instant::now() + HANG;
            while client.received() < before + body.len() as u64 {
                assert!(Instant::now() < end, "the client does not read what was sent");
                std::thread::yield_now();
            }
            rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
        }
        Then::Stall => until_gone(&mut stream),
    }
}

fn until_gone(stream: &mut TcpStream) {
    let mut byte = [0];
    match stream.read(&mut byte) {
        Ok(0) => {}
        Ok(_) => panic!("the client sends more than a request"),
        Err(error) => assert!(
            error.kind() == std::io::ErrorKind::ConnectionReset,
            "the client holds on to a server that says nothing: {error}"
        ),
    }
}

fn send(stream: &mut TcpStream, body: &[u8], framing: &Framing, count: &dyn Fn(usize)) -> bool {
    for piece in body.chunks(16 << 10) {
        // Before they are sent: who has received them finds them counted.
        count(piece.len());
        let written = if matches!(framing, Framing::Chunked) {
            let chunk = [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
            stream.write_all(&chunk)
        } else {
            stream.write_all(piece)
        };
        if written.is_err() {
            return false;
        }
    }
    true
}

/// One piece after the other; the pause between them ends early when the client goes away.
fn trickle<'a>(stream: &mut TcpStream, pieces: impl Iterator<Item = &'a [u8]>, pace: Duration, count: &dyn Fn(usize)) -> bool {
    stream.set_read_timeout(Some(pace)).unwrap();
    for piece in pieces {
        count(piece.len());
        if stream.write_all(piece).is_err() {
            return false;
        }
        match stream.read(&mut [0]) {
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Ok(_) | Err(_) => return false,
        }
    }
    true
}

/// The head of an answer.
pub fn head(reply: &Reply) -> String {
    let mut head = format!("HTTP/1.1 {} Scripted\r\nConnection: close\r\n", reply.status);
    match &reply.framing {
        Framing::Length => head += &format!("Content-Length: {}\r\n", reply.body.len()),
        Framing::Claims(lengths) => {
            for length in lengths {
                head += &format!("Content-Length: {length}\r\n");
            }
        }
        Framing::Chunked => head += "Transfer-Encoding: chunked\r\n",
        Framing::Close => {}
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    head + "\r\n"
}

/// Reads a request; nothing if the connection ends before it.
pub fn read_head(stream: &mut impl Read) -> Option<Ask> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        assert!(bytes.len() < 16 << 10, "a request of more than 16 KiB");
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        bytes.push(byte[0]);
    }
    let text = String::from_utf8(bytes).unwrap();
    let mut lines = text.lines();
    let mut words = lines.next().unwrap().split(' ');
    assert_eq!(words.next(), Some("GET"));
    let path = words.next().unwrap().to_owned();
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Some(Ask { path, nth: 0, headers })
}
