//! The demo system without the agent: a shell script makes the mounts. Proves the harness, and is the benchmark's yardstick.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Scenario;
use super::disks::MAKE_SUBVOLUME;
use crate::disk::{Disk, FsType};
use crate::initrd::{self, Initrd};
use crate::lab::{CACHE_LABEL, Lab};
use crate::qemu::{End, Machine, NeverBegan, Nic};
use crate::system::{Kind, Spec, System, busybox_static};
use crate::trial::{Booted, Trial};

const INIT: &str = include_str!("../../guest/baseline-init.sh");

/// The tests of this file.
pub const ALL: &[Scenario] = &[
    Scenario::new(
        "baseline",
        "the demo system boots from a shell script that makes the mounts",
        prepare_root,
    ),
    Scenario::new("baseline-scripted", "the scripted demo system boots from the same script", scripted),
    Scenario::new(
        "baseline-never",
        "a machine whose guest never began is told from one that fails",
        never_began,
    ),
    Scenario::new(
        "baseline-plug",
        "disks and cables can be plugged while a machine runs, and what it writes is counted",
        plug,
    )
    .nightly(),
];

/// The initrd with the script, at `out`.
pub fn initrd(lab: &Lab, out: &Path) -> Result<()> {
    Initrd::new()
        .text("/init", INIT, 0o755)
        .file("/bin/busybox", &busybox_static(&lab.workspace.vm())?, 0o755)
        .build(&lab.kernel, initrd::MODULES, out)
}

/// A cache disk at `path` with nothing but the image of `system`, and the image's name on it.
pub fn disk(system: &System, dir: &Path) -> Result<(Disk, String)> {
    let name = format!("{}.squashfs", system.toplevel.hash());
    let images = dir.join("content/freshroot/images");
    fs::create_dir_all(&images).with_context(|| format!("making {}", images.display()))?;
    fs::hard_link(&system.image, images.join(&name)).with_context(|| format!("linking {}", system.image.display()))?;
    let disk = Disk::make_with(&dir.join("cache.img"), 512, FsType::Ext4, CACHE_LABEL, Some(&dir.join("content")))?;
    Ok((disk, name))
}

/// The first machine's processors are stopped at once, the second one's have nothing to boot from.
fn never_began(trial: &Trial<'_>) -> Result<()> {
    let initrd = trial.dir.join("initrd");
    Initrd::new()
        .text("/init", "not a program\n", 0o755)
        .build(&trial.lab.kernel, &[], &initrd)?;
    let machine = || Machine::new(&trial.lab.kernel.image, &initrd, "console=ttyS0 panic=-1");
    let accelerator = trial.lab.accelerator;
    let mut paused = machine().start(accelerator, &trial.dir, "paused", Duration::from_secs(2))?;
    paused.pause()?;
    let Err(error) = paused.wait_for(&["DEMO-READY "]) else {
        bail!("a machine that is paused has said something")
    };
    ensure!(
        error.downcast_ref::<NeverBegan>().is_some()
            && format!("{error:#}").contains("(paused, processors at ")
            && format!("{error:#}").contains("IP="),
        "{error:#}"
    );
    let life = Duration::from_secs(20) * accelerator.patience();
    let mut failing = machine().start(accelerator, &trial.dir, "failing", life)?;
    let Err(error) = failing.wait_for(&["DEMO-READY "]) else {
        bail!("a machine without a system has booted")
    };
    ensure!(error.downcast_ref::<NeverBegan>().is_none(), "{error:#}");
    Ok(())
}

/// Proves the harness's own means, so that a test that uses them fails for the agent's reasons only.
fn plug(trial: &Trial<'_>) -> Result<()> {
    let system = trial.lab.system(Spec::generation(1))?;
    let out = trial.dir.join("initrd");
    initrd(trial.lab, &out)?;
    let (disk, image) = disk(&system, &trial.dir)?;
    let late = Disk::make(&trial.dir.join("late.img"), 256, FsType::Btrfs, "LATE")?;
    let script = format!(
        "set -e; modprobe virtio_net; udevadm settle; cd /sys/class/net/e*; ip link set \"$(basename \"$PWD\")\" up; cat carrier; \
         echo plug >/dev/console; udevadm wait --timeout=60 /dev/disk/by-label/LATE; mkdir -p /srv/btrfs; \
         mount /dev/disk/by-label/LATE /srv/btrfs; {MAKE_SUBVOLUME}; umount /srv/btrfs; mount -o subvol=data /dev/disk/by-label/LATE /srv/btrfs; \
         head -c 9000000 /dev/urandom >/run/freshroot/cache/written; sync; i=0; until [ \"$(cat carrier)\" = 1 ] || [ $i = 60 ]; do i=$((i+1)); sleep 1; done; cat carrier"
    );
    let nic = Nic {
        carrier: false,
        ..Nic::plain()
    };
    let mut vm = trial
        .boot()
        .disk(&disk)
        .nic(nic)
        .system(&system)
        .words(&format!("baseline.image={image} demo.then=poweroff"))
        .consoles("console=tty0 console=ttyS0")
        .script(&script)
        .start_with("boot", &out)?;
    let mut booted = Booted::read(&mut vm)?;
    vm.wait_for(&["plug"])?;
    vm.plug(&late, "late")?;
    vm.set_link(0, true)?;
    booted.read_script(&mut vm)?;
    ensure!(
        booted.script.starts_with("0\n") && booted.script.contains("\n1\nSCRIPT-END"),
        "the script wrote:\n{}",
        booted.script
    );
    let written = vm.written(0)?;
    ensure!(written >= 9_000_000, "only {written} bytes were counted");
    ensure!(vm.wait_end()? == End::PoweredOff, "it did not power off");
    Ok(())
}

fn prepare_root(trial: &Trial<'_>) -> Result<()> {
    boot(trial, Kind::PrepareRoot)
}

fn scripted(trial: &Trial<'_>) -> Result<()> {
    boot(trial, Kind::Scripted)
}

fn boot(trial: &Trial<'_>, kind: Kind) -> Result<()> {
    let system = trial.lab.system(Spec {
        kind,
        ..Spec::generation(1)
    })?;
    let out = trial.dir.join("initrd");
    initrd(trial.lab, &out)?;
    let (disk, image) = disk(&system, &trial.dir)?;
    let mut vm = trial
        .boot()
        .disk(&disk)
        .system(&system)
        .words(&format!("baseline.image={image} demo.then=poweroff"))
        .script("id -u; touch /nix/store/written && echo store-writable; systemctl is-active multi-user.target; /run/current-system/sw/bin/hello; lsmod | grep -c . ; findmnt -n -o FSTYPE / /nix/store; systemctl --failed --no-legend")
        .start_with("boot", &out)?;
    let mut booted = Booted::read(&mut vm)?;
    ensure!(booted.generation()? == 1 && booted.report.is_null(), "there should be no report");
    booted.read_script(&mut vm)?;
    for word in ["store-writable", "active", "Hello, world!", "SCRIPT-END 0"] {
        ensure!(
            booted.script.contains(word),
            "the script did not write «{word}»:\n{}",
            booted.script
        );
    }
    ensure!(vm.said().contains("demo login:"), "there was no login prompt");
    ensure!(vm.wait_end()? == End::PoweredOff, "it did not power off");
    ensure!(disk.is_clean()?, "the cache disk needs a journal replay after a power-off");
    Ok(())
}
