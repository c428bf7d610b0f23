//! What happens to a chunk after it came from the network: verified and written by one thread, made last by a second, followed by a third that
//! takes the digest of the whole. Memory is bounded by the buffers that go round.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use anyhow::{Context as _, Result};

use crate::cache::part::Part;
use crate::digest::Digest;
use crate::formats::answer::looks_like_html;
use crate::formats::chunk_index::ChunkIndex;
use crate::verify::Follower;

/// Buffers that go round: one is filled, one is verified, one waits. With chunks of 4 MiB, the largest, they take 12 MiB.
const BUFFERS: usize = 3;
/// Bytes that may be written and not yet made to last, besides those that are just being: what a power cut costs on a link that is faster than the
/// disk. One chunk at a time made the whole fetch half as fast on a disk, this much cost nothing that could be measured.
const NOT_YET_LAST: u64 = 32 << 20;

/// What became of a chunk.
#[derive(Debug)]
pub struct Verdict {
    /// Its number.
    pub number: usize,
    /// Whether it is verified and written; if not, why not.
    pub outcome: Outcome,
}

/// What became of a chunk.
#[derive(Debug)]
pub enum Outcome {
    /// Verified and written.
    Written,
    /// Not what the index says; whether it looks like a page of HTML.
    Bad {
        /// A captive portal or an error page, by its looks.
        html: bool,
    },
    /// The disk refused it: nothing more can be written.
    Disk(anyhow::Error),
}

/// The pipeline's entrance.
pub struct Pipeline<'scope> {
    chunks: SyncSender<(usize, Vec<u8>)>,
    verdicts: Receiver<(Verdict, Vec<u8>)>,
    buffers: Vec<Vec<u8>>,
    follower: &'scope Follower,
    recorder: ScopedJoinHandle<'scope, Result<()>>,
    digest: ScopedJoinHandle<'scope, std::io::Result<Option<Digest>>>,
}

impl<'scope> Pipeline<'scope> {
    /// Starts the threads in `scope`.
    ///
    /// # Errors
    /// If a thread cannot be started; those that were end by themselves.
    pub fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        part: &'scope Part,
        index: &'scope ChunkIndex,
        follower: &'scope Follower,
    ) -> Result<Self> {
        let named = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let starting = || "starting a thread of the download";
        let (chunks, incoming) = sync_channel::<(usize, Vec<u8>)>(BUFFERS);
        let (told, verdicts) = channel();
        let (written, to_record) = sync_channel(not_yet_last(index));
        // The one that waits for the follower comes last: no other has to be told to end.
        named("write")
            .spawn_scoped(scope, move || write_chunks(part, index, follower, &incoming, &told, &written))
            .with_context(starting)?;
        let recorder = named("record")
            .spawn_scoped(scope, move || record(part, &to_record))
            .with_context(starting)?;
        let digest = named("digest")
            .spawn_scoped(scope, move || follower.follow(part.file(), index.image_size()))
            .with_context(starting)?;
        Ok(Self {
            chunks,
            verdicts,
            buffers: vec![Vec::new(); BUFFERS],
            follower,
            recorder,
            digest,
        })
    }

    /// A buffer to be filled, and the verdicts that came meanwhile. Waits if all buffers are under way.
    ///
    /// # Errors
    /// If the writer is gone, which it never should be.
    pub fn buffer(&mut self, verdicts: &mut Vec<Verdict>) -> Result<Vec<u8>> {
        while self.buffers.is_empty() {
            let (verdict, buffer) = self.verdicts.recv().context("the thread that writes chunks is gone")?;
            verdicts.push(verdict);
            self.buffers.push(buffer);
        }
        while let Ok((verdict, buffer)) = self.verdicts.try_recv() {
            verdicts.push(verdict);
            self.buffers.push(buffer);
        }
        self.buffers.pop().context("no buffer is left")
    }

    /// Hands a chunk over.
    ///
    /// # Errors
    /// If the writer is gone, which it never should be.
    pub fn push(&mut self, number: usize, bytes: Vec<u8>) -> Result<()> {
        self.chunks
            .send((number, bytes))
            .ok()
            .context("the thread that writes chunks is gone")
    }

    /// Gives a buffer back that was not used after all.
    pub fn give_back(&mut self, buffer: Vec<u8>) {
        self.buffers.push(buffer);
    }

    /// Waits until every chunk that was handed over has its verdict.
    ///
    /// # Errors
    /// If the writer is gone, which it never should be.
    pub fn settle(&mut self, verdicts: &mut Vec<Verdict>) -> Result<()> {
        while self.buffers.len() < BUFFERS {
            let (verdict, buffer) = self.verdicts.recv().context("the thread that writes chunks is gone")?;
            verdicts.push(verdict);
            self.buffers.push(buffer);
        }
        Ok(())
    }

    /// Ends the threads. The digest of the whole image, if `complete`.
    ///
    /// # Errors
    /// If the disk refused to make it last, or could not be read back.
    pub fn finish(self, complete: bool) -> Result<Option<Digest>> {
        drop(self.chunks);
        if !complete {
            self.follower.give_up();
        }
        self.recorder
            .join()
            .map_err(|_| anyhow::anyhow!("the thread that records chunks died"))??;
        let digest = self
            .digest
            .join()
            .map_err(|_| anyhow::anyhow!("the thread that follows the image died"))?;
        digest.context("reading the image back")
    }
}

