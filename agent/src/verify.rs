//! Verification of bytes that are on a disk: chunk by chunk on all cores, or as one digest that follows a growing file.
//!
//! [`VerifiedImage`] is the proof: only this module makes one.

use std::fs::File;
use std::io;
use std::num::NonZero;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};

use crate::digest::{Digest, Hasher};
use crate::formats::chunk_index::{Chunk, ChunkIndex};

/// Bytes that a digest over a whole file reads at once.
const PIECE: usize = 1 << 20;

/// An image whose every byte was verified in this boot, through the descriptor that it holds.
#[derive(Debug)]
pub struct VerifiedImage {
    file: File,
    size: u64,
}

impl VerifiedImage {
    /// Whether it is this file that was verified.
    ///
    /// # Errors
    /// If one of the two cannot be looked at.
    pub fn is_of(&self, file: &File) -> Result<bool> {
        let identity = |file: &File| file.metadata().map(|metadata| (metadata.dev(), metadata.ino()));
        let (own, other) = (identity(&self.file), identity(file));
        Ok(own.context("looking at the verified image")? == other.context("looking at an image")?)
    }
}

/// An image of which only the size is known: `verify = size`.
#[derive(Debug)]
pub struct UnverifiedImage {
    file: File,
    size: u64,
}

/// An image that may be mounted, with what is known about it.
#[derive(Debug)]
pub enum BootImage {
    /// Every byte was verified.
    Verified(VerifiedImage),
    /// Only its size was looked at, as the configuration demands.
    Unverified(UnverifiedImage),
}

impl BootImage {
    /// The descriptor that was verified, for reading.
    pub fn file(&self) -> &File {
        match self {
            Self::Verified(image) => &image.file,
            Self::Unverified(image) => &image.file,
        }
    }

    /// The image's length in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Verified(image) => image.size,
            Self::Unverified(image) => image.size,
        }
    }
}

/// The chunks that are not what the index says, and why: their numbers, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Numbers of bad chunks, in order.
    pub chunks: Vec<u32>,
    /// The first error of reading, if that was the reason.
    pub error: Option<String>,
}

/// Verifies a whole image, on all cores. `progress` is told the bytes verified so far, from several threads.
///
/// # Errors
/// The damage, chunk by chunk.
pub fn verify_image(file: File, index: &ChunkIndex, progress: &(dyn Fn(u64) + Sync)) -> Result<VerifiedImage, Damage> {
    let all: Vec<u32> = (0..index.chunks().len() as u32).collect();
    match bad_chunks(&file, index, &all, progress) {
        Damage { chunks, error: None } if chunks.is_empty() => Ok(VerifiedImage {
            file,
            size: index.image_size(),
        }),
        damage => Err(damage),
    }
}

/// Takes an image by its size alone.
///
/// # Errors
/// If its size cannot be read, or is another one.
pub fn accept_by_size(file: File, size: u64) -> Result<UnverifiedImage> {
    let found = file.metadata().context("reading the image's size")?.len();
    anyhow::ensure!(found == size, "the cached image has {found} bytes, {size} are expected");
    Ok(UnverifiedImage { file, size })
}

/// Which of the chunks `numbers` of `file` are not what the index says; numbers out of range are bad.
pub fn bad_chunks(file: &File, index: &ChunkIndex, numbers: &[u32], progress: &(dyn Fn(u64) + Sync)) -> Damage {
    let threads = std::thread::available_parallelism()
        .map_or(1, NonZero::get)
        .min(numbers.len().max(1));
    let next = AtomicUsize::new(0);
    let done = AtomicU64::new(0);
    let damage = Mutex::new(Damage {
        chunks: Vec::new(),
        error: None,
    });
    let work = || {
        let mut buffer = Vec::new();
        while let Some(&number) = numbers.get(next.fetch_add(1, Ordering::Relaxed)) {
            let chunk = index.chunks().get(number as usize);
            let read = chunk.map(|chunk| read_chunk(file, chunk, &mut buffer));
            let good = matches!((&read, chunk), (Some(Ok(())), Some(chunk)) if Digest::of(&buffer) == chunk.digest);
            if !good {
                let mut damage = unpoisoned(&damage);
                damage.chunks.push(number);
                if let (Some(Err(error)), None) = (read, &damage.error) {
                    damage.error = Some(error.to_string());
                }
            }
            let length = chunk.map_or(0, |chunk| u64::from(chunk.length));
            progress(done.fetch_add(length, Ordering::Relaxed) + length);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            if let Err(error) = std::thread::Builder::new().spawn_scoped(scope, work) {
                log::warn!("verifying takes longer: starting a thread: {error}");
                break;
            }
        }
        work();
    });
    let mut damage = damage.into_inner().unwrap_or_else(PoisonError::into_inner);
    damage.chunks.sort_unstable();
    damage
}

fn read_chunk(file: &File, chunk: &Chunk, buffer: &mut Vec<u8>) -> io::Result<()> {
    buffer.resize(chunk.length as usize, 0);
    file.read_exact_at(buffer, chunk.offset)
}

