//! What a test has seen, measured in the same way everywhere, and written down for whoever gathers it: bytes over the wire, and whether the cache is as
//! it was before. The name of the test says which row of the fault matrix it is of.
#![allow(dead_code, reason = "each test program uses its share")]

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use freshroot::cache::Cache;
use freshroot::http::Client;
use serde_json::json;

use super::world::{World, kept, present_bytes};

/// Names the folder for the records; without it nothing is written.
const FOLDER: &str = "FRESHROOT_TEST_RECORDS";
/// Between the name of a test and that of one of its cases, in the name of a thread.
const CASE: &str = " / ";
/// Of what somebody said, as much is kept.
const LONGEST: usize = 160;

/// Runs a check for each case, all at once: what is waited for is mostly time. Each has a thread that is called like the test and the case.
pub fn each<N: Display + Send, T: Send>(cases: impl IntoIterator<Item = (N, T)>, check: impl Fn(&str, T) + Sync) {
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    std::thread::scope(|scope| {
        for (name, case) in cases {
            let (check, thread) = (&check, std::thread::Builder::new().name(format!("{test}{CASE}{name}")));
            thread.spawn_scoped(scope, move || check(&name.to_string(), case)).unwrap();
        }
    });
}

#[derive(Default)]
struct Seen {
    outcomes: Vec<String>,
    clients: Vec<Arc<Client>>,
    /// Received by others.
    received: u64,
    /// Of what was received, these bytes were not of an image.
    beside: u64,
}

/// Looks on, and writes its record when it goes.
pub struct Witness {
    test: String,
    case: String,
    cache: PathBuf,
    before: BTreeMap<String, Vec<u8>>,
    had: usize,
    /// Names and bytes of what a finished download adds, and what counts its chunks.
    new: World,
    seen: Mutex<Seen>,
}

impl Witness {
    /// Begins here: the cache as it is now is the one before.
    pub fn new(cache: &Path, new: World) -> Self {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or_default();
        let (test, case) = name.split_once(CASE).unwrap_or((name, ""));
        Self {
            test: test.to_owned(),
            case: case.to_owned(),
            cache: cache.to_owned(),
            before: kept(cache),
            had: present_bytes(&Cache::for_reading(cache), &new),
            new,
            seen: Mutex::default(),
        }
    }

    /// The cache as it was: images and generations, byte by byte.
    pub fn before(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.before
    }

    /// Begins again, with the cache as it is now.
    pub fn begin(&mut self) {
        self.before = kept(&self.cache);
        self.had = present_bytes(&Cache::for_reading(&self.cache), &self.new);
    }

    /// Another name for the case.
    pub fn case(&mut self, case: &str) {
        case.clone_into(&mut self.case);
    }

    /// Counts what this client receives, from its first byte.
    pub fn watch(&self, client: &Arc<Client>) {
        let mut seen = self.seen.lock().unwrap();
        if !seen.clients.iter().any(|known| Arc::ptr_eq(known, client)) {
            seen.clients.push(Arc::clone(client));
        }
    }

    /// Something came of it.
    pub fn saw(&self, what: &str, outcome: Result<(), &dyn Display>) {
        let told = match outcome {
            Ok(()) => what.to_owned(),
            Err(why) => reason(&why.to_string()),
        };
        self.seen.lock().unwrap().outcomes.push(told);
    }

    /// So many bytes of an answer were received, which are not of an image.
    pub fn beside(&self, bytes: u64) {
        self.seen.lock().unwrap().beside += bytes;
    }

    /// So many bytes were received by clients that are not seen here, of an image and of something else.
    pub fn received(&self, image: u64, beside: u64) {
        let mut seen = self.seen.lock().unwrap();
        seen.received += image + beside;
        seen.beside += beside;
    }

    /// What has become of the cache.
    fn cache_now(&self) -> &'static str {
        let now = kept(&self.cache);
        if now == self.before {
            return "as before";
        }
        let mut grown = self.before.clone();
        grown.insert(format!("images/{}.squashfs", self.new.image.sha256), self.new.bytes.clone());
        grown.insert(format!("images/{}.chunks", self.new.image.sha256), self.new.index.to_bytes());
        let generations = |name: &String| name.starts_with("generations/");
        let added = now.keys().filter(|name| !grown.contains_key(*name)).all(generations);
        let whole = grown.iter().all(|(name, bytes)| now.get(name) == Some(bytes));
        if added && whole {
            "as before, and the new image"
        } else {
            "CHANGED"
        }
    }

    fn record(&self, folder: &Path) {
        let seen = self.seen.lock().unwrap();
        let received = seen.received + seen.clients.iter().map(|client| client.received()).sum::<u64>();
        let gained = present_bytes(&Cache::for_reading(&self.cache), &self.new).saturating_sub(self.had) as u64;
        let record = json!({
            "test": self.test,
            "case": self.case,
            "outcomes": seen.outcomes,
            "received": received,
            "image": self.new.image.size,
            "gained": gained,
            "again": (received - seen.beside).saturating_sub(gained),
            "cache": self.cache_now(),
        });
        append(folder, &record);
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        // Who panics has nothing to tell.
        if let Some(folder) = std::env::var_os(FOLDER).filter(|_| !std::thread::panicking()) {
            self.record(Path::new(&folder));
        }
    }
}

/// One line for whoever gathers; in one write, so that programs and threads do not mix theirs.
pub fn append(folder: &Path, record: &serde_json::Value) {
    let file = folder.join(format!("{}.jsonl", std::process::id()));
    let mut file = OpenOptions::new().append(true).create(true).open(file).unwrap();
    file.write_all(format!("{record}\n").as_bytes()).unwrap();
}

/// What went wrong, without where: ports are other ones in each run. Of several, the last.
fn reason(told: &str) -> String {
    let last = told.rsplit("; ").find(|part| part.contains("://")).unwrap_or(told);
    let words: Vec<&str> = last.split(": ").filter(|part| !part.contains("://")).collect();
    let words = words.join(": ");
    words.chars().take(LONGEST).collect()
}
