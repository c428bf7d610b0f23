//! Preparing declared disks that are blank, and growing those that have become larger, before anything is mounted.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::disks::Disks;
use super::failing::{new_report, write_report};
use super::{ROOT, Stage};
use crate::cli::SYSROOT;
use crate::cmdline::CommandLine;
use crate::device::observe::{BlockDevice, observe};
use crate::handover::mountinfo::all;
use crate::mode::Mode;
use crate::mount::growfs;
use crate::prepare::act::{carry_out, carry_out_growth};
use crate::prepare::blank::{Refusal, check_of};
use crate::prepare::content::{Content, Format};
use crate::prepare::declaration::{BlankCheck, Declared};
use crate::prepare::identity::{Known, meant};
use crate::prepare::look::{GRACE, Hold, Intent, Looked, SLOWEST, look, the_one};
use crate::prepare::plan::{Preparation, Step};
use crate::prepare::room::look_growth;
use crate::prepare::sysfs::known;
use crate::report::{DiskOutcome, DiskReport, Report};
use crate::settings::Settings;

/// How long a disk that is to be prepared is waited for. Its mounts wait for it once more, by limits of their own.
const DISK_WAIT: Duration = Duration::from_secs(30);
/// How long making file systems may take in all: programs are done in seconds, and each has a limit of its own.
const MAKING: Duration = Duration::from_secs(2 * 60 * 60);
/// More than the samples of two looks at a disk come to.
const SAMPLES: u64 = 512 << 20;
/// What the unit that prepares leaves to that of the boot, below the root.
const LEFT: &str = "run/freshroot/prepare.json";

/// Prepares the disks that are declared so. What is refused is a warning: whether the boot goes on without the disk is for its mounts to say.
pub fn prepare_disks(root: &Path, stage: &Stage, declared: &[Declared], disks: &mut Disks<'_>, report: &mut Report) {
    for one in asked(declared) {
        let outcome = report.step(&format!("prepare {}", one.name), |_| {
            stage.deadline.moved_within(limit(one), || {
                load_drivers(one, disks);
                wait(root, one, disks)?;
                prepare(root, one)
            })
        });
        let (outcome, detail) = match outcome {
            Ok(outcome) => (outcome, None),
            Err(error) => {
                report.warn(format!("{error:#}"));
                let refused = error.downcast_ref::<Refusal>().is_some();
                let outcome = if refused { DiskOutcome::Refused } else { DiskOutcome::Failed };
                (outcome, Some(format!("{error:#}")))
            }
        };
        note(one, outcome, detail, report);
    }
}

fn asked(declared: &[Declared]) -> impl Iterator<Item = &Declared> {
    declared.iter().filter(|one| one.prepare || one.grow)
}

fn note(declared: &Declared, outcome: DiskOutcome, detail: Option<String>, report: &mut Report) {
    report.disks.push(DiskReport {
        name: declared.name.clone(),
        outcome,
        detail,
    });
}

/// The unit of systemd's stage 1 that prepares, before anything opens a disk (`freshroot-prepare.service`). What came of it is left to the unit of the boot.
///
/// # Errors
/// Where nothing can be left, or devices cannot be seen. A disk that is refused is none.
pub fn prepare_in_systemd() -> Result<()> {
    crate::console::init_service(log::LevelFilter::Info);
    let root = Path::new(ROOT);
    // What is written to disks is never for a command line to say.
    let settings = Settings::read_with(root, None, Some(b""))?;
    let stage = Stage::new(Mode::Systemd, SYSROOT.into());
    let (mut disks, _) = Disks::open(root, &stage, &settings, &CommandLine::default())?;
    let mut report = new_report();
    prepare_disks(root, &stage, &settings.disks, &mut disks, &mut report);
    write_report(&root.join(LEFT), &report.to_json()?)
}

/// Takes over what [`prepare_in_systemd`] has left; its warnings are on the console already.
pub fn take_over(root: &Path, declared: &[Declared], report: &mut Report) {
    if asked(declared).next().is_none() {
        return;
    }
    let left = fs::read_to_string(root.join(LEFT)).map_err(anyhow::Error::from);
    match left.and_then(|text| Report::parse(&text)) {
        Ok(left) => {
            report.steps.extend(left.steps);
            report.warnings.extend(left.warnings);
            report.disks = left.disks;
        }
        Err(error) => {
            let why = format!("freshroot-prepare.service, which prepares and grows disks, did not come to its end (/{LEFT}: {error:#})");
            report.warn(why.clone());
            for one in asked(declared) {
                note(one, DiskOutcome::Failed, Some(why.clone()), report);
            }
        }
    }
}

