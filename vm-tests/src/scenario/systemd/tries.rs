//! Boots that are counted before systemd switches root, and blessed in the running system.

use anyhow::{Result, ensure};
use serde_json::json;

use super::super::Scenario;
use crate::disk::Disk;
use crate::qemu::End;
use crate::stage_1::Stage1;
use crate::trial::{Boot, Trial};

/// The tests of this file.
pub const ALL: &[Scenario] = &[
    Scenario::new(
        "systemd-tries",
        "under systemd a generation that panics three times in stage 2 gives way to the one before",
        three_panics,
    )
    .nightly(),
    Scenario::new(
        "systemd-bless",
        "under systemd a generation that is blessed boots again, although its one try is used",
        blessed,
    )
    .nightly(),
];

/// A cache with both generations, of which the second is the newest.
fn updated(trial: &Trial<'_>) -> Result<Disk> {
    let disk = trial.filled_cache()?;
    let server = trial.serve(&trial.lab.served(2)?)?;
    let booted = trial.boot().disk(&disk).server(server.address().port()).once("update")?;
    ensure!(booted.generation()? == 2, "generation {} booted", booted.generation()?);
    Ok(disk)
}

fn boot<'a>(trial: &'a Trial<'_>, stage_1: Stage1, disk: &Disk, tries: u32) -> Result<Boot<'a>> {
    let agent = trial.lab.agent()?;
    Ok(trial
        .boot()
        .systemd(stage_1.program("/running/demo/freshroot", &agent))
        .config(json!({ "policy": { "mode": "offline", "tries": tries } }))
        .disk(disk))
}

/// Early in stage 2, so that the test is soon over.
const PANIC: &str = "\
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'if grep -qx 2 /etc/demo-generation; then echo c >/proc/sysrq-trigger; fi'
[Install]
WantedBy=sysinit.target
";

fn three_panics(trial: &Trial<'_>) -> Result<()> {
    let disk = updated(trial)?;
    let panics = trial.stage_1().text("/running/systemd/system/panic.service", PANIC, 0o644);
    for name in ["first", "second", "third"] {
        let mut vm = boot(trial, panics.clone(), &disk, 3)?.start(name)?;
        let end = vm.wait_end()?;
        ensure!(
            end == End::Rebooted && vm.said().contains("Kernel panic"),
            "{name}: it did not panic: {end:?}"
        );
    }
    let booted = boot(trial, panics, &disk, 3)?.once("fourth")?;
    ensure!(booted.generation()? == 1, "generation {} booted", booted.generation()?);
    Ok(())
}

fn blessed(trial: &Trial<'_>) -> Result<()> {
    let disk = updated(trial)?;
    let bless = "set -e; mkdir -p /etc/freshroot; cp /run/demo/config.json /etc/freshroot/; /run/demo/freshroot bless";
    let booted = boot(trial, trial.stage_1(), &disk, 1)?.script(bless).once("bless")?;
    ensure!(booted.generation()? == 2, "generation {} booted", booted.generation()?);
    let booted = boot(trial, trial.stage_1(), &disk, 1)?.once("again")?;
    ensure!(
        booted.generation()? == 2,
        "the blessed generation gave way to {}: {}",
        booted.generation()?,
        booted.report
    );
    // Nobody blesses this time: its one try is used.
    let booted = boot(trial, trial.stage_1(), &disk, 1)?.once("given-way")?;
    ensure!(
        booted.generation()? == 1,
        "generation {} booted: tries are not counted",
        booted.generation()?
    );
    Ok(())
}
