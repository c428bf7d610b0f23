//! A published world in memory: an image in nine chunks, its index, its manifest and a signed release. And what a cache looks like.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use freshroot::cache::Cache;
use freshroot::cache::part::Part;
use freshroot::digest::Digest;
use freshroot::formats::authorised::Trust;
use freshroot::formats::chunk_index::ChunkIndex;
use freshroot::formats::envelope::Envelope;
use freshroot::formats::generation::Generation;
use freshroot::formats::key::SecretKey;
use freshroot::formats::manifest::{FileRef, Image};
use freshroot::verify::verify_image;
use serde_json::json;

/// Length of all chunks but the last.
pub const CHUNK: usize = 64 << 10;
/// Chunks of an image.
pub const CHUNKS: usize = 9;
/// Length of an image: the last chunk is a short one.
pub const SIZE: usize = (CHUNKS - 1) * CHUNK + 1234;

/// One generation, as its publisher holds it.
#[derive(Clone)]
pub struct World {
    /// The image's bytes.
    pub bytes: Vec<u8>,
    /// The image, as the manifest describes it.
    pub image: Image,
    /// Its chunk index.
    pub index: ChunkIndex,
    /// The manifest's text.
    pub manifest: String,
    /// The signed release.
    pub release: Envelope,
}

/// The key that machines trust.
pub fn key() -> SecretKey {
    SecretKey::from_seed("test-1", &[1; 32]).unwrap()
}

/// Trust in [`key`] alone.
pub fn trust() -> Trust {
    Trust {
        keys: vec![key().public()],
        ..Trust::default()
    }
}

/// A release of a manifest, signed by `key`.
pub fn release(manifest: &str, serial: u64, key: &SecretKey) -> Envelope {
    let payload = json!({
        "version": 1, "channel": "stable", "serial": serial, "created": 1_700_000_000u64, "notAfter": 4_000_000_000u64,
        "manifest": Digest::of(manifest.as_bytes()),
    });
    let mut envelope = Envelope::unsigned(payload.to_string().as_bytes());
    envelope.sign(key).unwrap();
    envelope
}

/// What looks like an image, another one for each serial.
fn noise(serial: u64, size: usize) -> Vec<u8> {
    let mut state = serial.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
    .take(size)
    .collect();
    bytes[..4].copy_from_slice(b"hsqs");
    bytes
}

fn toplevel(serial: u64) -> String {
    format!("/nix/store/0c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-nixos-system-{serial}")
}

impl World {
    /// The world of a serial: each has another image.
    pub fn new(serial: u64) -> Self {
        Self::of(noise(serial, SIZE), serial, &toplevel(serial), "6.6.1")
    }

    /// With an image of `size` bytes in chunks of `chunk`.
    #[allow(dead_code, reason = "for transfers of several ranges")]
    pub fn sized(serial: u64, chunk: usize, size: usize) -> Self {
        Self::cut(noise(serial, size), chunk, serial, &toplevel(serial), "6.6.1")
    }

    /// The world of an image that holds this system, for a kernel of this release.
    pub fn of(bytes: Vec<u8>, serial: u64, toplevel: &str, kernel: &str) -> Self {
        Self::cut(bytes, CHUNK, serial, toplevel, kernel)
    }

    fn cut(bytes: Vec<u8>, chunk: usize, serial: u64, toplevel: &str, kernel: &str) -> Self {
        let index = ChunkIndex::new(bytes.chunks(chunk).map(|chunk| (chunk.len() as u32, Digest::of(chunk)))).unwrap();
        let index_bytes = index.to_bytes();
        let image = Image {
            sha256: Digest::of(&bytes),
            size: bytes.len() as u64,
            chunk_index: FileRef {
                sha256: Digest::of(&index_bytes),
                size: index_bytes.len() as u64,
            },
            verity: None,
            zstd: None,
        };
        let manifest = json!({
            "version": 1,
            "systems": [{"name": "default", "toplevel": toplevel, "initKind": "prepare-root"}],
            "kernel": {"storeName": "2c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-linux-6.6", "release": kernel},
            "kernelParams": [],
            "image": image,
        })
        .to_string();
        let release = release(&manifest, serial, &key());
        Self {
            bytes,
            image,
            index,
            manifest,
            release,
        }
    }

    /// The generation that a machine keeps of it.
    pub fn generation(&self, sequence: u64) -> Generation {
        Generation {
            version: 1,
            release: Some(self.release.clone()),
            manifest: self.manifest.clone(),
            sequence,
            accepted: 1_700_000_000,
            source: "http://test/channels/stable.json".to_owned(),
            etag: None,
        }
    }

    /// The bytes of a chunk.
    pub fn chunk(&self, number: usize) -> &[u8] {
        &self.bytes[number * CHUNK..SIZE.min((number + 1) * CHUNK)]
    }

    /// Writes these chunks to the partial image and names them in the map, as an interrupted download does.
    pub fn begin(&self, cache: &Cache, chunks: &[usize]) {
        let part = Part::open(cache, &self.image, &self.index, &|_| {}).unwrap();
        for number in chunks {
            part.write((number * CHUNK) as u64, self.chunk(*number)).unwrap();
            part.record(&[*number as u32]).unwrap();
        }
    }

    /// Puts the whole generation into a cache, without a network.
    pub fn install(&self, cache: &Cache, sequence: u64) {
        cache.commit_chunk_index(self.image.sha256, &self.index.to_bytes()).unwrap();
        let part = Part::open(cache, &self.image, &self.index, &|_| {}).unwrap();
        part.write(0, &self.bytes).unwrap();
        let proof = verify_image(part.reopen().unwrap(), &self.index, &|_| {}).unwrap();
        part.commit(cache, &proof).unwrap();
        cache.commit_generation(&self.generation(sequence)).unwrap();
    }
}

/// Opens a cache that nobody else holds.
pub fn open(folder: &Path) -> Cache {
    Cache::open(folder, Instant::now() + Duration::from_secs(5)).unwrap()
}

/// Every file in `images/` and `generations/`, with its bytes.
pub fn kept(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for name in ["images", "generations"] {
        for entry in fs::read_dir(folder.join(name)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(folder).unwrap().display().to_string();
            files.insert(name, fs::read(&path).unwrap());
        }
    }
    files
}

/// Bytes of the image that are there and verified: all of it, or those of a part. Looks without making anything.
#[allow(dead_code, reason = "for those who measure")]
pub fn present_bytes(cache: &Cache, world: &World) -> usize {
    if fs::read(cache.image_path(world.image.sha256)).is_ok_and(|bytes| bytes == world.bytes) {
        return world.bytes.len();
    }
    let partial = cache.folder().join("partial");
    let there = |end: &str| partial.join(format!("{}.{end}", world.image.sha256)).exists();
    if !(there("part") && there("map")) {
        return 0;
    }
    let part = Part::open(cache, &world.image, &world.index, &|_| {}).unwrap();
    let chunks = world.index.chunks().iter().zip(part.present());
    chunks
        .filter(|(_, present)| **present)
        .map(|(chunk, _)| chunk.length as usize)
        .sum()
}

/// How many chunks a partial image holds that are verified.
pub fn present(cache: &Cache, world: &World) -> usize {
    let part = Part::open(cache, &world.image, &world.index, &|_| {}).unwrap();
    part.present().iter().filter(|present| **present).count()
}
