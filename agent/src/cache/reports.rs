//! Reports of the last boots, on the cache disk.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Result;

use super::atomic;
use crate::digest::Digest;
use crate::report::{Outcome, Report};

/// How many are kept: two weeks of daily boots.
const KEPT: usize = 16;

/// Reports are a few kilobytes.
const LIMIT: u64 = 1 << 20;
/// Between the times of two reports; vfat counts in steps of two seconds.
const APART: Duration = Duration::from_secs(2);

/// Keeps a report under the boot's id, and removes the oldest ones. The order is that of the files' times of change; the one that is kept now is
/// made the newest whatever the clock says: without a battery it begins anew at each boot.
///
/// # Errors
/// If it cannot be written, or an old one stays.
pub fn keep(cache: &Path, boot_id: &str, json: &[u8]) -> Result<()> {
    let folder = cache.join("reports");
    let newest = format!("{}.json", name_of(boot_id));
    atomic::write(&folder, &newest, json)?;
    let mut reports = by_time(&folder)?;
    reports.retain(|(_, path)| !path.ends_with(&newest));
    let after = reports.last().and_then(|(changed, _)| changed.checked_add(APART));
    if let Some(after) = after.filter(|after| *after > SystemTime::now()) {
        std::fs::File::options()
            .write(true)
            .open(folder.join(&newest))
            .and_then(|file| file.set_modified(after))?;
    }
    let surplus = (reports.len() + 1).saturating_sub(KEPT);
    for (_, path) in reports.drain(..surplus) {
        atomic::remove(&path)?;
    }
    Ok(())
}

fn name_of(boot_id: &str) -> String {
    let plain = boot_id.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-');
    plain.take(64).collect()
}

/// Reports with their times of change, the oldest first.
fn by_time(folder: &Path) -> Result<Vec<(SystemTime, PathBuf)>> {
    let mut reports = Vec::new();
    for name in atomic::names(folder)? {
        let path = folder.join(&name);
        if let Ok(changed) = path.metadata().and_then(|metadata| metadata.modified()) {
            reports.push((changed, path));
        }
    }
    reports.sort();
    Ok(reports)
}

/// How many of the newest reports in the cache `cache` are of boots before `boot_id` that failed: the pause before the next reboot grows with them.
pub fn failures_in_a_row(cache: &Path, boot_id: &str) -> u32 {
    let failed = |path: &Path| {
        let bytes = super::read_bounded(path, LIMIT).ok().flatten().unwrap_or_default();
        serde_json::from_slice::<Report>(&bytes).is_ok_and(|report| report.outcome == Outcome::Failed)
    };
    let own = format!("{}.json", name_of(boot_id));
    let reports = by_time(&cache.join("reports")).unwrap_or_default();
    let earlier = reports.iter().rev().filter(|(_, path)| !path.ends_with(&own));
    earlier.take_while(|(_, path)| failed(path)).count() as u32
}

/// How long stage 1 took when this generation was last booted from the cache alone; nothing if no report says so.
pub fn starts_in(cache: &Path, manifest: Digest) -> Option<Duration> {
    let reports = by_time(&cache.join("reports")).unwrap_or_default();
    let read = |path: &PathBuf| {
        let bytes = super::read_bounded(path, LIMIT).ok().flatten()?;
        serde_json::from_slice::<Report>(&bytes).ok()
    };
    reports.iter().rev().find_map(|(_, path)| read(path)?.stage_1_of(manifest))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_failures_since_the_last_success_count() {
        let cache = tempfile::tempdir().unwrap();
        std::fs::create_dir(cache.path().join("reports")).unwrap();
        let mut report = Report::new("x");
        for (number, outcome) in [Outcome::Failed, Outcome::Booted, Outcome::Failed, Outcome::Failed]
            .into_iter()
            .enumerate()
        {
            report.outcome = outcome;
            keep(cache.path(), &format!("boot-{number}"), &report.to_json().unwrap()).unwrap();
        }
        assert_eq!(failures_in_a_row(cache.path(), "now"), 2);
        assert_eq!(
            failures_in_a_row(cache.path(), "boot-3"),
            1,
            "this boot's own failures are counted elsewhere"
        );
        assert_eq!(failures_in_a_row(&cache.path().join("nowhere"), "now"), 0);
    }

    #[test]
    fn the_newest_sixteen_are_kept_and_no_name_leads_elsewhere() {
        let cache = tempfile::tempdir().unwrap();
        std::fs::create_dir(cache.path().join("reports")).unwrap();
        for number in 0..20 {
            keep(cache.path(), &format!("../boot-{number}"), b"{}").unwrap();
        }
        let names = atomic::names(&cache.path().join("reports")).unwrap();
        assert_eq!(names.len(), KEPT);
        assert!(names.contains(&"boot-19.json".to_owned()) && !names.contains(&"boot-0.json".to_owned()));
    }

    #[test]
    fn the_report_of_a_boot_with_a_clock_of_1970_stays() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("reports");
        std::fs::create_dir(&folder).unwrap();
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(3600);
        for number in 0..KEPT {
            let file = std::fs::File::create(folder.join(format!("later-{number}.json"))).unwrap();
            file.set_modified(later).unwrap();
        }
        keep(cache.path(), "now", b"{}").unwrap();
        let names = atomic::names(&folder).unwrap();
        assert!(names.len() == KEPT && names.contains(&"now.json".to_owned()), "{names:?}");
        let newest = by_time(&folder).unwrap().pop().unwrap().1;
        assert!(newest.ends_with("now.json"), "the next boot finds it to be the newest: {newest:?}");
    }
}
