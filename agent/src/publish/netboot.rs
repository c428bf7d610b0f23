//! What a machine boots from: an iPXE script per channel and system, and a shell script for kexec.

use anyhow::{Result, ensure};

use super::params::{for_ipxe, for_shell, join};
use crate::formats::manifest::Boot;
use crate::formats::release::ChannelName;
use crate::store_path::StorePath;

/// Tries of an iPXE script, with a pause of [`PAUSE`] seconds in between, before the firmware's next boot entry gets its turn.
const TRIES: u32 = 5;
const PAUSE: u32 = 5;

/// What a command line asks the agent for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// One system: a machine that has it asks nobody.
    System(StorePath),
    /// Whatever the channel holds: a machine asks at each boot.
    Channel(ChannelName),
}

/// The parameters of a command line: what is wanted, then those of the image.
pub fn command_line(wanted: &Wanted, params: &[String]) -> Vec<String> {
    let wanted = match wanted {
        Wanted::System(toplevel) => format!("freshroot.system={toplevel}"),
        Wanted::Channel(channel) => format!("freshroot.channel={channel}"),
    };
    let mut line = vec!["init=/nix/.freshroot/init".to_owned(), wanted];
    line.extend(params.iter().cloned());
    line
}

/// A base URL without its last slash.
///
/// # Errors
/// What is no http or https URL, or holds what iPXE or a shell would take apart.
pub fn base_url(text: &str) -> Result<String> {
    let known = text.starts_with("http://") || text.starts_with("https://");
    ensure!(known, "the URL «{text}» does not begin with http:// or https://");
    let plain = text.chars().all(|c| c.is_ascii_graphic() && !"\"'`\\${}#".contains(c));
    ensure!(plain, "the URL «{text}» holds a character that must be written as % and two digits");
    Ok(text.trim_end_matches('/').to_owned())
}

/// An iPXE script for the folder `netboot/`. Without a base URL, kernel and initrd are found beside the script: iPXE resolves a relative URI against the
/// script's own, dots included, as RFC 3986 says. The setting `${cwduri}` for that URI is empty in iPXE of 2019 (Debian 12), so it is not relied on.
///
/// # Errors
/// A parameter that iPXE would change.
pub fn ipxe(boot: &Boot, wanted: &Wanted, params: &[String], url: Option<&str>) -> Result<String> {
    let line = for_ipxe(&command_line(wanted, params))?;
    let base = url.unwrap_or("..");
    let (kernel, initrd) = (boot.kernel.sha256, boot.initrd.sha256);
    Ok(format!(
        "#!ipxe
# Written by freshroot-publish; do not edit.
set tries:int32 0
:try
inc tries
echo freshroot: loading kernel and initrd, try ${{tries}} of {TRIES}
imgfree
kernel --name kernel {base}/kernels/{kernel} initrd=initrd {line} || goto failed
initrd --name initrd {base}/initrds/{initrd} || goto failed
boot || goto failed
:failed
iseq ${{tries}} {TRIES} && goto local ||
echo freshroot: failed, next try in {PAUSE} s
sleep {PAUSE}
goto try
:local
echo freshroot: giving up; the next boot entry of this machine follows
imgfree
exit 1
"
    ))
}

/// A shell script that loads kernel and initrd with kexec and starts them.
///
/// # Errors
/// A command line that is too long.
pub fn kexec_boot(boot: &Boot, wanted: &Wanted, params: &[String], url: Option<&str>) -> Result<String> {
    let line = for_shell(&join(&command_line(wanted, params))?);
    let base = for_shell(url.unwrap_or(""));
    let (kernel, initrd) = (boot.kernel.sha256, boot.initrd.sha256);
    Ok(format!(
        r#"#!/bin/sh
# Written by freshroot-publish; do not edit.
# kexec-boot [--load] [URL or folder]: checks kernel and initrd by their digests, loads them, and starts them at once.
# --load: only loads; «systemctl kexec» then shuts services down first.
set -eu
base={base}
load=
kernel={kernel}
initrd={initrd}
line={line}

fail() {{
  echo "kexec-boot: $1" >&2
  exit 1
}}

while [ $# -gt 0 ]; do
  case $1 in
    --load) load=1 ;;
    -*) fail "unknown option $1; usage: kexec-boot [--load] [URL or folder]" ;;
    *) base=$1 ;;
  esac
  shift
done
base=${{base%/}}
if [ -z "$base" ]; then
  base=$(dirname "$0")
  [ -e "$base/kernels/$kernel" ] || fail "where from? give the URL or the folder that was published: kexec-boot http://server"
fi
for tool in kexec sha256sum; do
  command -v "$tool" >/dev/null || fail "$tool is missing: install it (kexec is in the package kexec-tools)"
done

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM
get() {{
  case $base in
    http://* | https://*)
      if command -v curl >/dev/null; then
        curl --fail --silent --show-error --location --retry 3 --connect-timeout 20 --speed-limit 100 --speed-time 60 --output "$2" "$base/$1"
      elif command -v wget >/dev/null; then
        wget -q -T 60 -O "$2" "$base/$1"
      else
        fail "neither curl nor wget is here to fetch $base/$1"
      fi ;;
    *) cp "$base/$1" "$2" ;;
  esac || fail "fetching $base/$1 failed"
}}
check() {{
  echo "$1  $2" | sha256sum -c >/dev/null 2>&1 || fail "$3 is not what was published: its digest differs"
}}
get "kernels/$kernel" "$folder/kernel"
get "initrds/$initrd" "$folder/initrd"
check "$kernel" "$folder/kernel" kernel
check "$initrd" "$folder/initrd" initrd

