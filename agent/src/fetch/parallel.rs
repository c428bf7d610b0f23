//! One range by several connections: pieces of it are asked for side by side and read in order, so that whoever reads sees one body. What a piece brings is
//! checked as the first answer was; what is wrong with one ends the body there.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use super::range::body_offset;
use super::validator::Validator;
use crate::http::{Body, Client, Request};

/// What pieces, connections and the pipeline's three chunks take together; with it the process stays below 16 MiB, with chunks of up to 2 MiB.
const MEMORY: u64 = 10 << 20;
/// The buffer of a connection, and the stack of its thread.
const CONNECTION: u64 = 192 << 10;
/// Smaller pieces are mostly requests.
const SMALLEST: u64 = 128 << 10;
/// Larger ones gain nothing.
const LARGEST: u64 = 1 << 20;
/// A limit of nothing at all would be no limit.
const LEAST: Duration = Duration::from_millis(1);

/// How long a piece is, for so many at once and chunks of this length.
pub(super) fn piece_length(count: usize, largest_chunk: u64) -> u64 {
    let (taken, count) = (3 * largest_chunk, count.max(1) as u64);
    (MEMORY.saturating_sub(taken + count * CONNECTION) / count).clamp(SMALLEST, LARGEST)
}

/// What is asked for.
pub(super) struct Plan<'a> {
    pub client: &'a Client,
    pub url: &'a str,
    /// How many connections.
    pub count: usize,
    /// Length of a piece.
    pub piece: u64,
    /// First and last byte.
    pub range: (u64, u64),
    /// Length of the file.
    pub total: u64,
    /// What the first answer said of it.
    pub validator: Validator,
    /// When it is over.
    pub deadline: Option<Instant>,
}

impl Plan<'_> {
    /// First and last byte of a piece, if there is such a piece.
    fn bytes(&self, number: usize) -> Option<(u64, u64)> {
        let (first, last) = self.range;
        let start = first.checked_add(self.piece.checked_mul(number as u64)?)?;
        (start <= last).then(|| (start, last.min(start + self.piece - 1)))
    }

    /// Has `read` read the whole range; `body` is that of the first piece.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn run<T>(&self, body: Body, read: impl FnOnce(&mut Pieces<'_>) -> T) -> io::Result<T> {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let mut pieces = Pieces {
                lanes: Vec::new(),
                next: 0,
                current: io::Cursor::new(Vec::new()),
                plan: self,
                stop: &stop,
            };
            let mut body = Some(body);
            for lane in 0..self.count {
                // Without room: who has a piece waits until it is wanted, and only then asks for another.
                let (sender, incoming) = sync_channel(0);
                let (emptied, buffers) = channel();
                pieces.lanes.push(Lane { incoming, emptied });
                let (first, stop) = (body.take(), &stop);
                std::thread::Builder::new()
                    .name(format!("range {lane}"))
                    .spawn_scoped(scope, move || self.fetch(lane, first, &sender, &buffers, stop))?;
            }
            Ok(read(&mut pieces))
        })
    }

    /// Fetches each piece whose turn is this lane's, into the one buffer that it has.
    fn fetch(
        &self,
        lane: usize,
        mut first: Option<Body>,
        sender: &SyncSender<io::Result<Vec<u8>>>,
        buffers: &Receiver<Vec<u8>>,
        stop: &AtomicBool,
    ) {
        for number in (lane..).step_by(self.count) {
            let Some(bytes) = self.bytes(number) else { return };
            let buffer = if number == lane { Ok(Vec::new()) } else { buffers.recv() };
            let Ok(buffer) = buffer else { return };
            let fetched = match first.take() {
                Some(body) => fill(body, bytes, buffer, stop),
                None => self.ask(bytes).and_then(|body| fill(body, bytes, buffer, stop)),
            };
            let over = fetched.is_err();
            // Whoever read has what he wanted.
            if sender.send(fetched).is_err() || over {
                return;
            }
        }
    }

    fn ask(&self, bytes: (u64, u64)) -> io::Result<Body> {
        let response = self
            .client
            .get(&Request {
                url: self.url,
                range: Some(bytes),
                if_range: self.validator.if_range(),
                total: self.deadline.map(|end| end.saturating_duration_since(Instant::now()).max(LEAST)),
                ..Request::default()
            })
            .map_err(io::Error::other)?;
        if let Some(what) = self.validator.contradiction(&Validator::of(&response)) {
            return Err(io::Error::other(format!("the file has changed on the server: {what}")));
        }
        if response.status == 200 {
            return Err(io::Error::other("the server answers a range with the whole"));
        }
        body_offset(
            response.status,
            &response.content_ranges,
            response.content_length,
            Some(bytes),
            self.total,
        )
        .map_err(io::Error::other)?;
        Ok(response.body)
    }
}

/// Reads a piece, and its end, so that the connection is free for the next one.
fn fill(mut body: Body, (first, last): (u64, u64), mut piece: Vec<u8>, stop: &AtomicBool) -> io::Result<Vec<u8>> {
    // At most [`LARGEST`].
    piece.resize((last - first + 1) as usize, 0);
    let mut filled = 0;
    while filled < piece.len() {
        if stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        match body.read(&mut piece[filled..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    // What is wrong behind the last byte concerns nobody.
    drop(body.read(&mut [0]));
    Ok(piece)
}

/// A connection's thread, seen from outside: what it brings, and where its buffer goes back.
struct Lane {
    incoming: Receiver<io::Result<Vec<u8>>>,
    emptied: Sender<Vec<u8>>,
}

/// The range, in order.
pub(super) struct Pieces<'a> {
    lanes: Vec<Lane>,
    next: usize,
    current: io::Cursor<Vec<u8>>,
    plan: &'a Plan<'a>,
    stop: &'a AtomicBool,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let length = self.current.read(buffer)?;
            if length > 0 || buffer.is_empty() || self.plan.bytes(self.next).is_none() {
                return Ok(length);
            }
            let count = self.plan.count.max(1);
            if let Some(before) = self.next.checked_sub(1).and_then(|number| self.lanes.get(number % count)) {
                // A lane that has nothing more to fetch is gone, and needs no buffer.
                drop(before.emptied.send(std::mem::take(&mut self.current).into_inner()));
            }
            let piece = self.lanes.get(self.next % count).and_then(|lane| lane.incoming.recv().ok());
            self.current = io::Cursor::new(piece.ok_or(io::ErrorKind::UnexpectedEof)??);
            self.next += 1;
        }
    }
}

impl Drop for Pieces<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_and_chunks_fit_into_memory_together() {
        const MIB: u64 = 1 << 20;
        for (count, chunk, piece) in [
            (2, MIB, MIB),
            (4, MIB, MIB),
            (7, MIB, MIB - CONNECTION),
            (16, MIB, 7 * MIB / 16 - CONNECTION),
            (4, 4 * MIB, SMALLEST),
            (0, MIB, MIB),
        ] {
            assert_eq!(piece_length(count, chunk), piece, "{count} {chunk}");
        }
    }
}
