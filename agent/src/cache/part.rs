//! A partial image: the file in the making, and the map of the chunks that are written.
//!
//! The bytes of a chunk reach the disk before the map names it; a resume verifies what the map names. So the map never has to be believed.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate, fstatfs};

use super::{Cache, atomic};
use crate::digest::Digest;
use crate::formats::chunk_index::ChunkIndex;
use crate::formats::manifest::Image;
use crate::formats::part_map::PartMap;
use crate::verify::{Damage, VerifiedImage, bad_chunks};

/// `MSDOS_SUPER_MAGIC` of linux/magic.h.
const VFAT_MAGIC: i64 = 0x4d44;
const VFAT_LIMIT: u64 = 1 << 32;

/// A partial image, open for writing.
#[derive(Debug)]
pub struct Part {
    image: Digest,
    path: PathBuf,
    map_path: PathBuf,
    file: File,
    map: File,
    present: Vec<bool>,
}

impl Part {
    /// Opens the partial image that is there and verifies the chunks that its map names, or begins a new one.
    ///
    /// # Errors
    /// If the disk is full, the file system cannot hold so large a file, or a step of reading or writing fails.
    pub fn open(cache: &Cache, image: &Image, index: &ChunkIndex, progress: &(dyn Fn(u64) + Sync)) -> Result<Self> {
        let folder = cache.folder().join("partial");
        let (path, map_path) = (
            folder.join(format!("{}.part", image.sha256)),
            folder.join(format!("{}.map", image.sha256)),
        );
        let identity = PartMap {
            image_size: image.size,
            chunk_index: image.chunk_index.sha256,
        };
        let named = resumable(&path, &map_path, &identity, index.chunks().len())?;
        if named.is_none() {
            // The old map goes first: a new file must never stand beside a map that names chunks of an old one.
            atomic::remove(&map_path)?;
            atomic::remove(&path)?;
        }
        let opening = |path: &Path| format!("opening {}", path.display());
        let options = |append: bool| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .append(append)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .to_owned()
        };
        let file = options(false).open(&path).with_context(|| opening(&path))?;
        let made = make_room(&file, image.size).with_context(|| format!("making {}", path.display()));
        let made = made.and_then(|()| match named {
            Some(_) => Ok(()),
            None => atomic::write(&folder, &format!("{}.map", image.sha256), &identity.header()),
        });
        if let (Err(_), None) = (&made, &named) {
            // It may have taken a part of the room that there was not enough of, and without a map nobody goes on with it.
            atomic::clean_up(&path);
        }
        made?;
        let mut present = vec![false; index.chunks().len()];
        if let Some(numbers) = named {
            let Damage { chunks: bad, error } = bad_chunks(&file, index, &numbers, progress);
            if !bad.is_empty() {
                let why = error.map(|error| format!(" ({error})")).unwrap_or_default();
                log::info!(
                    "{} of the {} chunks that were there are not good and are fetched again{why}",
                    bad.len(),
                    numbers.len()
                );
            }
            for number in numbers.iter().filter(|number| bad.binary_search(number).is_err()) {
                present[*number as usize] = true;
            }
        }
        let map = options(true).open(&map_path).with_context(|| opening(&map_path))?;
        align(&map).with_context(|| opening(&map_path))?;
        Ok(Self {
            image: image.sha256,
            path,
            map_path,
            file,
            map,
            present,
        })
    }

    /// Makes a partial image of a corrupt one: its good chunks need not be fetched again.
    ///
    /// # Errors
    /// If a step fails; the image then still stands in its place, or is a partial one already.
    pub fn from_corrupt(cache: &Cache, image: &Image, index: &ChunkIndex, bad: &[u32]) -> Result<()> {
        let folder = cache.folder().join("partial");
        let mut map = PartMap {
            image_size: image.size,
            chunk_index: image.chunk_index.sha256,
        }
        .header();
        for number in (0..index.chunks().len() as u32).filter(|number| bad.binary_search(number).is_err()) {
            map.extend_from_slice(&number.to_le_bytes());
        }
        // In this order a power cut leaves either a corrupt image, found again, or a map without a file, which is thrown away.
        atomic::remove(&folder.join(format!("{}.part", image.sha256)))?;
        atomic::write(&folder, &format!("{}.map", image.sha256), &map)?;
        atomic::rename(&cache.image_path(image.sha256), &folder.join(format!("{}.part", image.sha256)))
    }

    /// Which chunks are there and verified, by number.
    pub fn present(&self) -> &[bool] {
        &self.present
    }

    /// The file, for reading what is verified.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Writes a verified chunk to its place. It is not yet safe from a power cut.
    ///
    /// # Errors
    /// If the disk refuses it.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all_at(bytes, offset)
            .with_context(|| format!("writing {}", self.path.display()))
    }

    /// Makes all that was written last, then names these chunks in the map.
    ///
    /// # Errors
    /// If the disk refuses it.
    pub fn record(&self, numbers: &[u32]) -> Result<()> {
        self.file
            .sync_data()
            .with_context(|| format!("synchronising {}", self.path.display()))?;
        let entries: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let mut map = &self.map;
        map.write_all(&entries)
            .and_then(|()| map.sync_data())
            .with_context(|| format!("writing {}", self.map_path.display()))
    }

    /// The file once more, for reading only: it stays the same file when it takes its place.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn reopen(&self) -> Result<File> {
        File::open(&self.path).with_context(|| format!("opening {}", self.path.display()))
    }

    /// The finished image takes its place: fsync, rename, fsync of the folders. `proof` is that the whole of it was verified, through
    /// [`Part::reopen`].
    ///
    /// # Errors
    /// If a step fails, or the proof is that of another file; the partial image is then still there.
    pub fn commit(self, cache: &Cache, proof: &VerifiedImage) -> Result<()> {
        anyhow::ensure!(
            proof.is_of(&self.file)?,
            "{} is not the file that was verified",
            self.path.display()
        );
        self.file
            .sync_all()
            .with_context(|| format!("synchronising {}", self.path.display()))?;
        atomic::rename(&self.path, &cache.image_path(self.image))?;
        // In this order an index is always found, in one of the two folders, whatever comes in between.
        let (beside_part, beside_image) = cache.chunk_index_paths(self.image);
        if beside_part.exists() {
            atomic::rename(&beside_part, &beside_image)?;
        }
        atomic::remove(&self.map_path).map(|_| ())
    }

    /// Which of the chunks `numbers`, that were written over damaged ones, the disk does not give back: what the kernel still has of the file in memory is
    /// dropped first.
    ///
    /// # Errors
    /// If the kernel does not drop it.
    pub fn not_given_back(&self, index: &ChunkIndex, numbers: &[u32]) -> Result<Damage> {
        self.file
            .sync_data()
            .with_context(|| format!("synchronising {}", self.path.display()))?;
        fadvise(&self.file, 0, None, Advice::DontNeed).with_context(|| format!("reading {} anew", self.path.display()))?;
        Ok(bad_chunks(&self.file, index, numbers, &|_| {}))
    }

    /// Puts the partial image aside, where its blocks stay taken until there is no other room: the disk does not keep what is written to them.
    ///
    /// # Errors
    /// If a step fails.
    pub fn set_aside(self, cache: &Cache) -> Result<()> {
        atomic::remove(&self.map_path)?;
        atomic::rename(&self.path, &cache.folder().join("quarantine").join(format!("{}.part", self.image)))
    }

    /// Throws the partial image away: its whole was not what it should be.
    ///
    /// # Errors
    /// If a file stays.
    pub fn discard(self) -> Result<()> {
        atomic::remove(&self.map_path)?;
        atomic::remove(&self.path).map(|_| ())
    }
}

