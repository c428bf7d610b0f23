//! The boot, in order: the only module that knows it.
//!
//! 1. API file systems, log, settings
//! 2. drivers
//! 3. cache disk
//! 4. decide, and act, until an image is ready (the network comes up here, if it must)
//! 5. root, image, store, persistent mounts
//! 6. report, hand-over
//! 7. after any failure: say why, then the failure policy

pub mod acquire;
pub mod cache_disk;
pub mod disks;
mod download;
pub mod online;
pub mod ram;
pub mod system;
pub mod ticker;

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::cache::{Cache, reports};
use crate::candidates::RunningKernel;
use crate::cmdline::CommandLine;
use crate::failure;
use crate::formats::authorised::Authority;
use crate::handover::plan::{HandOver, PREPARE_ROOT_LIMIT};
use crate::handover::prepare::{Prepared, prepare};
use crate::handover::switch_root::switch_root;
use crate::handover::toplevel;
use crate::mount::api_fs::mount_api_file_systems;
use crate::mount::entry::MountEntry;
use crate::mount::mount_log::MountLog;
use crate::report::{self, ChosenSystem, Failure, Outcome, Report};
use crate::select::{Wanted, select};
use crate::settings::{CMDLINE, OnFailure, Settings, read_command_line};
use crate::verify::BootImage;
use acquire::{Acquire, Acquired};
use cache_disk::{cache_folder, mount_cache, open_cache};
use disks::Disks;
use system::SYSROOT;

/// Where the cache disk is mounted, in stage 1 and after it.
pub const CACHE: &str = "/run/freshroot/cache";
const ROOT: &str = "/";
/// If the agent itself dies, the kernel panics; a panic without a time is a dead machine.
const PANIC_SECONDS: &str = "30\n";

/// Boots. Never returns: it becomes the system's init, or the failure policy ends the machine.
pub fn boot() -> ! {
    let root = Path::new(ROOT);
    let api = mount_api_file_systems(root, &mut MountLog::new());
    crate::console::init(root, log::LevelFilter::Info);
    log::info!("freshroot {}", env!("CARGO_PKG_VERSION"));
    std::panic::set_hook(Box::new(|panic| log::error!("the agent is broken, please report it: {panic}")));
    if let Err(error) = api {
        log::error!("{error:#}");
    }
    let restored = arm_panic();
    let (policy, settings) = match Settings::read(root) {
        Ok(settings) => (settings.on_failure.clone(), Ok(settings)),
        Err(error) => (
            OnFailure::despite_refusal(root),
            Err(Failure::new(
                error,
                "correct the configuration in the initrd, or the kernel command line",
            )),
        ),
    };
    let mut failures = 0;
    loop {
        let mut report = Report::new(&fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default());
        let Failed { failure, stage_1_is_left } = match &settings {
            Ok(settings) => {
                log::set_max_level(settings.log);
                match attempt(settings, &restored, &mut report) {
                    Ok(never) => match never {},
                    Err(failed) => failed,
                }
            }
            Err(failure) => failure.clone().into(),
        };
        let again = settings.is_ok() && failures < policy.retries && stage_1_is_left;
        let cache = settings
            .as_ref()
            .ok()
            .map(|settings| cache_folder(Path::new(CACHE), settings))
            .filter(|folder| folder.exists());
        give_up(root, &policy, failures, again, failure, report, cache.as_deref());
        failures += 1;
    }
}

/// A way to the hand-over that did not get there.
struct Failed {
    failure: Failure,
    /// Whether there is anything to try again from: once the root has moved, the initramfs is gone.
    stage_1_is_left: bool,
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self {
            failure,
            stage_1_is_left: true,
        }
    }
}

