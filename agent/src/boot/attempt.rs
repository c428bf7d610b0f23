//! One way from the settings to a root that is ready: what both modes of the boot have in common.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::acquire::{Acquire, Acquired};
use super::cache_disk::{cache_folder, mount_cache, open_cache};
use super::disks::Disks;
use super::failing::keep_report;
use super::medium::Medium;
use super::prepare::{grow_file_systems, prepare_disks, take_over};
use super::swap::{Swaps, about_resume};
use super::system;
use super::unlock::unlock_all;
use super::{ROOT, Stage};
use crate::cache::Cache;
use crate::candidates::RunningKernel;
use crate::cmdline::CommandLine;
use crate::formats::authorised::Authority;
use crate::handover::toplevel::{self, Toplevel};
use crate::mode::Mode;
use crate::mount::entry::MountEntry;
use crate::mount::mount_log::MountLog;
use crate::report::{ChosenSystem, Failure, Outcome, Report};
use crate::select::{Wanted, select};
use crate::settings::{CMDLINE, OnFailure, Settings, read_command_line};
use crate::verify::BootImage;

/// What a person can do about settings that are of no use.
const CORRECT: &str = "correct the configuration in the initrd, or the kernel command line";

/// The settings, and the failure policy, which holds where they are refused too.
pub(super) fn read_settings() -> (OnFailure, Result<Settings, Failure>) {
    let root = Path::new(ROOT);
    match Settings::read(root) {
        Ok(settings) => (settings.on_failure.clone(), Ok(settings)),
        Err(error) => (OnFailure::despite_refusal(root), Err(Failure::new(error, CORRECT))),
    }
}

/// A root that is ready.
pub(super) struct Built<T> {
    /// What the mode made of it.
    pub ready: T,
    /// Its mounts.
    pub log: MountLog,
}

/// Decides and mounts until a system is ready; `make_ready` is what the mode does with its toplevel at the end. The cache and the network are closed
/// then, and the report is written.
///
/// # Errors
/// Why nothing can be booted. Nothing is mounted below the sysroot then; the cache still is.
pub(super) fn attempt<T>(
    stage: &Stage,
    settings: &Settings,
    report: &mut Report,
    make_ready: MakeReady<'_, T>,
) -> Result<Built<T>, Failure> {
    for warning in &settings.warnings {
        report.warn(warning.clone());
    }
    let (wanted, oddities) = select(settings, stage.mode).map_err(|error| Failure::new(error, CORRECT))?;
    for oddity in oddities {
        report.warn(oddity);
    }
    let entries = system::entries(settings, stage.mode).map_err(|error| Failure::new(error, CORRECT))?;
    if settings.allow_unsigned {
        report.warn("allowUnsigned is set: whoever answers first decides what this machine runs");
    }
    log::info!(
        "wanted: {}, policy {}",
        wanted.target,
        crate::decide::policy_name(settings.policy.mode)
    );
    let command_line = command_line().unwrap_or_else(|error| {
        report.warn(format!(
            "module parameters and blacklists of the command line are not obeyed: {error:#}"
        ));
        CommandLine::default()
    });
    let (mut disks, oddities) = report
        .step("drivers", |_| Disks::open(Path::new(ROOT), stage, settings, &command_line))
        .map_err(|error| Failure::new(error, "check the kernel and the modules of the initrd"))?;
    for oddity in oddities {
        report.warn(oddity);
    }
    match stage.mode {
        Mode::Standalone => prepare_disks(Path::new(ROOT), stage, &settings.disks, &mut disks, report),
        // Before systemd mounts disks, and not by this unit.
        Mode::Systemd => take_over(Path::new(ROOT), &settings.disks, report),
    }
    if let Some(warning) = about_resume(&command_line, stage.mode) {
        report.warn(warning);
    }
    unlock_all(settings, &mut disks, report);
    let mut swaps = Swaps::new(settings, stage.mode);
    swaps.devices(Path::new(ROOT), report);
    let cache = find_cache(stage, settings, &entries, &mut disks, report);
    let mut acquire = Acquire::new(Path::new(ROOT), settings, &wanted, running_kernel(settings), cache, report).within(stage);
    // Nobody waits for a medium that is not needed; one that is there may still have a good copy of what is damaged.
    let medium_wait = if acquire.has_what_is_wanted() {
        Duration::ZERO
    } else {
        settings.cache.wait
    };
    if let Some(medium) = Medium::find(&stage.media(), settings, medium_wait, &mut disks, report) {
        acquire.add_medium(medium, report);
    }
    let built = Build {
        stage,
        settings,
        wanted: &wanted,
        entries: &entries,
        make_ready,
    }
    .until_ready(&mut disks, &mut acquire, &mut swaps, report);
    if let Err(error) = acquire.close(built.is_ok()) {
        log::warn!("{error:#}");
    }
    built
}

/// What a mode does with a toplevel that was found good.
pub(super) type MakeReady<'a, T> = &'a dyn Fn(Toplevel) -> Result<T>;

/// Why the new root could not be built, by whose fault it is.
enum Unbuilt {
    /// The image's: another one may do.
    Image(anyhow::Error),
    /// The machine's: no other image helps.
    Machine(Failure),
}

