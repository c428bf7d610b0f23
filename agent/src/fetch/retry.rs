//! Trying again: which mirror is next, after which pause, and when it is enough. Pure but for the clock that it is given.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::http::HttpError;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A server may ask for any number of seconds; beyond a day it makes no difference, and an instant far enough away cannot be told.
const RETRY_AFTER_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// What is remembered of a mirror within one fetch.
#[derive(Debug, Clone, Default)]
struct Mirror {
    /// Its place in the settings.
    number: usize,
    last: Option<HttpError>,
    /// The server asked to be left alone until then.
    not_before: Option<Instant>,
    excluded: bool,
    without_ranges: bool,
    sent_bad_chunk: bool,
}

/// Mirrors in order, with what went wrong at each.
#[derive(Debug)]
pub struct Mirrors {
    mirrors: Vec<Mirror>,
    current: usize,
    /// Failures since the last progress, all mirrors together.
    failures: u32,
}

/// What went wrong at the mirrors within one boot, whatever was asked of them: those that failed are asked last.
#[derive(Debug, Default)]
pub struct Memory {
    failures: Mutex<Vec<u32>>,
    /// Bytes and time of what came from each, by number.
    measured: Mutex<BTreeMap<usize, (u64, Duration)>>,
}

/// Less says nothing about a link: it is over before a connection has its speed.
const LEAST_MEASURED: (u64, Duration) = (256 << 10, Duration::from_millis(500));

impl Memory {
    /// The numbers of `count` mirrors, those first that failed least since they last worked; among equals, as in the settings.
    pub fn order(&self, count: usize) -> Vec<usize> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by_key(|number| failures.get(*number).copied().unwrap_or(0));
        order
    }

    /// This mirror has failed. That one file is not there says nothing about the others.
    pub fn failed(&self, number: usize, error: &HttpError) {
        match error {
            HttpError::Fatal(_) | HttpError::NotFound(_) => {}
            HttpError::Unusable(_) | HttpError::Retryable(..) => self.set(number, |failures| failures.saturating_add(1)),
        }
    }

    /// Something useful came from this mirror.
    pub fn worked(&self, number: usize) {
        self.set(number, |_| 0);
    }

    /// So many bytes came from this mirror in so much time.
    pub fn measured(&self, number: usize, bytes: u64, time: Duration) {
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = measured.entry(number).or_default();
        *sum = (sum.0.saturating_add(bytes), sum.1.saturating_add(time));
    }

    /// Bytes a second of the mirrors from which enough came to tell, by number.
    pub fn rates(&self) -> Vec<(usize, u64)> {
        let measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        let enough = measured
            .iter()
            .filter(|(_, (bytes, time))| *bytes >= LEAST_MEASURED.0 && *time >= LEAST_MEASURED.1);
        enough
            .map(|(number, (bytes, time))| (*number, (*bytes as f64 / time.as_secs_f64()) as u64))
            .collect()
    }

    fn set(&self, number: usize, to: impl Fn(u32) -> u32) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() <= number {
            failures.resize(number + 1, 0);
        }
        failures[number] = to(failures[number]);
    }
}

/// What to do after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// Try the mirror that is current now, after this pause.
    Pause(Duration),
    /// No mirror can help.
    Enough,
}

impl Mirrors {
    /// Mirrors of which nothing was tried, in this order, which is that of the numbers of the settings.
    pub fn new(order: &[usize]) -> Self {
        let mirror = |number: &usize| Mirror {
            number: *number,
            ..Mirror::default()
        };
        Self {
            mirrors: order.iter().map(mirror).collect(),
            current: 0,
            failures: 0,
        }
    }

    /// The number, as in the settings, of the mirror to be tried; none if there is none.
    pub fn current(&self) -> Option<usize> {
        self.mirrors
            .get(self.current)
            .filter(|mirror| !mirror.excluded)
            .map(|mirror| mirror.number)
    }

    /// Whether ranges are asked of the current mirror.
    pub fn ranges(&self) -> bool {
        self.mirrors.get(self.current).is_some_and(|mirror| !mirror.without_ranges)
    }

    /// The current mirror answers ranges wrongly: whole files are asked of it from now on. False if that was known already.
    pub fn stop_ranges(&mut self) -> bool {
        self.mirrors
            .get_mut(self.current)
            .is_some_and(|mirror| !std::mem::replace(&mut mirror.without_ranges, true))
    }

    /// The current mirror sent a bad chunk. True for the first time.
    pub fn bad_chunk(&mut self) -> bool {
        self.mirrors
            .get_mut(self.current)
            .is_some_and(|mirror| !std::mem::replace(&mut mirror.sent_bad_chunk, true))
    }