kexec -l "$folder/kernel" --initrd="$folder/initrd" --command-line="$line" || fail "kexec could not load the kernel"
[ -z "$load" ] || exit 0
sync
kexec -e
"#
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::digest::Digest;
    use crate::formats::manifest::FileRef;

    fn boot() -> Boot {
        let file = |bytes: &[u8]| FileRef {
            sha256: Digest::of(bytes),
            size: bytes.len() as u64,
        };
        Boot {
            kernel: file(b"kernel"),
            initrd: file(b"initrd"),
        }
    }

    fn system() -> Wanted {
        Wanted::System("/nix/store/00000000000000000000000000000000-nixos-system-x".parse().unwrap())
    }

    #[test]
    fn an_ipxe_script_finds_its_files_beside_itself_or_at_the_url() {
        let params = vec!["quiet".to_owned(), "a=\"b c\"".to_owned()];
        let beside = ipxe(&boot(), &system(), &params, None).unwrap();
        assert!(beside.starts_with("#!ipxe\n"));
        let line = beside.lines().find(|line| line.starts_with("kernel ")).unwrap();
        let digest = Digest::of(b"kernel");
        assert_eq!(
            line,
            format!(
                "kernel --name kernel ../kernels/{digest} initrd=initrd init=/nix/.freshroot/init \
                 freshroot.system=/nix/store/00000000000000000000000000000000-nixos-system-x quiet a=\"b c\" || goto failed"
            )
        );
        let at = ipxe(&boot(), &Wanted::Channel("lab".parse().unwrap()), &[], Some("http://s:1")).unwrap();
        assert!(at.contains(&format!("initrd --name initrd http://s:1/initrds/{} ", Digest::of(b"initrd"))));
        assert!(at.contains("init=/nix/.freshroot/init freshroot.channel=lab ||"));
    }

    #[test]
    fn a_base_url_is_plain() {
        assert_eq!(base_url("http://[::1]:80/a/").unwrap(), "http://[::1]:80/a");
        for bad in ["tftp://x", "//x", "http://x y", "http://${ip}", "http://x/#y", "http://x'"] {
            assert!(base_url(bad).is_err(), "{bad}");
        }
    }

    /// Runs a script with tools of our own making in front of the path.
    fn run(script: &str, folder: &std::path::Path, tools: &[(&str, &str)]) -> (bool, String, String) {
        let bin = folder.join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        for (name, body) in tools {
            crate::publish::testing::script(&bin.join(name), body);
        }
        for tool in ["sh", "dirname", "mktemp", "rm", "cp", "sha256sum", "sync"] {
            let real = ["/usr/bin", "/bin"]
                .iter()
                .map(|dir| std::path::Path::new(dir).join(tool))
                .find(|path| path.exists())
                .unwrap();
            std::os::unix::fs::symlink(real, bin.join(tool)).unwrap();
        }
        std::fs::write(folder.join("kexec-boot"), script).unwrap();
        let output = std::process::Command::new("/bin/sh")
            .arg(folder.join("kexec-boot"))
            .env("PATH", &bin)
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout), text(output.stderr))
    }

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (kind, bytes) in [("kernels", b"kernel"), ("initrds", b"initrd")] {
            std::fs::create_dir(folder.path().join(kind)).unwrap();
            std::fs::write(folder.path().join(kind).join(Digest::of(bytes).to_string()), bytes).unwrap();
        }
        folder
    }

    #[test]
    fn kexec_boot_loads_with_the_command_line_in_one_piece_and_starts() {
        let folder = folder();
        let script = kexec_boot(&boot(), &system(), &["a=\"b 'c' $d\"".to_owned()], None).unwrap();
        let (ok, out, err) = run(&script, folder.path(), &[("kexec", "for word; do echo \"[$word]\"; done")]);
        assert!(ok, "{err}");
        let expected = "[--command-line=init=/nix/.freshroot/init freshroot.system=/nix/store/00000000000000000000000000000000-nixos-system-x a=\"b 'c' $d\"]";
        assert!(out.contains(expected), "{out}");
        assert!(out.ends_with("[-e]\n"), "{out}");
    }

    #[test]
    fn kexec_boot_says_what_is_missing_or_wrong_and_starts_nothing() {
        let script = kexec_boot(&boot(), &system(), &[], None).unwrap();
        let without = folder();
        let (ok, _, err) = run(&script, without.path(), &[]);
        assert!(!ok && err.contains("kexec is missing"), "{err}");
        let changed = folder();
        std::fs::write(changed.path().join("kernels").join(Digest::of(b"kernel").to_string()), "other").unwrap();
        let (ok, out, err) = run(&script, changed.path(), &[("kexec", "echo started")]);
        assert!(
            !ok && err.contains("kernel is not what was published") && !out.contains("started"),
            "{err}"
        );
    }
}
