//! Containers that a TPM opens, or a person, or nobody.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::Scenario;
use crate::disk::Disk;
use crate::qemu::beside::Device;
use crate::qemu::console::{PASSPHRASE, SYSTEMD_PASSPHRASE};
use crate::stage_1::workshop;
use crate::system::Spec;
use crate::trial::{Booted, Trial, must_power_off};

/// The tests of this file.
pub const ALL: &[Scenario] = &[Scenario::new(
    "stack-unlock",
    "the agent opens containers by a TPM and by a typed passphrase, and goes on without one that nobody opens",
    alone,
)];

/// The same under systemd.
pub const SYSTEMD: &[Scenario] = &[
    Scenario::new(
        "systemd-unlock",
        "under systemd a TPM opens the data's container, and a folder comes by virtiofs",
        by_systemd,
    ),
    Scenario::new(
        "systemd-passphrase",
        "systemd asks for passphrases: one is typed, and the boot goes on without the disks of two that nobody types, by the limit of the question or of the mount",
        typed,
    )
    .nightly(),
];

const LIFE: Duration = Duration::from_secs(60);
const KEY: &str = "a key that is no secret";
/// What a person takes to read the question.
const FINGERS: Duration = Duration::from_secs(2);

fn container(trial: &Trial<'_>, name: &str) -> Result<Disk> {
    Disk::blank(&trial.dir.join(format!("{name}.img")), 64)
}

/// Shell: a container on `device` with `KEY` as its passphrase and a file system in it, which stays open as `name`.
fn make(device: &str, name: &str) -> String {
    format!(
        "cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 {device} /key; cryptsetup open --key-file /key {device} {name}
         /sbin/mke2fs -q -F -t ext4 /dev/mapper/{name}; mount -t ext4 /dev/mapper/{name} /to; echo {name} >/to/made; umount /to; cryptsetup close {name}\n"
    )
}

/// Shell: the TPM opens the container on `device`, and nothing else does.
fn enrol(device: &str) -> String {
    format!("systemd-cryptenroll --unlock-key-file=/key --tpm2-device=auto --wipe-slot=password {device}\n")
}

fn tpm(trial: &Trial<'_>, name: &str) -> Device {
    Device::Tpm(trial.dir.join(name))
}

fn prepare(trial: &Trial<'_>, disks: &[Disk], tpm: Option<&Device>, script: &str) -> Result<()> {
    let script = format!("modprobe dm_crypt; umask 077; printf '%s' '{KEY}' >/key\n{script}");
    workshop::run_with(trial, disks, tpm, &script, LIFE)
}

