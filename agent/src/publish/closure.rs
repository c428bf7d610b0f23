//! From store paths to an image: `mksquashfs` with the flags of nixpkgs' `make-squashfs.nix`, data in an order that small deltas need.

use std::collections::BTreeSet;
use std::fs;
use std::io::IsTerminal as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use super::registration;
use crate::store_path::{STORE, StorePath};

/// mksquashfs takes priorities from -32768 to 32767, the highest first.
const HIGHEST: i32 = 32767;
const PRIORITIES: usize = 65536;

/// What the image is made of.
#[derive(Debug)]
pub struct Closure<'a> {
    /// Paths that must be in it.
    pub paths: &'a [StorePath],
    /// Registration of the closure; none: `nix-store` is asked.
    pub registration: Option<&'a Path>,
    /// Where the store paths are read.
    pub store: &'a Path,
    /// zstd's level, 1–22.
    pub level: u32,
}

/// Makes the image `out`; `work` is an empty folder for what it takes.
///
/// # Errors
/// Neither a registration nor `nix-store`, an incomplete closure, a path that is not there, or mksquashfs, whose own words follow.
pub fn make_image(closure: &Closure<'_>, work: &Path, out: &Path) -> Result<()> {
    let text = match closure.registration {
        Some(file) => fs::read_to_string(file).with_context(|| format!("reading the registration {}", file.display()))?,
        None => ask_nix(closure.paths)?,
    };
    let all = registration::paths(&text)?;
    for path in closure.paths {
        ensure!(
            all.contains(path),
            "{path} is not in the registration: make it of this path's closure (nixpkgs: closureInfo)"
        );
    }
    let mut sources = Vec::new();
    for path in &all {
        let source = closure.store.join(path.store_name());
        fs::symlink_metadata(&source).with_context(|| format!("looking for {path} in {}", closure.store.display()))?;
        sources.push(source);
    }
    let registration = work.join("nix-path-registration");
    fs::write(&registration, text).with_context(|| format!("writing {}", registration.display()))?;
    let sort = work.join("sort");
    fs::write(&sort, sort_file(&all, closure.store)?).with_context(|| format!("writing {}", sort.display()))?;
    run_mksquashfs(&registration, &sources, &sort, closure.level, out)
}

/// Closure and registration by `nix-store`.
fn ask_nix(paths: &[StorePath]) -> Result<String> {
    let run = |options: &[&str], paths: &mut dyn Iterator<Item = &str>| -> Result<String> {
        let output = match Command::new("nix-store")
            .args(options)
            .args(paths)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
        {
            Ok(output) => output,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!(
                "nix-store is not here to tell the closure: give --registration FILE (nixpkgs: \
                 «closureInfo {{ rootPaths = [ toplevel ]; }}», its file «registration»; elsewhere: nix-store --dump-db $(nix-store -qR PATH))"
            ),
            Err(error) => return Err(error).context("starting nix-store"),
        };
        ensure!(output.status.success(), "nix-store {} failed: {}", options.join(" "), output.status);
        String::from_utf8(output.stdout).context("reading what nix-store wrote")
    };
    let closure = run(&["--query", "--requisites"], &mut paths.iter().map(StorePath::as_str))?;
    run(&["--dump-db"], &mut closure.lines())
}

/// The order of the data in the image: by store path name without the hash, so that an update leaves a package's data where it was (it takes an update
/// of a few packages from 31 to 10.5 MB of changed blocks). More paths than there are priorities: neighbours share one.
fn sort_file(paths: &BTreeSet<StorePath>, store: &Path) -> Result<Vec<u8>> {
    let mut order: Vec<_> = paths.iter().collect();
    order.sort_by_key(|path| (path.name(), path.hash()));
    let mut text = Vec::new();
    for (place, path) in order.iter().enumerate() {
        let place = if order.len() > PRIORITIES {
            place * PRIORITIES / order.len()
        } else {
            place
        };
        let priority = HIGHEST - i32::try_from(place).context("more store paths than can be counted")?;
        for byte in store.join(path.store_name()).as_os_str().as_bytes() {
            if matches!(byte, b' ' | b'\\') {
                text.push(b'\\');
            }
            text.push(*byte);
        }
        text.extend_from_slice(format!(" {priority}\n").as_bytes());
    }
    Ok(text)
}

