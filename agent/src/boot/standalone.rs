//! The agent as PID 1: it is the whole of stage 1, and hands over itself.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::Result;

use super::attempt::{attempt, read_settings};
use super::failing::{Failing, new_report};
use super::{ROOT, Stage};
use crate::failure;
use crate::handover::plan::{HandOver, PREPARE_ROOT_LIMIT};
use crate::handover::prepare::{Prepared, prepare};
use crate::handover::switch_root::switch_root;
use crate::handover::toplevel::Toplevel;
use crate::mount::api_fs::mount_api_file_systems;
use crate::mount::mount_log::MountLog;
use crate::report::{Failure, Report};
use crate::settings::Settings;

/// If the agent itself dies, the kernel panics; a panic without a time is a dead machine.
const PANIC_SECONDS: &str = "30\n";

/// Boots. Never returns: it becomes the system's init, or the failure policy ends the machine.
pub fn boot(stage: &Stage) -> ! {
    let root = Path::new(ROOT);
    let api = mount_api_file_systems(root, &mut MountLog::new());
    crate::console::init(root, log::LevelFilter::Info);
    log::info!("freshroot {}", env!("CARGO_PKG_VERSION"));
    std::panic::set_hook(Box::new(|panic| log::error!("the agent is broken, please report it: {panic}")));
    if let Err(error) = api {
        log::error!("{error:#}");
    }
    let restored = arm_panic();
    let (policy, settings) = read_settings();
    let mut failures = 0;
    loop {
        let mut report = new_report();
        let Failed { failure, stage_1_is_left } = match &settings {
            Ok(settings) => {
                log::set_max_level(settings.log);
                match boot_once(stage, settings, &restored, &mut report) {
                    Ok(never) => match never {},
                    Err(failed) => failed,
                }
            }
            Err(failure) => failure.clone().into(),
        };
        let again = settings.is_ok() && failures < policy.retries && stage_1_is_left;
        let failing = Failing {
            stage,
            policy: &policy,
            failures,
            again,
        };
        let pause = failing.tell(failure, report, settings.as_ref().ok(), &|pause| {
            failure::next_words(&policy, pause)
        });
        if !again {
            let error = failure::act(root, &policy, pause, failure::EndBy::Kernel);
            log::error!("{error:#}");
            // The kernel refused to reboot: what is left is its panic, which has a time.
            std::process::abort();
        }
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

/// One way from the top to the hand-over.
fn boot_once(stage: &Stage, settings: &Settings, restored: &[(&'static str, String)], report: &mut Report) -> Result<Infallible, Failed> {
    let mut built = attempt(stage, settings, report, &|toplevel| hand_over_prepared(stage, settings, toplevel))?;
    for (path, value) in restored {
        if let Err(error) = fs::write(path, value) {
            log::warn!("{path} keeps our value: {error}");
        }
    }
    match switch_root(built.ready) {
        Ok(never) => match never {},
        Err(error) => {
            // In charge again, and as before: a panic has a time, and the next try finds nothing mounted.
            arm_panic();
            if error.old_root_is_left {
                built.log.undo();
            }
            Err(Failed {
                stage_1_is_left: error.old_root_is_left,
                failure: Failure::new(error, "report it: the hand-over itself failed"),
            })
        }
    }
}

fn hand_over_prepared(stage: &Stage, settings: &Settings, toplevel: Toplevel) -> Result<Prepared> {
    prepare(HandOver {
        sysroot: stage.sysroot.clone(),
        toplevel,
        args: settings.init_arguments.iter().map(OsString::from).collect(),
        env: init_environment(),
        prepare_root_limit: PREPARE_ROOT_LIMIT,
    })
}

/// What the kernel gave us it would have given init: `TERM`, and the words of the command line that it did not know.
fn init_environment() -> Vec<(OsString, OsString)> {
    std::env::vars_os()
        .filter(|(name, _)| !name.to_string_lossy().contains('.'))
        .collect()
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