fn alone(trial: &Trial<'_>) -> Result<()> {
    let tpm = tpm(trial, "tpm");
    let disks = [container(trial, "a")?, container(trial, "b")?, container(trial, "c")?];
    let script = [
        make("/dev/vda", "crypt-a"),
        make("/dev/vdb", "crypt-b"),
        make("/dev/vdc", "crypt-c"),
        enrol("/dev/vda"),
    ];
    prepare(trial, &disks, Some(&tpm), &script.concat())?;
    let cache = trial.filled_cache()?;
    let on = |name: &str, more: serde_json::Value| {
        let mut entry = json!({ "device": format!("/dev/mapper/{name}"), "fsType": "ext4", "options": [] });
        crate::lab::merge(&mut entry, &more);
        entry
    };
    let by_id = |number: u32| format!("/dev/disk/by-id/virtio-disk{number}");
    let config = json!({
        "cache": { "wait": "60s" },
        "policy": { "mode": "offline" },
        "luks": {
            "crypt-a": { "device": by_id(1) },
            "crypt-b": { "device": by_id(2), "passphraseTimeout": 60 },
            "crypt-c": { "device": by_id(3), "passphraseTimeout": 5 },
        },
        "fileSystems": {
            "/a": on("crypt-a", json!({})),
            "/b": on("crypt-b", json!({})),
            "/c": on("crypt-c", json!({ "need": "degraded", "timeout": 5 })),
        },
    });
    let system = trial.lab.system(Spec::generation(1))?;
    let boot = trial
        .boot()
        .with_tools()
        .config(config)
        .system(&system)
        .patience(2)
        .disk(&cache)
        .device(&tpm);
    let mut vm = disks
        .iter()
        .fold(boot, |boot, disk| boot.disk(disk))
        .script("set -e; grep -x crypt-a /a/made; grep -x crypt-b /b/made; findmnt -n -o SOURCE /c")
        .words("demo.then=poweroff")
        .start("boot")?;
    // The first one that is asked for: the TPM has opened the one before.
    vm.wait_for(&["the passphrase of crypt-b"])?;
    vm.wait_for(&[PASSPHRASE])?;
    // Not a wait for anything: cryptsetup throws away what was typed before it asked.
    std::thread::sleep(FINGERS);
    vm.press(&format!("{KEY}\n"))?;
    vm.wait_for(&["the passphrase of crypt-c"])?;
    let mut booted = Booted::read(&mut vm)?;
    booted.read_script(&mut vm)?;
    must_power_off(&mut vm)?;
    ensure!(booted.script.contains("freshroot-missing"), "/c is:\n{}", booted.script);
    let warnings = booted.report["warnings"].to_string();
    ensure!(
        warnings.contains("the LUKS container crypt-c stays closed") && warnings.contains("/c is missing"),
        "report: {}",
        booted.report
    );
    ensure!(warnings.matches("stays closed").count() == 1, "report: {}", booted.report);
    Ok(())
}

/// A boot with a container that only the machine's TPM opens, and a folder of the host.
fn data_by_tpm(trial: &Trial<'_>, tpm: &Device, folder: &std::path::Path) -> Result<Booted> {
    let cache = trial.filled_cache()?;
    let data = Disk::at(&trial.dir.join("data.img"));
    let stage_1 = trial
        .stage_1()
        .argument("luks", json!(["crypt-data"]))
        .argument(
            "persist",
            json!({ "/data": { "device": "/dev/mapper/crypt-data", "fsType": "ext4", "need": "degraded", "timeout": 60 } }),
        )
        .argument(
            "entries",
            json!([{ "mountPoint": "/srv/shared", "device": "shared", "fsType": "virtiofs", "options": ["nosuid"] }]),
        )
        // Nobody is asked.
        .text(
            "/etc/crypttab",
            "crypt-data /dev/disk/by-id/virtio-disk1 - luks,tpm2-device=auto,headless=true\n",
            0o600,
        );
    let system = trial.lab.system(Spec::generation(1))?;
    let shared = Device::Share {
        tag: "shared".to_owned(),
        folder: folder.to_owned(),
    };
    trial
        .boot()
        .systemd(stage_1)
        .config(json!({ "policy": { "mode": "offline" } }))
        .system(&system)
        .disk(&cache)
        .disk(&data)
        .device(tpm)
        .device(&shared)
        .script("findmnt -n -o SOURCE,FSTYPE /data; cat /data/made; findmnt -n -o SOURCE,FSTYPE,OPTIONS /srv/shared; cat /srv/shared/host; echo guest >/srv/shared/guest")
        .once("boot")
}

fn by_systemd(trial: &Trial<'_>) -> Result<()> {
    let tpm = tpm(trial, "tpm");
    let data = container(trial, "data")?;
    let script = make("/dev/vda", "crypt-data") + &enrol("/dev/vda");
    prepare(trial, std::slice::from_ref(&data), Some(&tpm), &script)?;
    let folder = trial.dir.join("shared");
    std::fs::create_dir(&folder).context("making the folder to share")?;
    std::fs::write(folder.join("host"), "from the host\n").context("writing to the folder to share")?;
    let booted = data_by_tpm(trial, &tpm, &folder)?;
    ensure!(booted.generation()? == 1, "generation {} booted", booted.generation()?);
    ensure!(
        booted.script.contains("shared") && booted.script.contains("virtiofs") && booted.script.contains("from the host"),
        "the folder of the host is not there:\n{}",
        booted.script
    );
    let written = std::fs::read_to_string(folder.join("guest")).context("reading what the guest wrote")?;
    ensure!(written == "guest\n", "the guest wrote «{written}»");
    ensure!(
        booted.script.contains("/dev/mapper/crypt-data ext4") && booted.script.contains("\ncrypt-data\n"),
        "/data is not what the TPM opened:\n{}",
        booted.script
    );
    Ok(())
}

