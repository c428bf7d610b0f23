//! File systems of every kind on disks of every kind, under Debian's generic kernel: named in every way, kept over a reboot, and after power cuts.

pub mod disks;
mod writers;

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::Scenario;
use super::disks::MAKE_SUBVOLUME;
use crate::command::Tool;
use crate::disk::Disk;
use crate::lab::{Generic, STACK_KEY, merge};
use crate::stage_1::workshop;
use crate::system::Spec;
use crate::trial::{Boot, Booted, Trial};
use disks::{SUBVOLUME, Zoo};
use writers::Told;

/// The tests of this file.
pub const ALL: &[Scenario] = &[
    Scenario::new(
        "zoo",
        "ext2, ext3, ext4, xfs, btrfs, f2fs, vfat and exfat on virtio, SATA and USB keep their files over a reboot and a power cut; on a full disk nothing is made, and nothing lost",
        one_cut,
    )
    .nightly(),
    Scenario::new(
        "zoo-cuts",
        "the same over three power cuts, each while all of them are written to",
        many_cuts,
    )
    .nightly(),
    Scenario::new(
        "stack-cuts",
        "what lies on striped LVM, LUKS and MD RAID1 is kept over power cuts while it is written to",
        stacks,
    )
    .nightly(),
];

/// A generic kernel has more to find, and ten file systems are checked and mounted.
const PATIENCE: u32 = 3;
/// Making file systems, on the host or in a machine.
const LIMIT: Duration = Duration::from_secs(120);

fn one_cut(trial: &Trial<'_>) -> Result<()> {
    cuts(trial, 1)
}

fn many_cuts(trial: &Trial<'_>) -> Result<()> {
    cuts(trial, 3)
}

fn cuts(trial: &Trial<'_>, times: u32) -> Result<()> {
    let generic = trial.lab.generic()?;
    let zoo = Zoo::make(&trial.dir, &generic)?;
    let full = Full::make(&trial.dir)?;
    let swap = zoo.swap()?;
    let places: Vec<&str> = zoo.animals.iter().map(|animal| animal.place).collect();

    let make = MAKE_SUBVOLUME.replace("/srv/btrfs", "/zoo/btrfs");
    let first = boot(trial, &generic, &zoo, &full, None)
        .script(&format!(
            "set -e; lsblk -o NAME,TRAN,FSTYPE,MOUNTPOINTS; cat /proc/swaps\n{}{make}; echo /zoo/btrfs >/zoo/btrfs/{SUBVOLUME}/kept\n\
             for place in {}; do echo $place >$place/kept; done\n{}",
            same_as_udev(&zoo),
            places.join(" "),
            Full::LOOK
        ))
        .once("first")?;
    expect_checks(&first, &zoo, &["clean"])?;
    Full::expect(&first)?;
    ensure!(!first.script.contains("partition"), "swap is in use:\n{}", first.script);
    ensure!(zoo.swap()? == swap, "the swap was written to");

    let mut known = Told::default();
    for cut in 1..=times {
        let script = format!("{}\n{}", look(&places, &known), writers::start(&places, cut));
        let mut vm = boot(trial, &generic, &zoo, &full, Some(SUBVOLUME))
            .script(&script)
            .start(&format!("cut-{cut}"))?;
        let booted = Booted::read(&mut vm)?;
        let results: &[&str] = if cut == 1 { &["clean"] } else { AFTER_CUT };
        expect_checks(&booted, &zoo, results)?;
        writers::wait(&mut vm, &places, LEAST + cut)?;
        vm.cut_power()?;
        known.add_told(cut, &vm.second_port()?);
    }
    let last = boot(trial, &generic, &zoo, &full, Some(SUBVOLUME))
        .script(&format!("{}\n{}", look(&places, &known), Full::LOOK))
        .once("last")?;
    expect_checks(&last, &zoo, AFTER_CUT)?;
    Full::expect(&last)?;
    ensure!(zoo.swap()? == swap, "the swap was written to");
    eprintln!(
        "zoo: {} files were there after {times} cuts; checks: {}",
        known.files(),
        last.report["checks"]
    );
    Ok(())
}

