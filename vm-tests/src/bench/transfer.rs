//! Fetching and verifying, on this machine: what the agent does with an image, by the example `fetch`, against the usual tools.
//!
//! Both sides are programs that are started, and are timed from outside, from start to end. Ours makes every byte last as it goes (`fdatasync`, before the
//! map names a chunk) and ends with fsync, rename and fsync of the folder; the peer only hands its bytes to the kernel. So there are two comparisons:
//! in memory, where making things last costs nothing, which compares the work; and on the disk, where the peer is followed by `sync FILE`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::figure::{Figure, Target, paired};
use crate::build;
use crate::command::Tool;
use crate::publisher::Served;
use crate::server::Server;
use crate::system::{Kind, Spec};
use crate::trial::Trial;

/// 600 MB at the pace of a poor disk, and then some.
const RUN_LIMIT: Duration = Duration::from_secs(300);
/// A tmpfs on every Linux machine with a C library.
const MEMORY: &str = "/dev/shm";
const VERIFY_TIMES: u32 = 5;
const MEBIBYTE: f64 = 1024.0;
const LARGE: &str = "large";
const SMALL: &str = "small";

/// Peak memory, speed of fetching, speed of verifying.
pub fn measure(trial: &Trial<'_>, pairs: u32) -> Result<Vec<Figure>> {
    let bench = Bench::prepare(trial)?;
    let mut figures = Vec::new();
    for (channel, ranges) in [(LARGE, 1), (SMALL, 1), (LARGE, 4), (LARGE, 16)] {
        figures.push(bench.memory(channel, ranges, pairs)?);
    }
    figures.extend(bench.fetching(pairs)?);
    figures.push(bench.verifying(pairs)?);
    Ok(figures)
}

struct Bench {
    program: PathBuf,
    key: String,
    served: Served,
    server: Server,
    memory: TempDir,
    disk: TempDir,
}

impl Bench {
    fn prepare(trial: &Trial<'_>) -> Result<Self> {
        let lab = trial.lab;
        let program = build::fetcher(&lab.workspace)?;
        let publisher = build::fast_publisher(&lab.workspace)?;
        let key = lab.key()?;
        let served = Served::at(&trial.dir.join("served"));
        for (channel, padded) in [(LARGE, true), (SMALL, false)] {
            let system = lab.system(Spec {
                generation: 1,
                kind: Kind::PrepareRoot,
                padded,
            })?;
            publisher.image(&system.image, served.dir(), channel, &key)?;
        }
        let server = Server::start(&publisher.program, served.dir(), "127.0.0.1:0", &trial.dir.join("server.log"))?;
        let folder = |path: &Path| tempfile::tempdir_in(path).with_context(|| format!("making a folder in {}", path.display()));
        Ok(Self {
            program,
            key: key.public,
            served,
            server,
            memory: folder(Path::new(MEMORY))?,
            disk: folder(&trial.dir)?,
        })
    }

    /// Fetches the image of `channel` into a new cache below `place`. Returns the seconds, and what the program printed.
    fn fetch(&self, channel: &str, place: &Path) -> Result<(f64, Value)> {
        self.fetch_with(channel, place, 1)
    }

    /// The same with so many ranges at once.
    fn fetch_with(&self, channel: &str, place: &Path, ranges: u32) -> Result<(f64, Value)> {
        let cache = place.join("cache");
        crate::lab::remove(&cache)?;
        let tool = Tool::new(&self.program.to_string_lossy(), RUN_LIMIT)
            .arg("image")
            .arg(format!("http://{}", self.server.address()))
            .args([channel, &self.key])
            .arg(&cache)
            .env("PARALLEL", ranges.to_string());
        let (seconds, text) = timed(tool)?;
        let printed: Value = serde_json::from_str(&text).with_context(|| format!("reading what fetch wrote: {text}"))?;
        let (_, size) = self.served.image(channel)?;
        ensure!(
            printed.get("bytes").and_then(Value::as_u64) == Some(size),
            "not all {size} bytes were fetched: {text}"
        );
        Ok((seconds, printed))
    }

    /// As [`Bench::fetch`], with so many ranges at once; only the peak memory, in MiB.
    fn peak(&self, channel: &str, ranges: u32) -> Result<f64> {
        let (_, printed) = self.fetch_with(channel, self.disk.path(), ranges)?;
        let peak = printed.get("peakRssKib").and_then(Value::as_f64);
        Ok(peak.context("fetch did not print its peak memory")? / MEBIBYTE)
    }

    /// `curl -o`, and then `sha256sum`, of the large image in memory.
    fn sequential_peer(&self) -> Result<f64> {
        let (digest, _) = self.served.image(LARGE)?;
        let file = self.memory.path().join("peer");
        let script = "curl -s -o \"$2\" \"$1\" && sha256sum \"$2\"";
        let tool = Tool::new("sh", RUN_LIMIT).args(["-c", script, "sh", &self.url(&digest)]).arg(&file);
        let (seconds, text) = timed(tool)?;
        ensure!(text.starts_with(&digest), "curl and sha256sum found another digest: {text}");
        fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
        Ok(seconds)
    }

    /// The large image is received and thrown away.
    fn socket_peer(&self) -> Result<f64> {
        let (digest, size) = self.served.image(LARGE)?;
        let tool = Tool::new(&self.program.to_string_lossy(), RUN_LIMIT).args(["socket", &self.url(&digest)]);
        let (seconds, text) = timed(tool)?;
        ensure!(
            text.contains(&format!("\"bytes\":{size},")),
            "not all {size} bytes were received: {text}"
        );
        Ok(seconds)
    }