/// How many bytes of the image a map names, without looking whether they are good.
pub(super) fn named(cache: &Path, image: &Image, index: &ChunkIndex) -> u64 {
    let file = |end: &str| cache.join("partial").join(format!("{}.{end}", image.sha256));
    let identity = PartMap {
        image_size: image.size,
        chunk_index: image.chunk_index.sha256,
    };
    let named = resumable(&file("part"), &file("map"), &identity, index.chunks().len());
    let chunks = named.ok().flatten().unwrap_or_default().into_iter();
    chunks
        .filter_map(|number| index.chunks().get(number as usize))
        .map(|chunk| u64::from(chunk.length))
        .sum()
}

/// Ends what a commit left undone that was cut short after its first rename: the index follows its image, and a map without a file goes.
pub(super) fn tidy(cache: &Path) -> Result<()> {
    let (partial, images) = (cache.join("partial"), cache.join("images"));
    let names = atomic::names(&partial)?;
    for stem in names.iter().filter_map(|name| name.strip_suffix(".chunks")) {
        let index = format!("{stem}.chunks");
        if images.join(format!("{stem}.squashfs")).exists() {
            atomic::rename(&partial.join(&index), &images.join(&index))?;
        }
    }
    for stem in names.iter().filter_map(|name| name.strip_suffix(".map")) {
        let map = partial.join(format!("{stem}.map"));
        if names.binary_search(&format!("{stem}.part")).is_err() && atomic::remove(&map)? {
            log::info!("removed {}, the map of a partial image that is not there any more", map.display());
        }
    }
    Ok(())
}

