//! A machine with a cache, servers that publish a new generation, and a client.
#![allow(dead_code, reason = "each test program uses its share")]

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};

use freshroot::cache::Cache;
use freshroot::cache::part::Part;
use freshroot::fetch::answer::{Asked, Valid, ask};
use freshroot::fetch::image::{FetchError, Patience, fetch_image, fetch_index};
use freshroot::fetch::pace::Slowest;
use freshroot::fetch::retry::Memory;
use freshroot::fetch::{Progress, Source};
use freshroot::formats::answer::{Answer, Question};
use freshroot::formats::authorised::{Authorised, Trust};
use freshroot::formats::chunk_index::ChunkIndex;
use freshroot::http::{Client, Limits, Options};
use freshroot::verify::{verified_by_digest, verify_image};

use super::record::Witness;
use super::server::{Ask, Reply, Server};
use super::world::{CHUNK, SIZE, World, kept, open, present, trust};

/// More than a busy machine needs to answer.
pub const STALL: Duration = Duration::from_millis(700);
/// Longer than the longest first pause between two tries, which is a second.
pub const PATIENT: Duration = Duration::from_millis(2500);
/// A server that sends a byte now and then is slower.
pub const SLOWEST: Slowest = Slowest {
    rate: 1 << 10,
    window: STALL,
};
pub const LIMITS: Limits = Limits {
    connect: Duration::from_secs(1),
    stall: STALL,
};

/// A machine with a good old generation in its cache, servers that publish a new one, and a client.
pub struct Bench {
    // First: it looks once more before the rest goes.
    pub witness: Witness,
    pub new: World,
    pub cache: Cache,
    pub client: Arc<Client>,
    pub servers: Vec<Server>,
    pub mirrors: Vec<String>,
    pub memory: Memory,
    pub patience: Patience,
    // Last: it is removed when nothing uses it any more.
    pub folder: tempfile::TempDir,
}

impl Bench {
    /// One server with this script. The script is given what an honest server would answer.
    pub fn new(script: impl Fn(&Ask, Reply) -> Reply + Send + Sync + 'static) -> Self {
        Self::with(vec![Server::new(honestly(script))])
    }

    pub fn with(servers: Vec<Server>) -> Self {
        Self::by(servers, Options::new(LIMITS))
    }

    /// With a client of these options.
    pub fn by(servers: Vec<Server>, options: Options) -> Self {
        Self::of(World::new(2), servers, options)
    }

    /// Where this is new.
    pub fn of(new: World, servers: Vec<Server>, options: Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cache = open(folder.path());
        World::new(1).install(&cache, 1);
        cache.commit_chunk_index(new.image.sha256, &new.index.to_bytes()).unwrap();
        let client = Arc::new(Client::new(options));
        for server in &servers {
            server.watch(&client);
        }
        Self {
            witness: Witness::new(folder.path(), new.clone()),
            new,
            cache,
            client,
            memory: Memory::default(),
            mirrors: servers.iter().map(Server::url).collect(),
            servers,
            patience: Patience {
                deadline: None,
                hurry: None,
                without_progress: PATIENT,
                slowest: SLOWEST,
                parallel: 1,
            },
            folder,
        }
    }

    /// A download of which these chunks are there and recorded.
    pub fn begun(mut self, chunks: &[usize]) -> Self {
        self.new.begin(&self.cache, chunks);
        self.witness.begin();
        self
    }

    /// For several pauses in a row without progress: they add up.
    pub fn patient(mut self) -> Self {
        self.patience.without_progress = 4 * PATIENT;
        self
    }

    /// Called so in the table, where a test has several.
    pub fn case(mut self, case: &str) -> Self {
        self.witness.case(case);
        self
    }

