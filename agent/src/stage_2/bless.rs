//! Marking the running boot as good.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use super::own_report;
use crate::boot::CACHE;
use crate::boot::cache_disk::cache_folder;
use crate::cache::{read_only, tries};
use crate::clock;
use crate::report::{Outcome, Source};
use crate::settings::Settings;

/// Blesses the generation that the system below `root` was booted from, and gives its tries back. Says what was done.
///
/// # Errors
/// If freshroot did not boot this system, or the cache cannot be written.
pub fn bless(root: &Path) -> Result<String> {
    let report = own_report(root)?;
    ensure!(
        report.outcome == Outcome::Booted,
        "the report of this boot says that it failed: there is nothing to bless"
    );
    let system = report.system.context("the report of this boot names no system")?;
    match report.source {
        Some(Source::Ram) => return Ok("the image is in RAM, for this boot alone: there is nothing to bless".to_owned()),
        Some(Source::Medium) => return Ok("the image is on a medium, and not in the cache: there is nothing to bless".to_owned()),
        Some(Source::Cache | Source::Network) | None => {}
    }
    let settings = Settings::read(root)?;
    let folder = mounted_cache(root, &settings)?;
    let done = tries::bless(&folder, system.manifest, &report.boot_id, clock::machine())?;
    let name = match (&system.channel, system.serial) {
        (Some(channel), Some(serial)) => format!("{}, {channel} serial {serial}", system.toplevel.name()),
        (Some(_) | None, Some(_) | None) => system.toplevel.name().to_owned(),
    };
    Ok(if done {
        format!("blessed: {name}")
    } else {
        format!("{name} is blessed already: nothing to do")
    })
}

/// The folder of the cache, which can be written.
///
/// # Errors
/// If it is not mounted, or for reading only.
pub(super) fn mounted_cache(root: &Path, settings: &Settings) -> Result<PathBuf> {
    let folder = cache_folder(&root.join(CACHE.trim_start_matches('/')), settings);
    match fs::metadata(&folder) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(
            "there is no cache at {}: the cache disk is not mounted there any more, or cache.path is not what it was at the boot",
            folder.display()
        ),
        Err(error) => return Err(error).with_context(|| format!("looking at the cache {}, which is root's", folder.display())),
    }
    ensure!(
        !read_only(&folder),
        "the cache {} is mounted for reading only: see «freshroot status» for why, repair its disk, and reboot",
        folder.display()
    );
    Ok(folder)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cache::tries::read_history;
    use crate::digest::Digest;
    use crate::formats::manifest::InitKind;
    use crate::report::{self, ChosenSystem, Report};

    const BOOT_ID: &str = "0b5e3c56-0000-4000-8000-000000000000";

    fn write(root: &Path, path: &str, text: &[u8]) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn booted() -> Report {
        let mut report = Report::new(BOOT_ID);
        report.outcome = Outcome::Booted;
        report.source = Some(Source::Cache);
        report.system = Some(ChosenSystem {
            toplevel: "/nix/store/0c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-laptop".parse().unwrap(),
            name: "default".to_owned(),
            init_kind: InitKind::PrepareRoot,
            manifest: Digest::of(b"manifest"),
            image: Digest::of(b"image"),
            channel: Some("stable".to_owned()),
            serial: Some(7),
            verified: true,
            authority: "signature by test-1".to_owned(),
        });
        report
    }

    /// A running system with this report, and one try of its generation.
    fn system(report: &Report) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "proc/sys/kernel/random/boot_id", format!("{BOOT_ID}\n").as_bytes());
        write(root.path(), "proc/cmdline", b"quiet\n");
        write(
            root.path(),
            "etc/freshroot/config.json",
            br#"{"version": 1, "cache": {"device": "LABEL=cache", "path": "here"}}"#,
        );
        write(root.path(), report::PATH, &report.to_json().unwrap());
        write(
            root.path(),
            &format!("run/freshroot/cache/here/tries/{}/1", Digest::of(b"manifest")),
            b"",
        );
        root
    }

    #[test]
    fn the_generation_of_this_boot_is_blessed_once() {
        let root = system(&booted());
        let cache = root.path().join("run/freshroot/cache/here");
        assert_eq!(bless(root.path()).unwrap(), "blessed: laptop, stable serial 7");
        let history = read_history(&cache).unwrap();
        assert_eq!(
            (history.tries(Digest::of(b"manifest")), history.last_blessed()),
            (0, Some(Digest::of(b"manifest")))
        );
        assert!(bless(root.path()).unwrap().contains("nothing to do"));
    }

    #[test]
    fn an_image_in_ram_is_nothing_to_bless_and_no_error() {
        let report = Report {
            source: Some(Source::Ram),
            ..booted()
        };
        assert!(bless(system(&report).path()).unwrap().contains("in RAM"));
    }

    #[test]
    fn what_freshroot_did_not_boot_is_not_blessed() {
        let refused = |root: &Path| bless(root).unwrap_err().to_string();
        let other = Report {
            boot_id: "another".to_owned(),
            ..booted()
        };
        assert!(refused(system(&other).path()).contains("is of another boot"));
        let failed = Report {
            outcome: Outcome::Failed,
            ..booted()
        };
        assert!(refused(system(&failed).path()).contains("says that it failed"));
        let root = system(&booted());
        fs::remove_dir_all(root.path().join("run/freshroot/cache/here")).unwrap();
        assert!(refused(root.path()).contains("there is no cache"));
        fs::remove_file(root.path().join(report::PATH)).unwrap();
        assert!(refused(root.path()).contains("was this system booted by freshroot?"));
    }
}
