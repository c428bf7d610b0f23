//! Makes the seeds: small inputs from which the fuzzers set out, made of real samples.
//!
//! Formats of others are written by their own tools: file systems by `mkfs`, tables by `sfdisk`, DHCP by dnsmasq, netlink by the kernel. Texts of
//! ours are those of the golden tests. What is made differs from run to run (UUIDs, times); seeds that are there are replaced only by who asks for it.

mod disks;
mod network;
mod texts;

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Makes all seeds below `folder`: a folder for each target, a file for each seed.
///
/// # Errors
/// A tool that is missing or fails, by name; network namespaces want root.
pub fn make(folder: &Path) -> Result<()> {
    let mut sink = Sink { folder };
    texts::trust(&mut sink)?;
    texts::downloads(&mut sink)?;
    texts::settings(&mut sink)?;
    texts::words(&mut sink)?;
    texts::kernel(&mut sink)?;
    texts::publishing(&mut sink)?;
    disks::file_systems(&mut sink)?;
    disks::tables(&mut sink)?;
    network::netlink(&mut sink)?;
    network::dhcp(&mut sink)
}

/// Where seeds go.
struct Sink<'a> {
    folder: &'a Path,
}

impl Sink<'_> {
    fn put(&mut self, target: &str, name: &str, bytes: impl AsRef<[u8]>) -> Result<()> {
        let folder = self.folder.join(target);
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let path = folder.join(name);
        fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))
    }
}

/// Runs a line of shell; what it prints.
fn shell(line: &str) -> Result<String> {
    let output = Command::new("sh")
        .env("LC_ALL", "C.UTF-8")
        .args(["-ec", line])
        .output()
        .context("starting a shell")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "«{line}» failed, is its package of vm-tests/packages.txt installed? {errors}"
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