/// The chunks that a map names, if map and file belong to this image.
fn resumable(path: &Path, map_path: &Path, identity: &PartMap, count: usize) -> Result<Option<Vec<u32>>> {
    if !path
        .metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.len() == identity.image_size)
    {
        return Ok(None);
    }
    // A map of entries named twice over is longer than any of ours.
    let limit = (crate::formats::part_map::HEADER + 8 * count + 4) as u64;
    let map = super::read_bounded(map_path, limit).unwrap_or_else(|error| {
        log::warn!("{error:#}: what was fetched of the image is fetched again");
        None
    });
    Ok(map.and_then(|map| identity.written(&map, count)))
}

/// Takes the room for the whole file at once where the file system can: a full disk is met before the download, not in its middle.
fn make_room(file: &File, size: u64) -> Result<()> {
    if size >= VFAT_LIMIT && fstatfs(file)?.f_type as i64 == VFAT_MAGIC {
        bail!("the image has {size} bytes, and vfat holds no file of 4 GiB or more: use ext4, xfs or btrfs for the cache");
    }
    if file.metadata()?.len() == size {
        return Ok(());
    }
    match fallocate(file, FallocateFlags::empty(), 0, size) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(file.set_len(size)?),
        Err(rustix::io::Errno::NOSPC) => bail!("there is no room for {size} bytes"),
        Err(error) => Err(error.into()),
    }
}

