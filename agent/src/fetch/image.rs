//! Fetching an image: only the chunks that are missing, each verified before it is written, from one mirror after the other.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::pipeline::{Outcome, Pipeline, Verdict};
use super::range::{Run, body_offset, bytes_of, first_missing};
use super::retry::{After, Mirrors, jitter, pause};
use super::{Progress, Source};
use crate::cache::part::Part;
use crate::digest::Digest;
use crate::formats::answer::looks_like_html;
use crate::formats::chunk_index::ChunkIndex;
use crate::formats::manifest::Image;
use crate::http::{HttpError, Request, cut, page_instead, without_credentials};
use crate::verify::Follower;

/// A limit of nothing at all would be no limit.
const LEAST: Duration = Duration::from_millis(1);
/// Bytes that tell a page of HTML, with room for white space before it.
const PAGE_START: usize = 64;

/// How long a fetch may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// It ends here, whatever was reached: something else can be booted.
    pub deadline: Option<Instant>,
    /// It ends when so long nothing useful came.
    pub without_progress: Duration,
}

/// Why an image could not be had.
#[derive(Debug)]
pub enum FetchError {
    /// The network or the servers: what is there already stays for the next time.
    Network(String),
    /// The disk refused.
    Disk(anyhow::Error),
    /// All chunks are good and the whole is not: index and manifest contradict each other. The partial image is of no use.
    Contradiction(anyhow::Error),
}

impl std::fmt::Display for FetchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Network(what) => f.write_str(what),
            Self::Disk(error) | Self::Contradiction(error) => write!(f, "{error:#}"),
        }
    }
}

/// Fetches the chunk index that the manifest names. Returns it with its bytes.
///
/// # Errors
/// What every mirror answered last.
pub fn fetch_index(source: &Source<'_>, image: &Image, patience: Patience) -> Result<(ChunkIndex, Vec<u8>), FetchError> {
    let mut mirrors = Mirrors::new(source.mirrors.len());
    let end = earlier(patience.deadline, Instant::now() + patience.without_progress);
    while let Some(number) = mirrors.current() {
        let url = format!("{}/images/{}.chunks", source.mirrors[number], image.sha256);
        let shown = without_credentials(&url);
        let total = Some(mirrors.share(end.saturating_duration_since(Instant::now())).max(LEAST));
        let error = match source.client.get_bytes(
            &Request {
                url: &url,
                total,
                ..Request::default()
            },
            image.chunk_index.size,
        ) {
            Ok(Some((bytes, _))) if Digest::of(&bytes) == image.chunk_index.sha256 => match ChunkIndex::parse(&bytes, image.size) {
                Ok(index) => return Ok((index, bytes)),
                Err(refusal) => return Err(FetchError::Contradiction(anyhow::anyhow!("{shown}: {refusal}"))),
            },
            Ok(_) => HttpError::Fatal(format!("{shown}: it is not the chunk index that the manifest names")),
            Err(error) => error,
        };
        log::warn!("{error}");
        match mirrors.failed(error, jitter(), Instant::now()) {
            After::Enough => break,
            After::Pause(length) if !pause(length, Some(end)) => break,
            After::Pause(_) => {}
        }
    }
    Err(FetchError::Network(mirrors.failures()))
}

fn earlier(deadline: Option<Instant>, other: Instant) -> Instant {
    deadline.map_or(other, |deadline| deadline.min(other))
}

/// Fetches all chunks that `part` lacks. Returns the digest of the whole image, read back from the disk: it is the one that the manifest names.
///
/// # Errors
/// See [`FetchError`]; what was fetched is recorded in the map in any case.
pub fn fetch_image(
    source: &Source<'_>,
    image: &Image,
    index: &ChunkIndex,
    part: &Part,
    patience: Patience,
    progress: &Progress,
) -> Result<Digest, FetchError> {
    let follower = Follower::new();
    let digest = std::thread::scope(|scope| {
        let pipeline = Pipeline::start(scope, part, index, &follower).map_err(FetchError::Disk)?;
        let mut transfer = Transfer {
            source,
            image,
            index,
            pipeline,
            present: part.present().to_vec(),
            mirrors: Mirrors::new(source.mirrors.len()),
            patience,
            last_progress: Instant::now(),
            progress,
            disk: None,
        };
        let fetched = transfer.run();
        let Transfer { pipeline, disk, .. } = transfer;
        // The pipeline is ended in any case: it makes last what was written.
        let digest = pipeline.finish(fetched.is_ok());
        match (disk, fetched, digest) {
            // The recorder's error is the reason of the writer's, where there are both.
            (_, _, Err(error)) | (Some(error), _, Ok(_)) => Err(FetchError::Disk(error)),
            (None, Err(what), Ok(_)) => Err(FetchError::Network(what)),
            (None, Ok(()), Ok(None)) => Err(FetchError::Network("the transfer was given up".to_owned())),
            (None, Ok(()), Ok(Some(digest))) if digest == image.sha256 => Ok(digest),
            (None, Ok(()), Ok(Some(digest))) => Err(FetchError::Contradiction(anyhow::anyhow!(
                "each chunk is as the index says, but the image's digest is {} and the manifest names {}: the publisher's index and manifest contradict each other",
                digest.short(),
                image.sha256.short()
            ))),
        }
    })?;
    Ok(digest)
}