/// How many chunks may be written and not yet made to last.
fn not_yet_last(index: &ChunkIndex) -> usize {
    let largest = index.chunks().iter().map(|chunk| u64::from(chunk.length)).max().unwrap_or(1);
    (NOT_YET_LAST / largest.max(1)).clamp(1, 1 << 10) as usize
}

fn write_chunks(
    part: &Part,
    index: &ChunkIndex,
    follower: &Follower,
    chunks: &Receiver<(usize, Vec<u8>)>,
    told: &Sender<(Verdict, Vec<u8>)>,
    written: &SyncSender<u32>,
) {
    let mut present = part.present().to_vec();
    advance(follower, index, &present);
    for (number, bytes) in chunks {
        let mut outcome = match index.chunks().get(number) {
            Some(chunk) if bytes.len() == chunk.length as usize && Digest::of(&bytes) == chunk.digest => {
                match part.write(chunk.offset, &bytes) {
                    Ok(()) => Outcome::Written,
                    Err(error) => Outcome::Disk(error),
                }
            }
            Some(_) | None => Outcome::Bad {
                html: looks_like_html(&bytes),
            },
        };
        if matches!(outcome, Outcome::Written) {
            present[number] = true;
            advance(follower, index, &present);
            if written.send(number as u32).is_err() {
                // What cannot be made last is not worth fetching: it would be fetched again after the next start. The recorder's own error,
                // which is told when it is joined, says why.
                outcome = Outcome::Disk(anyhow::anyhow!("chunk {number} is written and cannot be made to last"));
            }
        }
        if told.send((Verdict { number, outcome }, bytes)).is_err() {
            return;
        }
    }
}

/// Moves the follower to the end of the chunks that are there from the first on.
fn advance(follower: &Follower, index: &ChunkIndex, present: &[bool]) {
    let count = present.iter().position(|present| !present).unwrap_or(present.len());
    if let Some(last) = count.checked_sub(1).and_then(|number| index.chunks().get(number)) {
        follower.advance(last.offset + u64::from(last.length));
    }
}

/// Makes chunks last as they come: all that were written while the disk was busy go together with the next.
fn record(part: &Part, written: &Receiver<u32>) -> Result<()> {
    while let Ok(first) = written.recv() {
        let numbers: Vec<u32> = std::iter::once(first).chain(written.try_iter()).collect();
        part.record(&numbers)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_a_power_cut_costs_is_bounded_in_bytes() {
        for (length, chunks) in [(4u32 << 20, 8), (1 << 20, 32), (64 << 10, 512), (1, 1024)] {
            let index = ChunkIndex::new([(length, Digest::of(b"")), (1, Digest::of(b""))]).unwrap();
            assert_eq!(not_yet_last(&index), chunks, "{length}");
        }
    }
}
