//! What really went over a connection: one log line per request, written when its response has ended, with the bytes that the kernel took.
//!
//! A counter in the body would count what was handed to the HTTP library, not what was sent: when a client goes away, the difference is what a test of
//! resumed downloads is about. So the count is made below the library, in the socket's `write`.

use std::io::{self, IoSlice, Write as _};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A request whose response is on its way.
#[derive(Debug)]
pub struct Entry {
    /// Who asked.
    pub client: SocketAddr,
    /// Method, as it came.
    pub method: String,
    /// Path with its query, as it came: still escaped, so that a line stays a line.
    pub path: String,
    /// Status of the response.
    pub status: u16,
    /// The `Range` header, as it came.
    pub range: Option<String>,
    /// When the request had been read.
    pub started: Instant,
    /// Length of the body that is sent when nothing goes wrong.
    pub length: u64,
}

#[derive(Debug)]
struct Open {
    entry: Entry,
    /// How many bytes of the `\r\n\r\n` that ends the response's head have been seen in a row.
    end_of_head: usize,
    sent: u64,
}

/// The books of one connection: at most one response is under way (HTTP/1.1 answers in order).
#[derive(Debug, Default)]
struct Books(Option<Open>);

const END_OF_HEAD: &[u8; 4] = b"\r\n\r\n";

impl Books {
    fn begin(&mut self, entry: Entry) -> Option<String> {
        let before = self.close();
        self.0 = Some(Open {
            entry,
            end_of_head: 0,
            sent: 0,
        });
        before
    }

    /// Counts `bytes`, which the kernel took. Returns the log line when the response is complete.
    fn count(&mut self, mut bytes: &[u8]) -> Option<String> {
        let open = self.0.as_mut()?;
        while open.end_of_head < END_OF_HEAD.len() {
            let (first, rest) = bytes.split_first()?;
            open.end_of_head = match *first {
                byte if byte == END_OF_HEAD[open.end_of_head] => open.end_of_head + 1,
                b'\r' => 1,
                _ => 0,
            };
            bytes = rest;
        }
        open.sent += bytes.len() as u64;
        if open.sent >= open.entry.length { self.close() } else { None }
    }

    fn close(&mut self) -> Option<String> {
        let Open { entry, sent, .. } = self.0.take()?;
        Some(line(&entry, sent))
    }
}

fn line(entry: &Entry, sent: u64) -> String {
    let Entry {
        client,
        method,
        path,
        status,
        range,
        started,
        ..
    } = entry;
    // A header may hold spaces; a field of the log may not.
    let range = range
        .as_deref()
        .map_or_else(|| "-".to_owned(), |range| range.split_whitespace().collect());
    format!(
        "{client} {method} {path} {status} {sent} {range} {}\n",
        started.elapsed().as_millis()
    )
}

/// Writes a log line to stderr in one piece.
pub fn print(line: &str) {
    if let Err(error) = io::stderr().lock().write_all(line.as_bytes()) {
        // Whoever read the log is gone; serving goes on.
        log::debug!("writing the log: {error}");
    }
}

/// The service's side of a connection's books.
#[derive(Debug, Clone, Default)]
pub struct Account(Arc<Mutex<Books>>);

impl Account {
    fn with(&self, change: impl FnOnce(&mut Books) -> Option<String>) {
        // A poisoned lock means that a thread panicked while it counted: the books are still the best that there is.
        let line = change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(line) = line {
            print(&line);
        }
    }

    /// Opens the books for a response, before its first byte is written.
    pub fn begin(&self, entry: Entry) {
        self.with(|books| books.begin(entry));
    }
}

/// A TCP stream that keeps the books of what is written to it. Dropped with a response under way, it logs what was sent of it.
#[derive(Debug)]
pub struct Counted {
    stream: TcpStream,
    account: Account,
}

impl Counted {
    /// Wraps `stream`.
    pub fn new(stream: TcpStream, account: Account) -> Self {
        Self { stream, account }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.account.with(Books::close);
    }
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(count)) = written {
            self.account.with(|books| books.count(&bytes[..count]));
        }
        written
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        if let Poll::Ready(Ok(mut count)) = written {
            for slice in slices {
                let taken = count.min(slice.len());
                self.account.with(|books| books.count(&slice[..taken]));
                count -= taken;
            }
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn entry(length: u64) -> Entry {
        Entry {
            client: "127.0.0.1:5".parse().unwrap(),
            method: "GET".into(),
            path: "/x".into(),
            status: 206,
            range: Some("bytes=0-1, 4-5".into()),
            started: Instant::now(),
            length,
        }
    }

    fn without_time(line: Option<String>) -> Option<String> {
        line.map(|line| line.rsplit_once(' ').unwrap().0.to_owned())
    }

    #[test]
    fn the_head_is_not_counted_however_it_is_cut_into_writes() {
        let response = b"HTTP/1.1 206 X\r\nA: b\r\n\r\n12345";
        for cut in 0..response.len() {
            let mut books = Books::default();
            assert_eq!(books.begin(entry(5)), None);
            assert_eq!(books.count(&response[..cut]), None, "{cut}");
            let line = without_time(books.count(&response[cut..]));
            assert_eq!(line.as_deref(), Some("127.0.0.1:5 GET /x 206 5 bytes=0-1,4-5"), "{cut}");
            assert_eq!(books.close(), None);
        }
    }

    #[test]
    fn a_response_that_was_cut_is_logged_with_what_was_sent_of_it() {
        let mut books = Books::default();
        books.begin(entry(5));
        assert_eq!(books.count(b"H\r\n\r\n12"), None);
        assert_eq!(
            without_time(books.close()).as_deref(),
            Some("127.0.0.1:5 GET /x 206 2 bytes=0-1,4-5")
        );
    }

    #[test]
    fn a_response_without_a_body_ends_with_its_head() {
        let mut books = Books::default();
        books.begin(entry(0));
        assert_eq!(books.count(b"H\r\n\r"), None);
        assert!(books.count(b"\n").is_some());
    }
}
