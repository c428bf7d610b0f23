//! What `freshroot boot` does with an image and nothing else: for the benchmark, which measures it from outside and by what it prints.
//!
//! `fetch image URL CHANNEL KEY FOLDER` asks, fetches, verifies and commits into a cache in FOLDER, in the order of `boot/acquire.rs`;
//! `fetch verify KEY FOLDER` opens that cache again and verifies the image on all cores, as a warm boot with `verify = full` does;
//! `fetch socket URL` receives what a server sends and throws it away: what the socket can, for comparison.
//! Prints one line of JSON: bytes, milliseconds, and the highest resident set of the process in KiB.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use freshroot::cache::Cache;
use freshroot::cache::part::Part;
use freshroot::fetch::answer::{Asked, Valid, ask};
use freshroot::fetch::image::{Patience, fetch_image, fetch_index};
use freshroot::fetch::pace::Slowest;
use freshroot::fetch::retry::Memory;
use freshroot::fetch::{Progress, Source};
use freshroot::formats::answer::Question;
use freshroot::formats::authorised::Trust;
use freshroot::formats::manifest::Image;
use freshroot::http::{Client, Limits, Options};
use freshroot::verify::{verified_by_digest, verify_image};

/// The defaults of the settings `transfer.connect`, `transfer.stall`, `transfer.minRate`, `policy.wait` and `policy.fetchWait`.
const LIMITS: Limits = Limits {
    connect: Duration::from_secs(10),
    stall: Duration::from_secs(30),
};
const SLOWEST: Slowest = Slowest {
    rate: 1 << 10,
    window: Duration::from_secs(30),
};
const WAIT: Duration = Duration::from_secs(30);
const FETCH_WAIT: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fetch: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let started = Instant::now();
    let (bytes, started) = match words.as_slice() {
        ["image", url, channel, key, folder] => (fetch(url, channel, key, Path::new(folder))?, started),
        ["verify", key, folder] => verify(key, Path::new(folder))?,
        ["socket", url] => (receive(url)?, started),
        _ => bail!("usage: fetch image URL CHANNEL KEY FOLDER, fetch verify KEY FOLDER, or fetch socket URL"),
    };
    println!(
        "{{\"bytes\":{bytes},\"milliseconds\":{:.3},\"peakRssKib\":{}}}",
        started.elapsed().as_secs_f64() * 1000.0,
        peak_rss()?
    );
    Ok(())
}

fn fetch(url: &str, channel: &str, key: &str, folder: &Path) -> Result<u64> {
    let mirrors = [url.to_owned()];
    let (client, memory) = (Client::new(Options::new(LIMITS)), Memory::default());
    let source = Source {
        client: &client,
        mirrors: &mirrors,
        memory: &memory,
    };
    let cache = Cache::open(folder, Instant::now() + WAIT)?;
    let question = Question::Channel(channel.parse().map_err(|error| anyhow!("{channel}: {error}"))?);
    let asked = ask(&source, &question, &trust(key)?, None, &|_| Ok(()), Instant::now() + WAIT).map_err(anyhow::Error::msg)?;
    let Asked::Valid(valid) = asked else {
        bail!("the server says that nothing changed, though nothing was known");
    };
    let image = valid.authorised.manifest().image.clone();
    let patience = Patience {
        deadline: None,
        hurry: None,
        without_progress: FETCH_WAIT,
        slowest: SLOWEST,
        parallel: std::env::var("PARALLEL").map_or(Ok(1), |text| text.parse())?,
    };
    let (index, bytes) = fetch_index(&source, &image, patience).map_err(|error| anyhow!("{error}"))?;
    cache.commit_chunk_index(image.sha256, &bytes)?;
    let part = Part::open(&cache, &image, &index, &|_| {})?;
    let progress = Progress::new(image.size);
    let found = fetch_image(&source, &image, &index, &part, patience, &progress).map_err(|error| anyhow!("{error}"))?;
    let verified = verified_by_digest(part.reopen()?, image.size, found, image.sha256)?;
    part.commit(&cache, &verified)?;
    commit_generation(&cache, *valid)?;
    Ok(image.size)
}

/// Bytes of the body at a plain `http://host:port/path`.
fn receive(url: &str) -> Result<u64> {
    let rest = url.strip_prefix("http://").context("only http:// can be received")?;
    let (host, path) = rest.split_once('/').context("the URL has no path")?;
    let mut stream = TcpStream::connect(host).with_context(|| format!("connecting to {host}"))?;
    stream
        .write_all(format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())
        .context("asking")?;
    let mut buffer = vec![0; 256 << 10];
    let (mut head, mut body) = (Vec::new(), 0);
    loop {
        let length = stream.read(&mut buffer).context("receiving")?;
        if length == 0 {
            return Ok(body);
        }
        if body > 0 {
            body += length as u64;
            continue;
        }
        head.extend_from_slice(&buffer[..length]);
        if let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") {
            body = (head.len() - end - 4) as u64;
        }
    }
}

fn commit_generation(cache: &Cache, valid: Valid) -> Result<()> {
    cache.commit_generation(&freshroot::formats::generation::Generation {
        version: 1,
        release: valid.received.release,
        manifest: valid.received.manifest,
        sequence: 1,
        accepted: 0,
        source: valid.source,
        etag: valid.etag,
    })
}

/// The clock starts when the cache is open: what is measured is the speed at which bytes are verified.
fn verify(key: &str, folder: &Path) -> Result<(u64, Instant)> {
    let cache = Cache::open(folder, Instant::now() + WAIT)?;
    let (known, left_out) = cache.generations(&trust(key)?)?;
    let image: Image = known
        .first()
        .with_context(|| format!("no generation is cached: {}", left_out.join("; ")))?
        .authorised
        .manifest()
        .image
        .clone();
    let index = cache.chunk_index(&image).context("the chunk index is not cached")?;
    let started = Instant::now();
    let verified = verify_image(cache.open_image(image.sha256)?, &index, &|_| {});
    verified.map_err(|damage| anyhow!("{} chunks are damaged", damage.chunks.len()))?;
    Ok((image.size, started))
}

fn trust(key: &str) -> Result<Trust> {
    Ok(Trust {
        keys: vec![key.parse().map_err(|error| anyhow!("{key}: {error}"))?],
        ..Trust::default()
    })
}

/// `VmHWM` of `proc_pid_status(5)`.
fn peak_rss() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|rest| rest.trim().trim_end_matches("kB").trim_end().parse().ok())
        .context("/proc/self/status has no VmHWM")
}
