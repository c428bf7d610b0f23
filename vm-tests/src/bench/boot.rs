//! The agent's own time in a warm boot, against a shell script that makes the same mounts, both by the kernel's clock.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;

use super::figure::{Comparison, Figure, Target};
use crate::disk::Disk;
use crate::scenario::baseline;
use crate::system::{Spec, System};
use crate::trial::{Booted, Trial};

/// Written by the kernel right before PID 1 starts.
const START: &str = "Run /init as init process";
/// The agent's last words.
const AGENT_END: &str = "freshroot: starting /";
/// What the agent writes when the activation is over, with its time in it.
const AGENT_PREPARED: &str = "prepare root: done (";
/// What the script of the baseline writes.
const SCRIPT_START: &str = "baseline: start";
const SCRIPT_MOUNTED: &str = "baseline: mounted";
const SCRIPT_PREPARED: &str = "baseline: prepared";

/// A warm boot, in milliseconds of the guest's clock.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Times {
    /// PID 1's own.
    own: f64,
    /// The system's activation.
    activation: f64,
}

/// Warm boots, `verify = size` and `full`.
pub fn measure(trial: &Trial<'_>, pairs: u32) -> Result<Vec<Figure>> {
    let system = trial.lab.system(Spec::generation(1))?;
    let script = ScriptBoot::prepare(trial, &system)?;
    let cache = trial.filled_cache_as("agent.img")?;
    let agent = |verify: &str| {
        let booted = trial
            .boot()
            .config(json!({ "verify": verify }))
            .disk(&cache)
            .system(&system)
            .script("dmesg")
            .once("agent")?;
        agent_times(&booted.script)
    };
    let (mut own, mut activation, mut full) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 1..=pairs {
        eprintln!("bench: boots {pair} of {pairs}");
        let (ours, peer, verified) = (agent("size")?, script.times(trial, &system)?, agent("full")?);
        own.push((ours.own, peer.own));
        activation.push((ours.activation, peer.activation));
        full.push((verified.own, ours.own));
    }
    let accelerator = trial.lab.accelerator.name();
    let figure = |what: &str, runs: &[(f64, f64)], target: Target| -> Result<Figure> {
        let compared = Comparison::of(runs)?;
        Ok(Figure::compared(
            format!("warm boot ({accelerator}): {what}"),
            "ms",
            pairs,
            &compared,
            target,
        ))
    };
    Ok(vec![
        figure(
            "PID 1's own time with verify = size, against a shell script that makes the same mounts",
            &own,
            Target::RatioAtMost(1.5),
        )?,
        figure(
            "the system's activation, under the agent and under the script",
            &activation,
            Target::None,
        )?,
        figure("PID 1's own time with verify = full, against verify = size", &full, Target::None)?,
    ])
}

/// From the start of PID 1 to its last words, without the activation, which is the system's.
fn agent_times(log: &str) -> Result<Times> {
    let line = line_with(log, AGENT_PREPARED)?;
    let activation: f64 = line
        .split_once(AGENT_PREPARED)
        .and_then(|(_, rest)| rest.split_once(" ms"))
        .and_then(|(milliseconds, _)| milliseconds.parse().ok())
        .with_context(|| format!("the agent wrote «{line}» without its milliseconds"))?;
    Ok(Times {
        own: at(log, AGENT_END)? - at(log, START)? - activation,
        activation,
    })
}

/// From the script's first mount to its last. In its favour, the start of its interpreter, the linking of its commands and the emptying of the initramfs
/// are not counted.
fn script_times(log: &str) -> Result<Times> {
    let mounted = at(log, SCRIPT_MOUNTED)?;
    Ok(Times {
        own: mounted - at(log, SCRIPT_START)?,
        activation: at(log, SCRIPT_PREPARED)? - mounted,
    })
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

    fn times(&self, trial: &Trial<'_>, system: &System) -> Result<Times> {
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
        script_times(&booted.script)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn the_activation_is_not_counted() {
        let agent = "[    1.000000] Run /init as init process\n[    1.300000] freshroot: mount store: done (20 ms)\n\
                     [    1.900000] freshroot: prepare root: done (500 ms)\n[    2.000000] freshroot: starting /nix/store/x/init\n";
        let times = agent_times(agent).unwrap();
        assert!(
            (times.own - 500.0).abs() < 0.01 && (times.activation - 500.0).abs() < 0.01,
            "{times:?}"
        );
        let script = "[    1.000000] Run /init as init process\n[    1.100000] baseline: start\n[    1.300000] baseline: mounted\n\
                      [    1.800000] baseline: prepared\n[    2.000000] systemd[1]: systemd 252 running\n";
        let times = script_times(script).unwrap();
        assert!(
            (times.own - 200.0).abs() < 0.01 && (times.activation - 500.0).abs() < 0.01,
            "{times:?}"
        );
        let error = agent_times(script).unwrap_err();
        assert!(error.to_string().contains("prepare root"), "{error:#}");
    }
}