    /// Something useful came.
    pub fn progressed(&mut self) {
        self.failures = 0;
    }

    /// How much of the time that is left the current mirror may take, so that those that were not tried yet have their turn.
    pub fn share(&self, left: Duration) -> Duration {
        let waiting = |(number, mirror): &(usize, &Mirror)| *number != self.current && mirror.last.is_none();
        left / (1 + self.mirrors.iter().enumerate().filter(waiting).count() as u32)
    }

    /// The current mirror failed. The next one is current now. `jitter` is a random number.
    pub fn failed(&mut self, error: HttpError, jitter: u64, now: Instant) -> After {
        let wanted = match &error {
            HttpError::Retryable(_, after) => *after,
            HttpError::Fatal(_) | HttpError::Unusable(_) | HttpError::NotFound(_) => None,
        };
        let excluded = !matches!(error, HttpError::Retryable(..));
        if let Some(mirror) = self.mirrors.get_mut(self.current) {
            mirror.last = Some(error);
            mirror.excluded = excluded;
            mirror.not_before = wanted.map(|wanted| now + wanted.min(RETRY_AFTER_LIMIT));
        }
        let count = self.mirrors.len();
        let in_turn = || (1..=count).map(|step| (self.current + step) % count);
        self.failures += 1;
        if let Some(untried) = in_turn().find(|number| self.mirrors[*number].last.is_none()) {
            // A mirror that nobody has tried yet is not kept waiting.
            self.current = untried;
            return After::Pause(Duration::ZERO);
        }
        let round = (self.failures.saturating_sub(1) / count.max(1) as u32).min(5);
        let pause = (FIRST_PAUSE * 2u32.pow(round)).min(LONGEST_PAUSE);
        // Half of it is random, so that a rack of machines that lost power together does not come back as one.
        let jittered = pause / 2 + Duration::from_millis(jitter % (pause.as_millis() as u64 / 2 + 1));
        // What one server asked for keeps nobody waiting for another one.
        let ready = |number: usize| {
            let pause_ends = now + jittered;
            self.mirrors[number].not_before.map_or(pause_ends, |at| at.max(pause_ends))
        };
        match in_turn()
            .filter(|number| !self.mirrors[*number].excluded)
            .min_by_key(|number| ready(*number))
        {
            None => After::Enough,
            Some(next) => {
                let pause = ready(next).saturating_duration_since(now);
                self.current = next;
                After::Pause(pause)
            }
        }
    }

    /// What went wrong, mirror by mirror.
    pub fn failures(&self) -> String {
        let told: Vec<String> = self
            .mirrors
            .iter()
            .filter_map(|mirror| mirror.last.as_ref())
            .map(ToString::to_string)
            .collect();
        if told.is_empty() {
            "no url is configured".to_owned()
        } else {
            told.join("; ")
        }
    }
}

/// Pauses, not beyond the deadline. False if the deadline comes first: then there is no pause.
pub fn pause(length: Duration, deadline: Option<Instant>) -> bool {
    // What lies further ahead than the clock can count never ends.
    let Some(until) = Instant::now().checked_add(length) else {
        return false;
    };
    if deadline.is_some_and(|deadline| until >= deadline) {
        return false;
    }
    // A parked thread may wake early.
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
    true
}

