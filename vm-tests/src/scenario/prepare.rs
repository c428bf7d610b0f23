//! Disks that are prepared at boot, and disks that must not be.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Scenario;
use crate::command::Tool;
use crate::disk::{Disk, FsType};
use crate::system::{Spec, System};
use crate::trial::{Boot, Trial};

/// The tests of this file.
pub const ALL: &[Scenario] = &[
    Scenario::new(
        "prepare",
        "a blank disk is prepared and mounted at its first boot, and left alone from then on",
        blank,
    ),
    Scenario::new(
        "prepare-cut",
        "a preparation that a power cut ended is gone on with at the next boot",
        cut,
    ),
    Scenario::new(
        "prepare-refused",
        "a disk that holds something is not prepared, and is the same byte for byte",
        refused,
    ),
];

const LIMIT: Duration = Duration::from_secs(60);

/// What makes the file system, and what looks whether there is none. A guest's initrd has no C library: theirs goes with them.
const PROGRAMS: [&str; 2] = ["mkfs.ext4", "blkid"];

fn config() -> Value {
    json!({
        "disks": { "main": {
            "device": "/dev/disk/by-id/virtio-disk1", "size": { "min": "128M", "max": "1G" }, "prepare": true,
            "partitions": [{ "name": "state", "size": "100%", "content": { "type": "filesystem", "format": "ext4", "label": "state" } }],
        } },
        "fileSystems": { "/persist": { "device": "/dev/disk/by-partlabel/disk-main-state", "fsType": "ext4", "options": ["nofail", "x-systemd.device-timeout=5s"] } },
    })
}

fn boot<'a>(trial: &'a Trial<'a>, cache: &Disk, disk: &Disk, system: &System) -> Result<Boot<'a>> {
    let boot = trial.boot().config(config()).disk(cache).disk(disk).system(system);
    Ok(programs()?.into_iter().fold(boot, |boot, (place, file)| boot.file(&place, &file)))
}

/// Places in the initrd, and files of the host.
fn programs() -> Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    let mut libraries = BTreeSet::new();
    for name in PROGRAMS {
        let file = ["/usr/sbin", "/sbin", "/usr/bin"].iter().map(|folder| Path::new(folder).join(name));
        let file = file
            .into_iter()
            .find(|file| file.is_file())
            .with_context(|| format!("there is no {name} (e2fsprogs, util-linux)"))?;
        let needed = Tool::new("ldd", LIMIT).arg(&file).text()?;
        libraries.extend(needed.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned));
        files.push((format!("/bin/{name}"), file));
    }
    files.extend(libraries.into_iter().map(|library| (library.clone(), PathBuf::from(library))));
    Ok(files)
}

fn digest(disk: &Disk) -> Result<String> {
    let text = Tool::new("sha256sum", LIMIT).arg(disk.path()).text()?;
    Ok(text.split_whitespace().next().unwrap_or_default().to_owned())
}

const WRITE: &str = "set -e; findmnt -n -o SOURCE /persist | grep -q '^/dev/vdb1'; echo kept >/persist/file";
const LOOK: &str = "set -e; grep -qx kept /persist/file";

fn blank(trial: &Trial<'_>) -> Result<()> {
    let cache = trial.filled_cache()?;
    let disk = Disk::blank(&trial.dir.join("blank.img"), 256)?;
    let system = trial.lab.system(Spec::generation(1))?;
    let booted = boot(trial, &cache, &disk, &system)?.script(WRITE).once("first")?;
    ensure!(booted.text("/disks/0/outcome") == "prepared", "report: {}", booted.report);
    let booted = boot(trial, &cache, &disk, &system)?.script(LOOK).once("second")?;
    ensure!(booted.text("/disks/0/outcome") == "unchanged", "report: {}", booted.report);
    let verified = Tool::new("sfdisk", LIMIT).arg("--verify").arg(disk.path()).text()?;
    ensure!(verified.contains("No errors detected"), "{verified}");
    Ok(())
}

fn cut(trial: &Trial<'_>) -> Result<()> {
    let cache = trial.filled_cache()?;
    let system = trial.lab.system(Spec::generation(1))?;
    // Each line is told before the step: where between two of them the power goes is the host's choice.
    for (number, line) in ["claim (sha256", "mkfs.ext4 -q", "header of the backup GPT", "zeros over the claim"]
        .iter()
        .enumerate()
    {
        let disk = Disk::blank(&trial.dir.join(format!("cut-{number}.img")), 256)?;
        let mut vm = boot(trial, &cache, &disk, &system)?.start(&format!("cut-{number}"))?;
        vm.wait_for(&[line])?;
        vm.cut_power()?;
        let booted = boot(trial, &cache, &disk, &system)?
            .script(WRITE)
            .once(&format!("again-{number}"))?;
        let outcome = booted.text("/disks/0/outcome");
        ensure!(["prepared", "unchanged"].contains(&outcome), "after «{line}»: {}", booted.report);
    }
    Ok(())
}

fn refused(trial: &Trial<'_>) -> Result<()> {
    let cache = trial.filled_cache()?;
    let disk = Disk::make(&trial.dir.join("data.img"), 256, FsType::Ext4, "precious")?;
    let before = digest(&disk)?;
    let system = trial.lab.system(Spec::generation(1))?;
    let look = "set -e; findmnt -n -o SOURCE /persist | grep -qx freshroot-missing";
    let booted = boot(trial, &cache, &disk, &system)?.script(look).once("boot")?;
    ensure!(booted.text("/disks/0/outcome") == "refused", "report: {}", booted.report);
    let detail = booted.text("/disks/0/detail");
    ensure!(
        detail.contains("it holds ext4 LABEL=precious") && detail.contains("/dev/vdb") && detail.contains("blkid sees"),
        "{detail}"
    );
    ensure!(digest(&disk)? == before, "the disk was written to");
    Ok(())
}
