//! The ISO that the NixOS module builds, made by its script with Debian's GRUB: as a disc and as a stick, with and without a network.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Scenario;
use super::ways::{WORDS, guest_url};
use crate::command::Tool;
use crate::disk::Disk;
use crate::lab::CHANNEL;
use crate::publisher::{Bootable, Served};
use crate::qemu::{Firmware, Machine, Nic};
use crate::system::Spec;
use crate::trial::{Booted, Trial, must_power_off};

/// The tests of this file.
pub const ALL: &[Scenario] = &[
    Scenario::new(
        "iso",
        "a disc boots by BIOS without a network and without a cache, and its image is used where it is",
        disc,
    ),
    Scenario::new(
        "iso-update",
        "an ISO that was written to a stick follows its channel: a newer generation on the network boots instead",
        stick_with_network,
    ),
    Scenario::new("iso-uefi", "the same disc boots by UEFI", disc_uefi).nightly(),
    Scenario::new("iso-stick-uefi", "a stick boots by UEFI, without a network", stick_uefi).nightly(),
    Scenario::new(
        "iso-damaged",
        "a disc with a damaged chunk names it, and the server's image boots",
        damaged,
    )
    .nightly(),
];

/// What an initrd needs for a disc, besides the usual.
const MODULES: &[&str] = &["ata_piix", "sr_mod", "isofs"];
/// `WORDS` of the module's own ISO.
const MEDIUM: &str = "freshroot.media.device=LABEL=FRESHROOT freshroot.media.path=freshroot";
/// Debian's packages grub-pc-bin and grub-efi-amd64-bin.
const GRUB: &str = "/usr/lib/grub";
/// 84 MB are copied twice.
const ISO_LIMIT: Duration = Duration::from_secs(120);
/// Firmware and boot loader read kernel and initrd from an emulated drive.
const PATIENCE: u32 = 2;

/// An ISO with generation 1.
struct Iso {
    file: PathBuf,
    served: Served,
}

/// What the command line of an ISO says besides the medium.
enum Follows {
    /// The one manifest that it holds: what the NixOS module builds.
    Pin,
    /// The channel: what was signed may be replaced by something newer.
    Channel,
}

impl Iso {
    /// Makes one whose initrd has no cache; `changes` are put over its configuration.
    fn make(trial: &Trial<'_>, follows: &Follows, changes: &Value, damage: bool) -> Result<Self> {
        let lab = trial.lab;
        let initrd = trial.dir.join("initrd");
        let mut config = json!({ "cache": null });
        for (name, value) in changes.as_object().into_iter().flatten() {
            config[name] = value.clone();
        }
        lab.initrd_with(&lab.config(&config)?, &[], MODULES, &initrd)?;
        let served = Served::at(&trial.dir.join("served"));
        let system = lab.system(Spec::generation(1))?;
        let boot = Bootable {
            kernel: &lab.kernel.image,
            initrd: &initrd,
            words: WORDS,
            more: &[],
        };
        lab.publisher()?
            .bootable(&system.image, served.dir(), CHANNEL, &lab.key()?, &boot)?;
        if damage {
            let (digest, _) = served.image(CHANNEL)?;
            let image = served.dir().join("images").join(format!("{digest}.squashfs"));
            served.tamper(&image, |mut bytes| {
                // In the second chunk.
                if let Some(byte) = bytes.get_mut((1 << 20) + 5) {
                    *byte ^= 1;
                }
                bytes
            })?;
        }
        let line = match follows {
            Follows::Pin => {
                let manifest = only_name(&served, "manifests")?;
                let manifest = manifest.trim_end_matches(".json");
                let system = system.toplevel.in_guest();
                format!("init=/nix/.freshroot/init freshroot.system={system} {MEDIUM} {WORDS} freshroot.manifest-sha256={manifest}")
            }
            Follows::Channel => format!("init=/nix/.freshroot/init freshroot.channel={CHANNEL} {MEDIUM} {WORDS}"),
        };
        let file = trial.dir.join("freshroot.iso");
        Tool::new("sh", ISO_LIMIT)
            .arg(lab.workspace.root().join("initrd-module/make-iso.sh"))
            .arg(served.dir())
            .arg(line)
            .arg(&file)
            .env("EFI_TARGET", "x86_64-efi")
            .env("EFI_MODULES", GRUB)
            .env("BIOS_MODULES", GRUB)
            .run()?;
        Ok(Self { file, served })
    }

