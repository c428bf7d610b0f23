//! Cache and data on what systemd and udev put together in stage 1: LVM, LUKS, MD, and one file system for both.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use super::super::Scenario;
use crate::disk::Disk;
use crate::stage_1::{Stage1, workshop};
use crate::system::Spec;
use crate::trial::{Boot, Booted, Trial};

/// The tests of this file.
pub const ALL: &[Scenario] = &[
    Scenario::new("systemd-lvm", "cache and data on LVM, which udev activates", lvm).nightly(),
    Scenario::new("systemd-luks", "cache and data on LUKS, opened with a key file", luks),
    Scenario::new("systemd-md", "cache and data on MD RAID1, which udev assembles", md).nightly(),
    Scenario::new(
        "systemd-shared",
        "a cache in a folder of a data disk that systemd mounts is one file system with it, and both are written",
        shared,
    ),
];

/// What a machine reads and writes in these tests: the file `kept` on the data, and the disks that `chain` names below the cache.
struct Layout<'a> {
    disks: &'a [Disk],
    /// Setting `cache`.
    cache: Value,
    /// Device of `/data`.
    data: &'a str,
    stage_1: Stage1,
}

impl Layout<'_> {
    fn boot<'a>(&self, trial: &'a Trial<'_>) -> Result<Boot<'a>> {
        let persist = json!({ "/data": { "device": self.data, "fsType": "ext4", "timeout": 90 } });
        let system = trial.lab.system(Spec::generation(1))?;
        let boot = trial
            .boot()
            .systemd(self.stage_1.clone().argument("persist", persist))
            .config(json!({ "cache": self.cache, "policy": { "mode": "offline" } }))
            .system(&system);
        Ok(self.disks.iter().fold(boot, Boot::disk))
    }

    /// Boots from the cache, and finds what the workshop left on the data.
    fn check(&self, trial: &Trial<'_>, below: &str) -> Result<Booted> {
        let script = "set -e; grep -qx made /data/made; echo more >/data/more; lsblk -n -s -o TYPE \"$(findmnt -n -o SOURCE /run/freshroot/cache | sed 's/\\[.*//')\"; stat -c device=%d /data /run/freshroot/cache";
        let booted = self.boot(trial)?.script(script).once("boot")?;
        ensure!(
            booted.generation()? == 1 && booted.text("/source") == "cache",
            "report: {}",
            booted.report
        );
        ensure!(
            booted.script.contains(below),
            "the cache does not lie on «{below}»:\n{}",
            booted.script
        );
        Ok(booted)
    }
}

const MEBIBYTES: u64 = 400;
/// A workshop formats, copies 84 MB and powers off.
const LIFE: Duration = Duration::from_secs(60);

fn blank(trial: &Trial<'_>, name: &str, mebibytes: u64) -> Result<Disk> {
    Disk::blank(&trial.dir.join(format!("{name}.img")), mebibytes)
}

/// Runs `script` on `disks` (`/dev/vda` and so on) with the filled cache after them, which `fill DEVICE-OF-CACHE DEVICE-OF-DATA` copies.
fn prepare(trial: &Trial<'_>, disks: &[Disk], script: &str) -> Result<()> {
    let filled = trial.filled_cache_as("filled.img")?;
    let mut all = disks.to_vec();
    all.push(filled);
    workshop::run(trial, &all, script, LIFE)
}

fn lvm(trial: &Trial<'_>) -> Result<()> {
    let disks = [blank(trial, "pv", MEBIBYTES)?];
    prepare(
        trial,
        &disks,
        "modprobe dm_mod; lvm pvcreate -q /dev/vda; lvm vgcreate -q vg0 /dev/vda; lvm lvcreate -q -n cache -L 300M vg0; lvm lvcreate -q -n data -L 64M vg0
         fill /dev/mapper/vg0-cache /dev/mapper/vg0-data; lvm vgchange -an vg0",
    )?;
    let layout = Layout {
        disks: &disks,
        cache: json!({ "device": "/dev/mapper/vg0-cache" }),
        data: "/dev/mapper/vg0-data",
        stage_1: trial.stage_1(),
    };
    layout.check(trial, "lvm").map(drop)
}

fn luks(trial: &Trial<'_>) -> Result<()> {
    const KEY: &str = "a key that is no secret\n";
    let disks = [blank(trial, "cache", MEBIBYTES)?, blank(trial, "data", 64)?];
    // The cheapest way from key to master key: what it costs is not what is tested.
    prepare(
        trial,
        &disks,
        &format!(
            "modprobe dm_crypt; printf '{}' >/key
             for d in a b; do cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 /dev/vd$d /key; cryptsetup open --key-file /key /dev/vd$d crypt-$d; done
             fill /dev/mapper/crypt-a /dev/mapper/crypt-b; cryptsetup close crypt-a; cryptsetup close crypt-b",
            KEY.replace('\n', "\\n")
        ),
    )?;
    let stage_1 = trial
        .stage_1()
        .argument("luks", json!(["crypt-cache", "crypt-data"]))
        .text("/etc/keys/disks", KEY, 0o400)
        .text(
            "/etc/crypttab",
            "crypt-cache /dev/disk/by-id/virtio-disk0 /etc/keys/disks luks\ncrypt-data /dev/disk/by-id/virtio-disk1 /etc/keys/disks luks\n",
            0o600,
        );
    let layout = Layout {
        disks: &disks,
        cache: json!({ "device": "/dev/mapper/crypt-cache" }),
        data: "/dev/mapper/crypt-data",
        stage_1,
    };
    layout.check(trial, "crypt").map(drop)
}

fn md(trial: &Trial<'_>) -> Result<()> {
    let disks = [
        blank(trial, "cache-1", MEBIBYTES)?,
        blank(trial, "cache-2", MEBIBYTES)?,
        blank(trial, "data-1", 64)?,
        blank(trial, "data-2", 64)?,
    ];
    prepare(
        trial,
        &disks,
        "modprobe raid1
         mdadm --create /dev/md0 --run --level=1 --raid-devices=2 --metadata=1.2 --assume-clean --homehost=any /dev/vda /dev/vdb
         mdadm --create /dev/md1 --run --level=1 --raid-devices=2 --metadata=1.2 --assume-clean --homehost=any /dev/vdc /dev/vdd
         fill /dev/md0 /dev/md1; mdadm --stop /dev/md0; mdadm --stop /dev/md1",
    )?;
    let layout = Layout {
        disks: &disks,
        cache: json!({ "device": "LABEL=CACHE" }),
        data: "LABEL=DATA",
        stage_1: trial.stage_1(),
    };
    layout.check(trial, "raid1").map(drop)
}

/// The filled cache disk is the data disk too.
fn shared(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.filled_cache()?;
    disk.overwrite("/made", b"made\n")?;
    let layout = Layout {
        disks: std::slice::from_ref(&disk),
        cache: json!({ "device": "LABEL=CACHE" }),
        data: "LABEL=CACHE",
        stage_1: trial.stage_1(),
    };
    let booted = layout.check(trial, "disk")?;
    let devices: Vec<&str> = booted.script.lines().filter_map(|line| line.strip_prefix("device=")).collect();
    let [data, cache] = devices.as_slice() else {
        bail!("the script wrote:\n{}", booted.script);
    };
    ensure!(data == cache, "data and cache are two file systems:\n{}", booted.script);
    ensure!(disk.read("/more")? == b"more\n", "what was written to the data is not on the disk");
    ensure!(disk.is_clean()?, "the disk needs a journal replay after a power-off");
    Ok(())
}
