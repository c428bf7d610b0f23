//! A disk that comes late: from the kernel's word of it to the mount of its file system, both by the kernel's clock.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::figure::{Figure, Target};
use crate::disk::{Disk, FsType};
use crate::system::{Spec, System};
use crate::trial::{Booted, Trial};

/// Disks that come one after the other while the system runs.
const DISKS: usize = 5;
/// How late the disk is that stage 1 waits for: long after its first look.
const LATE: Duration = Duration::from_secs(3);
/// What the kernel says of a virtio disk right before its device and the event of that are made.
const CAME: &str = "512-byte logical blocks";
/// What ext4 says once it is mounted.
const MOUNTED: &str = "mounted filesystem";
const LIMIT: f64 = 100.0;

/// Late disks in stage 1 and in the running system; `runs` boots.
pub fn measure(trial: &Trial<'_>, runs: u32) -> Result<Vec<Figure>> {
    let late = Late::prepare(trial)?;
    let (mut booting, mut running) = (Vec::new(), Vec::new());
    for run in 1..=runs {
        eprintln!("bench: late disks, boot {run} of {runs}");
        let log = late.boot(trial)?;
        let times = times(&log)?;
        let (own, others) = times.split_first().context("no disk came late")?;
        ensure!(others.len() == DISKS, "{} of {DISKS} disks were mounted late:\n{log}", others.len());
        booting.push(*own);
        running.extend(others);
    }
    let what = |rest: &str| {
        format!(
            "late disk ({}), ext4, from its device to its mount: {rest}",
            trial.lab.accelerator.name()
        )
    };
    Ok(vec![
        Figure::alone(what("in stage 1, left clean"), "ms", booting, Target::AtMost(LIMIT))?,
        Figure::alone(
            what("in the running system, by persist-retry, beside udev, left clean"),
            "ms",
            running,
            Target::AtMost(LIMIT),
        )?,
    ])
}

struct Late {
    cache: Disk,
    tools: Disk,
    disks: Vec<Disk>,
    system: System,
    config: Value,
}

impl Late {
    fn prepare(trial: &Trial<'_>) -> Result<Self> {
        let mut entries = json!({
            "/tools": { "device": "LABEL=TOOLS", "fsType": "ext4" },
            "/waited-for": { "device": "LABEL=LATE-0", "fsType": "ext4", "need": "degraded", "timeout": 120 },
        });
        for number in 1..=DISKS {
            entries[format!("/late-{number}")] =
                json!({ "device": format!("LABEL=LATE-{number}"), "fsType": "ext4", "need": "degraded", "timeout": 1 });
        }
        let config = json!({ "fileSystems": entries });
        let content = trial.dir.join("late-tools");
        crate::lab::remove(&content)?;
        fs::create_dir_all(&content).with_context(|| format!("making {}", content.display()))?;
        fs::copy(trial.lab.agent()?, content.join("freshroot")).context("copying the agent")?;
        let text = serde_json::to_string(&trial.lab.config(&config)?).context("writing the configuration")?;
        fs::write(content.join("config.json"), text).context("writing the configuration")?;
        let disk = |number: usize| {
            let path = trial.dir.join(format!("late-{number}.img"));
            Disk::make(&path, 64, FsType::Ext4, &format!("LATE-{number}"))
        };
        Ok(Self {
            cache: trial.filled_cache_as("late-cache.img")?,
            tools: Disk::make_with(&trial.dir.join("late-tools.img"), 64, FsType::Ext4, "TOOLS", Some(&content))?,
            disks: (0..=DISKS).map(disk).collect::<Result<_>>()?,
            system: trial.lab.system(Spec::generation(1))?,
            config,
        })
    }

    /// The kernel log of a boot with all these disks.
    fn boot(&self, trial: &Trial<'_>) -> Result<String> {
        let script = format!(
            "set -e; mkdir -p /etc/freshroot; cp /tools/config.json /etc/freshroot/
             for number in $(seq {DISKS}); do
                 /tools/freshroot persist-retry /late-$number & retry=$!
                 # It waits for events: its first look has found nothing.
                 until grep -q poll /proc/$retry/wchan; do sleep 0.1; done
                 echo PLUG-$number >/dev/console; wait $retry
             done
             dmesg"
        );
        let mut vm = trial
            .boot()
            .with_tools()
            .patience(2)
            .config(self.config.clone())
            .system(&self.system)
            .disk(&self.cache)
            .disk(&self.tools)
            .script(&script)
            .words("demo.then=poweroff")
            .start("late")?;
        vm.wait_for(&["waiting for LABEL=LATE-0"])?;
        // Not a wait for anything: this is how late the disk is.
        std::thread::sleep(LATE);
        let mut disks = self.disks.iter().enumerate();
        if let Some((number, disk)) = disks.next() {
            vm.plug(disk, &format!("late-{number}"))?;
        }
        let mut booted = Booted::read(&mut vm)?;
        for (number, disk) in disks {
            vm.wait_for(&[&format!("PLUG-{number}")])?;
            vm.plug(disk, &format!("late-{number}"))?;
        }
        booted.read_script(&mut vm)?;
        vm.wait_end()?;
        Ok(booted.script)
    }
}

/// Of each disk that came after the agent had begun to wait for one: milliseconds to its mount.
fn times(log: &str) -> Result<Vec<f64>> {
    let (_, waiting) = log.split_once("waiting for LABEL=LATE-0").context("the agent waited for nothing")?;
    let lines = || waiting.lines().skip(1);
    let mut times = Vec::new();
    for came in lines().filter(|line| line.contains(CAME)) {
        let name = came
            .split_once("] [")
            .or_else(|| came.split_once(": ["))
            .and_then(|(_, rest)| rest.split(']').next())
            .with_context(|| format!("«{came}» names no disk"))?;
        let mounted = lines()
            .find(|line| line.contains(&format!("({name}): {MOUNTED}")))
            .with_context(|| format!("{name} was never mounted"))?;
        times.push(at(mounted)? - at(came)?);
    }
    Ok(times)
}

/// The time of a line of the kernel log, in milliseconds.
fn at(line: &str) -> Result<f64> {
    let seconds = line.trim_start_matches('[').split(']').next().unwrap_or_default().trim();
    let seconds: f64 = seconds.parse().with_context(|| format!("the kernel log has no time in «{line}»"))?;
    Ok(seconds * 1000.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_late_disk_is_timed_from_its_device_to_its_mount() {
        let log = "[    1.000000] virtio_blk virtio1: [vda] 1000 512-byte logical blocks (512 kB)\n[    1.500000] EXT4-fs (vda): mounted filesystem x\n\
                   [    2.000000] freshroot: waiting for LABEL=LATE-0, at most 120 s\n[    5.000000] virtio_blk virtio4: [vdc] 1000 512-byte logical blocks\n\
                   [    5.020000] EXT4-fs (vdc): mounted filesystem y\n[    9.000000] virtio_blk virtio5: [vdd] 1000 512-byte logical blocks\n\
                   [    9.075000] EXT4-fs (vdd): mounted filesystem z\n";
        let times = times(log).unwrap();
        assert!((times[0] - 20.0).abs() < 0.01 && (times[1] - 75.0).abs() < 0.01, "{times:?}");
        assert!(super::times("").is_err());
    }
}
