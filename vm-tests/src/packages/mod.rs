//! Debian packages of the guest: downloaded and unpacked, never installed.

pub mod kernel;
pub mod suite;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::command::Tool;
use crate::workspace::once;

/// For a download of up to ~100 MB over a slow line.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(15 * 60);
const QUERY_LIMIT: Duration = Duration::from_secs(60);
const UNPACK_LIMIT: Duration = Duration::from_secs(120);

/// What apt said of a package in this run. Without a cache file, which images of containers are often set to have none of, apt reads all its lists at each
/// question; a boot asks ten.
static CANDIDATES: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());

/// The version of `package` that apt would install.
pub fn candidate(package: &str) -> Result<String> {
    let mut known = CANDIDATES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(version) = known.get(package) {
        return Ok(version.clone());
    }
    let version = match candidate_in_lists(package)? {
        Some(version) => version,
        None => {
            refresh_lists()?;
            candidate_in_lists(package)?
                .with_context(|| format!("no package source of this machine has {package}; see /etc/apt/sources.list*"))?
        }
    };
    known.insert(package.to_owned(), version.clone());
    Ok(version)
}

fn candidate_in_lists(package: &str) -> Result<Option<String>> {
    let shown = Tool::new("apt-cache", QUERY_LIMIT)
        .args(["policy", package])
        .env("LC_ALL", "C")
        .text()?;
    Ok(parse_candidate(&shown))
}

/// The line `Candidate:` of `apt-cache policy`, unless it is `(none)`.
fn parse_candidate(policy: &str) -> Option<String> {
    policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate:"))
        .map(str::trim)
        .filter(|version| *version != "(none)")
        .map(str::to_owned)
}

fn refresh_lists() -> Result<()> {
    eprintln!("packages: refreshing the package lists");
    Tool::new("apt-get", DOWNLOAD_LIMIT).args(["update", "-q"]).run()
}

/// Downloads `package` and unpacks it into a folder below `vm` that is named after its version; returns the folder.
pub fn unpacked(vm: &Path, package: &str) -> Result<PathBuf> {
    let version = candidate(package)?;
    let dir = vm.join(format!("deb-{package}-{}", version.replace([':', '~', '+'], "_")));
    once(&dir, |making| {
        eprintln!("packages: downloading {package} {version}");
        let deb = download(making, package)?;
        Tool::new("dpkg-deb", UNPACK_LIMIT).arg("-x").arg(&deb).arg(making).run()?;
        fs::remove_file(&deb).with_context(|| format!("removing {}", deb.display()))
    })?;
    Ok(dir)
}

/// Unpacks `package` and, of what it depends on, directly or not, the packages whose names begin with `prefix`; returns their folders.
pub fn unpacked_with(vm: &Path, package: &str, prefix: &str) -> Result<Vec<PathBuf>> {
    let mut names = vec![package.to_owned()];
    let mut folders = Vec::new();
    while let Some(name) = names.get(folders.len()).cloned() {
        folders.push(unpacked(vm, &name)?);
        let shown = Tool::new("apt-cache", QUERY_LIMIT)
            .args(["depends", "--important", &name])
            .env("LC_ALL", "C")
            .text()?;
        for other in parse_depends(&shown, prefix) {
            if !names.contains(&other) {
                names.push(other);
            }
        }
    }
    Ok(folders)
}

/// Those of the lines `Depends:` of `apt-cache depends` whose package begins with `prefix`.
fn parse_depends(shown: &str, prefix: &str) -> Vec<String> {
    let depends = shown.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    depends.filter(|name| name.starts_with(prefix)).map(str::to_owned).collect()
}

/// Lists that are older than the archive name files that are gone: refreshed once.
fn download(into: &Path, package: &str) -> Result<PathBuf> {
    let fetch = || {
        // As root: apt's own user may not be able to write here.
        Tool::new("apt-get", DOWNLOAD_LIMIT)
            .args(["-q", "-o", "APT::Sandbox::User=root", "download", package])
            .current_dir(into)
            .run()
    };
    if let Err(error) = fetch() {
        eprintln!("packages: {error:#}");
        refresh_lists()?;
        fetch()?;
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(into).with_context(|| format!("listing {}", into.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            found.push(path);
        }
    }
    match found.as_slice() {
        [deb] => Ok(deb.clone()),
        _ => bail!("apt-get download {package} left {} packages in {}", found.len(), into.display()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn the_candidate_is_read_and_none_is_none() {
        let policy = "hello:\n  Installed: (none)\n  Candidate: 2.10-3\n  Version table:\n     2.10-3 500\n";
        assert_eq!(parse_candidate(policy).as_deref(), Some("2.10-3"));
        assert_eq!(parse_candidate("x:\n  Candidate: (none)\n"), None);
        assert_eq!(parse_candidate(""), None);
    }

    #[test]
    fn of_what_a_package_depends_on_those_with_the_prefix_are_found() {
        let shown = "kexec-tools\n  Depends: libc6\n  Depends: libxenmisc4.17\n |Depends: debconf\n  Suggests: libxen-x\n";
        assert_eq!(parse_depends(shown, "libxen"), ["libxenmisc4.17"]);
    }
}
