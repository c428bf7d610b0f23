//! Reports of the last boots, on the cache disk.

use std::path::Path;

use anyhow::Result;

use super::atomic;

/// How many are kept: two weeks of daily boots.
const KEPT: usize = 16;

/// Keeps a report under the boot's id, and removes the oldest ones. The order is that of the files' times of change; the one that is kept now is
/// the newest whatever the clock says.
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
    let newest = format!("{name}.json");
    atomic::write(&folder, &newest, json)?;
    let mut reports = Vec::new();
    for name in atomic::names(&folder)?.into_iter().filter(|name| *name != newest) {
        let path = folder.join(&name);
        if let Ok(changed) = path.metadata().and_then(|metadata| metadata.modified()) {
            reports.push((changed, path));
        }
    }
    reports.sort();
    let surplus = (reports.len() + 1).saturating_sub(KEPT);
    for (_, path) in reports.drain(..surplus) {
        atomic::remove(&path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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
    }
}
