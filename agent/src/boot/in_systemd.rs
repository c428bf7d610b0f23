//! The agent as a unit of systemd's stage 1: it leaves a store below the sysroot, and ends. Devices, `/`, disks and the hand-over are systemd's.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;

use super::attempt::{attempt, read_settings};
use super::failing::{Failing, new_report};
use super::{ROOT, Stage};
use crate::failure;
use crate::mode::Mode;
use crate::mount::mount_log::MountLog;
use crate::mount::sysroot::{check_sysroot, open_run};
use crate::report::{Failure, Report};
use crate::settings::Settings;

/// Boots: fills the sysroot, or says why not. SIGTERM ends it where it stands, since shutdown takes down what is mounted and the cache is whole at every
/// moment.
pub fn boot(sysroot: PathBuf) -> ExitCode {
    crate::console::init_service(log::LevelFilter::Info);
    log::info!("freshroot {}", env!("CARGO_PKG_VERSION"));
    std::panic::set_hook(Box::new(|panic| log::error!("the agent is broken, please report it: {panic}")));
    let (policy, settings) = read_settings();
    let stage = &Stage::new(Mode::Systemd, sysroot);
    let mut failures = 0;
    loop {
        let mut report = new_report();
        let mut run = MountLog::new();
        let outcome = settings.as_ref().map_err(Failure::clone).and_then(|settings| {
            log::set_max_level(settings.log);
            boot_once(stage, settings, &mut run, &mut report)
        });
        let Err(failure) = outcome else {
            return ExitCode::SUCCESS;
        };
        let failing = Failing {
            stage,
            policy: &policy,
            failures,
            again: settings.is_ok() && failures < policy.retries,
        };
        failing.tell(failure, report, settings.as_ref().ok(), &|pause| {
            format!("freshroot-failure.service: {}", failure::next_words(&policy, pause))
        });
        // What stays is said as it is met.
        run.undo();
        if !failing.again {
            return ExitCode::FAILURE;
        }
        failures += 1;
    }
}

/// One way from the top to a sysroot that systemd can switch to.
fn boot_once(stage: &Stage, settings: &Settings, run: &mut MountLog, report: &mut Report) -> Result<(), Failure> {
    check_sysroot(&stage.sysroot).map_err(|error| {
        Failure::new(
            error,
            "look why systemd has not mounted the root: root=fstab must be on the kernel command line, and the initrd's fstab must have a file system at / that can be written",
        )
    })?;
    open_run(&stage.sysroot, Path::new(ROOT), run).map_err(|error| {
        Failure::new(
            error,
            "look at sysroot-run.mount, which binds /run into the sysroot, and that freshroot.service comes after it",
        )
    })?;
    attempt(stage, settings, report, &|_| Ok(())).map(|_| ())
}
