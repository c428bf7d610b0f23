//! What a link does to packets: a rate, a queue, a delay, and loss by chance. Pure: the same packets at the same times fare the same, for the same seed.

use std::time::Duration;

/// How one direction of a link is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Bits a second; none: as fast as it goes.
    pub rate: Option<u64>,
    /// Bytes that may wait; what comes on top is dropped.
    pub queue: u64,
    /// From one end to the other, besides waiting.
    pub delay: Duration,
    /// Share of packets that are lost, from 0 to 1.
    pub loss: f64,
    /// Where chance begins.
    pub seed: u64,
}

impl Shape {
    /// So many bits a second, and so many milliseconds one way; the queue holds what takes a tenth of a second, but 20 full packets at
    /// least.
    pub fn new(rate: u64, delay: u64) -> Self {
        Self {
            rate: Some(rate),
            queue: (rate / 80).max(30_000),
            delay: Duration::from_millis(delay),
            loss: 0.0,
            seed: 1,
        }
    }

    /// With chance: this share of packets is lost.
    pub fn losing(self, loss: f64, seed: u64) -> Self {
        Self { loss, seed, ..self }
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It comes out at this time.
    Due(Duration),
    /// Lost by chance.
    Lost,
    /// The queue was full.
    Dropped,
}

/// One direction at work. Times are those since any beginning.
#[derive(Debug)]
pub struct Shaper {
    shape: Shape,
    /// When the wire is free again.
    free: Duration,
    state: u64,
}

impl Shaper {
    /// A wire on which nothing is.
    pub fn new(shape: Shape) -> Self {
        Self {
            shape,
            free: Duration::ZERO,
            state: shape.seed,
        }
    }

    /// A packet of `size` bytes comes at `now`.
    pub fn offer(&mut self, now: Duration, size: usize) -> Fate {
        if self.shape.loss > 0.0 && self.chance() < self.shape.loss {
            return Fate::Lost;
        }
        let Some(rate) = self.shape.rate else {
            return Fate::Due(now + self.shape.delay);
        };
        let free = self.free.max(now);
        let waiting = ((free - now).as_secs_f64() * rate as f64 / 8.0) as u64;
        if waiting + size as u64 > self.shape.queue {
            return Fate::Dropped;
        }
        self.free = free + Duration::from_secs_f64(size as f64 * 8.0 / rate as f64);
        Fate::Due(self.free + self.shape.delay)
    }

    /// From 0 to 1, by SplitMix64 (Steele, Lea, Flood 2014).
    fn chance(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    const fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    #[test]
    fn packets_leave_at_the_rate_one_after_the_other_and_arrive_later_by_the_delay() {
        // 1000 bytes take 10 ms.
        let mut shaper = Shaper::new(Shape::new(800_000, 50));
        assert_eq!(shaper.offer(ms(0), 1000), Fate::Due(ms(60)));
        assert_eq!(shaper.offer(ms(0), 1000), Fate::Due(ms(70)));
        assert_eq!(shaper.offer(ms(15), 1000), Fate::Due(ms(80)), "it waits for the one before");
        assert_eq!(shaper.offer(ms(100), 1000), Fate::Due(ms(160)), "an idle wire saves nothing up");
    }

    #[test]
    fn what_the_queue_does_not_hold_is_dropped() {
        let mut shaper = Shaper::new(Shape {
            queue: 3000,
            ..Shape::new(800_000, 0)
        });
        let fates: Vec<Fate> = (0..4).map(|_| shaper.offer(ms(0), 1000)).collect();
        assert_eq!(fates, [Fate::Due(ms(10)), Fate::Due(ms(20)), Fate::Due(ms(30)), Fate::Dropped]);
        assert_eq!(shaper.offer(ms(10), 1000), Fate::Due(ms(40)), "a packet has left, one fits");
    }

    #[test]
    fn loss_is_as_often_as_asked_for_and_the_same_for_a_seed() {
        let lost = |seed| -> Vec<bool> {
            let mut shaper = Shaper::new(Shape::new(1 << 40, 0).losing(0.01, seed));
            (0..100_000).map(|_| shaper.offer(ms(0), 1) == Fate::Lost).collect()
        };
        let (one, again, other) = (lost(7), lost(7), lost(8));
        assert!(one == again && one != other);
        let count = one.iter().filter(|lost| **lost).count();
        assert!((900..1100).contains(&count), "{count}");
    }
}