/// What preparing a disk may take, the wait included, so that stage 1 has the time; the limit of the unit (`prepareLimit` in the NixOS module) is the same.
fn limit(declared: &Declared) -> Duration {
    let read = match check_of(declared, declared.max) {
        BlankCheck::Full => declared.max,
        BlankCheck::Sampled => SAMPLES,
    };
    DISK_WAIT + GRACE + Duration::from_secs(read / SLOWEST) + MAKING
}

/// What is made on a btrfs, and in a LUKS container, is made by the kernel: it must know both.
fn load_drivers(declared: &Declared, disks: &mut Disks<'_>) {
    let contents = declared.partitions.iter().filter_map(|partition| partition.content.as_ref());
    let formats: Vec<Format> = contents.flat_map(Content::formats).collect();
    if formats.contains(&Format::Btrfs) {
        disks.load_file_system(Format::Btrfs.name());
    }
    if formats.contains(&Format::Luks) {
        disks.load_for_luks();
    }
}

/// Waits until the disk is there, and all disks have been seen that came with it, or the time is over.
fn wait(root: &Path, declared: &Declared, disks: &mut Disks<'_>) -> Result<()> {
    let deadline = Instant::now() + DISK_WAIT;
    let mut told = false;
    loop {
        // A second one of this name may be among what has not been looked at.
        while disks.wait_for_news(Instant::now())? {
            if Instant::now() >= deadline {
                break;
            }
        }
        // Of several of this name none is waited for.
        if Instant::now() >= deadline || !meant(&declared.device, &known(root)?).is_empty() {
            return Ok(());
        }
        if !told {
            log::info!("waiting for {}, at most {} s", declared.device, DISK_WAIT.as_secs());
            told = true;
        }
        disks.wait_for_news(deadline)?;
    }
}

/// Prepares one disk if it is blank, or was begun with.
///
/// # Errors
/// Why it is not prepared: a [`Refusal`], where nothing was written.
pub fn prepare(root: &Path, declared: &Declared) -> Result<DiskOutcome> {
    let disks = known(root)?;
    let disk = the_one(declared, &disks)?;
    let mut tell = |step: &Step| {
        log::info!("{step}");
        Ok(())
    };
    if let Some((preparation, hold)) = to_do(root, declared, disk, Intent::Write)? {
        log::info!("disks.{}: {} is blank: it is prepared", declared.name, disk.shown());
        carry_out(&preparation, &hold, &mut tell)?;
        return Ok(DiskOutcome::Prepared);
    }
    if declared.grow
        && let Some((growth, file)) = look_growth(root, declared, disk, Intent::Write)?
    {
        log::info!(
            "disks.{}: {}: {} grows from {} to {} bytes",
            declared.name,
            disk.shown(),
            growth.label,
            growth.from,
            growth.to
        );
        carry_out_growth(&growth, &file, &disk.disk.path, &mut tell)?;
        return Ok(DiskOutcome::Grown);
    }
    log::info!("disks.{}: {} has its partitions already", declared.name, disk.shown());
    Ok(DiskOutcome::Unchanged)
}

/// What a preparation does, where one is declared and it is not done yet.
fn to_do(root: &Path, declared: &Declared, disk: &Known, intent: Intent) -> Result<Option<(Box<Preparation>, Box<Hold>)>> {
    if !declared.prepare {
        return Ok(None);
    }
    let mut seed = [0; 16];
    fill(&mut seed)?;
    Ok(match look(root, declared, disk, intent, &seed)? {
        Looked::Prepared => None,
        Looked::ToDo(preparation, hold) => Some((preparation, hold)),
    })
}

/// Grows the file systems on last partitions of disks with `grow` to all of their devices, where they are mounted. The kernel does so; a file system that
/// has its size already stays as it is.
pub fn grow_file_systems(root: &Path, declared: &[Declared], report: &mut Report) {
    for one in declared.iter().filter(|one| one.grow) {
        if let Err(error) = grow_file_system(root, one) {
            report.warn(format!("disks.{}: the file system is not grown: {error:#}", one.name));
        }
    }
}