/// What the new root is built from, besides the image.
struct Build<'a, T> {
    stage: &'a Stage,
    settings: &'a Settings,
    wanted: &'a Wanted,
    entries: &'a [MountEntry],
    make_ready: MakeReady<'a, T>,
}

impl<T> Build<'_, T> {
    /// Decides and mounts until a system is ready. A generation whose system cannot be started is left out of the next decision.
    fn until_ready(
        &self,
        disks: &mut Disks<'_>,
        acquire: &mut Acquire<'_>,
        swaps: &mut Swaps,
        report: &mut Report,
    ) -> Result<Built<T>, Failure> {
        loop {
            let acquired = acquire.next(report)?;
            let mut log = MountLog::new();
            let error = match self.build(disks, &acquired, &mut log, report) {
                Ok(ready) => {
                    // Not before: a file that is in use keeps its disk from being unmounted.
                    swaps.devices(Path::new(ROOT), report);
                    swaps.files(&self.stage.sysroot, report);
                    report.outcome = Outcome::Booted;
                    acquire.count_try(&acquired, report);
                    if let Err(error) = keep_report(report, acquire.disk().map(Cache::folder)) {
                        log::warn!("the report is not kept: {error:#}");
                    }
                    return Ok(Built { ready, log });
                }
                Err(error) => error,
            };
            log::info!("taking the new root down again");
            // What stays is said as it is met.
            log.undo();
            match error {
                Unbuilt::Image(error) => {
                    report.warn(format!("{error:#}"));
                    // What is tried next says so itself.
                    (report.system, report.source) = (None, None);
                    acquire.reject(acquired, &format!("{error:#}"));
                }
                Unbuilt::Machine(failure) => return Err(failure),
            }
        }
    }

    fn build(&self, disks: &mut Disks<'_>, acquired: &Acquired, log: &mut MountLog, report: &mut Report) -> Result<T, Unbuilt> {
        let chosen = chosen_system(self.wanted, acquired).map_err(Unbuilt::Image)?;
        let path = chosen.toplevel.clone();
        report.source = Some(acquired.source);
        report.system = Some(chosen);
        log::info!("system: {path}");
        report
            .step("mount store", |_| {
                system::mount_store(self.stage, self.settings, &acquired.image, &path, disks, log)
            })
            .map_err(|error| match error {
                system::StoreError::Image(error) => Unbuilt::Image(error),
                system::StoreError::Machine(error) => Unbuilt::Machine(Failure::new(
                    error,
                    "check store.rwDevice, the memory, and that the initrd holds the modules of this kernel (overlay)",
                )),
            })?;
        let toplevel = report
            .step("check system", |_| {
                toplevel::check(&self.stage.sysroot, Path::new(path.as_str()), self.stage.mode)
            })
            .map_err(|error| Unbuilt::Image(error.into()))?;
        report
            .step("mount file systems", |report| {
                system::mount_entries(self.stage, self.entries, disks, log, report)
            })
            .map_err(|error| {
                Unbuilt::Machine(Failure::new(
                    error,
                    "check the disk, or make the entry degraded or optional (need, nofail)",
                ))
            })?;
        grow_file_systems(Path::new(ROOT), &self.settings.disks, report);
        report.step("prepare root", |_| (self.make_ready)(toplevel)).map_err(Unbuilt::Image)
    }
}

/// The system of a generation that is to be booted, for the report.
fn chosen_system(wanted: &Wanted, acquired: &Acquired) -> Result<ChosenSystem> {
    let authorised = &acquired.known.authorised;
    let system = wanted.system_of(authorised).context("the manifest names no system")?;
    Ok(ChosenSystem {
        toplevel: system.toplevel.clone(),
        name: system.name.clone(),
        init_kind: system.init_kind,
        manifest: authorised.digest(),
        image: authorised.manifest().image.sha256,
        channel: authorised.release().map(|release| release.channel.to_string()),
        serial: authorised.release().map(|release| release.serial),
        verified: matches!(acquired.image, BootImage::Verified(_)),
        authority: match authorised.authority() {
            Authority::Signature(key) => format!("signature by {key}"),
            Authority::Pin => "pin".to_owned(),
            Authority::Unsigned => "nothing (allowUnsigned)".to_owned(),
        },
    })
}

fn command_line() -> Result<CommandLine> {
    Ok(CommandLine::parse(&read_command_line(&Path::new(ROOT).join(CMDLINE))?)?)
}

fn running_kernel(settings: &Settings) -> RunningKernel {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    RunningKernel {
        release,
        store_name: settings.kernel.store_name.clone(),
    }
}

/// The cache on its disk. Without one, images live in RAM: said aloud, and the boot goes on.
fn find_cache(stage: &Stage, settings: &Settings, entries: &[MountEntry], disks: &mut Disks<'_>, report: &mut Report) -> Option<Cache> {
    if settings.cache.device.is_none() {
        log::info!("no cache.device is configured: images are kept in RAM");
        return None;
    }
    let mounted = stage.cache();
    let found = report.step("cache", |report| {
        mount_cache(&mounted, settings, entries, disks, report)?;
        open_cache(&cache_folder(&mounted, settings))
    });
    let cache = match found {
        Ok(cache) => Some(cache),
        Err(error) => {
            report.warn(format!("there is no cache: {error:#}"));
            None
        }
    };
    for warning in disks.take_warnings() {
        report.warn(warning);
    }
    cache
}