/// Says why, keeps the report, waits, and ends the machine unless it is tried again.
fn give_up(root: &Path, policy: &OnFailure, failures: u32, again: bool, failure: Failure, mut report: Report, cache: Option<&Path>) {
    let earlier = cache.map_or(0, |cache| reports::failures_in_a_row(cache, &report.boot_id));
    let pause = failure::back_off(policy, failures.saturating_add(earlier));
    let next = if again {
        format!("the boot is tried again in {} s (onFailure.retries)", pause.as_secs())
    } else {
        failure::next_words(policy, pause)
    };
    log::error!("the boot failed: {}", failure.what);
    crate::console::announce(root, &failure::screen(&failure, &next));
    report.error = Some(failure);
    if let Err(error) = keep_report(&report, cache) {
        log::warn!("the report is not kept: {error:#}");
    }
    // Clean for the next mount, whoever makes it.
    match rustix::mount::unmount(CACHE, rustix::mount::UnmountFlags::empty()) {
        // Nothing is mounted there, or there is no such folder.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(error) => log::warn!("{CACHE} stays mounted: {error}"),
    }
    if again {
        failure::pause(root, pause, "the next try");
        return;
    }
    let error = failure::act(root, policy, pause);
    log::error!("{error:#}");
    // The kernel refused to reboot: what is left is its panic, which has a time.
    std::process::abort();
}

