//! Preparing declared disks that are blank, before anything is mounted.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::disks::Disks;
use crate::mode::Mode;
use crate::prepare::act::carry_out;
use crate::prepare::blank::Refusal;
use crate::prepare::content::{Content, Format};
use crate::prepare::declaration::Declared;
use crate::prepare::identity::meant;
use crate::prepare::look::{Intent, Looked, look, the_one};
use crate::prepare::plan::Step;
use crate::prepare::sysfs::known;
use crate::report::{DiskOutcome, DiskReport, Report};

/// How long a disk that is to be prepared is waited for. Its mounts wait for it once more, by limits of their own.
const DISK_WAIT: Duration = Duration::from_secs(30);

/// Prepares the disks that are declared so. What is refused is a warning: whether the boot goes on without the disk is for its mounts to say.
pub fn prepare_disks(root: &Path, mode: Mode, declared: &[Declared], disks: &mut Disks<'_>, report: &mut Report) {
    for one in declared.iter().filter(|one| one.prepare) {
        let outcome = match mode {
            Mode::Standalone => report.step(&format!("prepare {}", one.name), |_| {
                load_drivers(one, disks);
                wait(root, one, disks)?;
                prepare(root, one)
            }),
            // systemd mounts disks on its own, and does not wait for us.
            Mode::Systemd => Err(anyhow::anyhow!(
                "disks.{}: it is not prepared in systemd's stage 1, where disks are systemd's: boot once with mode = \"standalone\", or run `freshroot prepare` before it is needed",
                one.name
            )),
        };
        let (outcome, detail) = match outcome {
            Ok(outcome) => (outcome, None),
            Err(error) => {
                report.warn(format!("{error:#}"));
                let refused = error.downcast_ref::<Refusal>().is_some() || mode == Mode::Systemd;
                let outcome = if refused { DiskOutcome::Refused } else { DiskOutcome::Failed };
                (outcome, Some(format!("{error:#}")))
            }
        };
        report.disks.push(DiskReport {
            name: one.name.clone(),
            outcome,
            detail,
        });
    }
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
    let mut seed = [0; 16];
    fill(&mut seed)?;
    match look(root, declared, disk, Intent::Write, &seed)? {
        Looked::Prepared => {
            log::info!("disks.{}: {} has its partitions already", declared.name, disk.shown());
            Ok(DiskOutcome::Unchanged)
        }
        Looked::ToDo(preparation, hold) => {
            log::info!("disks.{}: {} is blank: it is prepared", declared.name, disk.shown());
            let mut tell = |step: &Step| {
                log::info!("{step}");
                Ok(())
            };
            carry_out(&preparation, &hold, &mut tell)?;
            Ok(DiskOutcome::Prepared)
        }
    }
}

/// What a preparation of this disk would write. Ids are drawn anew for each preparation: those of a dry run are examples, unless one was begun.
///
/// # Errors
/// Why it would not be prepared.
pub fn dry_run(root: &Path, declared: &Declared) -> Result<String> {
    let disks = known(root)?;
    let disk = the_one(declared, &disks)?;
    let mut seed = [0; 16];
    fill(&mut seed)?;
    Ok(match look(root, declared, disk, Intent::Look, &seed)? {
        Looked::Prepared => format!(
            "disks.{}: {} has its partitions: nothing would be written\n",
            declared.name,
            disk.shown()
        ),
        Looked::ToDo(preparation, _) => preparation.to_string(),
    })
}

/// Fills a seed with random bytes. In an early boot the kernel may still be collecting them, which it ends by itself within a second.
fn fill(seed: &mut [u8; 16]) -> Result<()> {
    let length = rustix::rand::getrandom(&mut seed[..], rustix::rand::GetRandomFlags::empty()).context("drawing random bytes")?;
    anyhow::ensure!(length == seed.len(), "the kernel gave {length} random bytes, not {}", seed.len());
    Ok(())
}
