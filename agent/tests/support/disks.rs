//! Disks made of files, and entries to mount them by.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, bail};
use freshroot::mode::Mode;
use freshroot::mount::entry::{FileSystemEntry, MountEntry};
use freshroot::mount::loop_device::{LoopDevice, LoopOptions};
use freshroot::mount::mount_log::MountLog;
use freshroot::mount::order::order;
use freshroot::mount::persist::FoundDevice;
use freshroot::mount::system;
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountPropagationFlags, mount_change};

/// One test at a time: a child that another thread is just starting holds a copy of every descriptor until its exec, and keeps mounts busy.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Takes this thread into a mount name space of its own; its children come along.
pub fn private_mounts() -> MutexGuard<'static, ()> {
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(errno) = unshare(CloneFlags::CLONE_NEWNS) {
        panic!("this test needs root, to mount in a name space of its own: {errno}");
    }
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    guard
}

/// What the command prints; it has to succeed.
pub fn run(program: &str, args: &[&str]) -> String {
    match Command::new(program).args(args).output() {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
        Ok(output) => panic!(
            "{program} {args:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(err) => panic!("this test needs {program}: {err}"),
    }
}

/// A file as a loop device, which goes with its last user.
pub struct Disk {
    device: LoopDevice,
}

impl Disk {
    /// A file of so many MiB.
    pub fn file(dir: &Path, name: &str, megabytes: u64) -> PathBuf {
        let path = dir.join(name);
        File::create(&path).unwrap().set_len(megabytes << 20).unwrap();
        path
    }

    /// A file that is there, plugged in.
    pub fn plug(file: &Path) -> Self {
        Self::plug_as(file, false)
    }

    /// The same, also as a medium that takes no writes.
    pub fn plug_as(file: &Path, read_only: bool) -> Self {
        let file = File::options().read(true).write(true).open(file).unwrap();
        let options = LoopOptions {
            autoclear: true,
            read_only,
            ..LoopOptions::default()
        };
        Self {
            device: LoopDevice::attach(Path::new("/dev"), file.as_fd(), options).unwrap(),
        }
    }

    /// A new disk of so many MiB.
    pub fn new(dir: &Path, name: &str, megabytes: u64) -> Self {
        Self::plug(&Self::file(dir, name, megabytes))
    }

    /// Its device.
    pub fn path(&self) -> &Path {
        self.device.path()
    }

    /// The same as text.
    pub fn name(&self) -> &str {
        self.path().to_str().unwrap()
    }
}

/// A root with nothing but a tmpfs.
pub fn bare_root(dir: &Path) -> PathBuf {
    let sysroot = dir.join("sysroot");
    system::mount_root(&sysroot, &"16M".parse().unwrap(), &mut MountLog::new()).unwrap();
    sysroot
}

/// Entries of the standalone mode, in order.
pub fn entries(json: &str) -> Vec<MountEntry> {
    let entries: Vec<FileSystemEntry> = serde_json::from_str(json).unwrap();
    order(&entries, Mode::Standalone).unwrap()
}

/// Finds no device.
pub fn no_device(entry: &MountEntry) -> Result<FoundDevice> {
    bail!("no device «{}» within 1 s", entry.device().unwrap_or_default())
}

/// Finds devices by names of the test.
pub fn found_by(disks: &[(&str, &Disk)]) -> impl FnMut(&MountEntry) -> Result<FoundDevice> + use<> {
    let paths: BTreeMap<String, PathBuf> = disks
        .iter()
        .map(|(name, disk)| ((*name).to_owned(), disk.path().to_owned()))
        .collect();
    move |entry| {
        let name = entry.device().unwrap_or_default();
        Ok(FoundDevice {
            path: paths.get(name).with_context(|| format!("no device «{name}»"))?.clone(),
            ..FoundDevice::default()
        })
    }
}
