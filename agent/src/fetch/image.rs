//! Fetching an image: only the chunks that are missing, each verified before it is written, from one mirror after the other.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::hurry::{Hurry, TooSlow, Watch};
use super::pace::{Found, Pace, Slowest};
use super::parallel::{Pieces, Plan, piece_length};
use super::pipeline::{Outcome, Pipeline, Verdict};
use super::range::{Run, body_offset, bytes_of, first_missing};
use super::retry::{After, Mirrors, jitter, pause};
use super::validator::Validator;
use super::{Progress, Source};
use crate::cache::part::Part;
use crate::digest::Digest;
use crate::figures;
use crate::formats::answer::looks_like_html;
use crate::formats::chunk_index::ChunkIndex;
use crate::formats::manifest::Image;
use crate::http::{HttpError, Request, Response, cut, mirror_of, page_instead, without_credentials};
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
    /// Something else can be booted: it ends when it can be seen that it will not be done in time.
    pub hurry: Option<Hurry>,
    /// It ends when so long nothing useful came: no chunk, and no bytes at a rate at which there will be one.
    pub without_progress: Duration,
    /// A transfer that is slower is given up, and the next mirror tried.
    pub slowest: Slowest,
    /// How many ranges are asked for at once.
    pub parallel: usize,
}

/// Why an image could not be had.
#[derive(Debug)]
pub enum FetchError {
    /// The network or the servers: what is there already stays for the next time.
    Network(String),
    /// It takes longer than it is waited for while something else boots: nothing is wrong with it, and what came stays.
    Late(String),
    /// The disk refused.
    Disk(anyhow::Error),
    /// All chunks are good and the whole is not: index and manifest contradict each other. The partial image is of no use.
    Contradiction(anyhow::Error),
}

impl std::fmt::Display for FetchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Network(what) | Self::Late(what) => f.write_str(what),
            Self::Disk(error) | Self::Contradiction(error) => write!(f, "{error:#}"),
        }
    }
}

impl std::error::Error for FetchError {}

/// Fetches the chunk index that the manifest names. Returns it with its bytes.
///
/// # Errors
/// What every mirror answered last.
pub fn fetch_index(source: &Source<'_>, image: &Image, patience: Patience) -> Result<(ChunkIndex, Vec<u8>), FetchError> {
    let mut mirrors = source.in_order();
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
                Ok(index) => {
                    source.memory.worked(number);
                    return Ok((index, bytes));
                }
                Err(refusal) => return Err(FetchError::Contradiction(anyhow::anyhow!("{shown}: {refusal}"))),
            },
            Ok(_) => HttpError::Fatal(format!("{shown}: it is not the chunk index that the manifest names")),
            Err(error) => error,
        };
        log::warn!("{error}");
        source.memory.failed(number, &error);
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
            mirrors: source.in_order(),
            validators: vec![None; source.mirrors.len()],
            pace: Pace::new(patience.slowest),
            watch: Watch::new(patience.hurry),
            started: Instant::now(),
            late: false,
            patience,
            last_progress: Instant::now(),
            progress,
            disk: None,
            measured: (0, Duration::ZERO),
        };
        let fetched = transfer.run();
        let Transfer { pipeline, disk, late, .. } = transfer;
        // The pipeline is ended in any case: it makes last what was written.
        let digest = pipeline.finish(fetched.is_ok());
        match (disk, fetched, digest) {
            // The recorder's error is the reason of the writer's, where there are both.
            (_, _, Err(error)) | (Some(error), _, Ok(_)) => Err(FetchError::Disk(error)),
            (None, Err(what), Ok(_)) if late => Err(FetchError::Late(what)),
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
    /// What each mirror said about its file when it was first asked.
    validators: Vec<Option<Validator>>,
    pace: Pace,
    watch: Watch,
    started: Instant,
    /// What ends it is that something else boots.
    late: bool,
    patience: Patience,
    /// When a chunk was written last. Time in which bytes came fast enough is not counted: on a slow link a chunk takes its time.
    last_progress: Instant,
    progress: &'a Progress,
    disk: Option<anyhow::Error>,
    /// Bytes and time of the answer that is read.
    measured: (u64, Duration),
}