/// What a check comes to after a power cut.
const AFTER_CUT: &[&str] = &["clean", "errors were corrected"];
/// So many files are on each before the power goes, and one more each time, so that it does not always go at the same place.
const LEAST: u32 = 5;

/// A script that fails unless what is mounted is what udev of the running system means by the same names.
fn same_as_udev(zoo: &Zoo) -> String {
    let mut script = String::new();
    for animal in &zoo.animals {
        let (place, device) = (animal.place, &animal.device);
        let meant = if device.starts_with('/') { "readlink -f" } else { "findfs" };
        // Of a btrfs on two devices either may be named.
        if place != "/zoo/pair" {
            script += &format!(
                "test \"$({meant} {device})\" = \"$(findmnt -n -o SOURCE {place})\" || {{ echo '{place} is another disk'; exit 1; }}\n"
            );
        }
        script += &format!("findmnt -n -o FSTYPE {place} | grep -qx {}\n", animal.fs_type);
    }
    script
}

fn boot<'a>(trial: &'a Trial<'_>, generic: &Generic, zoo: &Zoo, full: &Full, subvolume: Option<&str>) -> Boot<'a> {
    let mut config = zoo.config(subvolume);
    merge(&mut config, &Full::config());
    let boot = trial.boot().config(config).on(generic).patience(PATIENCE);
    zoo.plugged(boot).disk(&full.disk)
}

/// Finds all that was kept: the files of the first boot, and those that were told.
fn look(places: &[&str], known: &Told) -> String {
    format!(
        "set -e; for place in {}; do grep -qx $place $place/kept || {{ echo $place lost its file; exit 1; }}; done\n{}",
        places.join(" "),
        known.look()
    )
}

/// Each file system was checked that has a program for it, the full one too, and the outcome is one of these.
fn expect_checks(booted: &Booted, zoo: &Zoo, results: &[&str]) -> Result<()> {
    ensure!(
        booted.generation()? == 1 && booted.text("/source") == "medium",
        "report: {}",
        booted.report
    );
    let checks = booted.report["checks"].as_array().cloned().unwrap_or_default();
    let with_program = zoo
        .animals
        .iter()
        .filter(|animal| !["xfs", "btrfs"].contains(&animal.fs_type))
        .count()
        + 1;
    ensure!(checks.len() == with_program, "not {with_program} checks: {}", booted.report);
    for check in &checks {
        let result = check["result"].as_str().unwrap_or_default();
        ensure!(results.contains(&result), "a check came to «{result}»: {}", booted.report);
    }
    Ok(())
}

/// A disk on which nothing can be made any more, with one folder.
struct Full {
    disk: Disk,
}

impl Full {
    /// What is there is bound and whole; what would have to be made is missing, and nobody writes into RAM in its stead.
    const LOOK: &'static str = "grep -qx old /full/there/old; findmnt -n -o FSTYPE /full/new | grep -qx tmpfs; \
         findmnt -n -o SOURCE /full/new | grep -qx freshroot-missing; ! touch /full/new/file 2>/dev/null; ! touch /full/disk/file 2>/dev/null";

    fn make(dir: &Path) -> Result<Self> {
        let content = dir.join("full");
        let folder = content.join("old");
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        fs::write(folder.join("old"), "old\n").context("writing what is on the full disk")?;
        // 16 inodes, of which ext4 has 11 for itself, lost+found among them.
        for number in 0..3 {
            fs::write(content.join(number.to_string()), "x").context("filling the full disk")?;
        }
        let disk = Disk::blank(&dir.join("full.img"), 16)?;
        Tool::new("mke2fs", LIMIT)
            .args(["-q", "-F", "-t", "ext4", "-L", "FULL", "-N", "16", "-d"])
            .arg(&content)
            .arg(disk.path())
            .run()?;
        Ok(Self { disk })
    }