/// Three containers that systemd asks a person for, one after the other: of the second the question has a limit, of the third the mount alone.
fn typed(trial: &Trial<'_>) -> Result<()> {
    let names = ["crypt-a", "crypt-b", "crypt-c"];
    let disks = [container(trial, "a")?, container(trial, "b")?, container(trial, "c")?];
    let script = [
        make("/dev/vda", names[0]),
        // systemd tries on the others what was typed for the first.
        "printf nobody-knows >/key\n".to_owned(),
        make("/dev/vdb", names[1]),
        make("/dev/vdc", names[2]),
    ];
    prepare(trial, &disks, None, &script.concat())?;
    let cache = trial.filled_cache()?;
    let on = |name: &str, timeout: u32| json!({ "device": format!("/dev/mapper/{name}"), "fsType": "ext4", "need": "degraded", "timeout": timeout });
    let limit = 30 * trial.lab.accelerator.patience();
    let after = |unit: &str| format!("[Unit]\nAfter=systemd-cryptsetup@crypt\\x2d{unit}.service\n");
    let drop_in = |unit: &str| format!("systemd-cryptsetup@crypt\\x2d{unit}.service.d/after.conf");
    let stage_1 = trial
        .stage_1()
        .argument("luks", json!(names))
        .argument("persist", json!({ "/a": on(names[0], 300), "/b": on(names[1], 300), "/c": on(names[2], limit) }))
        .text(
            "/etc/crypttab",
            "crypt-a /dev/disk/by-id/virtio-disk1 none luks\ncrypt-b /dev/disk/by-id/virtio-disk2 none luks,timeout=10\ncrypt-c /dev/disk/by-id/virtio-disk3 none luks\n",
            0o600,
        )
        // A console shows one question at a time, and which is first is chance. The one that has no limit of its own is asked before the other.
        .unit(&drop_in("c"), &after("a"))
        .unit(&drop_in("b"), &after("c"));
    let system = trial.lab.system(Spec::generation(1))?;
    let boot = trial
        .boot()
        .systemd(stage_1)
        .config(json!({ "policy": { "mode": "offline" } }))
        .system(&system)
        .patience(2)
        .disk(&cache);
    let mut vm = disks
        .iter()
        .fold(boot, |boot, disk| boot.disk(disk))
        .script("set -e; grep -x crypt-a /a/made; for place in /a /b /c; do findmnt -n -o SOURCE,FSTYPE,OPTIONS $place; done; systemctl is-active multi-user.target")
        .words("demo.then=poweroff")
        .start("boot")?;
    vm.wait_for(&[&format!("{SYSTEMD_PASSPHRASE}{}", names[0])])?;
    // Not a wait for anything: what is typed before the question is thrown away.
    std::thread::sleep(FINGERS);
    vm.press(&format!("{KEY}\n"))?;
    for name in [names[2], names[1]] {
        vm.wait_for(&[&format!("{SYSTEMD_PASSPHRASE}{name}")])?;
    }
    let mut booted = Booted::read(&mut vm)?;
    booted.read_script(&mut vm)?;
    must_power_off(&mut vm)?;
    ensure!(
        booted.script.contains("/dev/mapper/crypt-a ext4") && booted.script.matches("freshroot-missing").count() == 2,
        "the places are:\n{}",
        booted.script
    );
    let warnings = booted.report["warnings"].to_string();
    for place in ["/b is missing", "/c is missing"] {
        ensure!(warnings.contains(place), "the report does not say «{place}»: {}", booted.report);
    }
    ensure!(!warnings.contains("/a is missing"), "report: {}", booted.report);
    Ok(())
}