struct Transfer<'scope, 'a> {
    source: &'a Source<'a>,
    image: &'a Image,
    index: &'a ChunkIndex,
    pipeline: Pipeline<'scope>,
    present: Vec<bool>,
    mirrors: Mirrors,
    patience: Patience,
    last_progress: Instant,
    progress: &'a Progress,
    disk: Option<anyhow::Error>,
}

impl Transfer<'_, '_> {
    /// Fetches run after run. The error is what the user is told.
    fn run(&mut self) -> Result<(), String> {
        while let Some(run) = first_missing(&self.present) {
            let Some(number) = self.mirrors.current() else {
                return Err(self.mirrors.failures());
            };
            let url = format!("{}/images/{}.squashfs", self.source.mirrors[number], self.image.sha256);
            let outcome = self.fetch_run(&url, run);
            if let Some(error) = &self.disk {
                return Err(format!("{error:#}"));
            }
            let Err(error) = outcome else { continue };
            log::warn!("{error}");
            let after = self.mirrors.failed(error, jitter(), Instant::now());
            if after == After::Pause(Duration::ZERO) {
                // A mirror that was not tried yet has its own time to show what it can.
                self.last_progress = Instant::now();
            }
            let end = earlier(self.patience.deadline, self.last_progress + self.patience.without_progress);
            match after {
                After::Enough => return Err(self.mirrors.failures()),
                After::Pause(length) if !pause(length, Some(end)) => return Err(format!("not in time: {}", self.mirrors.failures())),
                After::Pause(_) => {}
            }
        }
        Ok(())
    }

