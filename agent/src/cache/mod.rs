//! The cache: generations and images on a disk, or in RAM. See `docs/formats.md`, «The cache disk».
//!
//! Nothing in it is trusted because it is there. A good image is never opened for writing. Whatever is malformed, foreign or of another version is
//! left alone and counts as absent.

pub mod atomic;
pub mod evict;
pub mod part;
pub mod reports;
pub mod room;
pub mod state;
pub mod tries;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};

use crate::digest::Digest;
use crate::formats::ANSWER_LIMIT;
use crate::formats::authorised::{Authorised, Trust};
use crate::formats::chunk_index::ChunkIndex;
use crate::formats::generation::Generation;
use crate::formats::manifest::Image;

const FOLDERS: &[&str] = &[
    "generations",
    "images",
    "partial",
    "quarantine",
    "reports",
    "tries",
    "blessed",
    "kernels",
    "initrds",
];
/// A generation is an answer with a few words around it; JSON in JSON can double the quotes.
const GENERATION_LIMIT: u64 = 2 * ANSWER_LIMIT + 4096;
/// Between two looks at a lock that somebody else holds.
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// A cache that nobody else changes meanwhile.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    /// Held for its lock; none on a file system that cannot be written, where nobody changes anything.
    lock: Option<File>,
}

/// What the cache holds of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Nothing.
    Nothing,
    /// A part of it.
    Part,
    /// A file of the right size.
    Whole,
}

/// A generation of the cache that is authorised under today's trust.
#[derive(Debug, Clone)]
pub struct Known {
    /// As it stands on the disk.
    pub generation: Generation,
    /// The proof.
    pub authorised: Authorised,
}

/// What [`Cache::generations`] found: what is authorised, and sentences about the rest.
pub type Found = (Vec<Known>, Vec<String>);

impl Cache {
    /// Opens the cache in `folder`, making what is missing, and locks it. Waits for the lock until `deadline`. What is cached on a file system
    /// that cannot be written can be booted all the same.
    ///
    /// # Errors
    /// If the folder cannot be made or written, or somebody else holds the lock too long.
    pub fn open(folder: &Path, deadline: Instant) -> Result<Self> {
        if read_only(folder) {
            return Ok(Self::for_reading(folder));
        }
        let making = |path: &Path| format!("making the folder {}", path.display());
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .with_context(|| making(folder))?;
        for name in FOLDERS {
            let path = folder.join(name);
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .with_context(|| making(&path))?;
        }
        if fs::metadata(folder).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0) {
            // vfat has no modes: there this fails or does nothing.
            if let Err(error) = fs::set_permissions(folder, fs::Permissions::from_mode(0o700)) {
                log::debug!("{} stays readable to others: {error}", folder.display());
            }
        }
        let lock = lock(&folder.join("lock"), deadline)?;
        let cache = Self {
            folder: folder.to_owned(),
            lock: Some(lock),
        };
        // Tries have no temporary names, and blessing needs no lock: it may be writing just now.
        let written = FOLDERS.iter().filter(|name| !matches!(**name, "tries" | "blessed"));
        for folder in written.map(|name| folder.join(name)).chain([folder.to_owned()]) {
            for path in atomic::remove_leftovers(&folder)? {
                log::info!("removed {}, left by an interrupted write", path.display());
            }
        }
        part::tidy(folder)?;
        Ok(cache)
    }

    /// The cache in `folder` for reading alone: nothing is made, locked or changed. What is read is verified in any case.
    pub fn for_reading(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            lock: None,
        }
    }

    /// Whether it can be written.
    pub fn writable(&self) -> bool {
        self.lock.is_some()
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// All generations that `trust` authorises, the newest acceptance first.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn generations(&self, trust: &Trust) -> Result<Found> {
        read_generations(&self.folder, trust)
    }

    /// What is there of an image.
    pub fn held(&self, image: &Image) -> Held {
        held(&self.folder, image)
    }

    /// Where an image is, once it is whole.
    pub fn image_path(&self, image: Digest) -> PathBuf {
        self.folder.join("images").join(format!("{image}.squashfs"))
    }

    /// Opens an image for reading. Never for writing.
    ///
    /// # Errors
    /// If it is not there or cannot be opened.
    pub fn open_image(&self, image: Digest) -> Result<File> {
        let path = self.image_path(image);
        File::open(&path).with_context(|| format!("opening {}", path.display()))
    }

    /// The chunk index of an image, if the one that its manifest names is there, beside the image or beside a part of it.
    pub fn chunk_index(&self, image: &Image) -> Option<ChunkIndex> {
        chunk_index(&self.folder, image)
    }

    /// Keeps the bytes of a chunk index that was verified against its manifest, beside the partial image; it follows the image when that is whole.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn commit_chunk_index(&self, image: Digest, bytes: &[u8]) -> Result<()> {
        atomic::write(&self.folder.join("partial"), &format!("{image}.chunks"), bytes)
    }

    /// Where the chunk index of an image is as long as the image is partial, and after that.
    pub(super) fn chunk_index_paths(&self, image: Digest) -> (PathBuf, PathBuf) {
        chunk_index_paths(&self.folder, image)
    }

    /// Writes a generation: the last step of a commit. One of the same manifest is replaced.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn commit_generation(&self, generation: &Generation) -> Result<()> {
        let mut bytes = serde_json::to_vec(generation).context("writing a generation as JSON")?;
        bytes.push(b'\n');
        atomic::write(&self.folder.join("generations"), &format!("{}.json", generation.digest()), &bytes)
    }

    /// Whether a file of this generation is there, whatever it says.
    pub fn has_generation(&self, manifest: Digest) -> bool {
        self.folder.join("generations").join(format!("{manifest}.json")).exists()
    }

    /// Removes a generation, its tries and its blessing, and its image unless another generation has the same one.
    ///
    /// # Errors
    /// If something stays.
    pub fn remove_generation(&self, manifest: Digest, image: Option<Digest>) -> Result<()> {
        atomic::remove(&self.folder.join("generations").join(format!("{manifest}.json")))?;
        self.forget_boots(manifest)?;
        if let Some(image) = image {
            atomic::remove(&self.image_path(image))?;
            atomic::remove(&self.chunk_index_paths(image).1)?;
        }
        atomic::sync_folder(&self.folder.join("generations"))
    }
}

