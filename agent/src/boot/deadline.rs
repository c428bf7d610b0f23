//! The time that systemd gives stage 1 as a whole, `JobTimeoutSec=` of `initrd.target`: moved on while the agent makes progress, and by nothing else.
//!
//! The job's timer is armed anew when the manager reloads: `job_coldplug()` in systemd's `src/core/job.c` computes its end as the begin of the job plus the unit's
//! `JobTimeoutSec=` as it is then. A reload is asked for by SIGHUP to PID 1 (systemd(1)). It costs the generators and a look at all units, so that
//! it is done only when less than half of the limit is left; a boot from the cache never comes there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};

use crate::fetch::Progress;
use crate::mount::options::parse_time_span;

/// Where units are found, what comes first wins (systemd.unit(5)).
const UNITS: [&str; 4] = [
    "etc/systemd/system",
    "run/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
];
/// What is limited.
const TARGET: &str = "initrd.target";
/// The limit that is written. Drop-ins are applied in the order of their names, whichever folder they are in, and NixOS calls its own `overrides.conf`.
const DROP_IN: &str = "run/systemd/system/initrd.target.d/zz-freshroot.conf";
/// Between two looks at what goes on: half of any limit that makes sense is much longer.
const LOOK: Duration = Duration::from_secs(5);
/// A unit file is no longer than this.
const LONGEST: u64 = 1 << 20;

/// Where nobody else ends a boot.
pub static NO_DEADLINE: Deadline = Deadline::none();

/// The end of stage 1, if there is one.
#[derive(Debug)]
pub struct Deadline(Option<Movable>);

/// An end that can be moved.
#[derive(Debug)]
struct Movable {
    root: PathBuf,
    reload: fn() -> io::Result<()>,
    /// None once moving it has failed.
    limit: Mutex<Option<Limit>>,
}

/// Both counted from the start of the machine, as the job's begin is a little later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limit {
    /// When the machine is rebooted.
    ends: Duration,
    /// What was configured: so much is given anew each time.
    margin: Duration,
}

impl Limit {
    /// The new end if the agent is well at the time `now`: none while at least half of the margin is left.
    fn moved(self, now: Duration) -> Option<Self> {
        let kept = now.saturating_add(self.margin / 2) <= self.ends;
        (!kept).then(|| Self {
            ends: now.saturating_add(self.margin),
            ..self
        })
    }
}

impl Deadline {
    /// Nobody's: as PID 1 the agent has only its own limits.
    pub const fn none() -> Self {
        Self(None)
    }

    /// That of `initrd.target`, as the unit files below `root` (`/`) have it.
    pub fn of_initrd(root: &Path) -> Self {
        Self::with(root, reload)
    }

    fn with(root: &Path, reload: fn() -> io::Result<()>) -> Self {
        let margin = configured(root);
        match margin {
            Some(margin) => log::debug!(
                "{TARGET} has a limit of {} s, which is moved on while there is progress",
                margin.as_secs()
            ),
            None => log::debug!("{TARGET} has no limit"),
        }
        Self(margin.map(|margin| Movable {
            root: root.to_owned(),
            reload,
            limit: Mutex::new(Some(Limit { ends: margin, margin })),
        }))
    }

    /// Does `work`, which is given time as long as it gets further: looked at every few seconds.
    pub fn moved_by<T>(&self, progress: &Progress, work: impl FnOnce() -> T) -> T {
        let mut before = progress.moves();
        let got_further = move || {
            let now = progress.moves();
            let further = now > before;
            before = now;
            further
        };
        self.moved_while(got_further, work)
    }

    /// Does `work`, a wait that ends by itself within `limit`, and is given time so long: waiting is no hanging.
    pub fn moved_within<T>(&self, limit: Duration, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        self.moved_while(move || started.elapsed() <= limit, work)
    }

    fn moved_while<T>(&self, mut well: impl FnMut() -> bool + Send, work: impl FnOnce() -> T) -> T {
        let Some(movable) = &self.0 else {
            return work();
        };
        let (ended, changed) = (Mutex::new(false), Condvar::new());
        std::thread::scope(|scope| {
            let watch = || {
                let mut guard = ended.lock().unwrap_or_else(PoisonError::into_inner);
                loop {
                    if !*guard {
                        (guard, _) = changed.wait_timeout(guard, LOOK).unwrap_or_else(PoisonError::into_inner);
                    }
                    if well() {
                        movable.well_at(since_start());
                    }
                    if *guard {
                        return;
                    }
                }
            };
            if let Err(error) = std::thread::Builder::new().spawn_scoped(scope, watch) {
                log::warn!("the limit of {TARGET} is not moved on: starting a thread: {error}");
            }
            let result = work();
            *ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
            changed.notify_all();
            result
        })
    }
}