fn grow_file_system(root: &Path, declared: &Declared) -> Result<()> {
    let disks = known(root)?;
    // Of a disk that is not there, or that is there twice, a warning tells already.
    let [disk] = meant(&declared.device, &disks)[..] else {
        return Ok(());
    };
    let devices = observe(root).context("listing /sys/class/block")?;
    let label = declared.partitions.last().map(|last| &last.label);
    let of = |device: &&BlockDevice| {
        let partition = device.partition.as_ref();
        partition.is_some_and(|partition| partition.disk == disk.disk.name && partition.label.as_ref() == label)
    };
    let Some(mut device) = devices.iter().find(of) else { return Ok(()) };
    // What is in a LUKS container is on a device of its own, which was opened after the partition grew.
    let crypt = |other: &&BlockDevice| other.mapping.as_ref().is_some_and(|mapping| mapping.uuid.starts_with("CRYPT-"));
    if let [holder] = device.holders.as_slice()
        && let Some(above) = devices.iter().filter(crypt).find(|other| other.name == *holder)
    {
        device = above;
    }
    let mounts = root.join("proc/self/mountinfo");
    let mounts = std::fs::read(&mounts).with_context(|| format!("reading {}", mounts.display()))?;
    let mapped = device.mapping.as_ref().map(|mapping| Path::new("/dev/mapper").join(&mapping.name));
    let Some(mount) =
        all(&mounts).find(|mount| Path::new(&mount.source) == device.path || Some(Path::new(&mount.source)) == mapped.as_deref())
    else {
        log::info!("{} is not mounted: there is no file system to be grown", device.path.display());
        return Ok(());
    };
    let point = root.join(mount.point.strip_prefix("/").unwrap_or(&mount.point));
    let (from, to) = growfs::grow(&point, &mount.fs_type, device.size)
        .with_context(|| format!("{} at {}", device.path.display(), mount.point.display()))?;
    if from != to {
        log::info!(
            "{} at {} has been grown from {from} to {to} bytes",
            mount.fs_type,
            mount.point.display()
        );
    }
    Ok(())
}

/// What a preparation of this disk would write. Ids are drawn anew for each preparation: those of a dry run are examples, unless one was begun.
///
/// # Errors
/// Why it would not be prepared.
pub fn dry_run(root: &Path, declared: &Declared) -> Result<String> {
    let disks = known(root)?;
    let disk = the_one(declared, &disks)?;
    if let Some((preparation, _)) = to_do(root, declared, disk, Intent::Look)? {
        return Ok(preparation.to_string());
    }
    if declared.grow
        && let Some((growth, _)) = look_growth(root, declared, disk, Intent::Look)?
    {
        return Ok(format!("disks.{}: {}\n{growth}", declared.name, disk.shown()));
    }
    Ok(format!(
        "disks.{}: {} has its partitions: nothing would be written\n",
        declared.name,
        disk.shown()
    ))
}

/// Fills a seed with random bytes. In an early boot the kernel may still be collecting them, which it ends by itself within a second.
fn fill(seed: &mut [u8; 16]) -> Result<()> {
    let length = rustix::rand::getrandom(&mut seed[..], rustix::rand::GetRandomFlags::empty()).context("drawing random bytes")?;
    anyhow::ensure!(length == seed.len(), "the kernel gave {length} random bytes, not {}", seed.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::prepare::declaration;

    fn declared(more: &str) -> Vec<Declared> {
        let text = format!(
            r#"{{ "device": "serial=S1", "size": {{ "min": "1G", "max": "8G" }}, {more} "partitions": [{{ "name": "a", "size": "100%", "content": {{ "type": "filesystem", "format": "ext4" }} }}] }}"#
        );
        vec![declaration::declared("main", &serde_json::from_str(&text).unwrap()).unwrap()]
    }

    #[test]
    fn what_the_unit_before_has_left_is_in_the_report_once_and_again_at_the_next_try() {
        let root = tempfile::tempdir().unwrap();
        let declared = declared(r#""prepare": true,"#);
        let mut left = Report::new("x");
        left.warn("refused: why");
        note(&declared[0], DiskOutcome::Refused, Some("why".to_owned()), &mut left);
        write_report(&root.path().join(LEFT), &left.to_json().unwrap()).unwrap();
        for _ in 0..2 {
            let mut report = Report::new("x");
            report.warn("another");
            take_over(root.path(), &declared, &mut report);
            assert_eq!(report.disks, left.disks);
            assert_eq!(report.warnings, ["another", "refused: why"]);
        }
    }

    #[test]
    fn a_unit_that_left_nothing_is_said_for_each_disk_that_it_had_to_look_at() {
        let root = tempfile::tempdir().unwrap();
        let mut report = Report::new("x");
        take_over(root.path(), &declared(r#""grow": true,"#), &mut report);
        assert_eq!(report.disks[0].outcome, DiskOutcome::Failed);
        assert!(report.warnings[0].contains("freshroot-prepare.service"), "{:?}", report.warnings);
        let mut report = Report::new("x");
        take_over(root.path(), &declared(""), &mut report);
        assert!(report.disks.is_empty() && report.warnings.is_empty());
    }

    #[test]
    fn a_disk_has_the_time_that_the_slowest_one_takes() {
        // 30 s, 120 s, 8 GiB or samples at 4 MiB a second, 2 hours; as prepareLimit in initrd-module/lib.nix.
        for (check, read) in [("full", 2048), ("sampled", 128)] {
            let declared = declared(&format!(r#""blankCheck": "{check}","#));
            assert_eq!(limit(&declared[0]).as_secs(), 30 + 120 + read + 7200, "{check}");
        }
    }
}
