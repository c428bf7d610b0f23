//! The agent's own time in a warm boot, against a shell script that makes the same mounts, both by the kernel's clock.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;

use super::figure::{Figure, Target, paired};
use crate::disk::Disk;
use crate::qemu::accel::Accelerator;
use crate::scenario::baseline;
use crate::system::{Spec, System};
use crate::trial::{Booted, Trial};

/// Written by the kernel right before PID 1 starts.
const START: &str = "Run /init as init process";
/// Written by systemd as soon as it can.
const STAGE_2: &str = "systemd[1]: systemd ";
/// What the script of the baseline writes.
const SCRIPT_START: &str = "baseline: start";
const SCRIPT_MOUNTED: &str = "baseline: mounted";
const SCRIPT_PREPARED: &str = "baseline: prepared";
/// What the agent writes when the activation is over, with its time in it.
const AGENT_PREPARED: &str = "prepare root: done (";

/// Warm boots, `verify = size` and `full`.
pub fn measure(trial: &Trial<'_>, pairs: u32) -> Result<Vec<Figure>> {
    let system = trial.lab.system(Spec::generation(1))?;
    let script = ScriptBoot::prepare(trial, &system)?;
    let cache = trial.lab.filled_cache(&trial.dir.join("agent.img"))?;
    let agent = |verify: &str| {
        let booted = trial
            .boot()
            .config(json!({ "verify": verify, "log": "info" }))
            .disk(&cache)
            .system(&system)
            .script("dmesg")
            .once("agent")?;
        agent_milliseconds(&booted.script)
    };
    let accelerator = match trial.lab.accelerator {
        Accelerator::Kvm => "KVM",
        Accelerator::Tcg => "TCG",
    };
    let sized = paired(pairs, || agent("size"), || script.milliseconds(trial, &system))?;
    let full = paired(pairs, || agent("full"), || agent("size"))?;
    Ok(vec![
        Figure::compared(
            format!(
                "warm boot ({accelerator}): PID 1's time without the activation, verify = size, against a shell script that makes the same mounts"
            ),
            "ms",
            pairs,
            &sized,
            Target::RatioAtMost(1.5),
        ),
        Figure::compared(
            format!("warm boot ({accelerator}, SHA-256 without the processor's help): verify = full, against verify = size"),
            "ms",
            pairs,
            &full,
            Target::None,
        ),
    ])
}

/// From the start of PID 1 to systemd's first word, without the activation: that is the system's and the same on both sides.
fn agent_milliseconds(log: &str) -> Result<f64> {
    let line = line_with(log, AGENT_PREPARED)?;
    let activation: f64 = line
        .split_once(AGENT_PREPARED)
        .and_then(|(_, rest)| rest.split_once(" ms"))
        .and_then(|(milliseconds, _)| milliseconds.parse().ok())
        .with_context(|| format!("the agent wrote «{line}» without its milliseconds"))?;
    Ok(at(log, STAGE_2)? - at(log, START)? - activation)
}

/// The same of the script, in favour of which its interpreter's start and the linking of its commands are not counted.
fn script_milliseconds(log: &str) -> Result<f64> {
    let activation = at(log, SCRIPT_PREPARED)? - at(log, SCRIPT_MOUNTED)?;
    Ok(at(log, STAGE_2)? - at(log, SCRIPT_START)? - activation)
}

/// When the kernel log got the first line with `words`, in milliseconds.
fn at(log: &str, words: &str) -> Result<f64> {
    let line = line_with(log, words)?;
    let seconds = line.trim_start_matches('[').split(']').next().unwrap_or_default().trim();
    let seconds: f64 = seconds.parse().with_context(|| format!("the kernel log has no time in «{line}»"))?;
    Ok(seconds * 1000.0)
}

fn line_with<'a>(log: &'a str, words: &str) -> Result<&'a str> {
    log.lines()
        .find(|line| line.contains(words))
        .with_context(|| format!("the guest's kernel log has no line with «{words}»"))
}

/// The yardstick: the same mounts by a shell script.
struct ScriptBoot {
    initrd: PathBuf,
    disk: Disk,
    image: String,
}

impl ScriptBoot {
    fn prepare(trial: &Trial<'_>, system: &System) -> Result<Self> {
        let initrd = trial.dir.join("script-initrd");
        baseline::initrd(trial.lab, &initrd)?;
        let (disk, image) = baseline::disk(system, &trial.dir)?;
        Ok(Self { initrd, disk, image })
    }

    fn milliseconds(&self, trial: &Trial<'_>, system: &System) -> Result<f64> {
        let mut vm = trial
            .boot()
            .disk(&self.disk)
            .system(system)
            .words(&format!("baseline.image={} demo.then=poweroff", self.image))
            .script("dmesg")
            .start_with("script", &self.initrd)?;
        let mut booted = Booted::read(&mut vm)?;
        booted.read_script(&mut vm)?;
        vm.wait_end()?;
        script_milliseconds(&booted.script)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn the_activation_is_not_counted() {
        let agent = "[    1.000000] Run /init as init process\n[    1.300000] freshroot: mount store: done (20 ms)\n\
                     [    1.900000] freshroot: prepare root: done (500 ms)\n[    2.000000] systemd[1]: systemd 252 running\n";
        assert!((agent_milliseconds(agent).unwrap() - 500.0).abs() < 0.01);
        let script = "[    1.000000] Run /init as init process\n[    1.100000] baseline: start\n[    1.300000] baseline: mounted\n\
                      [    1.800000] baseline: prepared\n[    2.000000] systemd[1]: systemd 252 running\n";
        assert!((script_milliseconds(script).unwrap() - 400.0).abs() < 0.01);
        let error = agent_milliseconds(script).unwrap_err();
        assert!(error.to_string().contains("prepare root"), "{error:#}");
    }
}