/// As the job's begin is counted.
fn since_start() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default()
}

impl Movable {
    /// The agent is well at this time.
    fn well_at(&self, now: Duration) {
        let mut limit = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(moved) = limit.and_then(|limit| limit.moved(now)) else {
            return;
        };
        match self.write(moved.ends) {
            Ok(()) => {
                log::info!(
                    "stage 1 has until {} s after the start of the machine: there is progress",
                    moved.ends.as_secs()
                );
                *limit = Some(moved);
            }
            Err(error) => {
                log::warn!("the limit of {TARGET} is not moved on, and ends the boot if it takes longer: {error:#}");
                *limit = None;
            }
        }
    }

    fn write(&self, ends: Duration) -> Result<()> {
        let path = self.root.join(DROP_IN);
        let folder = path.parent().context("the drop-in has no folder")?;
        match fs::create_dir(folder) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("making {} (does systemd run?)", folder.display())),
        }
        let text = format!(
            "# Written by freshroot, which is still at work.\n[Unit]\nJobTimeoutSec={}s\n",
            ends.as_secs()
        );
        let new = folder.join(".zz-freshroot.conf.new");
        fs::write(&new, text).with_context(|| format!("writing {}", new.display()))?;
        fs::rename(&new, &path).with_context(|| format!("renaming {} to {}", new.display(), path.display()))?;
        (self.reload)().context("asking systemd to reload")
    }
}

/// systemd reloads when it gets SIGHUP (`manager_dispatch_signal_fd()` in its `src/core/manager.c`).
fn reload() -> io::Result<()> {
    Ok(kill_process(Pid::INIT, Signal::HUP)?)
}

/// The limit of `initrd.target` as its unit file and drop-ins have it.
fn configured(root: &Path) -> Option<Duration> {
    let folders: Vec<PathBuf> = UNITS.iter().map(|folder| root.join(folder)).collect();
    let unit = folders.iter().find_map(|folder| read(&folder.join(TARGET)));
    let mut drop_ins: Vec<(String, usize, String)> = Vec::new();
    for (rank, folder) in folders.iter().enumerate() {
        let Ok(entries) = fs::read_dir(folder.join(format!("{TARGET}.d"))) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".conf") && !drop_ins.iter().any(|(other, ..)| *other == name) {
                drop_ins.push((name, rank, read(&entry.path()).unwrap_or_default()));
            }
        }
    }
    drop_ins.sort();
    let texts = unit.into_iter().chain(drop_ins.into_iter().map(|(_, _, text)| text));
    job_timeout(texts)
}

/// What `JobTimeoutSec=` the texts of a unit give, in their order; none where there is no limit.
fn job_timeout(texts: impl IntoIterator<Item = String>) -> Option<Duration> {
    let mut timeout = None;
    for text in texts {
        let mut in_unit = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with('[') {
                in_unit = line == "[Unit]";
            }
            let value = line
                .strip_prefix("JobTimeoutSec")
                .and_then(|rest| rest.trim_start().strip_prefix('='));
            if let Some(value) = value.filter(|_| in_unit) {
                // «infinity», 0 and nothing at all mean that there is none; systemd passes over what it cannot read.
                timeout = parse_time_span(value).ok();
            }
        }
    }
    timeout
}

