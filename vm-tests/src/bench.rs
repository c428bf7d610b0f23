//! Figures. Runs come in pairs, one of each kind after the other, so that a machine that grows slower does it to both; the median of the ratios counts.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cli::DEFAULT_LEVEL;
use crate::lab::Lab;
use crate::scenario::baseline;
use crate::system::{Spec, System};
use crate::trial::{Booted, Trial};
use crate::workspace::Workspace;

/// Two kinds of runs, compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Median of the first kind's figures.
    pub first: f64,
    /// Median of the second kind's.
    pub second: f64,
    /// Median of the ratios first : second of each pair.
    pub ratio: f64,
}

/// Runs `first` and `second` in turn, `pairs` times.
pub fn paired(pairs: u32, mut first: impl FnMut() -> Result<f64>, mut second: impl FnMut() -> Result<f64>) -> Result<Comparison> {
    let (mut firsts, mut seconds, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..pairs {
        let (one, two) = (first()?, second()?);
        ensure!(one > 0.0 && two > 0.0, "a run took no time at all: {one} and {two}");
        firsts.push(one);
        seconds.push(two);
        ratios.push(one / two);
    }
    Ok(Comparison {
        first: median(firsts)?,
        second: median(seconds)?,
        ratio: median(ratios)?,
    })
}

fn median(mut values: Vec<f64>) -> Result<f64> {
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().context("the median of nothing");
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        at(middle)
    } else {
        Ok(f64::midpoint(at(middle.saturating_sub(1))?, at(middle)?))
    }
}

/// Prints the figures.
pub fn run(workspace: Workspace, pairs: u32) -> Result<()> {
    let lab = Lab::new(workspace, DEFAULT_LEVEL)?;
    let agent = lab.agent()?;
    let size = fs::metadata(&agent)
        .with_context(|| format!("looking at {}", agent.display()))?
        .len();
    println!("agent, static and stripped: {size} bytes");

    let trial = Trial::new(&lab, "bench")?;
    let system = lab.system(Spec::generation(1))?;
    let script = ScriptBoot::prepare(&trial, &system)?;
    let cache = trial.filled_cache_as("agent.img")?;
    let compared = paired(
        pairs,
        || {
            let booted = trial
                .boot()
                .config(json!({ "verify": "size" }))
                .disk(&cache)
                .system(&system)
                .once("agent")?;
            milliseconds(&booted)
        },
        || script.milliseconds(&trial, &system),
    )?;
    println!(
        "warm boot, verify = size: agent {:.0} ms, shell script {:.0} ms, ratio {:.2} (median of {pairs} pairs)",
        compared.first, compared.second, compared.ratio
    );
    Ok(())
}

/// The agent's own time: the sum of its steps.
fn milliseconds(booted: &Booted) -> Result<f64> {
    let steps = booted
        .report
        .get("steps")
        .and_then(Value::as_array)
        .context("the report has no steps")?;
    Ok(steps
        .iter()
        .filter_map(|step| step.get("milliseconds").and_then(Value::as_f64))
        .sum())
}

/// The yardstick: the same mounts by a shell script.
struct ScriptBoot {
    initrd: std::path::PathBuf,
    disk: crate::disk::Disk,
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
            .start_with("script", &self.initrd)?;
        let line = vm.wait_for(&["BASELINE-UPTIME "])?;
        vm.wait_end()?;
        let times: Vec<f64> = line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
        match times.as_slice() {
            [start, end] => Ok((end - start) * 1000.0),
            _ => anyhow::bail!("the script said «{line}» instead of two times"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn the_median_of_ratios_is_by_pair() {
        let mut ones = [10.0, 40.0, 30.0].into_iter();
        let mut twos = [10.0, 20.0, 10.0].into_iter();
        let compared = paired(3, || Ok(ones.next().unwrap()), || Ok(twos.next().unwrap())).unwrap();
        assert_eq!(
            compared,
            Comparison {
                first: 30.0,
                second: 10.0,
                ratio: 2.0
            }
        );
        assert!((median(vec![1.0, 2.0, 9.0, 10.0]).unwrap() - 5.5).abs() < 1e-9);
        assert!(median(Vec::new()).is_err());
    }
}