/// One way from the top to the hand-over.
fn attempt(settings: &Settings, restored: &[(&'static str, String)], report: &mut Report) -> Result<Infallible, Failed> {
    for warning in &settings.warnings {
        report.warn(warning.clone());
    }
    let correct = "correct the configuration in the initrd, or the kernel command line";
    let (wanted, oddities) = select(settings).map_err(|error| Failure::new(error, correct))?;
    for oddity in oddities {
        report.warn(oddity);
    }
    let entries = system::entries(settings).map_err(|error| Failure::new(error, correct))?;
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
        .step("drivers", |_| Disks::open(Path::new(ROOT), settings, &command_line))
        .map_err(|error| Failure::new(error, "check the kernel and the modules of the initrd"))?;
    for oddity in oddities {
        report.warn(oddity);
    }
    let cache = find_cache(settings, &mut disks, report);
    let mut acquire = Acquire::new(Path::new(ROOT), settings, &wanted, running_kernel(settings), cache, report);
    let outcome = until_prepared(settings, &wanted, &entries, &mut disks, &mut acquire, report);
    let (prepared, mut log) = match outcome {
        Ok(prepared) => prepared,
        Err(failure) => {
            if let Err(error) = acquire.close(false) {
                log::warn!("{error:#}");
            }
            return Err(failure.into());
        }
    };
    if let Err(error) = acquire.close(true) {
        log::warn!("{error:#}");
    }
    for (path, value) in restored {
        if let Err(error) = fs::write(path, value) {
            log::warn!("{path} keeps our value: {error}");
        }
    }
    match switch_root(prepared) {
        Ok(never) => match never {},
        Err(error) => {
            // In charge again, and as before: a panic has a time, and the next try finds nothing mounted.
            arm_panic();
            if error.old_root_is_left {
                log.undo();
            }
            Err(Failed {
                stage_1_is_left: error.old_root_is_left,
                failure: Failure::new(error, "report it: the hand-over itself failed"),
            })
        }
    }
}

/// Decides and mounts until a system is ready to be switched to. A generation whose system cannot be started is left out of the next decision.
fn until_prepared(
    settings: &Settings,
    wanted: &Wanted,
    entries: &[MountEntry],
    disks: &mut Disks,
    acquire: &mut Acquire<'_>,
    report: &mut Report,
) -> Result<(Prepared, MountLog), Failure> {
    loop {
        let acquired = acquire.next(report)?;
        let mut log = MountLog::new();
        let error = match build(settings, wanted, entries, disks, &acquired, &mut log, report) {
            Ok(prepared) => {
                report.outcome = Outcome::Booted;
                if let Err(error) = keep_report(report, acquire.disk().map(Cache::folder)) {
                    log::warn!("the report is not kept: {error:#}");
                }
                return Ok((prepared, log));
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

/// Why the new root could not be built, by whose fault it is.
enum Unbuilt {
    /// The image's: another one may do.
    Image(anyhow::Error),
    /// The machine's: no other image helps.
    Machine(Failure),
}

fn build(
    settings: &Settings,
    wanted: &Wanted,
    entries: &[MountEntry],
    disks: &mut Disks,
    acquired: &Acquired,
    log: &mut MountLog,
    report: &mut Report,
) -> Result<Prepared, Unbuilt> {
    let sysroot = Path::new(SYSROOT);
    let authorised = &acquired.known.authorised;
    // A generation that does not hold what is wanted is a fall-back: its own default system.
    let system = wanted
        .target
        .system_of(authorised)
        .or_else(|| authorised.manifest().default_system());
    let system = system.cloned().context("the manifest names no system").map_err(Unbuilt::Image)?;
    report.source = Some(acquired.source);
    report.system = Some(ChosenSystem {
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
    });
    log::info!("system: {}", system.toplevel);
    report
        .step("mount store", |_| {
            system::mount_store(sysroot, settings, &acquired.image, &system.toplevel, disks, log)
        })
        .map_err(|error| match error {
            system::StoreError::Image(error) => Unbuilt::Image(error),
            system::StoreError::Machine(error) => Unbuilt::Machine(Failure::new(
                error,
                "check store.rwDevice, the memory, and that the initrd holds the modules of this kernel (overlay)",
            )),
        })?;
    let toplevel = report
        .step("check system", |_| toplevel::check(sysroot, Path::new(system.toplevel.as_str())))
        .map_err(|error| Unbuilt::Image(error.into()))?;
    report
        .step("mount file systems", |report| {
            system::mount_entries(sysroot, entries, disks, log, report)
        })
        .map_err(|error| {
            Unbuilt::Machine(Failure::new(
                error,
                "check the disk, or make the entry degraded or optional (need, nofail)",
            ))
        })?;
    let handover = HandOver {
        sysroot: sysroot.to_owned(),
        toplevel,
        args: init_arguments(settings),
        env: init_environment(),
        prepare_root_limit: PREPARE_ROOT_LIMIT,
    };
    report.step("prepare root", |_| prepare(handover)).map_err(Unbuilt::Image)
}

fn init_arguments(settings: &Settings) -> Vec<OsString> {
    settings.init_arguments.iter().map(OsString::from).collect()
}

/// What the kernel gave us it would have given init: `TERM`, and the words of the command line that it did not know.
fn init_environment() -> Vec<(OsString, OsString)> {
    std::env::vars_os()
        .filter(|(name, _)| !name.to_string_lossy().contains('.'))
        .collect()
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
fn find_cache(settings: &Settings, disks: &mut Disks, report: &mut Report) -> Option<Cache> {
    if settings.cache.device.is_none() {
        log::info!("no cache.device is configured: images are kept in RAM");
        return None;
    }
    let mounted = Path::new(CACHE);
    let found = report.step("cache", |_| {
        mount_cache(mounted, settings, disks)?;
        open_cache(&cache_folder(mounted, settings))
    });
    match found {
        Ok(cache) => Some(cache),
        Err(error) => {
            report.warn(format!("there is no cache: {error:#}"));
            None
        }
    }
}

/// Writes the report to `/run`, and a copy to the cache.
fn keep_report(report: &Report, cache: Option<&Path>) -> Result<()> {
    let json = report.to_json()?;
    let path = Path::new(ROOT).join(report::PATH);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    fs::write(&path, &json).with_context(|| format!("writing {}", path.display()))?;
    match cache {
        Some(folder) => reports::keep(folder, &report.boot_id, &json),
        None => Ok(()),
    }
}

/// A kernel that panics is to reboot: if nobody said after how long, we do, as long as we are in charge. Returns what to restore.
fn arm_panic() -> Vec<(&'static str, String)> {
    const PATH: &str = "/proc/sys/kernel/panic";
    match fs::read_to_string(PATH) {
        Ok(seconds) if seconds.trim() == "0" => match fs::write(PATH, PANIC_SECONDS) {
            Ok(()) => vec![(PATH, seconds)],
            Err(error) => {
                log::warn!("a dead agent would be a dead machine: {PATH}: {error}");
                Vec::new()
            }
        },
        Ok(_) | Err(_) => Vec::new(),
    }
}