impl Transfer<'_, '_> {
    /// Fetches run after run. The error is what the user is told.
    fn run(&mut self) -> Result<(), String> {
        while let Some(run) = first_missing(&self.present) {
            let Some(number) = self.mirrors.current() else {
                return Err(self.mirrors.failures());
            };
            let url = format!("{}/images/{}.squashfs", self.source.mirrors[number], self.image.sha256);
            self.progress.waits_for(mirror_of(&self.source.mirrors[number]));
            let outcome = self.fetch_run(number, &url, run);
            if let Some(error) = &self.disk {
                return Err(format!("{error:#}"));
            }
            let Err(error) = outcome else {
                self.source.memory.worked(number);
                continue;
            };
            if self.late {
                return Err(error.to_string());
            }
            log::warn!("{error}");
            self.source.memory.failed(number, &error);
            let after = self.mirrors.failed(error, jitter(), Instant::now());
            if self.mirrors.current() != Some(number) {
                self.watch.begin_mirror();
            }
            if after == After::Pause(Duration::ZERO) {
                // A mirror that was not tried yet has its own time to show what it can.
                self.last_progress = Instant::now();
            }
            let end = earlier(self.patience.deadline, self.last_progress + self.patience.without_progress);
            match after {
                After::Enough => return Err(self.mirrors.failures()),
                After::Pause(length) => {
                    self.progress.waits_for(format!("a new attempt in {} s", length.as_secs()));
                    if !pause(length, Some(end)) {
                        self.late = self.ends_for_something_else(Some(end));
                        return Err(format!("not in time: {}", self.mirrors.failures()));
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether what ends here ends because something else boots.
    fn ends_for_something_else(&self, end: Option<Instant>) -> bool {
        self.patience.hurry.is_some() && self.patience.deadline.is_some() && end >= self.patience.deadline
    }

    fn fetch_run(&mut self, mirror: usize, url: &str, run: Run) -> Result<(), HttpError> {
        let shown = without_credentials(url);
        let whole = run
            == Run {
                first: 0,
                last: self.present.len() - 1,
            };
        let all = bytes_of(run, self.index.chunks()).filter(|_| self.mirrors.ranges());
        // Several at once begin with the first piece: whether the server can do ranges is known by its answer.
        let largest = self.index.chunks().iter().map(|chunk| u64::from(chunk.length)).max().unwrap_or(1);
        let piece = piece_length(self.patience.parallel, largest);
        let several = all.filter(|(first, last)| self.patience.parallel > 1 && last - first >= piece);
        let range = match several {
            Some((first, _)) => Some((first, first + piece - 1)),
            None => all.filter(|_| !whole),
        };
        // A deadline ends a wait for a server as well as a transfer; without one there is no total limit.
        let total = self
            .patience
            .deadline
            .map(|deadline| deadline.saturating_duration_since(Instant::now()).max(LEAST));
        let known = self.validators.get(mirror).cloned().flatten();
        let mut response = self.source.client.get(&Request {
            url,
            range,
            if_range: known.as_ref().and_then(Validator::if_range),
            total,
            ..Request::default()
        })?;
        self.pace.begin();
        if !self.same_file(&shown, mirror, known, &response) {
            // At once: the server is well. It cannot go round: what it says is forgotten now.
            return Ok(());
        }
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
        let read = match several.filter(|_| response.status == 206) {
            None => self.read_body(&mut response.body, offset, last, &mut verdicts),
            Some(range) => {
                let plan = Plan {
                    client: self.source.client,
                    url,
                    count: self.patience.parallel,
                    piece,
                    range,
                    total: self.image.size,
                    validator: Validator::of(&response),
                    deadline: self.patience.deadline,
                };
                let read = |pieces: &mut Pieces<'_>| self.read_body(pieces, offset, last, &mut verdicts);
                plan.run(response.body, read).unwrap_or_else(|error| Err(ReadError::Network(error)))
            }
        };
        let (bytes, time) = std::mem::take(&mut self.measured);
        self.source.memory.measured(mirror, bytes, time);
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
            Err(ReadError::Slow(rate)) => Err(HttpError::Retryable(
                format!(
                    "{shown}: {rate} bytes a second came, fewer than {} (transfer.minRate)",
                    self.patience.slowest.rate
                ),
                None,
            )),
            Err(ReadError::Late) => {
                self.late = self.ends_for_something_else(self.patience.deadline);
                Err(HttpError::Retryable(format!("{shown}: the time for this transfer is over"), None))
            }
            Err(ReadError::TooSlow(found)) => {
                self.late = true;
                Err(HttpError::Retryable(too_slow_words(found), None))
            }
            Err(ReadError::Stopped) => Ok(()),
            Err(ReadError::Pipeline(error)) => {
                self.disk.get_or_insert(error);
                Ok(())
            }
        }
    }

    /// Whether an answer that goes on where an earlier one of this mirror ended is of the same file, by what the server says; if not, nothing of
    /// it is used. What is there already stays: its digests are signed, and the next request asks for what is missing of whatever the file is now.
    fn same_file(&mut self, shown: &str, mirror: usize, known: Option<Validator>, response: &Response) -> bool {
        let now = Validator::of(response);
        let contradiction = known
            .as_ref()
            .and_then(|known| known.contradiction(&now))
            .filter(|_| response.status != 416);
        if let Some(place) = self.validators.get_mut(mirror) {
            *place = match (&contradiction, known) {
                (Some(_), _) => None,
                (None, Some(known)) => Some(known),
                (None, None) => Some(now),
            };
        }
        if let Some(what) = &contradiction {
            log::warn!("{shown}: the file has changed on the server during the download: {what}; its rest is asked for anew");
        }
        contradiction.is_none()
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
            // One bad chunk is fetched again alone. A second one says that there is no end to them.
            let hopeless = |verdict: &Verdict| !matches!(verdict.outcome, Outcome::Bad { html: false });
            if verdicts.len() > 1 || verdicts.iter().any(hopeless) {
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
    fn begins_as_page(&mut self, body: &mut impl std::io::Read) -> bool {
        let mut start = [0; PAGE_START];
        let filled = match self.fill(body, &mut start) {
            Ok(()) => PAGE_START,
            Err((filled, _)) => filled,
        };
        looks_like_html(&start[..filled])
    }

    /// Fills a buffer; looks at the clock after each read, so that a server that sends a byte now and then holds nobody up. An error comes with
    /// the number of bytes that were filled before it.
    fn fill(&mut self, body: &mut impl std::io::Read, buffer: &mut [u8]) -> Result<(), (usize, ReadError)> {
        let mut filled = 0;
        let mut last = Instant::now();
        while filled < buffer.len() {
            if self.patience.deadline.is_some_and(|deadline| last >= deadline) {
                return Err((filled, ReadError::Late));
            }
            let length = match body.read(&mut buffer[filled..]) {
                Ok(0) => return Err((filled, ReadError::Network(std::io::ErrorKind::UnexpectedEof.into()))),
                Ok(length) => length,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => 0,
                Err(error) => return Err((filled, ReadError::Network(error))),
            };
            filled += length;
            let now = Instant::now();
            let after = now.duration_since(last);
            self.progress.arrive(length);
            self.measured.0 += length as u64;
            self.measured.1 += after;
            let missing = self.progress.missing().saturating_sub(filled as u64);
            if let Some(found) = self.watch.came(length, after, now.duration_since(self.started), missing) {
                return Err((filled, ReadError::TooSlow(found)));
            }
            match self.pace.came(length, after) {
                Found::Unknown => {}
                Found::FastEnough(time) => {
                    self.last_progress = now.min(self.last_progress + time);
                    self.progress.goes_on();
                }
                Found::TooSlow(rate) => return Err((filled, ReadError::Slow(rate))),
            }
            last = now;
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
    TooSlow(TooSlow),
    /// Bytes a second.
    Slow(u64),
    /// A verdict says why.
    Stopped,
    Pipeline(anyhow::Error),
}

fn too_slow_words(found: TooSlow) -> String {
    format!(
        "it comes at {} and takes {} more, {} of policy.fetchWait are left",
        figures::rate(found.rate),
        figures::time(found.estimate),
        figures::time(found.left)
    )
}
