//! The NixOS module's tests: its own script, and, where a whole NixOS is to be evaluated and the machine's Nix is too old for that, the script once more
//! in a Debian 13, whose Nix is new enough.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::build;
use crate::command::Tool;
use crate::workspace::{Workspace, once};

/// Evaluating a whole NixOS takes 5 s and more, and there are forty.
const LIMIT: Duration = Duration::from_secs(40 * 60);
/// 42 s on a fast line; a slow mirror takes longer.
const BOOTSTRAP_LIMIT: Duration = Duration::from_secs(30 * 60);
const SCRIPT: &str = "initrd-module/tests/run";
/// The oldest Nix that a whole nixpkgs takes.
const OLDEST: (u32, u32) = (2, 18);
/// Debian's release with a newer one.
const SUITE: &str = "trixie";
const INCLUDE: &str = "nix-bin";

/// In a mount namespace of its own: `$1` is the root; then folders and files that it shall see, read-only, up to `--`; then the command.
const ENTER: &str = r#"
root=$1
shift
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/tmp"
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then
        mkdir -p "$root$1"
    else
        mkdir -p "$(dirname "$root$1")"
        : >>"$root$1"
    fi
    mount --bind "$1" "$root$1"
    mount -o remount,bind,ro "$root$1"
    shift
done
shift
exec chroot "$root" "$@"
"#;

/// Runs the script; returns what each run of it wrote, and the error of one that ended badly.
pub fn run(workspace: &Workspace) -> Result<Vec<(String, Option<String>)>> {
    let nixpkgs = folder("NIXPKGS")?;
    let lib = match folder("NIXPKGS_LIB")? {
        Some(lib) => Some(lib),
        None => nixpkgs.as_ref().map(|nixpkgs| nixpkgs.join("lib")),
    };
    let version = Tool::new("nix", LIMIT).arg("--version").text()?;
    let old = parse_version(&version).with_context(|| format!("reading the version in «{}»", version.trim()))? < OLDEST;
    let mut here = Tool::new("sh", LIMIT).arg(SCRIPT).current_dir(workspace.root());
    if let Some(lib) = &lib {
        // What the module builds is built as well, and its configurations are read: that takes the programs.
        here = here
            .env("NIXPKGS_LIB", lib)
            .env("FRESHROOT", build::plain_agent(workspace)?)
            .env("FRESHROOT_PUBLISH", build::publisher(workspace)?.program);
    }
    if old && nixpkgs.is_some() {
        here = here.without_env("NIXPKGS").env("NIXOS_ELSEWHERE", "1");
    }
    let mut runs = vec![outcome(here)?];
    if let (Some(nixpkgs), true) = (&nixpkgs, old) {
        eprintln!("module: {} cannot evaluate a whole nixpkgs, a Debian 13 does", version.trim());
        runs.push(outcome(elsewhere(workspace, nixpkgs)?)?);
    }
    Ok(runs)
}

fn outcome(tool: Tool) -> Result<(String, Option<String>)> {
    let output = tool.output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = (!output.status.success()).then(|| format!("{}\n{}", String::from_utf8_lossy(&output.stderr).trim_end(), output.status));
    Ok((text, error))
}

/// The run in a Debian 13. The checkout and nixpkgs have the same paths there as here.
fn elsewhere(workspace: &Workspace, nixpkgs: &Path) -> Result<Tool> {
    let root = workspace.vm().join(format!("{SUITE}-nix"));
    once(&root, |making| {
        eprintln!("module: bootstrapping Debian 13 with its Nix (once)");
        Tool::new("mmdebstrap", BOOTSTRAP_LIMIT)
            .args(["--quiet", "--variant=minbase", "--format=directory", "--skip=check/empty"])
            .args(["--include", INCLUDE, SUITE])
            .arg(making)
            .run()
    })?;
    let extra = folder("NIXPKGS_EXTRA")?;
    let mut command = vec![OsString::from("env"), format!("NIXPKGS={}", nixpkgs.display()).into()];
    command.push("ONLY_NIXOS=1".into());
    if let Some(extra) = &extra {
        command.push(format!("NIXPKGS_EXTRA={}", extra.display()).into());
    }
    command.push("sh".into());
    command.push(workspace.root().join(SCRIPT).into());
    Ok(Tool::new("unshare", LIMIT)
        .args(["--mount", "sh", "-euc", ENTER, "sh"])
        .arg(&root)
        .arg(workspace.root())
        .arg(nixpkgs)
        .args(extra)
        .arg("--")
        .args(command))
}

/// The folder or file that the variable `name` names, by its real path.
fn folder(name: &str) -> Result<Option<PathBuf>> {
    match std::env::var_os(name) {
        None => Ok(None),
        Some(value) if value.is_empty() => Ok(None),
        Some(value) => {
            let path = fs::canonicalize(&value).with_context(|| format!("looking for {}, which {name} names", value.to_string_lossy()))?;
            if path == Path::new("/") {
                bail!("{name} is /, which is no nixpkgs");
            }
            Ok(Some(path))
        }
    }
}

/// `nix (Nix) 2.26.3` or `nix (Nix) 2.4pre1234`, as major and minor number.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_whitespace().last()?.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn versions_of_nix_are_read_and_compared_as_numbers() {
        for (text, version, old) in [
            ("nix (Nix) 2.8.0\n", (2, 8), true),
            ("nix (Nix) 2.18.1", (2, 18), false),
            ("nix (Nix) 2.26.3+1", (2, 26), false),
            ("nix (Nix) 2.4pre20211001_4f496150", (2, 4), true),
            ("nix (Nix) 3.0", (3, 0), false),
        ] {
            assert_eq!(parse_version(text), Some(version), "{text}");
            assert_eq!(version < OLDEST, old, "{text}");
        }
        assert_eq!(parse_version("nix"), None);
        assert_eq!(parse_version(""), None);
    }
}
