//! Cache and data on what the agent itself puts together, with the programs of the initrd: LVM, LUKS, MD.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::Scenario;
use crate::disk::Disk;
use crate::lab::STACK_KEY;
use crate::stage_1::{GENERATE_SHUTDOWN_RAMFS, workshop};
use crate::system::Spec;
use crate::trial::{Boot, Booted, Trial};

/// The tests of this file.
pub const ALL: &[Scenario] = &[
    Scenario::new(
        "stack-lvm",
        "cache and data on striped LVM, which the agent activates with `lvm`; errors of a disk are corrected first",
        lvm,
    ),
    Scenario::new(
        "stack-luks",
        "cache and data on LUKS, opened by a key in the initrd and by one on a stick",
        luks,
    ),
    Scenario::new(
        "stack-md",
        "cache and data on MD RAID1, which the agent assembles, and of which one lacks a disk",
        md,
    ),
    Scenario::new(
        "stack-shared",
        "a cache in a folder of a data disk is one file system with it, checked and mounted once by the agent",
        shared,
    ),
];

/// The filled cache disk is the data disk too.
fn shared(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.filled_cache()?;
    disk.overwrite("/made", b"made\n")?;
    let booted = check(
        trial,
        "boot",
        std::slice::from_ref(&disk),
        "LABEL=CACHE",
        "/dev/disk/by-id/virtio-disk0",
        // Two names of one disk: what these say of the file system is seen to be in vain only now, and the boot goes on.
        json!({ "cache": { "options": ["noatime", "data=writeback"] } }),
    )?;
    let warnings = booted.report["warnings"].to_string();
    ensure!(
        warnings.contains("«data=writeback» is left aside") && !warnings.contains("noatime»"),
        "report: {}",
        booted.report
    );
    let checks = booted.report["checks"].as_array().map_or(0, Vec::len);
    ensure!(checks == 1, "one file system was to be checked, once: {}", booted.report);
    ensure!(disk.read("/more")? == b"more\n", "what was written to the data is not on the disk");
    ensure!(disk.is_clean()?, "the disk needs a journal replay after a power-off");
    Ok(())
}

const MEBIBYTES: u64 = 400;
/// A workshop formats, copies 84 MB and powers off.
const LIFE: Duration = Duration::from_secs(60);

fn blank(trial: &Trial<'_>, name: &str, mebibytes: u64) -> Result<Disk> {
    Disk::blank(&trial.dir.join(format!("{name}.img")), mebibytes)
}

/// Runs `script` on `disks` with the filled cache after them.
fn prepare(trial: &Trial<'_>, disks: &[Disk], script: &str) -> Result<()> {
    let mut all = disks.to_vec();
    all.push(trial.filled_cache_as("filled.img")?);
    workshop::run(trial, &all, script, LIFE)
}

/// What is looked at in the guest: what the workshop left on `/data`, and what the cache is on.
const LOOK: &str = "set -e; grep -qx made /data/made; echo more >>/data/more; lsblk -n -s -o TYPE \"$(findmnt -n -o SOURCE /run/freshroot/cache | sed 's/\\[.*//')\"; \
                    cat /run/udev/data/b253:* 2>/dev/null || true; echo lines=$(wc -l </data/more)";

/// Boots from the cache on `cache`, and finds what the workshop left on `/data`.
fn check(trial: &Trial<'_>, name: &str, disks: &[Disk], cache: &str, data: &str, more: Value) -> Result<Booted> {
    let booted = boot(trial, disks, cache, data, &more)?.script(LOOK).once(name)?;
    ensure!(
        booted.generation()? == 1 && booted.text("/source") == "cache",
        "report: {}",
        booted.report
    );
    Ok(booted)
}

fn boot<'a>(trial: &'a Trial<'a>, disks: &[Disk], cache: &str, data: &str, more: &Value) -> Result<Boot<'a>> {
    let mut config = json!({
        "cache": { "device": cache, "wait": "90s" },
        "policy": { "mode": "offline" },
        "fileSystems": { "/data": { "device": data, "fsType": "ext4", "options": ["noatime"] } },
    });
    crate::lab::merge(&mut config, more);
    let system = trial.lab.system(Spec::generation(1))?;
    let boot = trial.boot().with_tools().config(config).system(&system).patience(2);
    Ok(disks.iter().fold(boot, Boot::disk))
}