    fn config() -> Value {
        let bind = |from: &str, need: &str| json!({ "device": from, "fsType": "none", "options": ["bind"], "need": need });
        json!({ "fileSystems": {
            "/full/disk": { "device": "LABEL=FULL", "fsType": "ext4" },
            "/full/there": bind("/full/disk/old", "required"),
            "/full/new": bind("/full/disk/new", "degraded"),
        } })
    }

    fn expect(booted: &Booted) -> Result<()> {
        let warnings = booted.report["warnings"].to_string();
        ensure!(
            warnings.contains("/full/new is missing") && warnings.contains("No space left on device"),
            "report: {}",
            booted.report
        );
        Ok(())
    }
}

/// LVM, LUKS and MD: what lies on them is kept over power cuts too.
fn stacks(trial: &Trial<'_>) -> Result<()> {
    let names = ["pv-1", "pv-2", "luks", "md-1", "md-2"];
    let disks: Result<Vec<Disk>> = names
        .iter()
        .map(|name| Disk::blank(&trial.dir.join(format!("{name}.img")), 96))
        .collect();
    let disks = [disks?, vec![trial.filled_cache()?]].concat();
    let script = format!(
        "for module in dm_mod dm_crypt raid1; do modprobe $module; done; printf '{}' >/key
         lvm pvcreate -q /dev/vda /dev/vdb; lvm vgcreate -q vg0 /dev/vda /dev/vdb; lvm lvcreate -q -i 2 -n data -L 64M vg0
         cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 /dev/vdc /key; cryptsetup open --key-file /key /dev/vdc crypt-data
         mdadm --create /dev/md0 --run --level=1 --raid-devices=2 --metadata=1.2 --assume-clean --homehost=any /dev/vdd /dev/vde
         for device in mapper/vg0-data mapper/crypt-data; do /sbin/mke2fs -q -F -t ext4 /dev/$device; mount -t ext4 /dev/$device /to; mkdir /to/there; umount /to; done
         /sbin/mke2fs -q -F -t ext4 -L MD /dev/md0; mount -t ext4 /dev/md0 /to; mkdir /to/there; umount /to
         lvm vgchange -an vg0; cryptsetup close crypt-data; mdadm --stop /dev/md0",
        STACK_KEY.replace('\n', "\\n")
    );
    workshop::run(trial, &disks, &script, LIMIT)?;
    let places = ["/cut/lvm", "/cut/luks", "/cut/md"];
    let entry = |device: &str| json!({ "device": device, "fsType": "ext4" });
    let config = json!({
        "cache": { "wait": "90s" },
        "policy": { "mode": "offline" },
        "luks": { "crypt-data": { "device": "/dev/disk/by-id/virtio-disk2", "keyFile": "/etc/keys/disks" } },
        "fileSystems": {
            "/cut/lvm": entry("/dev/vg0/data"), "/cut/luks": entry("/dev/mapper/crypt-data"), "/cut/md": entry("LABEL=MD"),
        },
    });
    let system = trial.lab.system(Spec::generation(1))?;
    let boot = || {
        let boot = trial.boot().with_tools().config(config.clone()).system(&system).patience(PATIENCE);
        disks.iter().fold(boot, Boot::disk)
    };
    let mut known = Told::default();
    let there = "set -e; for place in lvm luks md; do test -d /cut/$place/there; done";
    for cut in 1..=2 {
        let script = format!("{there}\n{}\n{}", known.look(), writers::start(&places, cut));
        let mut vm = boot().script(&script).start(&format!("cut-{cut}"))?;
        Booted::read(&mut vm)?;
        writers::wait(&mut vm, &places, LEAST + 5 * cut)?;
        vm.cut_power()?;
        known.add_told(cut, &vm.second_port()?);
    }
    let last = boot().script(&format!("{there}\n{}", known.look())).once("last")?;
    // The cache's and those of the three.
    let checks = last.report["checks"].as_array().map_or(0, Vec::len);
    ensure!(checks == 4, "four file systems were to be checked: {}", last.report);
    eprintln!("stack-cuts: {} files were there; checks: {}", known.files(), last.report["checks"]);
    Ok(())
}
