//! Disks that are prepared in systemd's stage 1, before systemd checks, opens and mounts what is on them.

use std::fs::File;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::super::Scenario;
use super::super::prepare::{SIZE, digest, ext4, fixed, table_is_sound};
use crate::disk::Disk;
use crate::stage_1::Stage1;
use crate::system::{Spec, System};
use crate::trial::{Boot, Booted, Trial};

/// The tests of this file.
pub const ALL: &[Scenario] = &[
    Scenario::new(
        "systemd-prepare",
        "a blank disk is prepared before systemd opens it, with a LUKS container on it, and left alone from then on; one that is not blank is named, and the same byte for byte",
        blank,
    ),
    Scenario::new(
        "systemd-prepare-cut",
        "a preparation that power cuts end is gone on with at each next boot under systemd; the disk grows when it has become larger",
        cut,
    )
    .nightly(),
];

/// As long as the limit of the device that is there when the unit is done: it must not run out meanwhile. It stands for a disk that takes its time.
const SLOW: &str = "[Service]\nExecStartPre=/bin/sleep 5\n";
const LIMIT: u32 = 5;
/// In MiB.
const SIZE_OF_BLANK: u64 = 160;

fn config() -> Value {
    json!({
        "policy": { "mode": "offline" },
        "disks": {
            "main": {
                "device": "/dev/disk/by-id/virtio-disk1", "size": { "min": "128M", "max": "1G" }, "prepare": true,
                "partitions": [
                    { "name": "keys", "size": "8M", "content": { "type": "filesystem", "format": "ext4", "label": "keys" } },
                    { "name": "crypt", "size": "100%", "content": {
                        "type": "luks", "name": "state", "settings": { "keyFile": "/etc/keys/disks" },
                        "extraFormatArgs": ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"],
                        "content": { "type": "filesystem", "format": "ext4", "label": "state" },
                    } },
                ],
            },
            "other": {
                "device": "serial=disk2", "size": { "min": "16M", "max": "1G" }, "prepare": true,
                "partitions": [{ "name": "data", "size": "100%", "content": { "type": "filesystem", "format": "ext4" } }],
            },
        },
    })
}

/// The label of the first is seen on a loop device too while it is made. How long it takes to open a container is not what is tested.
fn stage_1(trial: &Trial<'_>) -> Stage1 {
    trial
        .stage_1()
        .argument(
            "persist",
            json!({
                "/keys": { "device": "LABEL=keys", "fsType": "ext4", "timeout": LIMIT },
                "/data": { "device": "/dev/mapper/state", "fsType": "ext4", "timeout": 90 },
                "/old": { "device": "PARTLABEL=disk-other-data", "fsType": "ext4", "need": "degraded", "timeout": 2 },
            }),
        )
        .argument("luks", json!(["state"]))
        .argument("encrypted", json!(["/dev/disk/by-partlabel/disk-main-crypt"]))
        .text("/etc/keys/disks", "a key that is no secret\n", 0o400)
        .text(
            "/etc/crypttab",
            "state /dev/disk/by-partlabel/disk-main-crypt /etc/keys/disks luks\n",
            0o600,
        )
}

fn boot<'a>(trial: &'a Trial<'a>, stage_1: Stage1, disks: &[Disk], system: &System) -> Boot<'a> {
    let boot = trial.boot().systemd(stage_1).config(config()).system(system);
    disks.iter().fold(boot, Boot::disk)
}

const MOUNTED: &str = "set -e; lsblk -n -s -o TYPE $(findmnt -n -o SOURCE /data) | grep -qx crypt; findmnt -n -o SOURCE /keys | grep -qx /dev/vdb1; findmnt -n -o SOURCE /old | grep -qx freshroot-missing";

const WRITE: &str = "echo kept | tee /data/file >/keys/file";
const LOOK: &str = "set -e; grep -qx kept /data/file; grep -qx kept /keys/file";