fn lvm(trial: &Trial<'_>) -> Result<()> {
    let disks = [blank(trial, "pv-1", MEBIBYTES)?, blank(trial, "pv-2", MEBIBYTES)?];
    prepare(
        trial,
        &disks,
        "modprobe dm_mod; lvm pvcreate -q /dev/vda /dev/vdb; lvm vgcreate -q vg0 /dev/vda /dev/vdb; lvm lvcreate -q -i 2 -n cache -L 304M vg0; lvm lvcreate -q -i 2 -n data -L 64M vg0
         fill /dev/mapper/vg0-cache /dev/mapper/vg0-data; lvm vgchange -an vg0",
    )?;
    // As Debian shuts down, which has nothing to go back to: what runs from the cache's disk keeps it busy to the end, and it is made read-only.
    let booted = check(trial, "first", &disks, "/dev/mapper/vg0-cache", "/dev/vg0/data", json!({}))?;
    must_be_on_lvm(&booted, 1)?;
    // As NixOS shuts down: systemd-shutdown goes on in a ramfs, from which nothing is busy any more.
    let script = format!(
        "{LOOK}; ! dmesg | grep -i 'recovering journal'
        mkdir -p /run/initramfs; cat >/run/generate <<'END'\n{GENERATE_SHUTDOWN_RAMFS}\nEND\nsh /run/generate"
    );
    let mut vm = boot(trial, &disks, "/dev/mapper/vg0-cache", "/dev/vg0/data", &json!({}))?
        .script(&script)
        // What systemd-shutdown says is for the kernel log, as information; the last loglevel= counts.
        .words("loglevel=7 demo.then=poweroff")
        .start("second")?;
    let mut booted = Booted::read(&mut vm)?;
    booted.read_script(&mut vm)?;
    must_be_on_lvm(&booted, 2)?;
    vm.wait_end()?;
    let said = vm.said();
    let (_, in_ramfs) = said
        .split_once("Returning to initrd")
        .with_context(|| format!("the shutdown did not go through the ramfs:\n{said}"))?;
    ensure!(
        in_ramfs.contains("All filesystems, swaps, loop devices, MD devices and DM devices detached"),
        "something stayed mounted or attached:\n{in_ramfs}"
    );
    Ok(())
}

fn must_be_on_lvm(booted: &Booted, lines: u32) -> Result<()> {
    ensure!(
        booted.script.contains("lvm") && booted.script.contains(&format!("lines={lines}")),
        "what was written is not there, or not on LVM:\n{}",
        booted.script
    );
    ensure!(
        booted.script.contains("DM_UDEV_PRIMARY_SOURCE_FLAG=1"),
        "udev was not told:\n{}",
        booted.script
    );
    let checks = booted.report["checks"].as_array().map_or(0, Vec::len);
    ensure!(checks == 2, "two file systems were to be checked: {}", booted.report);
    Ok(())
}

fn luks(trial: &Trial<'_>) -> Result<()> {
    let disks = [
        blank(trial, "cache", MEBIBYTES)?,
        blank(trial, "data", 64)?,
        blank(trial, "stick", 16)?,
    ];
    // The cheapest way from key to master key: what it costs is not what is tested. The label of the container is that of the file system in it.
    prepare(
        trial,
        &disks,
        &format!(
            "modprobe dm_crypt; printf '{}' >/key
             for d in a b; do cryptsetup luksFormat -q --type luks2 --label DATA --pbkdf pbkdf2 --pbkdf-force-iterations 1000 /dev/vd$d /key; cryptsetup open --key-file /key /dev/vd$d crypt-$d; done
             fill /dev/mapper/crypt-a /dev/mapper/crypt-b; cryptsetup config --label CACHE-BOX /dev/vda; cryptsetup close crypt-a; cryptsetup close crypt-b
             /sbin/mke2fs -q -F -t ext4 -L STICK /dev/vdc; mkdir /stick; mount -t ext4 /dev/vdc /stick; mkdir /stick/keys; cp /key /stick/keys/data; umount /stick",
            STACK_KEY.replace('\n', "\\n")
        ),
    )?;
    let luks = json!({ "luks": {
        "crypt-cache": { "device": "/dev/disk/by-id/virtio-disk0", "keyFile": "/etc/keys/disks", "allowDiscards": true },
        "crypt-data": { "device": "/dev/disk/by-id/virtio-disk1", "keyFile": "/keys/data", "keyFileDevice": "LABEL=STICK" },
    } });
    let booted = check(trial, "boot", &disks, "/dev/mapper/crypt-cache", "LABEL=DATA", luks.clone())?;
    ensure!(booted.script.contains("crypt"), "the cache is not on LUKS:\n{}", booted.script);

    // Without the stick: a container that stays closed is named, and the data's need decides.
    let degraded = json!({
        "luks": { "crypt-data": { "keyFileTimeout": 2 } },
        "fileSystems": { "/data": { "device": "LABEL=DATA", "fsType": "ext4", "options": [], "need": "degraded", "timeout": 5 } },
    });
    let mut config = luks;
    crate::lab::merge(&mut config, &degraded);
    crate::lab::merge(
        &mut config,
        &json!({ "cache": { "device": "/dev/mapper/crypt-cache" }, "policy": { "mode": "offline" } }),
    );
    let system = trial.lab.system(Spec::generation(1))?;
    let boot = trial.boot().with_tools().config(config).system(&system).patience(2);
    let booted = disks[..2]
        .iter()
        .fold(boot, Boot::disk)
        .script("findmnt -n -o SOURCE /data")
        .once("without-stick")?;
    let warnings = booted.report["warnings"].to_string();
    ensure!(
        warnings.contains("the LUKS container crypt-data stays closed") && warnings.contains("/data is missing"),
        "report: {}",
        booted.report
    );
    ensure!(booted.script.contains("freshroot-missing"), "/data is:\n{}", booted.script);
    Ok(())
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
    // All but the last one.
    let booted = check(trial, "boot", &disks[..3], "/dev/disk/by-id/md-name-any:0", "/dev/md/1", json!({}))?;
    ensure!(booted.script.contains("raid1"), "the cache is not on MD:\n{}", booted.script);
    let warnings = booted.report["warnings"].to_string();
    ensure!(
        warnings.contains("an array is not whole") && warnings.contains("/dev/vdc"),
        "report: {}",
        booted.report
    );
    Ok(())
}
