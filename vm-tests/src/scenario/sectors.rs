//! Disks with sectors of 4096 bytes, and disks on USB and SATA, are prepared.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Scenario;
use super::zoo::disks::{from_medium, medium};
use crate::command::Tool;
use crate::disk::Disk;
use crate::qemu::Bus;
use crate::trial::{Boot, Booted, Trial};

/// The tests of this file.
pub const ALL: &[Scenario] = &[Scenario::new(
    "prepare-4096",
    "blank disks with sectors of 4096 bytes, and disks on USB and SATA, are prepared, kept, and grown; one with a backup GPT alone is refused",
    prepared,
)
.nightly()];

const SECTOR: u32 = 4096;
const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);
/// MiB of the first disk, and of what it is larger by at its second boot.
const MAIN: u64 = 160;
const LARGER: u64 = 100;
/// MiB of the second disk: an XFS needs 300.
const WIDE: u64 = 320;

/// Four blank disks; `old` is there at the second boot.
fn config(with_old: bool) -> Value {
    let disk = |device: &str, partitions: Value| json!({ "device": device, "size": { "min": "100M", "max": "1G" }, "prepare": true, "partitions": partitions });
    let one = |format: &str| json!([{ "name": "data", "size": "100%", "content": { "type": "filesystem", "format": format } }]);
    let crypt = json!({
        "type": "luks", "name": "state", "settings": { "keyFile": "/etc/keys/disks" },
        "extraFormatArgs": ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"],
        "content": { "type": "filesystem", "format": "ext4" },
    });
    let mut main = disk(
        "/dev/disk/by-id/virtio-main",
        json!([
            // So small that an ext4 has blocks of 1024 bytes, where the sectors allow it.
            { "name": "keys", "size": "8M", "content": { "type": "filesystem", "format": "ext4" } },
            { "name": "crypt", "size": "100%", "content": crypt },
        ]),
    );
    main["grow"] = json!(true);
    let mut config = from_medium();
    config["disks"] = json!({
        "main": main,
        "wide": disk("/dev/disk/by-id/virtio-wide", one("xfs")),
        "stick": disk("/dev/disk/by-id/usb-QEMU_QEMU_HARDDISK_USB1-0:0", one("ext4")),
        "sata": disk("/dev/disk/by-id/ata-QEMU_HARDDISK_SATA1", one("ext4")),
    });
    if with_old {
        config["disks"]["old"] = disk("serial=old", one("ext4"));
    }
    config["luks"] = json!({ "state": { "device": "/dev/disk/by-partlabel/disk-main-crypt", "keyFile": "/etc/keys/disks" } });
    let on = |device: &str, format: &str| json!({ "device": device, "fsType": format, "options": [], "timeout": 60 });
    config["fileSystems"] = json!({
        "/keys": on("/dev/disk/by-partlabel/disk-main-keys", "ext4"),
        "/state": on("/dev/mapper/state", "ext4"),
        "/wide": on("/dev/disk/by-partlabel/disk-wide-data", "xfs"),
        "/stick": on("/dev/disk/by-partlabel/disk-stick-data", "ext4"),
        "/sata": on("/dev/disk/by-partlabel/disk-sata-data", "ext4"),
    });
    config
}

/// A script that fails unless the disks are what they are to be, and udev means the same partitions by their labels.
const SAME: &str = "set -e
    sector() { cat /sys/class/block/$(lsblk -n -s -l -o NAME,TYPE $1 | awk '$2 == \"disk\" { print $1 }')/queue/logical_block_size; }
    source() { findmnt -n -o SOURCE $1; }
    lsblk -o NAME,TRAN,LOG-SEC,PHY-SEC,SIZE,FSTYPE,MOUNTPOINTS
    for place in /keys /state /wide; do test $(sector $(source $place)) = 4096; done
    for place in /stick /sata; do test $(sector $(source $place)) = 512; done
    lsblk -n -s -o TYPE $(source /state) | grep -qw crypt
    for one in keys:main-keys wide:wide-data stick:stick-data sata:sata-data; do test $(source /${one%:*}) = $(readlink -f /dev/disk/by-partlabel/disk-${one#*:}); done
";

fn outcome<'a>(booted: &'a Booted, name: &str) -> Result<&'a Value> {
    let reports = booted.report["disks"].as_array();
    let report = reports.and_then(|reports| reports.iter().find(|report| report["name"] == name));
    report.with_context(|| format!("{name} is not in the report: {}", booted.report))
}