    fn url(&self, digest: &str) -> String {
        format!("http://{}/images/{digest}.squashfs", self.server.address())
    }

    /// `curl | tee | sha256sum` of the large image, to a file below `place`, which is removed afterwards; made to last if `lasting`.
    fn peer(&self, place: &Path, lasting: bool) -> Result<f64> {
        let (digest, _) = self.served.image(LARGE)?;
        let file = place.join("peer");
        let url = self.url(&digest);
        let sync = if lasting { "; sync \"$2\"" } else { "" };
        let script = format!("curl -s \"$1\" | tee \"$2\" | sha256sum{sync}");
        let tool = Tool::new("sh", RUN_LIMIT).args(["-c", &script, "sh", &url]).arg(&file);
        let (seconds, text) = timed(tool)?;
        ensure!(text.starts_with(&digest), "curl and sha256sum found another digest: {text}");
        fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
        Ok(seconds)
    }

    fn megabytes(&self, channel: &str) -> Result<f64> {
        Ok(self.served.image(channel)?.1 as f64 / 1e6)
    }

    fn memory(&self, channel: &str, ranges: u32, runs: u32) -> Result<Figure> {
        let peaks: Result<Vec<f64>> = (0..runs).map(|_| self.peak(channel, ranges)).collect();
        let by = if ranges > 1 {
            format!(", {ranges} ranges at once")
        } else {
            String::new()
        };
        let what = format!(
            "peak RSS while fetching {:.0} MB over HTTP onto a disk{by}",
            self.megabytes(channel)?
        );
        Figure::alone(what, "MiB", peaks?, Target::AtMost(16.0))
    }

    fn fetching(&self, pairs: u32) -> Result<[Figure; 5]> {
        let size = self.megabytes(LARGE)?;
        let in_memory = |peer: &dyn Fn() -> Result<f64>, against: &str, target: Target| -> Result<Figure> {
            let compared = paired(pairs, || Ok(self.fetch(LARGE, self.memory.path())?.0), peer)?;
            crate::lab::remove(&self.memory.path().join("cache"))?;
            let what = format!("fetch, verify, write and commit {size:.0} MB on loopback, in memory, against {against}");
            Ok(Figure::compared(what, "s", pairs, &compared, target))
        };
        let figure = |place: &Path, lasting: bool, what: &str, target: Target| -> Result<Figure> {
            let ours = || Ok(self.fetch(LARGE, place)?.0);
            let compared = paired(pairs, ours, || self.peer(place, lasting))?;
            crate::lab::remove(&place.join("cache"))?;
            let what = format!("fetch, verify, write and commit {size:.0} MB on loopback, {what}");
            Ok(Figure::compared(what, "s", pairs, &compared, target))
        };
        Ok([
            in_memory(
                &|| self.sequential_peer(),
                "curl -o followed by sha256sum",
                Target::RatioAtLeast(2.3),
            )?,
            in_memory(
                &|| self.socket_peer(),
                "a program that receives and throws away",
                Target::RatioAtLeast(0.45),
            )?,
            figure(
                self.memory.path(),
                false,
                "in memory, against curl | tee | sha256sum",
                Target::RatioAtLeast(2.0),
            )?,
            figure(
                self.disk.path(),
                true,
                "on the disk, against curl | tee | sha256sum; sync FILE (both last)",
                Target::None,
            )?,
            figure(
                self.disk.path(),
                false,
                "on the disk, against curl | tee | sha256sum (ours lasts, the peer's may be lost)",
                Target::None,
            )?,
        ])
    }

    /// The file is in the page cache on both sides: what is compared is the work.
    fn verifying(&self, pairs: u32) -> Result<Figure> {
        let place = self.memory.path();
        self.fetch(LARGE, place)?;
        let cache = place.join("cache");
        let (digest, _) = self.served.image(LARGE)?;
        let image = cache.join(format!("images/{digest}.squashfs"));
        let ours = || {
            let program = Tool::new(&self.program.to_string_lossy(), RUN_LIMIT);
            Ok(timed(program.args(["verify", &self.key]).arg(&cache))?.0)
        };
        let peer = || {
            let (seconds, text) = timed(Tool::new("openssl", RUN_LIMIT).args(["dgst", "-sha256"]).arg(&image))?;
            ensure!(text.trim_end().ends_with(&digest), "openssl found another digest: {text}");
            Ok(seconds)
        };
        // A fraction of a second each: more of them cost nothing, and tell more on a machine that has other things to do.
        let pairs = pairs * VERIFY_TIMES;
        let compared = paired(pairs, ours, peer)?;
        let cores = std::thread::available_parallelism().context("counting the cores")?;
        let what = format!(
            "verify {:.0} MB as verify = full does, on {cores} cores of this machine (not in a guest), against openssl dgst -sha256 on one",
            self.megabytes(LARGE)?
        );
        Ok(Figure::compared(what, "s", pairs, &compared, Target::RatioAtLeast(1.8)))
    }
}

/// Runs to the end. Seconds, and what it wrote.
fn timed(tool: Tool) -> Result<(f64, String)> {
    let started = Instant::now();
    let text = tool.text()?;
    Ok((started.elapsed().as_secs_f64(), text))
}
