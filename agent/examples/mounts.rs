//! What `freshroot boot` does with the entries of `fileSystems` and nothing else: for the benchmark, in a virtual machine.
//!
//! `mounts once CONFIG` mounts the entries of CONFIG below /sysroot, in the order of `boot/attempt.rs`, and ends.
//! `mounts compare CONFIG FSTAB PAIRS` does that, and `mount -a` with FSTAB, in turn: each a program that is started, timed from its start to its end with
//! nothing in the caches, and unmounted again. With `check` at the end, `fsck -A` goes before `mount -a`. Prints a line for each pair, in milliseconds.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use freshroot::boot::Stage;
use freshroot::boot::disks::Disks;
use freshroot::boot::system::{entries, mount_entries};
use freshroot::cmdline::CommandLine;
use freshroot::mode::Mode;
use freshroot::mount::mount_log::MountLog;
use freshroot::report::Report;
use freshroot::settings::Settings;
use rustix::mount::{UnmountFlags, unmount};

const SYSROOT: &str = "/sysroot";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mounts: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["once", config] => once(config),
        ["compare", config, fstab, pairs] => compare(config, fstab, pairs.parse()?, false),
        ["compare", config, fstab, pairs, "check"] => compare(config, fstab, pairs.parse()?, true),
        _ => bail!("usage: mounts once CONFIG, or mounts compare CONFIG FSTAB PAIRS [check]"),
    }
}

fn once(config: &str) -> Result<()> {
    let settings = Settings::read_with(Path::new("/"), Some(Path::new(config)), None)?;
    let stage = Stage::new(Mode::Standalone, SYSROOT.into());
    let entries = entries(&settings, stage.mode)?;
    let (mut disks, _) = Disks::open(Path::new("/"), &stage, &settings, &CommandLine::default())?;
    let (mut log, mut report) = (MountLog::new(), Report::new(""));
    mount_entries(&stage, &entries, &mut disks, &mut log, &mut report)?;
    ensure!(report.warnings.is_empty(), "{:?}", report.warnings);
    Ok(())
}

fn compare(config: &str, fstab: &str, pairs: u32, check: bool) -> Result<()> {
    let own = std::env::current_exe().context("finding this program")?;
    let places = places(fstab)?;
    for pair in 0..pairs {
        let ours = || timed(Command::new(&own).args(["once", config]), &[0]);
        let peer = || -> Result<f64> {
            let mut checked = 0.0;
            if check {
                // 1: errors were corrected.
                checked = timed(Command::new("fsck").args(["-A", "-T", "-a"]).env("FSTAB_FILE", fstab), &[0, 1])?;
            }
            Ok(checked + timed(Command::new("/usr/bin/mount").args(["-a", "-T", fstab]), &[0])?)
        };
        // In turn who is first: what the first leaves warm in the disks themselves helps the second.
        let (ours, peer) = if pair % 2 == 0 {
            let ours = cold(&places, SYSROOT, ours)?;
            (ours, cold(&places, "/mnt", peer)?)
        } else {
            let peer = cold(&places, "/mnt", peer)?;
            (cold(&places, SYSROOT, ours)?, peer)
        };
        println!("PAIR check={check} ours={ours:.3} peer={peer:.3} entries={}", places.len());
    }
    Ok(())
}

/// The mount points of an fstab whose lines are all below /mnt, without that.
fn places(fstab: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(fstab).with_context(|| format!("reading {fstab}"))?;
    let places: Option<Vec<String>> = text
        .lines()
        .map(|line| Some(line.split_whitespace().nth(1)?.strip_prefix("/mnt")?.to_owned()))
        .collect();
    places.with_context(|| format!("{fstab} has a line that is not below /mnt"))
}

/// Runs `what` with nothing in the caches; all of `places` are mounted below `root` then, and are unmounted again.
fn cold(places: &[String], root: &str, what: impl FnOnce() -> Result<f64>) -> Result<f64> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("dropping the caches")?;
    let milliseconds = what()?;
    let mounts = fs::read("/proc/self/mountinfo").context("reading what is mounted")?;
    let mounted = freshroot::handover::mountinfo::mount_points(&mounts);
    for place in places {
        let path = format!("{root}{place}");
        ensure!(mounted.contains(Path::new(&path)), "{path} is not mounted");
        unmount(path.as_str(), UnmountFlags::empty()).with_context(|| format!("unmounting {path}"))?;
    }
    Ok(milliseconds)
}

/// Milliseconds from the start of a program to its end, which is to be with one of these codes.
fn timed(command: &mut Command, good: &[i32]) -> Result<f64> {
    let started = Instant::now();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    let elapsed = started.elapsed();
    ensure!(
        output.status.code().is_some_and(|code| good.contains(&code)),
        "{command:?} ended with {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(elapsed.as_secs_f64() * 1000.0)
}
