//! What a machine boots from: iPXE scripts, a shell script for kexec, and answers for Pixiecore.

pub mod ipxe;
pub mod kexec;
pub mod pixiecore;

use anyhow::{Result, ensure};

use crate::formats::release::ChannelName;
use crate::store_path::StorePath;

/// The one script that DHCP names for all machines.
pub const ENTRY: &str = "netboot.ipxe";
/// Pixiecore's answer for all machines.
pub const PIXIECORE: &str = "pixiecore.json";
/// Scripts of single machines.
pub const BY_MAC: &str = "netboot/by-mac";

/// Where what boots the channel or system `name` stands in the served folder.
pub fn script_path(name: &str, kind: &str) -> String {
    format!("netboot/{name}.{kind}")
}

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

/// What the tests of this module publish.
#[cfg(test)]
mod testing {
    #![allow(clippy::unwrap_used)]
    use super::Wanted;
    use crate::digest::Digest;
    use crate::formats::manifest::{Boot, FileRef};

    pub fn boot() -> Boot {
        let file = |bytes: &[u8]| FileRef {
            sha256: Digest::of(bytes),
            size: bytes.len() as u64,
        };
        Boot {
            kernel: file(b"kernel"),
            initrd: file(b"initrd"),
        }
    }

    pub fn system() -> Wanted {
        Wanted::System("/nix/store/00000000000000000000000000000000-nixos-system-x".parse().unwrap())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_base_url_is_plain() {
        assert_eq!(base_url("http://[::1]:80/a/").unwrap(), "http://[::1]:80/a");
        for bad in ["tftp://x", "//x", "http://x y", "http://${ip}", "http://x/#y", "http://x'"] {
            assert!(base_url(bad).is_err(), "{bad}");
        }
    }
}