fn chunk_index_paths(folder: &Path, image: Digest) -> (PathBuf, PathBuf) {
    let path = |name: &str| folder.join(name).join(format!("{image}.chunks"));
    (path("partial"), path("images"))
}

fn chunk_index(folder: &Path, image: &Image) -> Option<ChunkIndex> {
    let (beside_part, beside_image) = chunk_index_paths(folder, image.sha256);
    [beside_image, beside_part].into_iter().find_map(|path| {
        let bytes = read_bounded(&path, image.chunk_index.size).ok()??;
        if Digest::of(&bytes) != image.chunk_index.sha256 {
            log::warn!("{} is not the index that the manifest names: it counts as absent", path.display());
            return None;
        }
        ChunkIndex::parse(&bytes, image.size)
            .map_err(|refusal| log::warn!("{}: {refusal}", path.display()))
            .ok()
    })
}

/// Bytes of an image that the cache in `folder` lacks, as far as maps say: nobody has looked whether what they name is good.
pub fn missing(folder: &Path, image: &Image) -> u64 {
    let there = match held(folder, image) {
        Held::Nothing => 0,
        Held::Whole => image.size,
        Held::Part => chunk_index(folder, image).map_or(0, |index| part::named(folder, image, &index)),
    };
    image.size.saturating_sub(there)
}

/// Whether the nearest folder that exists lies on a file system that is mounted read-only.
pub fn read_only(folder: &Path) -> bool {
    let status = folder.ancestors().find_map(|folder| rustix::fs::statvfs(folder).ok());
    status.is_some_and(|status| status.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

fn lock(path: &Path, deadline: Instant) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))?;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::park_timeout(LOCK_PAUSE),
            Err(rustix::io::Errno::WOULDBLOCK) => bail!("{} is held by another process: a refresh that still runs?", path.display()),
            Err(error) => return Err(error).with_context(|| format!("locking {}", path.display())),
        }
    }
}

/// A file's bytes, if it is there and not longer than `limit`.
fn read_bounded(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let reading = || format!("reading {}", path.display());
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(reading),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).with_context(reading)?;
    if bytes.len() as u64 > limit {
        bail!("{} is longer than {limit} bytes", path.display());
    }
    Ok(Some(bytes))
}

/// What the cache in `folder` holds of an image; changes nothing.
pub fn held(folder: &Path, image: &Image) -> Held {
    let whole = folder.join("images").join(format!("{}.squashfs", image.sha256));
    match fs::metadata(&whole) {
        Ok(metadata) if metadata.is_file() && metadata.len() == image.size => Held::Whole,
        _ if folder.join("partial").join(format!("{}.part", image.sha256)).exists() => Held::Part,
        _ => Held::Nothing,
    }
}

/// All generations in `folder` that `trust` authorises, the newest acceptance first; changes nothing.
///
/// # Errors
/// If the folder is there and cannot be read.
pub fn read_generations(folder: &Path, trust: &Trust) -> Result<Found> {
    let generations = folder.join("generations");
    let (mut known, mut left_out) = (Vec::new(), Vec::new());
    for name in atomic::names(&generations)? {
        let Some(digest) = name.strip_suffix(".json").and_then(|stem| stem.parse::<Digest>().ok()) else {
            continue;
        };
        match read_generation(&generations.join(&name), digest, trust) {
            Ok(found) => known.push(found),
            Err(error) => left_out.push(format!("the cached generation {} is left alone: {error:#}", digest.short())),
        }
    }
    known.sort_by_key(|known| std::cmp::Reverse(known.generation.sequence));
    Ok((known, left_out))
}

fn read_generation(path: &Path, digest: Digest, trust: &Trust) -> Result<Known> {
    let bytes = read_bounded(path, GENERATION_LIMIT)?.context("it went away")?;
    let text = std::str::from_utf8(&bytes).context("it is not UTF-8")?;
    let generation = Generation::parse(text, digest)?;
    let authorised = generation.authorise(trust)?;
    Ok(Known { generation, authorised })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(120)
    }

    #[test]
    fn a_second_process_waits_for_the_lock_and_is_told_why() {
        let folder = tempfile::tempdir().unwrap();
        let first = Cache::open(&folder.path().join("freshroot"), soon()).unwrap();
        let error = Cache::open(first.folder(), soon()).unwrap_err();
        assert!(error.to_string().contains("held by another process"), "{error:#}");
        let path = first.folder().to_owned();
        drop(first);
        Cache::open(&path, soon()).unwrap();
    }

    #[test]
    fn foreign_and_torn_generations_count_as_absent_and_stay() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), soon()).unwrap();
        let generations = folder.path().join("generations");
        let name = format!("{}.json", Digest::of(b"x"));
        for (name, text) in [("notes.txt", "mine"), (name.as_str(), "{\"version\":1,")] {
            fs::write(generations.join(name), text).unwrap();
        }
        let (known, left_out) = cache.generations(&Trust::default()).unwrap();
        assert!(known.is_empty());
        assert_eq!(left_out.len(), 1);
        assert_eq!(atomic::names(&generations).unwrap().len(), 2);
    }
}