    pub fn source(&self) -> Source<'_> {
        Source {
            client: &self.client,
            mirrors: &self.mirrors,
            memory: &self.memory,
        }
    }

    /// Fetches the image, verifies the whole, and commits it.
    pub fn fetch(&self) -> Result<(), FetchError> {
        self.fetch_telling(&Progress::new(self.new.image.size))
    }

    /// The same, with somebody who watches.
    pub fn fetch_telling(&self, progress: &Progress) -> Result<(), FetchError> {
        self.witness.watch(&self.client);
        let fetched = self.fetch_and_commit(progress);
        self.witness.saw("fetched", done(&fetched));
        fetched
    }

    fn fetch_and_commit(&self, progress: &Progress) -> Result<(), FetchError> {
        let part = Part::open(&self.cache, &self.new.image, &self.new.index, &|_| {}).unwrap();
        let digest = fetch_image(&self.source(), &self.new.image, &self.new.index, &part, self.patience, progress)?;
        assert_eq!(digest, self.new.image.sha256, "only what was verified is handed out");
        let proof = verified_by_digest(part.reopen().unwrap(), self.new.image.size, digest, self.new.image.sha256).unwrap();
        part.commit(&self.cache, &proof).unwrap();
        Ok(())
    }

    pub fn ask(&self) -> Result<Valid, String> {
        self.ask_if(&|_| Ok(()), &trust())
    }

    pub fn ask_if(&self, accept: &dyn Fn(&Authorised) -> Result<(), String>, trust: &Trust) -> Result<Valid, String> {
        let question = Question::Channel("stable".parse().unwrap());
        self.witness.watch(&self.client);
        let received = self.client.received();
        let asked = ask(&self.source(), &question, trust, None, accept, Instant::now() + PATIENT);
        self.witness.beside(self.client.received() - received);
        self.witness.saw("answered", done(&asked));
        match asked? {
            Asked::Valid(valid) => Ok(*valid),
            Asked::NotModified => panic!("nobody asked whether it is modified"),
        }
    }

    /// Fetches the chunk index.
    pub fn fetch_index(&self) -> Result<(ChunkIndex, Vec<u8>), FetchError> {
        self.witness.watch(&self.client);
        let received = self.client.received();
        let fetched = fetch_index(&self.source(), &self.new.image, self.patience);
        self.witness.beside(self.client.received() - received);
        self.witness.saw("index fetched", done(&fetched));
        fetched
    }

    /// The image is there, every byte of it, and so is all that was there before.
    pub fn assert_committed(&self) {
        let mut expected = self.witness.before().clone();
        expected.insert(format!("images/{}.squashfs", self.new.image.sha256), self.new.bytes.clone());
        // Its index has followed it from where the part was.
        expected.insert(format!("images/{}.chunks", self.new.image.sha256), self.new.index.to_bytes());
        assert!(
            kept(self.cache.folder()) == expected,
            "the new image has been added and nothing else is changed"
        );
        verify_image(self.cache.open_image(self.new.image.sha256).unwrap(), &self.new.index, &|_| {}).unwrap();
    }

    /// Images and generations are what they were, byte by byte.
    pub fn assert_unchanged(&self) {
        assert!(kept(self.cache.folder()) == *self.witness.before(), "the cache is changed");
    }

    /// The fetch fails in the network, with these words; the cache is unchanged, and so many verified chunks are there for the next time.
    pub fn assert_fails(&self, words: &str, chunks: usize) {
        match self.fetch() {
            Err(FetchError::Network(what)) => assert!(what.contains(words), "«{words}» is expected: {what}"),
            other => panic!("{other:?}"),
        }
        self.assert_unchanged();
        assert_eq!(present(&self.cache, &self.new), chunks, "chunks for the next time");
    }

    /// What was asked of the first server: the range of each request.
    pub fn ranges(&self) -> Vec<Option<(usize, usize)>> {
        self.servers[0].served().iter().map(|served| served.ask.range()).collect()
    }

    pub fn received(&self) -> usize {
        self.client.received() as usize
    }
}

/// That it was done, or why it was not.
fn done<T, E: Display>(outcome: &Result<T, E>) -> Result<(), &dyn Display> {
    match outcome {
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The served folder, by path.
pub fn files(world: &World) -> BTreeMap<String, Vec<u8>> {
    let answer = Answer::new(world.release.clone(), world.manifest.clone());
    BTreeMap::from([
        ("/channels/stable.json".to_owned(), serde_json::to_vec(&answer).unwrap()),
        (image_path(world), world.bytes.clone()),
        (index_path(world), world.index.to_bytes()),
    ])
}

pub fn image_path(world: &World) -> String {
    format!("/images/{}.squashfs", world.image.sha256)
}

pub fn index_path(world: &World) -> String {
    format!("/images/{}.chunks", world.image.sha256)
}

/// A script that is given what an honest server would answer.
pub fn honestly(script: impl Fn(&Ask, Reply) -> Reply + Send + Sync + 'static) -> impl Fn(&Ask) -> Reply + Send + Sync + 'static {
    let files = files(&World::new(2));
    move |ask| script(ask, Reply::honest(&files, ask))
}

pub fn honest() -> Server {
    Server::new(honestly(|_, reply| reply))
}

pub fn from(chunk: usize) -> Option<(usize, usize)> {
    Some((chunk * CHUNK, SIZE - 1))
}
