//! A disk that was missing at the boot, mounted over its stand-in when it comes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::device::find::{FindError, wait_for, wait_for_members};
use crate::device::name::DeviceName;
use crate::device::observe::BlockDevice;
use crate::handover::mountinfo::mounted_at;
use crate::mode::Mode;
use crate::mount::entry::{FileSystemEntry, MountEntry, MountKind, Need};
use crate::mount::mount_log::MountLog;
use crate::mount::order::order;
use crate::mount::persist::{EntryOutcome, FoundDevice, MISSING, Outcome, apply};
use crate::tool::{Input, Tool};
use crate::uevent::{Received, Source};

/// Without any event it is looked again so often, and a mount that was refused is tried again.
const LOOK: Duration = Duration::from_secs(600);
/// `systemctl --no-block` only hands its job over.
const SYSTEMCTL: Duration = Duration::from_secs(30);

/// Waits until the disk of the entry at `path` is there, and mounts it, and then what lies on it. `root` is where entries are mounted, `/` but in tests.
/// Returns at once if it is not missing.
///
/// # Errors
/// There is no such entry, it is none that the agent mounts, or events cannot be followed. A disk that cannot be mounted is waited for again.
pub fn persist_retry(root: &Path, entries: &[FileSystemEntry], path: &Path, events: &mut impl Source) -> Result<Vec<EntryOutcome>> {
    let wanted = wanted(entries, path)?;
    if !is_stand_in(root, path)? {
        log::info!("{} is not missing", path.display());
        return Ok(Vec::new());
    }
    let first = wanted.first().context("the entry vanished")?;
    let name: DeviceName = first.device().context("the entry names no device")?.parse()?;
    let mut told = String::new();
    loop {
        let error = match wait_for(Path::new("/"), &name, Instant::now() + LOOK, events, &mut |_| {}) {
            Ok(device) => match mount(root, &wanted, &device, events) {
                Ok(outcomes) => return Ok(outcomes),
                Err(error) => error,
            },
            Err(FindError::NotFound { .. }) => continue,
            Err(error @ FindError::Io { .. }) => return Err(error.into()),
            Err(error) => error.into(),
        };
        // The same words at each event of the same disk would fill the journal.
        let text = format!("{error:#}");
        if text != told {
            log::warn!("{} stays missing: {text}", path.display());
            told = text;
        }
        wait_for_news(events)?;
    }
}

/// The entry at `path`, which a boot must not do without any more, and those that lie on it or are made from it, in the order of mounting.
fn wanted(entries: &[FileSystemEntry], path: &Path) -> Result<Vec<MountEntry>> {
    let mut places: Vec<PathBuf> = Vec::new();
    let mut wanted: Vec<FileSystemEntry> = Vec::new();
    let mut own = entries
        .iter()
        .find(|entry| Path::new(&entry.mount_point) == path)
        .with_context(|| format!("fileSystems has no entry {}", path.display()))?
        .clone();
    own.need = Some(Need::Required);
    let validated = MountEntry::validate(&own, Mode::Standalone)?;
    ensure!(
        matches!(validated.kind(), MountKind::Device(_)),
        "{validated} is no file system on a disk; name the entry of the disk that it lies on"
    );
    places.push(validated.mount_point().to_owned());
    wanted.push(own);
    // What hangs on it, and on that; each round finds more or is the last.
    loop {
        let before = wanted.len();
        for entry in entries.iter().filter(|entry| Path::new(&entry.mount_point) != path) {
            // What is systemd's stays systemd's.
            let Ok(other) = MountEntry::validate(entry, Mode::Standalone) else {
                continue;
            };
            let hangs = |place: &Path| places.iter().any(|above| place.starts_with(above));
            let known = places.iter().any(|place| place == other.mount_point());
            if !known && (hangs(other.mount_point()) || other.sources().into_iter().any(hangs)) {
                places.push(other.mount_point().to_owned());
                let mut entry = entry.clone();
                // A required one would have ended the boot.
                entry.need = Some(Need::Degraded);
                wanted.push(entry);
            }
        }
        if wanted.len() == before {
            break;
        }
    }
    let mut ordered = order(&wanted, Mode::Standalone)?;
    // Whatever it depends on is mounted already.
    let at = ordered.iter().position(|entry| entry.mount_point() == validated.mount_point());
    if let Some(at) = at {
        let own = ordered.remove(at);
        ordered.insert(0, own);
    }
    Ok(ordered)
}

fn is_stand_in(root: &Path, path: &Path) -> Result<bool> {
    const MOUNTINFO: &str = "/proc/thread-self/mountinfo";
    let text = std::fs::read(MOUNTINFO).with_context(|| format!("reading {MOUNTINFO}"))?;
    let at = root.join(path.strip_prefix("/").unwrap_or(path));
    Ok(mounted_at(&text, &at).is_some_and(|mount| mount.fs_type == "tmpfs" && mount.source == MISSING))
}

