//! A boot that failed: the reason on every console and in the report, whichever mode it was, and nothing left that the next try meets.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::cache_disk::cache_folder;
use super::{ROOT, Stage};
use crate::cache::reports;
use crate::failure;
use crate::report::{self, Failure, Report};
use crate::settings::{OnFailure, Settings};

/// How the failures of this boot go on.
pub(super) struct Failing<'a> {
    /// Where.
    pub stage: &'a Stage,
    /// What is to be done.
    pub policy: &'a OnFailure,
    /// Failures of this boot so far.
    pub failures: u32,
    /// Whether it is tried again.
    pub again: bool,
}

impl Failing<'_> {
    /// Says why on every console, keeps the report, and takes the cache down. `next` says what follows after which pause where nothing is tried again.
    pub fn tell(&self, failure: Failure, mut report: Report, settings: Option<&Settings>, next: &dyn Fn(Duration) -> String) -> Duration {
        let root = Path::new(ROOT);
        let cache = settings.and_then(|settings| mounted_cache(self.stage, settings));
        let earlier = cache
            .as_deref()
            .map_or(0, |cache| reports::failures_in_a_row(cache, &report.boot_id));
        // A report that is told again has counted already, with the cache that is gone now.
        report.failures_before = report.failures_before.max(self.failures.saturating_add(earlier));
        let pause = failure::back_off(self.policy, report.failures_before);
        let next = if self.again {
            format!("the boot is tried again in {} s (onFailure.retries)", pause.as_secs())
        } else {
            next(pause)
        };
        log::error!("the boot failed: {}", failure.what);
        crate::console::announce(root, &failure::screen(&failure, &next));
        report.error = Some(failure);
        if let Err(error) = keep_report(&report, cache.as_deref()) {
            log::warn!("the report is not kept: {error:#}");
        }
        // Clean for the next mount, whoever makes it.
        let cache = self.stage.cache();
        match rustix::mount::unmount(&cache, rustix::mount::UnmountFlags::empty()) {
            // Nothing is mounted there, or there is no such folder.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(error) => log::warn!("{} stays mounted: {error}", cache.display()),
        }
        if self.again {
            let wait = || failure::pause(root, pause, "the next try");
            self.stage.deadline.moved_within(pause, wait);
        }
        pause
    }
}

fn mounted_cache(stage: &Stage, settings: &Settings) -> Option<PathBuf> {
    Some(cache_folder(&stage.cache(), settings)).filter(|folder| folder.exists())
}

/// A report of this boot, which has only begun.
pub(super) fn new_report() -> Report {
    Report::new(&fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default())
}

/// Writes the report to `/run`, and a copy to the cache.
pub(super) fn keep_report(report: &Report, cache: Option<&Path>) -> Result<()> {
    let json = report.to_json()?;
    write_report(&Path::new(ROOT).join(report::PATH), &json)?;
    match cache {
        Some(folder) => reports::keep(folder, &report.boot_id, &json),
        None => Ok(()),
    }
}

/// Writes a report to `path`, whose folder is made.
pub(super) fn write_report(path: &Path, json: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    fs::write(path, json).with_context(|| format!("writing {}", path.display()))
}
