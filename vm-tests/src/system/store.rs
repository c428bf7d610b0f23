//! Store paths and the image: folders named as Nix names them, packed as NixOS packs them.

use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use sha2::{Digest as _, Sha256};

use crate::command::Tool;

/// Nix's base 32: no e, o, t, u.
const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";
/// Level 19 over 300 MB on two cores.
const PACK_LIMIT: Duration = Duration::from_secs(20 * 60);

/// One path of the demo store on the host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct StorePath {
    /// `<hash>-<name>`.
    pub base: String,
}

impl StorePath {
    /// The path that `name` made of `recipe` has: as with Nix, the hash is that of what went in, and not of what came out.
    pub fn of(name: &str, recipe: &[&[u8]]) -> Self {
        let mut hasher = Sha256::new();
        for part in [name.as_bytes()].iter().chain(recipe) {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let hash: String = hasher.finalize().iter().take(32).map(|byte| base32_digit(*byte)).collect();
        Self {
            base: format!("{hash}-{name}"),
        }
    }

    /// Where the running system sees it.
    pub fn in_guest(&self) -> String {
        format!("/nix/store/{}", self.base)
    }

    /// The 32 characters that tell store paths apart.
    pub fn hash(&self) -> &str {
        self.base.split_once('-').map_or("", |(hash, _)| hash)
    }
}

fn base32_digit(byte: u8) -> char {
    ALPHABET
        .get(usize::from(byte) % ALPHABET.len())
        .map_or('0', |digit| char::from(*digit))
}

/// The folder that holds the paths of all generations.
#[derive(Debug)]
pub struct Staging {
    dir: PathBuf,
}

impl Staging {
    /// Uses `dir`, which is made if it is not there.
    pub fn new(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Where `path` lies on the host.
    pub fn host(&self, path: &StorePath) -> PathBuf {
        self.dir.join(&path.base)
    }

    /// Makes `path` by way of `build`, unless it is there already.
    pub fn add(&self, path: &StorePath, build: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        crate::workspace::once(&self.host(path), |making| {
            build(making)?;
            // As in a Nix store: everything is from the first second of 1970.
            Tool::new("find", Duration::from_secs(60))
                .arg(making)
                .args(["-exec", "touch", "-h", "-d", "@1", "{}", "+"])
                .run()
        })
    }

    /// Packs `paths` (and their registration) into the image `out` with the flags of NixOS's `make-squashfs.nix`, at zstd `level`.
    /// The same paths give the same bytes.
    pub fn pack(&self, paths: &[StorePath], level: u32, out: &Path) -> Result<()> {
        let mut paths: Vec<&StorePath> = paths.iter().collect();
        paths.sort();
        let registration = tempfile::tempdir_in(self.dir.parent().unwrap_or(&self.dir)).context("making a folder for the registration")?;
        let file = registration.path().join("nix-path-registration");
        fs::write(&file, registration_of(&paths)).with_context(|| format!("writing {}", file.display()))?;
        File::open(&file)
            .and_then(|opened| opened.set_times(FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1))))
            .with_context(|| format!("setting the time of {}", file.display()))?;
        let making = out.with_extension("making");
        Tool::new("mksquashfs", PACK_LIMIT)
            .arg(&file)
            .args(paths.iter().map(|path| self.host(path)))
            .arg(&making)
            .args([
                "-no-hardlinks",
                "-keep-as-directory",
                "-all-root",
                "-b",
                "1048576",
                "-comp",
                "zstd",
                "-Xcompression-level",
            ])
            .arg(level.to_string())
            .args(["-root-mode", "0755", "-noappend", "-no-progress", "-quiet"])
            // The time in the superblock; nixpkgs' builders have this one.
            .env("SOURCE_DATE_EPOCH", "315532800")
            .run()?;
        fs::rename(&making, out).with_context(|| format!("renaming {} to {}", making.display(), out.display()))
    }
}

/// What `nix-store --load-db` reads: path, NAR hash, NAR size, deriver, number of references, references.
/// Nothing in the demo system loads it, so hash and size are those of nothing.
fn registration_of(paths: &[&StorePath]) -> String {
    let hash = "0".repeat(64);
    paths.iter().map(|path| format!("{}\n{hash}\n0\n\n0\n", path.in_guest())).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_store_path_looks_like_one_of_nix_and_depends_on_what_went_in() {
        let one = StorePath::of("demo", &[b"a", b"b"]);
        assert_eq!(one.hash().len(), 32);
        assert!(one.hash().bytes().all(|byte| ALPHABET.contains(&byte)));
        assert_eq!(one.in_guest(), format!("/nix/store/{}-demo", one.hash()));
        assert_eq!(one, StorePath::of("demo", &[b"a", b"b"]));
        assert_ne!(one, StorePath::of("demo", &[b"ab", b""]));
        assert_ne!(one.hash(), StorePath::of("other", &[b"a", b"b"]).hash());
    }

    #[test]
    fn the_same_paths_give_the_same_image() {
        let temp = tempfile::tempdir().unwrap();
        let mut images = Vec::new();
        for run in ["one", "two"] {
            let staging = Staging::new(&temp.path().join(run)).unwrap();
            let paths: Vec<StorePath> = ["x", "y"].iter().map(|name| StorePath::of(name, &[])).collect();
            for path in &paths {
                staging.add(path, |dir| Ok(fs::write(dir.join("file"), "content")?)).unwrap();
            }
            let image = temp.path().join(format!("{run}.squashfs"));
            staging.pack(&paths, 1, &image).unwrap();
            images.push(fs::read(image).unwrap());
        }
        assert!(images[0].starts_with(b"hsqs"));
        assert!(images[0] == images[1], "the images differ");
    }
}