    fn disc(&self, firmware: Firmware) -> Machine {
        Machine::firmware(firmware).disc(&self.file, 0)
    }

    fn stick(&self, firmware: Firmware) -> Machine {
        Machine::firmware(firmware).boot_disk(&Disk::at(&self.file), "stick", 0)
    }
}

fn only_name(served: &Served, folder: &str) -> Result<String> {
    let dir = served.dir().join(folder);
    let entry = fs::read_dir(&dir).with_context(|| format!("listing {}", dir.display()))?.next();
    let name = entry.with_context(|| format!("{} is empty", dir.display()))??.file_name();
    name.into_string().ok().context("a file name is not UTF-8")
}

/// In the guest: how the medium is mounted, and what the store is made of.
const LOOK: &str =
    "set -e; findmnt -n -o FSTYPE,OPTIONS /run/freshroot/media; cat /sys/block/loop*/loop/backing_file; grep Shmem: /proc/meminfo";

/// Boots generation 1 from the medium alone.
fn alone(trial: &Trial<'_>, machine: Machine) -> Result<()> {
    let script = Disk::script(&trial.dir.join("script.img"), LOOK)?;
    let mut vm = trial.power_on(machine.memory(640).script(&script), "boot", PATIENCE)?;
    let mut booted = Booted::read(&mut vm)?;
    booted.read_script(&mut vm)?;
    must_power_off(&mut vm)?;
    ensure!(
        booted.generation()? == 1 && booted.text("/source") == "medium" && booted.text("/system/authority") == "pin",
        "report: {}",
        booted.report
    );
    ensure!(
        booted.number("/requests")? == 0 && booted.report.get("network").is_some_and(Value::is_null),
        "a network was used: {}",
        booted.report
    );
    let said = &booted.script;
    for word in ["iso9660", "ro,nosuid,nodev,noexec", "/freshroot/images/"] {
        ensure!(said.contains(word), "the guest does not say «{word}»: {said}");
    }
    Ok(())
}

fn disc(trial: &Trial<'_>) -> Result<()> {
    let iso = Iso::make(trial, &Follows::Pin, &json!({}), false)?;
    alone(trial, iso.disc(Firmware::Bios))
}

fn disc_uefi(trial: &Trial<'_>) -> Result<()> {
    let iso = Iso::make(trial, &Follows::Pin, &json!({}), false)?;
    alone(trial, iso.disc(Firmware::Uefi))
}

fn stick_uefi(trial: &Trial<'_>) -> Result<()> {
    let iso = Iso::make(trial, &Follows::Pin, &json!({}), false)?;
    alone(trial, iso.stick(Firmware::Uefi))
}

fn stick_with_network(trial: &Trial<'_>) -> Result<()> {
    let server = trial.serve(&trial.lab.served(2)?)?;
    let iso = Iso::make(trial, &Follows::Channel, &json!({ "url": guest_url(&server) }), false)?;
    let mut vm = trial.power_on(iso.stick(Firmware::Bios).nic(Nic::plain()), "boot", PATIENCE)?;
    let booted = Booted::read(&mut vm)?;
    must_power_off(&mut vm)?;
    ensure!(
        booted.generation()? == 2 && booted.text("/source") == "ram",
        "report: {}",
        booted.report
    );
    Ok(())
}

fn damaged(trial: &Trial<'_>) -> Result<()> {
    let server = trial.serve(&trial.lab.served(1)?)?;
    let iso = Iso::make(trial, &Follows::Channel, &json!({ "url": guest_url(&server) }), true)?;
    let (digest, _) = iso.served.image(CHANNEL)?;
    let mut vm = trial.power_on(iso.disc(Firmware::Bios).nic(Nic::plain()), "boot", PATIENCE)?;
    let booted = Booted::read(&mut vm)?;
    must_power_off(&mut vm)?;
    ensure!(
        booted.text("/source") == "ram" && booted.text("/system/image") == digest,
        "report: {}",
        booted.report
    );
    ensure!(
        booted
            .report
            .pointer("/warnings")
            .is_some_and(|all| all.to_string().contains("number 1 is not")),
        "the damaged chunk is not named: {}",
        booted.report
    );
    Ok(())
}