fn run_mksquashfs(registration: &Path, sources: &[PathBuf], sort: &Path, level: u32, out: &Path) -> Result<()> {
    let terminal = std::io::stderr().is_terminal();
    if !terminal {
        eprintln!("making the image of {} store paths", sources.len());
    }
    let mut command = Command::new("mksquashfs");
    command.arg(registration).args(sources).arg(out);
    command.args([
        "-no-hardlinks",
        "-keep-as-directory",
        "-all-root",
        "-b",
        "1048576",
        "-comp",
        "zstd",
        "-Xcompression-level",
    ]);
    command
        .arg(level.to_string())
        .args(["-root-mode", "0755", "-noappend", "-no-recovery", "-sort"])
        .arg(sort);
    // 1 is the time of every file in a Nix store. With SOURCE_DATE_EPOCH in the environment mksquashfs refuses times as arguments.
    command.args(["-mkfs-time", "1", "-all-time", "1"]).env_remove("SOURCE_DATE_EPOCH");
    if terminal {
        // Its own bar, on our stderr: stdout is for results.
        command.stdout(std::io::stderr());
    } else {
        command.args(["-quiet", "-no-progress"]).stdout(Stdio::null());
    }
    let status = match command.stdin(Stdio::null()).status() {
        Ok(status) => status,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("mksquashfs is missing: install squashfs-tools, built with zstd")
        }
        Err(error) => return Err(error).context("starting mksquashfs"),
    };
    ensure!(status.success(), "mksquashfs failed ({status}); its own words stand above");
    Ok(())
}

/// A store path given as an argument: below the store, however it is mounted here.
///
/// # Errors
/// What does not name a store path.
pub fn store_path(text: &str, store: &Path) -> Result<StorePath> {
    let given = Path::new(text);
    let name = given.strip_prefix(store).or_else(|_| given.strip_prefix(STORE)).unwrap_or(given);
    let name = name.to_str().filter(|name| !name.contains('/'));
    let name = name.with_context(|| format!("«{text}» is not a path in the store {}", store.display()))?;
    StorePath::from_store_name(name).with_context(|| format!("reading the argument «{text}»"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn data_is_sorted_by_name_without_the_hash() {
        let path = |hash: &str, name: &str| StorePath::from_store_name(&format!("{}-{name}", hash.repeat(32))).unwrap();
        let paths = BTreeSet::from([path("a", "zsh-5"), path("b", "bash-5"), path("c", "bash-5")]);
        let text = String::from_utf8(sort_file(&paths, Path::new("/my store")).unwrap()).unwrap();
        let names: Vec<_> = text.lines().map(|line| (&line[11..12], &line[line.len() - 5..])).collect();
        assert_eq!(names, [("b", "32767"), ("c", "32766"), ("a", "32765")], "{text}");
        assert!(text.starts_with("/my\\ store/b"));
    }

    #[test]
    fn more_paths_than_priorities_share_them_in_order() {
        let paths: BTreeSet<_> = (0..100_000)
            .map(|n| StorePath::from_store_name(&format!("{}-p{n:06}", "0".repeat(32))).unwrap())
            .collect();
        let text = String::from_utf8(sort_file(&paths, Path::new("/s")).unwrap()).unwrap();
        let priorities: Vec<i32> = text.lines().map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        assert!(priorities.is_sorted_by(|a, b| a >= b));
        assert_eq!((priorities[0], *priorities.last().unwrap()), (32767, -32768));
    }

    #[test]
    fn an_argument_names_a_store_path_with_or_without_the_store() {
        let name = format!("{}-x", "0".repeat(32));
        for text in [
            name.clone(),
            format!("/nix/store/{name}"),
            format!("/mnt/store/{name}"),
            format!("/nix/store/{name}/"),
        ] {
            assert_eq!(store_path(&text, Path::new("/mnt/store")).unwrap().store_name(), name, "{text}");
        }
        for text in ["x".to_owned(), format!("/nix/store/{name}/bin"), format!("/elsewhere/{name}")] {
            assert!(store_path(&text, Path::new("/mnt/store")).is_err(), "{text}");
        }
    }
}