/// A random number, or one from the clock where there is no randomness yet.
pub fn jitter() -> u64 {
    let mut bytes = [0; 8];
    match rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::NONBLOCK) {
        Ok(8) => u64::from_le_bytes(bytes),
        Ok(_) | Err(_) => std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |time| u64::from(time.subsec_nanos())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retryable() -> HttpError {
        HttpError::Retryable("cut".to_owned(), None)
    }

    #[test]
    fn the_next_mirror_is_tried_at_once_and_a_second_round_waits() {
        let mut mirrors = Mirrors::new(&[0, 1]);
        assert_eq!(mirrors.failed(retryable(), 0, Instant::now()), After::Pause(Duration::ZERO));
        assert_eq!(mirrors.current(), Some(1));
        assert!(matches!(mirrors.failed(retryable(), 0, Instant::now()), After::Pause(pause) if pause >= Duration::from_millis(500)));
        assert_eq!(mirrors.current(), Some(0));
    }

    #[test]
    fn a_mirror_that_failed_is_asked_last_until_it_works_again() {
        let (memory, unusable) = (Memory::default(), HttpError::Unusable("a page".to_owned()));
        assert_eq!(memory.order(3), [0, 1, 2]);
        memory.failed(0, &retryable());
        assert_eq!(memory.order(3), [1, 2, 0]);
        memory.failed(1, &unusable);
        memory.failed(1, &unusable);
        memory.failed(2, &HttpError::NotFound("404".to_owned()));
        memory.failed(2, &HttpError::Fatal("403".to_owned()));
        assert_eq!(memory.order(3), [2, 0, 1]);
        memory.worked(0);
        assert_eq!(memory.order(3), [0, 2, 1]);
        let mut mirrors = Mirrors::new(&memory.order(2));
        mirrors.failed(retryable(), 0, Instant::now());
        assert_eq!(mirrors.current(), Some(1), "in the numbers of the settings");
    }

    #[test]
    fn the_rate_of_a_mirror_is_told_once_enough_came() {
        let (memory, second) = (Memory::default(), Duration::from_secs(1));
        memory.measured(1, 200_000, second / 4);
        assert_eq!(memory.rates(), []);
        memory.measured(1, 200_000, second / 4);
        memory.measured(0, 1 << 30, second / 4);
        memory.measured(2, 100, second * 100);
        assert_eq!(memory.rates(), [(1, 800_000)]);
    }

    #[test]
    fn a_mirror_that_cannot_help_is_not_asked_again() {
        let mut mirrors = Mirrors::new(&[0, 1]);
        mirrors.failed(HttpError::NotFound("404".to_owned()), 0, Instant::now());
        assert_eq!(mirrors.current(), Some(1));
        mirrors.failed(retryable(), 0, Instant::now());
        assert_eq!(mirrors.current(), Some(1));
        assert_eq!(mirrors.failed(HttpError::Fatal("403".to_owned()), 0, Instant::now()), After::Enough);
        assert_eq!(mirrors.failures(), "404; 403");
    }

    #[test]
    fn pauses_double_up_to_a_limit_and_progress_ends_them() {
        let mut mirrors = Mirrors::new(&[0]);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            if let After::Pause(pause) = mirrors.failed(retryable(), u64::MAX, Instant::now()) {
                pauses.push(pause.as_millis());
            }
        }
        assert!(pauses[0] <= 1000 && pauses[7] <= 30_000 && pauses[7] >= 15_000, "{pauses:?}");
        mirrors.progressed();
        assert!(matches!(mirrors.failed(retryable(), 0, Instant::now()), After::Pause(pause) if pause <= Duration::from_secs(1)));
    }

    #[test]
    fn the_time_that_a_server_names_is_respected() {
        let mut mirrors = Mirrors::new(&[0]);
        let busy = HttpError::Retryable("503".to_owned(), Some(Duration::from_secs(99)));
        assert_eq!(mirrors.failed(busy, 0, Instant::now()), After::Pause(Duration::from_secs(99)));
    }

    #[test]
    fn mirrors_that_were_not_tried_yet_have_their_share_of_the_time() {
        let (mut mirrors, second) = (Mirrors::new(&[0, 1, 2]), Duration::from_secs(1));
        assert_eq!(mirrors.share(3 * second), second);
        mirrors.failed(retryable(), 0, Instant::now());
        assert_eq!(mirrors.share(2 * second), second);
        mirrors.failed(retryable(), 0, Instant::now());
        assert_eq!(mirrors.share(second), second);
    }

    #[test]
    fn no_time_that_a_server_names_is_too_long_to_be_counted() {
        let mut mirrors = Mirrors::new(&[0]);
        let busy = HttpError::Retryable("503".to_owned(), Some(Duration::MAX));
        assert_eq!(mirrors.failed(busy, 0, Instant::now()), After::Pause(RETRY_AFTER_LIMIT));
    }

    #[test]
    fn a_server_that_wants_to_be_left_alone_keeps_nobody_waiting_for_another() {
        let (mut mirrors, now) = (Mirrors::new(&[0, 1]), Instant::now());
        mirrors.failed(retryable(), 0, now);
        let busy = HttpError::Retryable("503".to_owned(), Some(Duration::from_secs(99)));
        assert!(matches!(mirrors.failed(busy, 0, now), After::Pause(pause) if pause <= Duration::from_secs(2)));
        assert_eq!(mirrors.current(), Some(0));
        // The first is asked again and again while the second is left alone, and no longer.
        assert!(matches!(mirrors.failed(retryable(), 0, now), After::Pause(pause) if pause <= Duration::from_secs(4)));
        assert_eq!(mirrors.current(), Some(0));
        mirrors.failed(retryable(), 0, now + Duration::from_secs(100));
        assert_eq!(mirrors.current(), Some(1));
    }
}