/// What became of the two disks, in the order of their names.
fn must_be(booted: &Booted, first: &[&str]) -> Result<()> {
    ensure!(first.contains(&booted.text("/disks/0/outcome")), "report: {}", booted.report);
    let why = booted.text("/disks/1/detail");
    ensure!(
        booted.text("/disks/1/outcome") == "refused" && why.contains("/dev/vdc") && why.contains("it holds ext4 LABEL=precious"),
        "report: {}",
        booted.report
    );
    let warnings = booted.report["warnings"].as_array().context("the report has no warnings")?;
    ensure!(
        warnings.iter().any(|warning| warning == why),
        "the refusal is no warning: {}",
        booted.report
    );
    Ok(())
}

fn blank(trial: &Trial<'_>) -> Result<()> {
    let disks = disks(trial)?;
    let before = digest(&disks[2])?;
    let system = trial.lab.system(Spec::generation(1))?;
    let slow = stage_1(trial).unit("freshroot-prepare.service.d/slow.conf", SLOW);
    let write = format!("{MOUNTED}; {WRITE}");
    let booted = boot(trial, slow, &disks, &system).script(&write).once("first")?;
    must_be(&booted, &["prepared"])?;
    table_is_sound(&disks[1])?;

    let made = fixed(&disks[1])?;
    let booted = boot(trial, stage_1(trial), &disks, &system).script(LOOK).once("second")?;
    must_be(&booted, &["unchanged"])?;
    ensure!(
        fixed(&disks[1])? == made,
        "the second boot wrote to the table or to the head of the container"
    );
    ensure!(digest(&disks[2])? == before, "the disk that is not blank was written to");
    Ok(())
}

/// The cache, a blank disk, and one that somebody needs.
fn disks(trial: &Trial<'_>) -> Result<[Disk; 3]> {
    let other = Disk::blank(&trial.dir.join("other.img"), SIZE)?;
    ext4(&other)?;
    Ok([
        trial.filled_cache()?,
        Disk::blank(&trial.dir.join("blank.img"), SIZE_OF_BLANK)?,
        other,
    ])
}

/// What the disk is larger by later, in MiB.
const LARGER: u64 = 200;

fn cut(trial: &Trial<'_>) -> Result<()> {
    let disks = disks(trial)?;
    let before = digest(&disks[2])?;
    let system = trial.lab.system(Spec::generation(1))?;
    let boot = || boot(trial, stage_1(trial), &disks, &system).config(growing());
    // Each line is told before its step, and comes by way of the journal: how much is done when the power goes is the host's choice, and may be all.
    for (number, line) in ["mkfs.ext4 -q", "header of the backup GPT", "zeros over the claim"]
        .iter()
        .enumerate()
    {
        let mut vm = boot().start(&format!("cut-{number}"))?;
        vm.wait_for(&[line, "has its partitions already"])
            .with_context(|| format!("after {number} power cuts"))?;
        vm.cut_power()?;
    }
    let write = format!("{MOUNTED}; {WRITE}");
    let booted = boot().script(&write).once("again")?;
    must_be(&booted, &["prepared", "unchanged"])?;
    table_is_sound(&disks[1])?;

    let file = File::options().write(true).open(disks[1].path()).context("opening the disk")?;
    file.set_len((SIZE_OF_BLANK + LARGER) << 20).context("making the disk larger")?;
    let look = format!(
        "{LOOK}; test $(findmnt -b -n -o SIZE /data) -gt {}",
        (SIZE_OF_BLANK + LARGER - 60) << 20
    );
    must_be(&boot().script(&look).once("grown")?, &["grown"])?;
    must_be(&boot().script(&look).once("last")?, &["unchanged"])?;
    table_is_sound(&disks[1])?;
    ensure!(digest(&disks[2])? == before, "the disk that is not blank was written to");
    Ok(())
}

/// The same disk, which may grow.
fn growing() -> Value {
    let mut config = config();
    crate::lab::merge(&mut config, &json!({ "disks": { "main": { "grow": true } } }));
    config
}
