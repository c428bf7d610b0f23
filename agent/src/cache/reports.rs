//! Reports of the last boots, on the cache disk.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Result;

use super::atomic;
use crate::report::{Outcome, Report};

/// How many are kept: two weeks of daily boots.
const KEPT: usize = 16;

/// Keeps a report under the boot's id, and removes the oldest ones. The order is that of the files' times of change.
///
/// # Errors
/// If it cannot be written, or an old one stays.
pub fn keep(cache: &Path, boot_id: &str, json: &[u8]) -> Result<()> {
    let folder = cache.join("reports");
    let name: String = boot_id
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .take(64)
        .collect();
    atomic::write(&folder, &format!("{name}.json"), json)?;
    let mut reports = by_time(&folder)?;
    let surplus = reports.len().saturating_sub(KEPT);
    for (_, path) in reports.drain(..surplus) {
        atomic::remove(&path)?;
    }
    Ok(())
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

/// How many of the newest reports in the cache `cache` are of boots that failed: the pause before the next reboot grows with them.
pub fn failures_in_a_row(cache: &Path) -> u32 {
    let failed = |path: &Path| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        serde_json::from_str::<Report>(&text).is_ok_and(|report| report.outcome == Outcome::Failed)
    };
    let reports = by_time(&cache.join("reports")).unwrap_or_default();
    reports.iter().rev().take_while(|(_, path)| failed(path)).count() as u32
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
        assert_eq!(failures_in_a_row(cache.path()), 2);
        assert_eq!(failures_in_a_row(&cache.path().join("nowhere")), 0);
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
}