fn expect(booted: &Booted, outcomes: &[(&str, &str)]) -> Result<()> {
    for (name, outcome_of) in outcomes {
        let report = outcome(booted, name)?;
        ensure!(report["outcome"] == *outcome_of, "{name}: {report}");
    }
    Ok(())
}

/// What fdisk says of the table, whose sectors it cannot know of a file.
fn table_is_sound(disk: &Disk) -> Result<()> {
    let input = disk.path().with_extension("fdisk");
    fs::write(&input, "v\nq\n").with_context(|| format!("writing {}", input.display()))?;
    let opened = fs::File::open(&input).with_context(|| format!("opening {}", input.display()))?;
    let tool = Tool::new("fdisk", LIMIT).arg("-b").arg(disk.sector_bytes().to_string());
    let said = tool.arg(disk.path()).env("LC_ALL", "C").stdin(opened).text()?;
    ensure!(said.contains("No errors detected"), "{}: {said}", disk.path().display());
    Ok(())
}

/// A disk that has nothing but the end of `whole`: the backup of a table.
fn backup_alone(trial: &Trial<'_>, whole: &Disk, mebibytes: u64) -> Result<Disk> {
    let disk = Disk::blank(&trial.dir.join("old.img"), mebibytes)?;
    let mut end = vec![0; usize::try_from(MIB)?];
    let from = fs::File::open(whole.path()).with_context(|| format!("opening {}", whole.path().display()))?;
    from.read_exact_at(&mut end, (mebibytes - 1) * MIB)
        .context("reading the end of a disk")?;
    let to = fs::File::options().write(true).open(disk.path());
    to.and_then(|to| to.write_all_at(&end, (mebibytes - 1) * MIB))
        .with_context(|| format!("writing to {}", disk.path().display()))?;
    Ok(disk.sector_size(SECTOR))
}

fn prepared(trial: &Trial<'_>) -> Result<()> {
    let generic = trial.lab.generic()?;
    let medium = medium(&trial.dir, &generic)?;
    let blank = |name: &str, mebibytes: u64| Disk::blank(&trial.dir.join(format!("{name}.img")), mebibytes);
    let main = blank("main", MAIN)?.sector_size(SECTOR);
    let wide = blank("wide", WIDE)?.sector_size(SECTOR);
    let stick = blank("stick", 128)?;
    let sata = blank("sata", 128)?;
    let boot = |with_old: bool| -> Boot<'_> {
        let boot = trial.boot().config(config(with_old)).on(&generic).patience(3);
        boot.disk_as(&medium, "medium")
            .disk_as(&main, "main")
            .disk_as(&wide, "wide")
            .attach(&stick, "USB1", Bus::Usb)
            .attach(&sata, "SATA1", Bus::Sata)
    };
    let places = "/keys /state /wide /stick /sata";
    let first = boot(false)
        .script(&format!("{SAME}for place in {places}; do echo $place >$place/file; done"))
        .once("first")?;
    expect(
        &first,
        &[
            ("main", "prepared"),
            ("wide", "prepared"),
            ("stick", "prepared"),
            ("sata", "prepared"),
        ],
    )?;
    for disk in [&main, &wide, &stick, &sata] {
        table_is_sound(disk)?;
    }

    let old = backup_alone(trial, &wide, WIDE)?;
    let before = fs::read(old.path()).context("reading the disk that must not be touched")?;
    let file = fs::File::options().write(true).open(main.path()).context("opening the disk")?;
    file.set_len((MAIN + LARGER) * MIB).context("making the disk larger")?;
    let second = boot(true)
        .disk_as(&old, "old")
        .script(&format!(
            "{SAME}for place in {places}; do grep -qx $place $place/file; done; test $(findmnt -b -n -o SIZE /state) -gt {}",
            (MAIN + LARGER - 60) * MIB
        ))
        .once("second")?;
    expect(
        &second,
        &[
            ("main", "grown"),
            ("wide", "unchanged"),
            ("stick", "unchanged"),
            ("sata", "unchanged"),
            ("old", "refused"),
        ],
    )?;
    let why = outcome(&second, "old")?["detail"].to_string();
    let place = WIDE * MIB - u64::from(SECTOR);
    ensure!(
        why.contains(&format!("the backup of a GPT at {place}")),
        "the disk with a backup alone: {why}"
    );
    ensure!(fs::read(old.path())? == before, "the disk that was refused was written to");
    table_is_sound(&main)
}