/// Cuts a torn last entry off, so that what is appended stands where a reader looks for it.
fn align(map: &File) -> io::Result<()> {
    let length = map.metadata()?.len();
    let torn = (length - crate::formats::part_map::HEADER as u64) % 4;
    if torn == 0 { Ok(()) } else { map.set_len(length - torn) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::formats::manifest::FileRef;
    use crate::verify::verify_image;
    use std::time::{Duration, Instant};

    fn world() -> (tempfile::TempDir, Cache, Image, ChunkIndex, Vec<u8>) {
        let bytes: Vec<u8> = (0..10_000u32).map(|i| (i % 251) as u8).collect();
        let index = ChunkIndex::new(bytes.chunks(1000).map(|chunk| (chunk.len() as u32, Digest::of(chunk)))).unwrap();
        let index_bytes = index.to_bytes();
        let chunk_index = FileRef {
            sha256: Digest::of(&index_bytes),
            size: index_bytes.len() as u64,
        };
        let image = Image {
            sha256: Digest::of(&bytes),
            size: bytes.len() as u64,
            chunk_index,
            verity: None,
            zstd: None,
        };
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), Instant::now() + Duration::from_secs(1)).unwrap();
        (folder, cache, image, index, bytes)
    }

    fn count(part: &Part) -> usize {
        part.present().iter().filter(|present| **present).count()
    }

    #[test]
    fn what_was_recorded_is_there_after_a_resume_and_nothing_else() {
        let (_folder, cache, image, index, bytes) = world();
        let part = Part::open(&cache, &image, &index, &|_| {}).unwrap();
        assert_eq!(count(&part), 0);
        for number in [0u32, 3, 4] {
            let at = number as usize * 1000;
            part.write(at as u64, &bytes[at..at + 1000]).unwrap();
        }
        part.record(&[0, 3]).unwrap();
        drop(part);
        assert_eq!(named(cache.folder(), &image, &index), 2000);
        let part = Part::open(&cache, &image, &index, &|_| {}).unwrap();
        assert_eq!((count(&part), part.present()[0], part.present()[3]), (2, true, true));
    }

    #[test]
    fn a_chunk_that_the_map_names_and_that_is_not_good_is_not_present() {
        let (_folder, cache, image, index, bytes) = world();
        let part = Part::open(&cache, &image, &index, &|_| {}).unwrap();
        part.write(0, &bytes[..1000]).unwrap();
        part.record(&[0, 7]).unwrap();
        drop(part);
        assert_eq!(count(&Part::open(&cache, &image, &index, &|_| {}).unwrap()), 1);
    }

    #[test]
    fn a_torn_map_is_mended_before_it_grows() {
        let (folder, cache, image, index, bytes) = world();
        let part = Part::open(&cache, &image, &index, &|_| {}).unwrap();
        part.write(0, &bytes[..2000]).unwrap();
        part.record(&[0]).unwrap();
        drop(part);
        let map = folder.path().join("partial").join(format!("{}.map", image.sha256));
        let mut file = OpenOptions::new().append(true).open(&map).unwrap();
        file.write_all(&[9, 9]).unwrap();
        Part::open(&cache, &image, &index, &|_| {}).unwrap().record(&[1]).unwrap();
        assert_eq!(count(&Part::open(&cache, &image, &index, &|_| {}).unwrap()), 2);
    }

    #[test]
    fn a_part_of_another_index_is_thrown_away() {
        let (_folder, cache, image, index, bytes) = world();
        let part = Part::open(&cache, &image, &index, &|_| {}).unwrap();
        part.write(0, &bytes[..1000]).unwrap();
        part.record(&[0]).unwrap();
        drop(part);
        let other = Image {
            chunk_index: FileRef {
                sha256: Digest::of(b"other"),
                size: 1,
            },
            ..image
        };
        assert_eq!(count(&Part::open(&cache, &other, &index, &|_| {}).unwrap()), 0);
    }

    #[test]
    fn a_corrupt_image_keeps_its_good_chunks() {
        let (_folder, cache, image, index, mut bytes) = world();
        bytes[5_500] ^= 1;
        std::fs::write(cache.image_path(image.sha256), &bytes).unwrap();
        Part::from_corrupt(&cache, &image, &index, &[5]).unwrap();
        assert!(!cache.image_path(image.sha256).exists());
        let part = Part::open(&cache, &image, &index, &|_| {}).unwrap();
        assert_eq!((count(&part), part.present()[5]), (9, false));
    }

    #[test]
    fn the_proof_of_another_file_commits_nothing() {
        let (_folder, cache, image, index, bytes) = world();
        let part = Part::open(&cache, &image, &index, &|_| {}).unwrap();
        let mut other = tempfile::tempfile().unwrap();
        other.write_all(&bytes).unwrap();
        let proof = verify_image(other, &index, &|_| {}).unwrap();
        assert!(part.commit(&cache, &proof).unwrap_err().to_string().contains("not the file"));
        assert!(!cache.image_path(image.sha256).exists());
    }

    #[test]
    fn a_finished_image_takes_its_place() {
        let (folder, cache, image, index, bytes) = world();
        let part = Part::open(&cache, &image, &index, &|_| {}).unwrap();
        part.write(0, &bytes).unwrap();
        let file = part.reopen().unwrap();
        let proof = verify_image(part.reopen().unwrap(), &index, &|_| {}).unwrap();
        part.commit(&cache, &proof).unwrap();
        assert_eq!(std::fs::read(cache.image_path(image.sha256)).unwrap(), bytes);
        assert!(file.write_all_at(b"x", 0).is_err(), "it is open for reading only");
        assert!(atomic::names(&folder.path().join("partial")).unwrap().is_empty());
    }
}
