//! The time that stage 1 has as a whole: moved on while a download makes progress, and not while it does not.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use super::super::Scenario;
use crate::line::Line;
use crate::qemu::End;
use crate::trial::{Boot, Booted, Trial};

/// The tests of this file.
pub const ALL: &[Scenario] = &[
    Scenario::new(
        "systemd-slow",
        "a slow download that makes progress outlives the limit of stage 1",
        slow,
    )
    .nightly(),
    Scenario::new(
        "systemd-stalled",
        "a download that has stalled ends with the limit of stage 1, in a reboot",
        stalled,
    )
    .nightly(),
];

/// What stage 1 has where guest code is not translated: the agent has to come to its download in it.
const LIMIT: Duration = Duration::from_secs(30);
/// What passes in one step of the slow line, and how long a step takes: little enough to be slow, much enough to be progress.
const STEP: u64 = 1 << 20;
const PACE: Duration = Duration::from_secs(2);
/// Where the line stops for good.
const STALL_AT: u64 = 20 << 20;

fn limit(trial: &Trial<'_>) -> Duration {
    LIMIT * trial.lab.accelerator.patience()
}

fn boot<'a>(trial: &'a Trial<'_>, line: &Line) -> Result<Boot<'a>> {
    let disk = trial.empty_cache()?;
    let stage_1 = trial.stage_1().argument("deadline", json!(format!("{}s", limit(trial).as_secs())));
    Ok(trial
        .boot()
        .systemd(stage_1)
        // So that it is stage 1's limit which ends it.
        .config(json!({ "transfer": { "stall": "30min" } }))
        .disk(&disk)
        .server(line.port())
        .patience(3))
}

fn slow(trial: &Trial<'_>) -> Result<()> {
    let server = trial.serve(&trial.lab.served(1)?)?;
    let line = Line::open(server.address())?;
    line.hold_at(STEP);
    let mut vm = boot(trial, &line)?.words("demo.then=poweroff").start("boot")?;
    let started = Instant::now();
    let mut allowed = STEP;
    while started.elapsed() < limit(trial) + Duration::from_secs(20) {
        // Not a wait for anything: this is how slow the line is.
        std::thread::sleep(PACE);
        allowed += STEP / 2;
        line.hold_at(allowed);
    }
    line.hold_at(u64::MAX);
    let booted = Booted::read(&mut vm)?;
    ensure!(
        booted.generation()? == 1 && booted.text("/source") == "network",
        "report: {}",
        booted.report
    );
    ensure!(
        vm.said().contains("stage 1 has until"),
        "the limit was not moved: the test proves nothing"
    );
    ensure!(vm.wait_end()? == End::PoweredOff, "it did not power off");
    Ok(())
}

fn stalled(trial: &Trial<'_>) -> Result<()> {
    let server = trial.serve(&trial.lab.served(1)?)?;
    let line = Line::open(server.address())?;
    line.hold_at(STALL_AT);
    let mut vm = boot(trial, &line)?.start("boot")?;
    let end = vm.wait_end()?;
    ensure!(line.received() == STALL_AT, "only {} bytes went over the line", line.received());
    ensure!(end == End::Rebooted, "it should have rebooted: {end:?}");
    ensure!(
        !vm.said().contains("THE BOOT FAILED"),
        "it was the agent that ended the boot, and not the limit of stage 1"
    );
    Ok(())
}