fn mount(root: &Path, wanted: &[MountEntry], device: &BlockDevice, events: &mut impl Source) -> Result<Vec<EntryOutcome>> {
    let mut first = true;
    let mut find = |entry: &MountEntry| -> Result<FoundDevice> {
        let now = Instant::now();
        let device = if std::mem::take(&mut first) {
            device.clone()
        } else {
            // What else lies on it may be on another disk, which is not waited for.
            let name: DeviceName = entry.device().context("the entry names no device")?.parse()?;
            wait_for(Path::new("/"), &name, now, events, &mut |_| {})?
        };
        device.mountable()?;
        // Only a btrfs may have more than one, for which all disks are read again.
        let several = device
            .content
            .signature()
            .is_some_and(|signature| signature.devices.is_some_and(|count| count > 1));
        let members = match several {
            true => wait_for_members(Path::new("/"), &device, now, events, &mut |_| {}),
            false => Ok(vec![device.clone()]),
        };
        let members = match members {
            Err(FindError::Fewer { there, .. }) if entry.options().file_system.iter().any(|option| option.key == "degraded") => there,
            other => other?,
        };
        let signature = device.content.signature().filter(|signature| signature.kind.is_file_system());
        Ok(FoundDevice {
            path: device.path.clone(),
            identities: members.iter().filter_map(|member| member.identity(Path::new("/"))).collect(),
            fs_type: signature.map(|signature| signature.kind.name().to_owned()),
            members: match members.as_slice() {
                [_] => Vec::new(),
                members => members.iter().map(|member| member.path.clone()).collect(),
            },
            check_by: (!entry.no_check()).then(|| PathBuf::from("/")),
            mounted_at: None,
        })
    };
    let mut log = MountLog::new();
    match apply(root, wanted, &mut find, &mut log) {
        Ok(outcomes) => Ok(outcomes),
        Err(error) => {
            log.undo();
            Err(error)
        }
    }
}

/// Waits for the next event about a block device, or a while.
fn wait_for_news(events: &mut impl Source) -> Result<()> {
    let deadline = Instant::now() + LOOK;
    loop {
        match events.next(deadline).context("following the kernel's events")? {
            Received::Event(event) if event.is_block_news() => return Ok(()),
            Received::Event(_) => {}
            Received::Overrun | Received::Deadline => return Ok(()),
        }
    }
}

/// Has systemd start `units`, which could not be started before. `root` is `/` but in tests.
///
/// # Errors
/// systemd does not take the job.
pub fn start(root: &Path, units: &[String]) -> Result<()> {
    if units.is_empty() {
        return Ok(());
    }
    let systemctl = Tool::find(root, "systemctl").context("there is no systemctl: units that need the disk are to be started by hand")?;
    let mut arguments = vec!["--no-block", "start", "--"];
    arguments.extend(units.iter().map(String::as_str));
    let ended = systemctl.run(&arguments, Input::Nothing, SYSTEMCTL)?;
    if !ended.status.success() {
        bail!("starting {}: systemctl {ended}", units.join(", "));
    }
    Ok(())
}

/// What came of it, in a sentence for each entry.
pub fn sentences(outcomes: &[EntryOutcome]) -> Vec<String> {
    let sentence = |entry: &EntryOutcome| {
        let at = entry.mount_point.display();
        match &entry.outcome {
            Outcome::Mounted if entry.write_protected => format!("{at} is mounted for reading only: its disk takes no writes"),
            Outcome::Mounted => format!("{at} is mounted"),
            Outcome::Missing { reason } => format!("{at} is missing: {reason}"),
        }
    };
    outcomes.iter().map(sentence).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn points(path: &str) -> Result<Vec<String>> {
        let entries: Vec<FileSystemEntry> = serde_json::from_str(
            r#"[{"mountPoint": "/data", "device": "LABEL=data", "fsType": "ext4", "need": "degraded"},
                {"mountPoint": "/data/more", "device": "LABEL=more", "fsType": "ext4", "need": "optional"},
                {"mountPoint": "/etc/ssh", "device": "/var/keys/ssh", "fsType": "none", "options": ["bind", "nofail"]},
                {"mountPoint": "/var/keys", "device": "/data/keys", "fsType": "none", "options": ["bind", "nofail"]},
                {"mountPoint": "/mail", "device": "server:/mail", "fsType": "nfs", "need": "degraded"},
                {"mountPoint": "/other", "device": "LABEL=other", "fsType": "ext4", "need": "degraded"}]"#,
        )?;
        Ok(wanted(&entries, Path::new(path))?
            .iter()
            .map(|entry| entry.mount_point().display().to_string())
            .collect())
    }

    #[test]
    fn what_hangs_on_a_disk_comes_back_with_it() {
        assert_eq!(points("/data").unwrap(), ["/data", "/data/more", "/var/keys", "/etc/ssh"]);
        assert_eq!(points("/other").unwrap(), ["/other"]);
        for (path, word) in [
            ("/none", "no entry /none"),
            ("/mail", "nfs"),
            ("/var/keys", "no file system on a disk"),
        ] {
            let error = format!("{:#}", points(path).unwrap_err());
            assert!(error.contains(word), "{error}");
        }
    }
}
