//! The initrd without the agent: a shell script makes the mounts in its place. What fails here is the harness's fault.

use anyhow::{Context, Result, ensure};

use super::super::{Scenario, baseline};
use crate::qemu::End;
use crate::system::Spec;
use crate::trial::{Booted, Trial};

/// The tests of this file.
pub const ALL: &[Scenario] = &[Scenario::new(
    "systemd-baseline",
    "systemd as stage 1 boots the demo system when a shell script makes the mounts",
    boot,
)
.nightly()];

const MOUNTS: &str = include_str!("../../../guest/stage-1/baseline-mounts.sh");

fn boot(trial: &Trial<'_>) -> Result<()> {
    let system = trial.lab.system(Spec::generation(1))?;
    let (disk, image) = baseline::disk(&system, &trial.dir)?;
    let stage_1 = trial
        .stage_1()
        .without_agent()
        .unit(
            "freshroot.service.d/baseline.conf",
            "[Service]\nExecStart=\nExecStart=/bin/baseline-mounts\n",
        )
        .text("/usr/bin/baseline-mounts", MOUNTS, 0o755);
    let mut vm = trial
        .boot()
        .systemd(stage_1)
        .disk(&disk)
        .system(&system)
        .words(&format!("baseline.image={image} demo.then=poweroff"))
        .script("systemctl --failed --no-legend; cat /proc/self/mountinfo; journalctl -b --no-pager -o short-monotonic")
        .start("boot")?;
    let mut booted = Booted::read(&mut vm)?;
    ensure!(booted.generation()? == 1 && booted.report.is_null(), "there should be no report");
    booted.read_script(&mut vm).context("running the script")?;
    ensure!(vm.wait_end()? == End::PoweredOff, "it did not power off");
    ensure!(disk.is_clean()?, "the cache disk needs a journal replay after a power-off");
    Ok(())
}
