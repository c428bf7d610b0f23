//! LUKS containers, opened before anything is looked for on them. Only where there is no systemd that does it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::mount::{UnmountFlags, unmount};

use super::ROOT;
use super::disks::{Disks, file_system_of};
use crate::device::probe::Kind;
use crate::mode::Mode;
use crate::mount::entry::DeviceFs;
use crate::mount::{options, system};
use crate::report::Report;
use crate::settings::Settings;
use crate::stack::luks::{Key, LuksDevice, TRIES, Unlock};
use crate::tool::{Input, Tool};

/// Where the file system with a key is mounted for as long as it is read.
const KEY_PLACE: &str = "/run/freshroot/key";
/// Nothing is written to a stick with a key, and nothing on it is executed.
const KEY_OPTIONS: [&str; 4] = ["ro", "nosuid", "nodev", "noexec"];
/// Deriving a key is made to take seconds, on a slow machine with a header made by a fast one many; a TPM has its own pauses.
const LIMIT: Duration = Duration::from_secs(120);
/// The controlling terminal of nobody: where a passphrase is typed.
const CONSOLE: &str = "/dev/console";

/// Opens the containers of the settings, and warns of each that stays closed: what is on it is then missing, and what misses it decides.
pub fn unlock_all(settings: &Settings, disks: &mut Disks<'_>, report: &mut Report) {
    if settings.luks.is_empty() {
        return;
    }
    match disks.mode() {
        Mode::Standalone => {}
        Mode::Systemd => {
            report.warn("luks is set, and under systemd containers are systemd's to open (crypttab): the setting is not looked at");
            return;
        }
    }
    let started = Instant::now();
    for (name, entry) in &settings.luks {
        let opened: Result<()> = report.step(&format!("unlock {name}"), |_| unlock(name, entry, started, disks));
        if let Err(error) = opened {
            report.warn(format!("the LUKS container {name} stays closed: {error:#}"));
        }
    }
}

fn unlock(name: &str, entry: &LuksDevice, started: Instant, disks: &mut Disks<'_>) -> Result<()> {
    let mapped = Path::new("/dev/mapper").join(name);
    if mapped.exists() {
        log::info!("{} is there already", mapped.display());
        return Ok(());
    }
    let tool = Tool::find(Path::new(ROOT), "cryptsetup")
        .context("there is no cryptsetup in the initrd; the NixOS module puts it there where boot.initrd.luks.devices is set")?;
    let device = disks.find_since(&entry.device, started, entry.wait())?;
    let is_luks = device.content.signature().is_some_and(|signature| signature.kind == Kind::Luks);
    ensure!(is_luks, "{device} holds no LUKS container; correct luks.{name}.device");
    disks.load_for_luks();
    let mut refusals = Vec::new();
    let keyed = match entry.key() {
        Some(key) => with_key(&key, entry, started, disks, |file| {
            open(&tool, name, entry, &device.path, &Unlock::Key(file))
        }),
        None => open(&tool, name, entry, &device.path, &Unlock::Token),
    };
    match keyed {
        Ok(()) => return Ok(()),
        Err(error) => refusals.push(format!("{error:#}")),
    }
    if entry.may_ask() {
        log::warn!(
            "the passphrase of {name} ({}) is asked for on {CONSOLE}, for {} s",
            device.path.display(),
            entry.passphrase_wait().as_secs()
        );
        match open(&tool, name, entry, &device.path, &Unlock::Passphrase) {
            Ok(()) => return Ok(()),
            Err(error) => refusals.push(format!("{error:#}")),
        }
    }
    bail!("{}", refusals.join("; then "))
}

fn open(tool: &Tool, name: &str, entry: &LuksDevice, device: &Path, by: &Unlock) -> Result<()> {
    let (input, limit, what) = match by {
        Unlock::Key(_) => (Input::Nothing, LIMIT, "the key"),
        Unlock::Token => (Input::Nothing, LIMIT, "no token of the container"),
        Unlock::Passphrase => (
            Input::Terminal(Path::new(CONSOLE)),
            (entry.passphrase_wait() + LIMIT) * TRIES,
            "no passphrase",
        ),
    };
    let ended = tool.run(&entry.arguments(name, device, by), input, limit)?;
    ensure!(ended.status.success(), "{what} opened it: cryptsetup {ended}");
    log::info!("opened {} as /dev/mapper/{name}", device.display());
    Ok(())
}

/// Does `work` with the path of the key.
fn with_key(
    key: &Key,
    entry: &LuksDevice,
    started: Instant,
    disks: &mut Disks<'_>,
    work: impl FnOnce(PathBuf) -> Result<()>,
) -> Result<()> {
    match key {
        Key::File(file) => {
            ensure!(file.is_file(), "there is no key file {} in the initrd", file.display());
            work(file.clone())
        }
        Key::Device(name) => {
            let device = disks.find_since(name, started, entry.key_wait()).context("looking for the key")?;
            work(device.path)
        }
        Key::OnDevice { device, file } => {
            let device = disks
                .find_since(device, started, entry.key_wait())
                .context("looking for the device with the key")?;
            let fs_type = file_system_of(&device)?;
            disks.load_file_system(&fs_type);
            let fs = DeviceFs::of_medium(&fs_type).with_context(|| format!("{device} holds {fs_type}, which is not mounted here"))?;
            std::fs::create_dir_all(KEY_PLACE).with_context(|| format!("making {KEY_PLACE}"))?;
            system::mount_device(&device.path, fs, &options::split(&KEY_OPTIONS)?)?.attach(Path::new(KEY_PLACE))?;
            let path = Path::new(KEY_PLACE).join(file.strip_prefix("/").unwrap_or(file));
            let worked = if path.is_file() {
                work(path)
            } else {
                Err(anyhow::anyhow!("there is no key file {} on {device}", file.display()))
            };
            if let Err(errno) = unmount(KEY_PLACE, UnmountFlags::DETACH) {
                log::warn!("the stick with the key stays mounted at {KEY_PLACE}: {errno}");
            }
            worked
        }
    }
}
