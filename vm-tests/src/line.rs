//! The line between a machine and its server: counts what passes, and can stop at a byte, so that «in the middle of the download» is one exact place.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

#[derive(Debug, Default)]
struct State {
    received: u64,
    connections: u64,
    hold_at: Option<u64>,
    held: bool,
    closed: bool,
    open: Vec<TcpStream>,
    pumps: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many of `wanted` bytes may pass now; waits while none may. 0 is the end of the line.
    fn allowance(&self, wanted: usize) -> usize {
        let mut state = self.lock();
        loop {
            if state.closed {
                return 0;
            }
            let left = state.hold_at.map_or(u64::MAX, |hold| hold.saturating_sub(state.received));
            if left > 0 {
                let count = usize::try_from(left).unwrap_or(usize::MAX).min(wanted);
                state.received += count as u64;
                return count;
            }
            state.held = true;
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A line that is open until it is dropped.
#[derive(Debug)]
pub struct Line {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Line {
    /// Opens a line to `server` on a free port of the same address.
    pub fn open(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((server.ip(), 0)).context("opening a line to the server")?;
        let address = listener.local_addr().context("reading the line's address")?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let acceptor = std::thread::spawn(move || {
            for client in listener.incoming() {
                if theirs.lock().closed {
                    return;
                }
                if let Err(error) = client
                    .map_err(anyhow::Error::from)
                    .and_then(|client| connect(&theirs, client, server))
                {
                    eprintln!("line: {error:#}");
                }
            }
        });
        Ok(Self {
            address,
            shared,
            acceptor: Some(acceptor),
        })
    }

    /// The port on which machines reach the server.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Stops everything once `bytes` have gone to the machine since the line was opened. A line that stands goes on if it may.
    pub fn hold_at(&self, bytes: u64) {
        let mut state = self.shared.lock();
        state.hold_at = Some(bytes);
        state.held = false;
        self.shared.changed.notify_all();
    }

    /// Waits until the line has stopped.
    pub fn wait_held(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.lock();
        while !state.held {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("only {} bytes went over the line within {} s", state.received, limit.as_secs());
            }
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Ok(())
    }

    /// Bytes that went to machines, heads included.
    pub fn received(&self) -> u64 {
        self.shared.lock().received
    }

    /// How many connections were made.
    pub fn connections(&self) -> u64 {
        self.shared.lock().connections
    }
}

fn connect(shared: &Arc<Shared>, client: TcpStream, server: SocketAddr) -> Result<()> {
    shared.lock().connections += 1;
    // A server that is down is a connection that ends at once.
    let server = TcpStream::connect(server).context("reaching the server")?;
    let up = (client.try_clone()?, server.try_clone()?);
    let down = (server.try_clone()?, client.try_clone()?);
    let theirs = Arc::clone(shared);
    let pumps = [
        std::thread::spawn(move || pump(up.0, up.1, |count| count)),
        std::thread::spawn(move || pump(down.0, down.1, |count| theirs.allowance(count))),
    ];
    let mut state = shared.lock();
    state.open.extend([client, server]);
    state.pumps.extend(pumps);
    Ok(())
}

/// Copies until either side ends; `allowance` says how many bytes may pass.
fn pump(mut from: TcpStream, mut to: TcpStream, allowance: impl Fn(usize) -> usize) {
    let mut buffer = [0; 16384];
    'line: loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            // A machine without power resets its connections.
            Err(_) => break,
        };
        let mut rest = buffer.get(..count).unwrap_or_default();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(allowance(rest.len()).min(rest.len()));
            if now.is_empty() || to.write_all(now).is_err() {
                break 'line;
            }
            rest = later;
        }
    }
    close(&from);
    close(&to);
}

fn close(stream: &TcpStream) {
    if let Err(error) = stream.shutdown(Shutdown::Both)
        && error.kind() != ErrorKind::NotConnected
    {
        eprintln!("line: closing a connection: {error}");
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let (open, pumps) = {
            let mut state = self.shared.lock();
            state.closed = true;
            (std::mem::take(&mut state.open), std::mem::take(&mut state.pumps))
        };
        self.shared.changed.notify_all();
        open.iter().for_each(close);
        // Wakes the acceptor, which then sees that the line is closed.
        if let Err(error) = TcpStream::connect(self.address) {
            eprintln!("line: ending the acceptor: {error}");
            return;
        }
        for thread in self.acceptor.take().into_iter().chain(pumps) {
            if thread.join().is_err() {
                eprintln!("line: a thread panicked");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_line_counts_and_stops_at_the_byte() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut question = [0; 3];
            stream.read_exact(&mut question).unwrap();
            assert_eq!(&question, b"ask");
            // The line's end is an error here.
            stream.write_all(&[7; 100_000]).map_err(|error| error.kind())
        });
        let line = Line::open(address).unwrap();
        line.hold_at(70_000);
        let mut client = TcpStream::connect(("127.0.0.1", line.port())).unwrap();
        client.write_all(b"ask").unwrap();
        let mut got = vec![0; 70_000];
        client.read_exact(&mut got).unwrap();
        line.wait_held(Duration::from_secs(10)).unwrap();
        client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert!(client.read(&mut got).is_err(), "a byte came after the hold");
        assert_eq!((line.received(), line.connections()), (70_000, 1));
        drop(line);
        assert_eq!(client.read(&mut got).unwrap(), 0);
        drop(client);
        serving.join().unwrap().ok();
    }
}