fn read(path: &Path) -> Option<String> {
    use std::io::Read as _;
    let mut text = String::new();
    match fs::File::open(path).and_then(|file| file.take(LONGEST).read_to_string(&mut text)) {
        Ok(_) => Some(text),
        Err(error) => {
            log::trace!("{}: {error}", path.display());
            None
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    const fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    #[test]
    fn the_end_is_moved_when_less_than_half_of_the_limit_would_be_left() {
        for (ends, margin, now, moved) in [
            // A warm boot, and one that waits a while for its disk and its network.
            (1800, 1800, 3, None),
            (1800, 1800, 80, None),
            // A download.
            (1800, 1800, 899, None),
            (1800, 1800, 900, None),
            (1800, 1800, 901, Some(2701)),
            (2701, 1800, 1801, None),
            (2701, 1800, 1802, Some(3602)),
            // Past the end, and nobody rebooted: the job is over, or not begun.
            (60, 60, 61, Some(121)),
        ] {
            let limit = Limit {
                ends: seconds(ends),
                margin: seconds(margin),
            };
            let expected = moved.map(|ends| Limit {
                ends: seconds(ends),
                ..limit
            });
            assert_eq!(limit.moved(seconds(now)), expected, "{ends} {margin} {now}");
        }
    }

    #[test]
    fn the_limit_is_what_the_last_drop_in_says() {
        for (texts, expected) in [
            (&[][..], None),
            (&["[Unit]\nDescription=x\n"], None),
            (&["[Unit]\nJobTimeoutSec=30min\n"], Some(1800)),
            (
                &["[Unit]\nJobTimeoutSec = 1h 30min\n", "[Unit]\nJobTimeoutAction=reboot-force\n"],
                Some(5400),
            ),
            (&["[Unit]\nJobTimeoutSec=30min\n", "[Unit]\nJobTimeoutSec=90"], Some(90)),
            (&["[Unit]\nJobTimeoutSec=30min\n", "[Unit]\nJobTimeoutSec=infinity"], None),
            (&["[Unit]\nJobTimeoutSec=30min\n", "[Unit]\nJobTimeoutSec=0"], None),
            (
                &["[Unit]\n#JobTimeoutSec=30min\nJobTimeoutSecond=1\n[Install]\nJobTimeoutSec=5\n"],
                None,
            ),
        ] {
            let texts = texts.iter().map(|text| (*text).to_owned());
            assert_eq!(job_timeout(texts.clone()), expected.map(seconds), "{:?}", texts.collect::<Vec<_>>());
        }
    }

    static RELOADS: AtomicU32 = AtomicU32::new(0);

    #[test]
    fn a_longer_limit_is_written_where_it_wins_over_all_others_and_systemd_is_told_once() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("usr/lib/systemd/system/initrd.target", "[Unit]\nJobTimeoutSec=5min\n");
        put(
            "usr/lib/systemd/system/initrd.target.d/overrides.conf",
            "[Unit]\nJobTimeoutSec=6min\n",
        );
        put("etc/systemd/system/initrd.target.d/overrides.conf", "[Unit]\nJobTimeoutSec=10min\n");
        put("etc/systemd/system/initrd.target.d/a.conf", "[Unit]\nJobTimeoutSec=1min\n");
        put("run/systemd/system/x", "");
        let count = || {
            RELOADS.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        let deadline = Deadline::with(root.path(), count).0.unwrap();
        for (now, reloads) in [(1, 0), (300, 0), (301, 1), (302, 1), (601, 1), (602, 2)] {
            deadline.well_at(seconds(now));
            assert_eq!(RELOADS.load(Ordering::Relaxed), reloads, "at {now}");
        }
        assert_eq!(configured(root.path()), Some(seconds(1202)));
        let folder = root.path().join(DROP_IN);
        assert_eq!(fs::read_dir(folder.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn work_is_given_time_when_it_got_further_and_none_when_it_did_not() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("etc/systemd/system/initrd.target");
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::create_dir_all(root.path().join("run/systemd/system")).unwrap();
        // Over already, so that whatever is given shows.
        fs::write(target, "[Unit]\nJobTimeoutSec=1\n").unwrap();
        let deadline = Deadline::with(root.path(), || Ok(()));
        let progress = Progress::new(10);
        let given = || root.path().join(DROP_IN).exists();
        assert_eq!(deadline.moved_by(&progress, || 7), 7);
        assert!(!given(), "nothing was done");
        deadline.moved_by(&progress, || progress.add(1));
        assert!(given());
        fs::remove_file(root.path().join(DROP_IN)).unwrap();
        let limit = Duration::from_millis(20);
        Deadline::with(root.path(), || Ok(())).moved_within(limit, || {
            // Hangs where it should have ended; counted from here, which is later than the limit's own begin.
            let begun = Instant::now();
            while begun.elapsed() <= limit {
                std::thread::yield_now();
            }
        });
        assert!(!given(), "its own limit was over");
        Deadline::with(root.path(), || Ok(())).moved_within(LOOK, || ());
        assert!(given());
    }

    #[test]
    fn where_nothing_is_limited_and_where_systemd_does_not_run_nothing_is_written() {
        let root = tempfile::tempdir().unwrap();
        let none = || -> io::Result<()> { Err(io::Error::other("nobody is to be told")) };
        for unit in ["", "[Unit]\nJobTimeoutSec=1\n"] {
            fs::create_dir_all(root.path().join("etc/systemd/system")).unwrap();
            fs::write(root.path().join("etc/systemd/system/initrd.target"), unit).unwrap();
            Deadline::with(root.path(), none).moved_within(LOOK, || ());
            assert!(!root.path().join("run").exists());
        }
    }
}
