//! systemd's own look at the assembled initrd, and a shutdown through NixOS's ramfs.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::super::Scenario;
use super::boot;
use crate::command::Tool;
use crate::stage_1::Stage1;
use crate::system::Spec;
use crate::trial::Trial;

/// The tests of this file.
pub const ALL: &[Scenario] = &[
    Scenario::new(
        "systemd-verify",
        "systemd-analyze finds no ordering cycle and no unknown directive in the initrd",
        verify,
    )
    .with_newest(),
    Scenario::new(
        "systemd-shutdown",
        "a shutdown through the shutdown ramfs leaves the cache's file system clean",
        shutdown,
    ),
];

const LIMIT: Duration = Duration::from_secs(120);
/// Units of ours, and the targets that pull in all others.
const UNITS: &str = "initrd.target initrd-switch-root.target emergency.target freshroot.service freshroot-prepare.service freshroot-failure.service freshroot-last-resort.service";

fn verify(trial: &Trial<'_>) -> Result<()> {
    let everything = trial
        .stage_1()
        .argument(
            "persist",
            json!({
                "/data": { "device": "/dev/mapper/crypt-data", "fsType": "ext4" },
                "/srv": { "device": "LABEL=CACHE", "fsType": "ext4", "need": "degraded" },
                "/var/lib/app": { "source": "/data/app" },
            }),
        )
        .argument("luks", json!(["crypt-data", "crypt-cache"]))
        .argument("encrypted", json!(["/dev/vdb", "/dev/vdc"]))
        .text(
            "/etc/crypttab",
            "crypt-data /dev/vdb /etc/key luks\ncrypt-cache /dev/vdc /etc/key luks\n",
            0o600,
        );
    for device in ["LABEL=CACHE", "/dev/mapper/crypt-cache"] {
        let said = analyze(trial, &everything, device, "root")?;
        ensure!(said.is_empty(), "with the cache on {device} systemd-analyze says:\n{said}");
    }
    // What it would not find would not be proved absent either.
    for (text, word) in [
        ("[Unit]\nAfter=initrd-fs.target\n", "cycle"),
        ("[Service]\nExecStrat=/bin/true\n", "ExecStrat"),
    ] {
        let wrong = everything.clone().unit("freshroot.service.d/wrong.conf", text);
        let said = analyze(trial, &wrong, "LABEL=CACHE", "wrong")?;
        ensure!(said.contains(word), "systemd-analyze did not find the {word}; it says:\n{said}");
    }
    Ok(())
}

/// What `systemd-analyze verify` says of our units in the initrd, and of cycles among all; the initrd lies in the folder `name`.
fn analyze(trial: &Trial<'_>, stage_1: &Stage1, device: &str, name: &str) -> Result<String> {
    let lab = trial.lab;
    let root = trial.dir.join(name);
    crate::lab::remove(&root)?;
    fs::create_dir(&root).with_context(|| format!("making {}", root.display()))?;
    let partitions = json!([{ "name": "data", "size": "100%", "content": { "type": "filesystem", "format": "ext4" } }]);
    let disk = json!({ "device": "serial=S1", "size": { "min": "1G", "max": "1G" }, "prepare": true, "partitions": partitions });
    let settings = lab.config(&json!({ "cache": { "device": device }, "disks": { "main": disk } }))?;
    stage_1.lay_out(lab, &settings, &root)?;
    let generators: String = ["fstab", "cryptsetup"]
        .iter()
        .map(|name| format!("chroot . /usr/lib/systemd/system-generators/systemd-{name}-generator /run/made /run/made /run/made\n"))
        .collect();
    // In a mount name space of its own: what is mounted here goes with it.
    let script = format!(
        "set -e\nmount -t proc proc proc\nmount -t sysfs sys sys\nmount -t tmpfs run run\nmkdir -p run/made run/systemd\n{generators}\
         SYSTEMD_UNIT_PATH=/run/made: chroot . /usr/bin/systemd-analyze verify --man=no {UNITS} 2>&1 || echo \"status $?\""
    );
    let said = Tool::new("unshare", LIMIT)
        .args(["--mount", "sh", "-c", &script])
        .current_dir(&root)
        .env("SYSTEMD_IN_INITRD", "1")
        .env("SYSTEMD_SYSROOT_FSTAB", "/etc/initrd-fstab")
        .env("SYSTEMD_PROC_CMDLINE", stage_1.words())
        .text()?;
    clean(&root)?;
    Ok(said
        .lines()
        .filter(|line| concerns_us(line))
        .map(|line| format!("{line}\n"))
        .collect())
}

/// Debian's units name system calls that only a library translates which the initrd has no use for.
fn concerns_us(line: &str) -> bool {
    !line.contains("libseccomp is not available")
}

fn clean(root: &Path) -> Result<()> {
    fs::remove_dir_all(root).with_context(|| format!("removing {}", root.display()))
}

fn shutdown(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.filled_cache()?;
    let system = trial.lab.system(Spec::generation(1))?;
    let mut vm = boot(trial)
        .disk(&disk)
        .system(&system)
        // What systemd-shutdown says is for the kernel log, as information; the last loglevel= counts.
        .words("loglevel=7 demo.then=poweroff")
        .start("boot")?;
    let end = vm.wait_end()?;
    ensure!(end == crate::qemu::End::PoweredOff, "it did not power off but {end:?}");
    let said = vm.said();
    let (_, in_ramfs) = said
        .split_once("Returning to initrd")
        .with_context(|| format!("the shutdown did not go through the ramfs:\n{said}"))?;
    ensure!(
        in_ramfs.contains("All filesystems, swaps, loop devices"),
        "something stayed mounted or attached:\n{in_ramfs}"
    );
    ensure!(!said.contains("Failed unmounting"), "something was unmounted in vain:\n{said}");
    ensure!(disk.is_clean()?, "the cache disk needs a journal replay after a power-off");
    Ok(())
}
