//! Disks with partition tables, and how their file systems are found by the names that disko gives them.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use freshroot::device::name::DeviceName;
use freshroot::device::{wait_for, wait_for_members};
use freshroot::mount::entry::MountEntry;
use freshroot::mount::persist::FoundDevice;
use freshroot::uevent::Socket;

use super::disks::{Disk, run};

/// A disk with partitions, which goes when this is dropped.
pub struct Partitioned {
    device: String,
}

impl Partitioned {
    /// `table` is `gpt` or `dos`, `names` are those of its partitions, of 40, 320 or 140 MiB.
    pub fn new(dir: &Path, disk: &str, table: &str, names: &[(&str, u64)]) -> Self {
        let size: u64 = names.iter().map(|(_, size)| size).sum();
        let file = Disk::file(dir, disk, size + 8);
        let mut script = format!("label: {table}\n");
        for (name, size) in names {
            let name = if table == "gpt" {
                format!(", name=\"{name}\"")
            } else {
                String::new()
            };
            writeln!(script, "size={size}MiB{name}").unwrap();
        }
        let mut sfdisk = Command::new("sfdisk")
            .arg("--quiet")
            .arg(&file)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut sfdisk.stdin.take().unwrap(), script.as_bytes()).unwrap();
        assert!(sfdisk.wait().unwrap().success());
        let device = run("losetup", &["--find", "--show", "--partscan", file.to_str().unwrap()]);
        // A kernel may be built without the formats of partition tables; then it is told.
        run("partx", &["--update", device.trim()]);
        Self {
            device: device.trim().to_owned(),
        }
    }

    pub fn partition(&self, number: u32) -> String {
        format!("{}p{number}", self.device)
    }
}

impl Drop for Partitioned {
    fn drop(&mut self) {
        let detached = Command::new("losetup").args(["--detach", &self.device]).status();
        assert!(
            detached.is_ok_and(|status| status.success()) || std::thread::panicking(),
            "{} is left behind",
            self.device
        );
    }
}

/// As the boot finds it, but without waiting.
pub fn find(entry: &MountEntry, events: &mut Socket) -> Result<FoundDevice> {
    let name: DeviceName = entry.device().context("no device")?.parse()?;
    let soon = Instant::now() + Duration::from_millis(20);
    let device = wait_for(Path::new("/"), &name, soon, events, &mut |_| {})?;
    device.mountable()?;
    let members = wait_for_members(Path::new("/"), &device, soon, events, &mut |_| {})?;
    Ok(FoundDevice {
        identities: Vec::new(),
        fs_type: device.content.signature().map(|signature| signature.kind.name().to_owned()),
        path: device.path,
        members: match members.as_slice() {
            [_] => Vec::new(),
            members => members.iter().map(|member| member.path.clone()).collect(),
        },
        check_by: Some(PathBuf::from("/")),
        mounted_at: None,
    })
}
