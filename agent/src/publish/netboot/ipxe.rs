//! Scripts for iPXE.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use anyhow::Result;

use super::{Wanted, command_line};
use crate::formats::manifest::Boot;
use crate::formats::release::ChannelName;
use crate::publish::params::for_ipxe;

/// Tries of a script, with a pause of [`PAUSE`] seconds in between, before the firmware's next boot entry gets its turn.
const TRIES: u32 = 5;
const PAUSE: u32 = 5;

/// The first lines of every script.
const HEAD: &str = "#!ipxe\n# Written by freshroot-publish; do not edit.\n";
/// Those of the NixOS module, whose scripts have the same places and may be replaced too.
const HEAD_OF_MODULE: &str = "#!ipxe\n# Written by freshroot's NixOS module; do not edit.\n";

/// `netboot.ipxe`, the one script that DHCP names for all machines: a machine's own one (`netboot/by-mac/`), else that of `channel`, else the firmware's next
/// boot entry. Tried several times, because a switch's port may forward only 30 s after the link came up (spanning tree). A machine with a script of
/// its own must not boot the default channel because a packet was lost: the server has just answered, and is asked twice before the script counts as not
/// being there; and what that script could not boot is tried again, not replaced.
///
/// The text is that of `ipxeEntry` in the NixOS module's `lib.nix`, but for the line that says who wrote it.
pub fn entry(channel: &ChannelName, url: Option<&str>) -> String {
    let base = url.map(|url| format!("{url}/")).unwrap_or_default();
    let own = format!("imgfetch --name own {base}netboot/by-mac/${{netX/mac:hexhyp}}.ipxe");
    format!(
        "{HEAD}set tries:int32 0
:try
inc tries
imgfree
isset ${{ip}} || dhcp || goto failed
imgfetch --name shared {base}netboot/{channel}.ipxe || goto failed
{own} || {own} || goto shared
chain --autofree own || goto failed
:shared
chain --autofree shared || goto failed
:failed
iseq ${{tries}} {TRIES} && goto local ||
echo freshroot: nothing could be booted, next try in {PAUSE} s
sleep {PAUSE}
goto try
:local
echo freshroot: giving up; the next boot entry of this machine follows
imgfree
exit 1
"
    )
}

/// The channel that a `netboot.ipxe` boots machines into that have no script of their own. None: the script is not one of ours.
pub fn default_of(entry: &str) -> Option<ChannelName> {
    let line = is_ours(entry).then(|| entry.lines().find(|line| line.starts_with("imgfetch --name shared ")))??;
    let url = line.split(' ').nth(3)?;
    url.rsplit('/').next()?.strip_suffix(".ipxe")?.parse().ok()
}

/// Whether a script was written by a program, and may be replaced by one.
pub fn is_ours(script: &str) -> bool {
    script.starts_with(HEAD) || script.starts_with(HEAD_OF_MODULE)
}

/// `netboot/by-mac/<mac>.ipxe`: one machine goes on with the script of its channel. When that is not there, its next boot entry follows.
pub fn by_mac(channel: &ChannelName) -> String {
    format!("{HEAD}chain --autofree ../{channel}.ipxe || exit 1\n")
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
        "{HEAD}set tries:int32 0
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use super::*;
    use crate::digest::Digest;
    use crate::publish::netboot::testing::{boot, system};

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

    /// Two programs write the same files: what differs is the line that says which one it was.
    #[test]
    fn the_entry_and_the_scripts_by_mac_are_those_of_the_nixos_module() {
        let golden = |name: &str| {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../initrd-module/tests/golden/");
            let text = std::fs::read_to_string(format!("{path}{name}")).unwrap();
            text.replacen(HEAD_OF_MODULE, HEAD, 1)
        };
        let lab = "lab".parse().unwrap();
        assert_eq!(entry(&lab, None), golden("netboot-beside.ipxe"));
        assert_eq!(entry(&lab, Some("http://images.lan/freshroot")), golden("netboot.ipxe"));
        assert_eq!(by_mac(&lab), golden("by-mac-00-1f-29-12-34-56.ipxe"));
    }

    #[test]
    fn an_entry_tells_its_channel_and_another_script_none() {
        for url in [None, Some("http://s:1/x")] {
            let text = entry(&"lab.2".parse().unwrap(), url);
            assert_eq!(default_of(&text).unwrap().as_str(), "lab.2");
            let by_module = text.replacen(HEAD, HEAD_OF_MODULE, 1);
            assert_eq!(default_of(&by_module).unwrap().as_str(), "lab.2");
            let by_hand = text.replacen(HEAD, "#!ipxe\n", 1);
            assert_eq!(default_of(&by_hand), None);
        }
        assert_eq!(default_of(HEAD), None);
        assert_eq!(default_of("#!ipxe\nshell\n"), None);
    }
}