/// Nothing panics while it holds one of our locks, so that a poisoned one holds good data.
fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The digest of a file in the making: follows the bytes that are verified, from the first on, while later ones still arrive.
#[derive(Debug, Default)]
pub struct Follower {
    watermark: Mutex<u64>,
    moved: Condvar,
    given_up: AtomicBool,
}

impl Follower {
    /// A follower of a file of which nothing is verified.
    pub fn new() -> Self {
        Self::default()
    }

    /// All bytes before `offset` are in the file, and verified.
    pub fn advance(&self, offset: u64) {
        let mut watermark = unpoisoned(&self.watermark);
        *watermark = offset.max(*watermark);
        self.moved.notify_all();
    }

    /// No more bytes will come: [`Follower::follow`] ends.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::SeqCst);
        let _guard = unpoisoned(&self.watermark);
        self.moved.notify_all();
    }

    /// Reads `file` as far as it is verified, until all `size` bytes are read; none if it was given up.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn follow(&self, file: &File, size: u64) -> io::Result<Option<Digest>> {
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; PIECE];
        let mut position = 0;
        while position < size {
            let Some(watermark) = self.wait_beyond(position) else {
                return Ok(None);
            };
            let length = (watermark.min(size) - position).min(PIECE as u64) as usize;
            file.read_exact_at(&mut buffer[..length], position)?;
            hasher.update(&buffer[..length]);
            position += length as u64;
        }
        Ok(Some(hasher.finish()))
    }

    fn wait_beyond(&self, position: u64) -> Option<u64> {
        let mut watermark = unpoisoned(&self.watermark);
        while *watermark <= position {
            if self.given_up.load(Ordering::SeqCst) {
                return None;
            }
            watermark = self.moved.wait(watermark).unwrap_or_else(PoisonError::into_inner);
        }
        Some(*watermark)
    }
}

/// The proof for an image that was fetched in this boot: each chunk verified when it arrived, and the digest over the finished file, read back
/// through `file`, is `expected`.
///
/// # Errors
/// If the digest is another one: index and manifest contradict each other, which is the publisher's fault.
pub fn verified_by_digest(file: File, size: u64, found: Digest, expected: Digest) -> Result<VerifiedImage> {
    anyhow::ensure!(
        found == expected,
        "each chunk is as the index says, but the image's digest is {} and the manifest names {}: the publisher's index and manifest contradict each other",
        found.short(),
        expected.short()
    );
    Ok(VerifiedImage { file, size })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write as _;

    fn image(bytes: &[u8], chunk: usize) -> (File, ChunkIndex) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let index = ChunkIndex::new(bytes.chunks(chunk).map(|chunk| (chunk.len() as u32, Digest::of(chunk)))).unwrap();
        (file, index)
    }

    #[test]
    fn a_good_image_is_verified_and_all_bytes_are_counted() {
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        let (file, index) = image(&bytes, 1000);
        let seen = AtomicU64::new(0);
        verify_image(file, &index, &|bytes| {
            seen.fetch_max(bytes, Ordering::SeqCst);
        })
        .unwrap();
        assert_eq!(seen.load(Ordering::SeqCst), 100_000);
    }

    #[test]
    fn each_bad_chunk_is_named() {
        let bytes = vec![7; 10_000];
        let (file, index) = image(&bytes, 1000);
        file.write_all_at(b"x", 0).unwrap();
        file.write_all_at(b"x", 5_999).unwrap();
        assert_eq!(
            verify_image(file.try_clone().unwrap(), &index, &|_| {}).unwrap_err(),
            Damage {
                chunks: vec![0, 5],
                error: None
            }
        );
        file.set_len(9_999).unwrap();
        let damage = verify_image(file, &index, &|_| {}).unwrap_err();
        assert_eq!(damage.chunks, [0, 5, 9]);
        assert!(damage.error.is_some());
    }

    #[test]
    fn the_follower_reads_only_what_is_verified() {
        let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i % 253) as u8).collect();
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        let follower = Follower::new();
        let digest = std::thread::scope(|scope| {
            let following = scope.spawn(|| follower.follow(&file, bytes.len() as u64));
            for (number, piece) in bytes.chunks(100_000).enumerate() {
                file.write_all_at(piece, number as u64 * 100_000).unwrap();
                follower.advance(number as u64 * 100_000 + piece.len() as u64);
            }
            following.join().unwrap()
        });
        assert_eq!(digest.unwrap(), Some(Digest::of(&bytes)));
    }

    #[test]
    fn a_follower_that_is_given_up_ends() {
        let file = tempfile::tempfile().unwrap();
        let follower = Follower::new();
        let digest = std::thread::scope(|scope| {
            let following = scope.spawn(|| follower.follow(&file, 10));
            follower.give_up();
            following.join().unwrap()
        });
        assert_eq!(digest.unwrap(), None);
    }
}
