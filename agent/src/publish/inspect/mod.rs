//! Looking into an image that is about to be published.
//!
//! libsquashfs, and the crate above it, abort on some corrupt images. So the look is taken by a child process, this very program with the hidden
//! subcommand [`SUBCOMMAND`]: its end, whatever it is, becomes an error of ours.

mod look;
mod resolve;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::formats::manifest::InitKind;
use crate::store_path::StorePath;

/// The subcommand by which the program calls itself.
pub const SUBCOMMAND: &str = "inspect-image";
/// A look reads some folders and links: a second is long, unless the disk is very busy. A corrupt image may make the child loop.
const TIME_LIMIT: Duration = Duration::from_secs(120);
/// Hundreds of systems with long names fit.
const OUTPUT_LIMIT: u64 = 4 << 20;
/// Of the child's own words, which become a part of an error.
const WORDS_LIMIT: u64 = 4 << 10;

/// What an image holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// At least one system, in the order of the names in the image.
    pub systems: Vec<Found>,
    /// Whether `nix-path-registration` stands at the root.
    pub registration: bool,
}

/// A system in an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Its toplevel.
    pub toplevel: StorePath,
    /// How it is started.
    pub init_kind: InitKind,
    /// First component of the kernel's store path.
    pub kernel_store_name: String,
    /// As `uname -r` says it: the name of the one folder in `kernel-modules/lib/modules`.
    pub kernel_release: String,
    /// Those that are store paths of the image.
    pub specialisations: Vec<Specialisation>,
}

/// A specialisation of a system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Specialisation {
    /// Its name in `<toplevel>/specialisation`.
    pub name: String,
    /// Its toplevel.
    pub toplevel: StorePath,
}

/// Looks into `image`, in a child process of `program` (`freshroot-publish` itself).
///
/// # Errors
/// No squashfs, cut short, corrupt, or without what a system needs; each by name.
pub fn inspect(program: &Path, image: &Path) -> Result<Contents> {
    inspect_within(program, image, TIME_LIMIT)
}

fn inspect_within(program: &Path, image: &Path, limit: Duration) -> Result<Contents> {
    let shown = image.display();
    check_superblock(image).with_context(|| format!("looking into {shown}"))?;
    let mut child = Command::new(program)
        .arg(SUBCOMMAND)
        .arg(image)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {} to look into {shown}", program.display()))?;
    let (output, words) = outcome(&mut child, limit).with_context(|| format!("looking into {shown}"))?;
    let status = child.wait().context("waiting for the look into the image")?;
    if let Some(signal) = status.signal() {
        bail!("{shown} is corrupt: libsquashfs was ended by signal {signal} while it looked into the image; make the image again");
    }
    if !status.success() {
        // A panic ends with 101 and says where in the sources; ours ends with 1 and a sentence.
        if status.code() == Some(1) {
            bail!("{shown}: {}", words.trim());
        }
        bail!("{shown} is corrupt: libsquashfs gave up while it looked into the image; make the image again");
    }
    serde_json::from_str(&output).with_context(|| format!("reading what was found in {shown}"))
}

/// Reads what the child says until it closes its end; kills one that takes too long or says too much.
fn outcome(child: &mut Child, limit: Duration) -> Result<(String, String)> {
    let stdout = child.stdout.take().context("the child's output is not a pipe")?;
    let stderr = child.stderr.take().context("the child's messages are not a pipe")?;
    let (done, finished) = mpsc::channel();
    std::thread::scope(|scope| {
        let words = scope.spawn(move || {
            let mut words = Vec::new();
            let mut stderr = stderr;
            let read = (&mut stderr).take(WORDS_LIMIT).read_to_end(&mut words);
            // The rest is read and dropped, so that the child never waits for us.
            read.and_then(|_| std::io::copy(&mut stderr, &mut std::io::sink())).map(|_| words)
        });
        let output = scope.spawn(move || {
            let mut output = Vec::new();
            let read = stdout.take(OUTPUT_LIMIT + 1).read_to_end(&mut output);
            if done.send(()).is_err() {
                log::debug!("the look into the image was given up before it ended");
            }
            read.map(|_| output)
        });
        let late = finished.recv_timeout(limit).is_err();
        if late {
            child.kill().context("ending the look into the image")?;
        }
        let gone = |_| anyhow::anyhow!("a thread that read the child's words failed");
        let output = output.join().map_err(gone)?.context("reading what the look into the image found")?;
        if output.len() as u64 > OUTPUT_LIMIT {
            child.kill().context("ending the look into the image")?;
        }
        let words = words
            .join()
            .map_err(gone)?
            .context("reading the messages of the look into the image")?;
        ensure!(
            !late,
            "it took more than {} s: the image is corrupt, or the disk does not answer",
            limit.as_secs()
        );
        ensure!(
            output.len() as u64 <= OUTPUT_LIMIT,
            "what was found in the image is more than {OUTPUT_LIMIT} bytes"
        );
        Ok((
            String::from_utf8_lossy(&output).into_owned(),
            String::from_utf8_lossy(&words).into_owned(),
        ))
    })
}

/// The child's entry: prints the contents as JSON.
pub fn child(image: &Path) -> Result<()> {
    // A corrupt image may abort this process: that is expected, and no core dump is wanted of it.
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0).context("switching core dumps off")?;
    let contents = look::look(image)?;
    let mut stdout = std::io::stdout().lock();
    serde_json::to_writer(&mut stdout, &contents).context("printing what was found")?;
    stdout.flush().context("printing what was found")
}

/// What can be told from the first 96 bytes (`Documentation/filesystems/squashfs.rst` of Linux): the magic, and that nothing is missing at the end.
fn check_superblock(image: &Path) -> Result<()> {
    let mut file = File::open(image).context("opening it")?;
    let metadata = file.metadata().context("reading its size")?;
    ensure!(metadata.is_file(), "it is not a regular file");
    let mut superblock = [0; 96];
    let whole = file.read_exact(&mut superblock);
    ensure!(whole.is_ok() && superblock.starts_with(b"hsqs"), "it is not a squashfs image");
    let mut bytes_used = [0; 8];
    bytes_used.copy_from_slice(&superblock[0x28..0x30]);
    let bytes_used = u64::from_le_bytes(bytes_used);
    ensure!(
        bytes_used <= metadata.len(),
        "it is cut short: its superblock speaks of {bytes_used} bytes, the file has {}",
        metadata.len()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// What becomes of a child that does `body`.
    fn outcome_of(body: &str, limit: Duration) -> String {
        let folder = tempfile::tempdir().unwrap();
        let (program, image) = (folder.path().join("program"), folder.path().join("image"));
        crate::publish::testing::script(&program, body);
        let mut superblock = [0; 96];
        superblock[..4].copy_from_slice(b"hsqs");
        std::fs::write(&image, superblock).unwrap();
        format!("{:#}", inspect_within(&program, &image, limit).unwrap_err())
    }

    #[test]
    fn however_the_child_ends_it_is_an_error_that_says_so() {
        let long = Duration::from_secs(60);
        for (body, limit, words) in [
            ("kill -ABRT $$", long, "is corrupt: libsquashfs was ended by signal 6"),
            ("exit 101", long, "is corrupt: libsquashfs gave up"),
            ("echo no toplevel >&2; exit 1", long, "image: no toplevel"),
            ("echo nonsense", long, "reading what was found"),
            ("exec sleep 60", Duration::from_secs(1), "it took more than 1 s"),
            ("exec yes", long, "is more than"),
        ] {
            let error = outcome_of(body, limit);
            assert!(error.contains(words), "{body}: {error}");
        }
    }
}
