//! The body of a response: bytes that are there, or a part of a file, read ahead on the blocking pool, at a limited rate where one is set.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Bytes, Frame, SizeHint};
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep, sleep_until};

/// Bytes read at once: large enough that the hand-over between threads does not show, small enough for many connections.
const PIECE: u64 = 512 * 1024;

/// The rate that all connections share.
#[derive(Debug)]
pub struct Pace {
    rate: NonZeroU64,
    /// When the line is free again.
    free: Mutex<Instant>,
}

impl Pace {
    /// A pace of `rate` bytes per second.
    pub fn new(rate: NonZeroU64) -> Self {
        Self {
            rate,
            free: Mutex::new(Instant::now()),
        }
    }

    /// Books `bytes` on the line; returns when they have gone over it.
    fn book(&self, bytes: u64) -> Instant {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        *free = (*free).max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / self.rate.get() as f64);
        *free
    }

    /// A twentieth of a second's worth, so that a slow line is even and not a series of bursts.
    fn piece(&self) -> u64 {
        (self.rate.get() / 20).clamp(512, PIECE)
    }
}

type Reading = JoinHandle<io::Result<Bytes>>;

/// A part of a file, or nothing.
#[derive(Debug)]
pub struct Body {
    /// What is handed out in one piece.
    bytes: Option<Bytes>,
    file: Option<Arc<File>>,
    /// Next byte to be read.
    position: u64,
    /// Bytes that have not been asked of the disk yet.
    unread: u64,
    /// Bytes that have not been handed out yet.
    left: u64,
    reading: Option<Reading>,
    pace: Option<Arc<Pace>>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Body {
    /// No body.
    pub fn empty() -> Self {
        Self {
            bytes: None,
            file: None,
            position: 0,
            unread: 0,
            left: 0,
            reading: None,
            pace: None,
            pause: None,
        }
    }

    /// Bytes that were made here.
    pub fn bytes(bytes: Vec<u8>) -> Self {
        Self {
            left: bytes.len() as u64,
            bytes: Some(bytes.into()),
            ..Self::empty()
        }
    }

    /// `length` bytes of `file` from `start`.
    pub fn part(file: File, start: u64, length: u64, pace: Option<Arc<Pace>>) -> Self {
        Self {
            file: Some(Arc::new(file)),
            position: start,
            unread: length,
            left: length,
            pace,
            ..Self::empty()
        }
    }

    /// Starts to read the next piece, if there is one.
    fn read_ahead(&mut self) {
        let Some(file) = self.file.as_ref().filter(|_| self.unread > 0).cloned() else {
            return;
        };
        let length = self.unread.min(self.pace.as_ref().map_or(PIECE, |pace| pace.piece()));
        let position = self.position;
        self.position += length;
        self.unread -= length;
        self.reading = Some(tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
            // A file that became shorter ends in an error, and so in a cut connection: the client must not take it for complete.
            file.read_exact_at(&mut bytes, position)?;
            Ok(Bytes::from(bytes))
        }));
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        if let Some(bytes) = self.bytes.take() {
            self.left = 0;
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(context));
            self.pause = None;
        }
        if self.reading.is_none() {
            self.read_ahead();
        }
        let Some(reading) = &mut self.reading else {
            return Poll::Ready(None);
        };
        let read = ready!(Pin::new(reading).poll(context)).map_err(io::Error::other).flatten();
        self.reading = None;
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) => {
                self.left = 0;
                return Poll::Ready(Some(Err(error)));
            }
        };
        self.left -= bytes.len() as u64;
        if let Some(pace) = &self.pace {
            // The time is booked when a piece goes out, and waited for before the next one.
            self.pause = Some(Box::pin(sleep_until(pace.book(bytes.len() as u64))));
        }
        self.read_ahead();
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