    fn fetch_run(&mut self, url: &str, run: Run) -> Result<(), HttpError> {
        let shown = without_credentials(url);
        let whole = run
            == Run {
                first: 0,
                last: self.present.len() - 1,
            };
        let range = if whole || !self.mirrors.ranges() {
            None
        } else {
            bytes_of(run, self.index.chunks())
        };
        // A deadline ends a wait for a server as well as a transfer; without one there is no total limit.
        let total = self
            .patience
            .deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()).max(LEAST));
        let mut response = self.source.client.get(&Request {
            url,
            range,
            total,
            ..Request::default()
        })?;
        let offset = match body_offset(
            response.status,
            &response.content_ranges,
            response.content_length,
            range,
            self.image.size,
        ) {
            Ok(offset) => offset,
            Err(_) if response.status == 200 && self.begins_as_page(&mut response.body) => return Err(page_instead(&shown)),
            // A server that cannot do ranges is asked for the whole; one that cannot do that either is of no use.
            Err(what) if range.is_some() && self.mirrors.stop_ranges() => {
                return Err(HttpError::Retryable(
                    format!("{shown}: {what}; the whole is asked for instead"),
                    None,
                ));
            }
            Err(what) => return Err(HttpError::Fatal(format!("{shown}: {what}"))),
        };
        if offset == 0 && range.is_some_and(|(first, _)| first > 0) {
            log::warn!("{shown}: the server ignores Range: what is there already is received once more and not used");
        }
        // Who sends the whole file whatever is asked for sends it once: all that is missing is taken from it.
        let last = match response.status {
            200 => self.present.iter().rposition(|present| !present).unwrap_or(run.last),
            _ => run.last,
        };
        let mut verdicts = Vec::new();
        let read = self.read_body(&mut response.body, offset, last, &mut verdicts);
        let settled = self.pipeline.settle(&mut verdicts);
        let judged = self.judge(&shown, &mut verdicts);
        if let Err(error) = settled {
            self.disk.get_or_insert(error);
        }
        // A bad chunk tells more than the cut that may have followed it.
        judged?;
        match read {
            Ok(()) => Ok(()),
            Err(ReadError::Network(error)) => Err(cut(&shown, &error)),
            Err(ReadError::Page) => Err(page_instead(&shown)),
            Err(ReadError::Late) => Err(HttpError::Retryable(format!("{shown}: the time for this transfer is over"), None)),
            Err(ReadError::Stopped) => Ok(()),
            Err(ReadError::Pipeline(error)) => {
                self.disk.get_or_insert(error);
                Ok(())
            }
        }
    }

    /// Reads chunk after chunk from `offset`, which is the start of a chunk, to the chunk `last`. Chunks that are there already are read and dropped.
    fn read_body(&mut self, body: &mut impl std::io::Read, offset: u64, last: usize, verdicts: &mut Vec<Verdict>) -> Result<(), ReadError> {
        let chunks = self.index.chunks();
        let first = chunks.partition_point(|chunk| chunk.offset < offset);
        for number in first..=last {
            let length = chunks.get(number).map_or(0, |chunk| chunk.length);
            let mut buffer = self.pipeline.buffer(verdicts).map_err(ReadError::Pipeline)?;
            // At once: on a slow link the next chunk takes its time, and what came counts as progress meanwhile.
            for verdict in verdicts.iter() {
                self.note(verdict);
            }
            verdicts.retain(|verdict| !matches!(verdict.outcome, Outcome::Written));
            if !verdicts.is_empty() {
                self.pipeline.give_back(buffer);
                return Err(ReadError::Stopped);
            }
            buffer.resize(length as usize, 0);
            if let Err((filled, error)) = self.fill(body, &mut buffer) {
                // A page is mostly shorter than a chunk.
                let page = number == 0 && looks_like_html(&buffer[..filled]);
                self.pipeline.give_back(buffer);
                return Err(if page { ReadError::Page } else { error });
            }
            if self.present.get(number).copied().unwrap_or(true) {
                self.pipeline.give_back(buffer);
            } else {
                self.pipeline.push(number, buffer).map_err(ReadError::Pipeline)?;
            }
        }
        Ok(())
    }

    /// Whether a body of the wrong length is a page of HTML: what could be read of its first bytes tells.
    fn begins_as_page(&self, body: &mut impl std::io::Read) -> bool {
        let mut start = [0; PAGE_START];
        let filled = match self.fill(body, &mut start) {
            Ok(()) => PAGE_START,
            Err((filled, _)) => filled,
        };
        looks_like_html(&start[..filled])
    }

    /// Fills a buffer; looks at the clock after each read, so that a server that sends a byte now and then holds nobody up. An error comes with
    /// the number of bytes that were filled before it.
    fn fill(&self, body: &mut impl std::io::Read, buffer: &mut [u8]) -> Result<(), (usize, ReadError)> {
        let end = earlier(self.patience.deadline, self.last_progress + self.patience.without_progress);
        let mut filled = 0;
        while filled < buffer.len() {
            if Instant::now() >= end {
                return Err((filled, ReadError::Late));
            }
            match body.read(&mut buffer[filled..]) {
                Ok(0) => return Err((filled, ReadError::Network(std::io::ErrorKind::UnexpectedEof.into()))),
                Ok(length) => filled += length,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err((filled, ReadError::Network(error))),
            }
        }
        Ok(())
    }

    fn note(&mut self, verdict: &Verdict) {
        if matches!(verdict.outcome, Outcome::Written) {
            self.present[verdict.number] = true;
            self.progress
                .add(self.index.chunks().get(verdict.number).map_or(0, |chunk| u64::from(chunk.length)));
            self.mirrors.progressed();
            self.last_progress = Instant::now();
        }
    }

    fn judge(&mut self, shown: &str, verdicts: &mut Vec<Verdict>) -> Result<(), HttpError> {
        let mut bad = None;
        for verdict in verdicts.drain(..) {
            self.note(&verdict);
            match verdict.outcome {
                Outcome::Written => {}
                Outcome::Bad { html } => {
                    bad.get_or_insert((verdict.number, html));
                }
                Outcome::Disk(error) => {
                    self.disk.get_or_insert(error);
                }
            }
        }
        match bad {
            None => Ok(()),
            Some((_, true)) => Err(page_instead(shown)),
            Some((number, false)) => {
                let what = format!(
                    "{shown}: chunk {number} is not what the signed index says: it was damaged or changed on the way, or on the server"
                );
                // Once may be an accident on the way.
                Err(if self.mirrors.bad_chunk() {
                    HttpError::Retryable(what, None)
                } else {
                    HttpError::Fatal(what)
                })
            }
        }
    }
}

enum ReadError {
    Network(std::io::Error),
    /// A page of HTML, shorter than a chunk.
    Page,
    Late,
    /// A verdict says why.
    Stopped,
    Pipeline(anyhow::Error),
}
