//! Images of any size that `freshroot-publish` takes, and the folders that it makes of them.

use std::fs::{self, File};
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::publisher::{Key, Publisher, Served};
use crate::system::store::{Staging, StorePath};
use crate::workspace::once;

/// The channel of all images here.
pub const CHANNEL: &str = "lab";
const HOUR: Duration = Duration::from_secs(3600);
const PIECE: usize = 1 << 16;

/// How large an image is, without the little that is not filler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Size {
    /// 0.2 MB: what matters is not the transfer.
    Tiny,
    /// 1.2 MB: half a minute at 256 kbit/s.
    Small,
    /// 4 MB.
    Medium,
    /// 16 MB.
    Large,
}

impl Size {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Tiny, Self::Small, Self::Medium, Self::Large];

    const fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Small => "small",
            Self::Medium => "medium",
            Self::Large => "large",
        }
    }

    const fn filler(self) -> usize {
        match self {
            Self::Tiny => 200_000,
            Self::Small => 1_200_000,
            Self::Medium => 4_000_000,
            Self::Large => 16_000_000,
        }
    }
}

/// A served folder, and the image that its channel offers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Offer {
    /// The folder.
    pub dir: PathBuf,
    /// Of the image.
    pub digest: String,
    /// Of the image, in bytes.
    pub size: u64,
}

impl Offer {
    /// The image's path in the folder and on servers.
    pub fn path(&self) -> String {
        format!("images/{}.squashfs", self.digest)
    }
}

/// The folder in which the channel offers generation 1 or 2 of an image of `size`, made unless it is there. Nothing in the second one is in the first.
pub fn offer(vm: &Path, publisher: &Publisher, key: &Key, size: Size, generation: u32) -> Result<Offer> {
    let place = vm.join("links");
    fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
    let dir = place.join(format!("{}-{generation}", size.name()));
    let before = match generation {
        1 => None,
        _ => Some(offer(vm, publisher, key, size, generation - 1)?),
    };
    once(&dir, |making| {
        if let Some(before) = before {
            fs::remove_dir(making).with_context(|| format!("removing {}", making.display()))?;
            Served::at(&before.dir).copy(making)?;
        }
        let work = tempfile::tempdir_in(&place).context("making a folder for an image")?;
        let image = work.path().join("image.squashfs");
        pack(work.path(), size, generation, &image)?;
        publisher.image(&image, making, CHANNEL, key)?;
        // nginx's entity tags are made of time and length: two publications in one second would be the same to it. Nobody publishes that fast but us.
        let (answer, later) = (Served::at(making).answer(CHANNEL), Duration::from_secs(u64::from(generation) * 60));
        File::options()
            .append(true)
            .open(&answer)
            .and_then(|file| file.set_modified(SystemTime::now() - HOUR + later))
            .with_context(|| format!("setting the time of {}", answer.display()))
    })?;
    let (digest, size) = Served::at(&dir).image(CHANNEL)?;
    Ok(Offer { dir, digest, size })
}

/// The least that the publishing side takes for a system, and filler that nothing compresses.
fn pack(work: &Path, size: Size, generation: u32, image: &Path) -> Result<()> {
    let staging = Staging::new(&work.join("store"))?;
    let number = generation.to_le_bytes();
    let path = |name: &str, parts: &[&[u8]]| StorePath::of(name, parts);
    let linux = path("linux-6.1", &[]);
    let modules = path("linux-6.1-modules", &[]);
    let filler = path("filler", &[size.name().as_bytes(), &number]);
    let toplevel = path(&format!("nixos-system-{}-{generation}", size.name()), &[&number]);
    staging.add(&linux, |dir| write(dir, "bzImage", b"kernel"))?;
    staging.add(&modules, |dir| write(dir, "lib/modules/6.1.0/modules.dep", b""))?;
    staging.add(&filler, |dir| {
        fill(&dir.join("filler"), size.filler(), &[size.name().as_bytes(), &number].concat())
    })?;
    staging.add(&toplevel, |dir| {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        write(dir, "init", b"#! /bin/sh\n")?;
        fs::set_permissions(dir.join("init"), fs::Permissions::from_mode(0o555)).context("making init executable")?;
        symlink(format!("{}/bzImage", linux.in_guest()), dir.join("kernel")).context("linking the kernel")?;
        symlink(modules.in_guest(), dir.join("kernel-modules")).context("linking the modules")
    })?;
    staging.pack(&[linux, modules, filler, toplevel], 1, image)
}

fn write(dir: &Path, path: &str, bytes: &[u8]) -> Result<()> {
    let path = dir.join(path);
    let parent = path.parent().context("a file without a folder")?;
    fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))
}

/// Bytes that look like chance, and are the same each time: digests of a counter.
fn fill(path: &Path, length: usize, seed: &[u8]) -> Result<()> {
    let mut file = std::io::BufWriter::new(File::create(path).with_context(|| format!("making {}", path.display()))?);
    for number in 0..length.div_ceil(32) as u64 {
        let digest = Sha256::new().chain_update(seed).chain_update(number.to_le_bytes()).finalize();
        file.write_all(&digest).with_context(|| format!("writing {}", path.display()))?;
    }
    file.flush().with_context(|| format!("writing {}", path.display()))
}

/// The digest of all that can be read, in hexadecimal.
pub fn digest(mut from: impl Read) -> Result<String> {
    let (mut hasher, mut piece) = (Sha256::new(), vec![0; PIECE]);
    loop {
        let length = from.read(&mut piece).context("reading what is hashed")?;
        if length == 0 {
            return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        hasher.update(piece.get(..length).unwrap_or_default());
    }
}
