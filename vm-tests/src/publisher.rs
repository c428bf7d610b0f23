//! The publishing side, as the tests use it: `freshroot-publish` on the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command::Tool;

/// Hashing, inspecting and copying an image of 650 MB, in a build that is not optimised.
const PUBLISH_LIMIT: Duration = Duration::from_secs(300);

/// A key pair in Nix's format.
#[derive(Debug, Clone)]
pub struct Key {
    secret: PathBuf,
    /// `name:base64`.
    pub public: String,
}

/// What a machine boots from.
#[derive(Debug, Clone, Copy)]
pub struct Bootable<'a> {
    /// The kernel.
    pub kernel: &'a Path,
    /// The initrd.
    pub initrd: &'a Path,
    /// Words for the command line.
    pub words: &'a str,
    /// More options of `image`.
    pub more: &'a [&'a str],
}

/// The program.
#[derive(Debug, Clone)]
pub struct Publisher {
    /// Where it was built.
    pub program: PathBuf,
}

impl Publisher {
    /// The key pair `name` in `dir`, made unless it is there.
    pub fn key(&self, dir: &Path, name: &str) -> Result<Key> {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let secret = dir.join(format!("{name}.secret"));
        let public = dir.join(format!("{name}.pub"));
        if !secret.exists() {
            self.tool().args(["keygen", name, "--out"]).arg(dir).run()?;
        }
        let public = fs::read_to_string(&public).with_context(|| format!("reading {}", public.display()))?;
        Ok(Key {
            secret,
            public: public.trim().to_owned(),
        })
    }

    /// Publishes `image` as the newest release of `channel` in the served folder `out`, signed with `key`.
    pub fn image(&self, image: &Path, out: &Path, channel: &str, key: &Key) -> Result<()> {
        self.tool()
            .arg("image")
            .arg(image)
            .arg("--out")
            .arg(out)
            .args(["--channel", channel, "--key"])
            .arg(&key.secret)
            .run()
    }

    /// As [`Publisher::image`], with what machines boot from: kernel, initrd, the words of their command line, and more options.
    pub fn bootable(&self, image: &Path, out: &Path, channel: &str, key: &Key, boot: &Bootable<'_>) -> Result<()> {
        self.tool()
            .arg("image")
            .arg(image)
            .arg("--out")
            .arg(out)
            .args(["--channel", channel, "--key"])
            .arg(&key.secret)
            .arg("--kernel")
            .arg(boot.kernel)
            .arg("--initrd")
            .arg(boot.initrd)
            .args(["--kernel-params", boot.words])
            .args(boot.more)
            .run()
    }

    /// Signs all that is published in `folder` with `new` too, in place of `old` where that is to go.
    pub fn rotate(&self, folder: &Path, new: &Key, old: &Key, drop_old: bool) -> Result<()> {
        let tool = self.tool().arg("rotate").arg(folder).arg("--key").arg(&new.secret);
        let tool = tool.args(["--old-public", &old.public]);
        tool.args(drop_old.then_some("--drop-old")).run()
    }

    /// Runs the program with `arguments` after the served folder: a command that keeps it.
    pub fn keep(&self, command: &str, folder: &Path, arguments: &[&str]) -> Result<()> {
        self.tool().arg(command).arg(folder).args(arguments).run()
    }

    fn tool(&self) -> Tool {
        Tool::new(&self.program.to_string_lossy(), PUBLISH_LIMIT)
    }
}

/// A served folder on the host.
#[derive(Debug, Clone)]
pub struct Served {
    dir: PathBuf,
}

impl Served {
    /// The folder at `dir`.
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Its path.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A copy of its own at `dir`, which shares the files' bytes: they are replaced, never written to.
    pub fn copy(&self, dir: &Path) -> Result<Self> {
        Tool::new("cp", PUBLISH_LIMIT).arg("-al").arg(&self.dir).arg(dir).run()?;
        Ok(Self::at(dir))
    }

    /// The manifest in the answer of `channel`.
    pub fn manifest(&self, channel: &str) -> Result<Value> {
        let path = self.answer(channel);
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let answer: Value = serde_json::from_slice(&bytes).with_context(|| format!("reading {}", path.display()))?;
        let text = answer
            .get("manifest")
            .and_then(Value::as_str)
            .context("the answer holds no manifest")?;
        serde_json::from_str(text).context("reading the manifest")
    }

    /// Digest and size of the image that `channel` offers.
    pub fn image(&self, channel: &str) -> Result<(String, u64)> {
        let manifest = self.manifest(channel)?;
        let digest = manifest
            .pointer("/image/sha256")
            .and_then(Value::as_str)
            .context("the manifest names no image")?;
        let size = manifest
            .pointer("/image/size")
            .and_then(Value::as_u64)
            .context("the manifest gives no size")?;
        Ok((digest.to_owned(), size))
    }

    /// The channel's answer.
    pub fn answer(&self, channel: &str) -> PathBuf {
        self.dir.join("channels").join(format!("{channel}.json"))
    }

    /// Replaces `file` by what `change` makes of it; the bytes that other copies share stay as they are.
    pub fn tamper(&self, file: &Path, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Result<()> {
        let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        fs::remove_file(file).with_context(|| format!("removing {}", file.display()))?;
        fs::write(file, change(bytes)).with_context(|| format!("writing {}", file.display()))
    }
}
