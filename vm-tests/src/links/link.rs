//! A link between two network namespaces: a TUN device at each end, and two threads that carry packets. It counts what it delivers, sees the requests that
//! go over it, and can be cut at a byte.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::packet::{Head, head};
use super::shape::{Fate, Shape, Shaper};

/// Larger than any packet of our devices.
const PACKET: usize = 65_536;
/// How often a thread that waits for packets looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);

/// What went one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets that arrived.
    pub packets: u64,
    /// Their bytes, with the heads of IP and TCP.
    pub bytes: u64,
    /// Packets lost by chance.
    pub lost: u64,
    /// Packets for which there was no room, or no link.
    pub dropped: u64,
}

#[derive(Debug, Default)]
struct State {
    down: Counts,
    up: Counts,
    heads: Vec<Head>,
    cut: bool,
    cut_at: Option<u64>,
    closed: bool,
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
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Down,
    Up,
}

/// A link that stands until it is dropped.
#[derive(Debug)]
pub struct Link {
    shared: Arc<Shared>,
    carriers: Vec<JoinHandle<()>>,
}

impl Link {
    /// Carries packets between the two devices: `down` shapes the way from `far` to `near`, `up` the other.
    pub fn open(near: File, far: File, down: Shape, up: Shape) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let twice = |file: &File| file.try_clone().context("opening a device twice");
        let ends = [(Way::Down, twice(&far)?, twice(&near)?, down), (Way::Up, near, far, up)];
        let carriers = ends.map(|(way, from, to, shape)| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                if let Err(error) = carry(&shared, way, &from, &to, Shaper::new(shape)) {
                    eprintln!("link: {error:#}");
                }
            })
        });
        Ok(Self {
            shared,
            carriers: carriers.into(),
        })
    }

    /// What went to the near end.
    pub fn down(&self) -> Counts {
        self.shared.lock().down
    }

    /// The heads of requests and answers that went over it so far, each once.
    pub fn heads(&self) -> Vec<Head> {
        self.shared.lock().heads.clone()
    }

    /// Cut once so many more bytes have gone to the near end: the same place in every run.
    pub fn cut_after(&self, bytes: u64) {
        let mut state = self.shared.lock();
        state.cut_at = Some(state.down.bytes + bytes);
    }

    /// Waits until it is cut.
    pub fn wait_cut(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.lock();
        while !state.cut {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("only {} bytes went over the link within {} s", state.down.bytes, limit.as_secs());
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

    /// Everything passes again.
    pub fn mend(&self) {
        let mut state = self.shared.lock();
        state.cut = false;
        state.cut_at = None;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        for carrier in self.carriers.drain(..) {
            if carrier.join().is_err() {
                eprintln!("link: a thread panicked");
            }
        }
    }
}

fn carry(shared: &Shared, way: Way, mut from: &File, to: &File, mut shaper: Shaper) -> Result<()> {
    let started = Instant::now();
    let mut under_way: VecDeque<(Duration, Vec<u8>)> = VecDeque::new();
    let mut buffer = vec![0; PACKET];
    loop {
        while under_way.front().is_some_and(|(due, _)| *due <= started.elapsed()) {
            if let Some((_, packet)) = under_way.pop_front() {
                deliver(shared, way, &packet, to);
            }
        }
        if shared.lock().closed {
            return Ok(());
        }
        let next = under_way.front().map(|(due, _)| due.saturating_sub(started.elapsed()));
        let timeout = Timespec::try_from(next.unwrap_or(LOOK).min(LOOK)).context("counting time")?;
        match poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for packets"),
        }
        loop {
            let length = match from.read(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // A device that is down has nothing to say.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                    std::thread::park_timeout(LOOK);
                    break;
                }
                Err(error) => return Err(error).context("reading packets"),
            };
            let packet = buffer.get(..length).unwrap_or_default();
            match shaper.offer(started.elapsed(), length) {
                Fate::Due(due) => under_way.push_back((due, packet.to_vec())),
                Fate::Lost => counts(&mut shared.lock(), way).lost += 1,
                Fate::Dropped => counts(&mut shared.lock(), way).dropped += 1,
            }
        }
    }
}

fn counts(state: &mut State, way: Way) -> &mut Counts {
    match way {
        Way::Down => &mut state.down,
        Way::Up => &mut state.up,
    }
}

/// Hands a packet over, and counts it. The lock is kept meanwhile: whoever has seen the packet finds it counted.
fn deliver(shared: &Shared, way: Way, packet: &[u8], mut to: &File) {
    let mut state = shared.lock();
    if !state.cut && state.cut_at.is_some_and(|at| state.down.bytes >= at) {
        state.cut = true;
        shared.changed.notify_all();
    }
    // A device that is down takes nothing: the packet is lost, as it would be.
    let arrived = !state.cut && to.write(packet).is_ok();
    let one = counts(&mut state, way);
    if !arrived {
        one.dropped += 1;
        return;
    }
    one.packets += 1;
    one.bytes += packet.len() as u64;
    if let Some(head) = head(packet)
        && !state.heads.contains(&head)
    {
        state.heads.push(head);
    }
}
