//! The forms that texts among the settings must have: one function each, with the reason in its message.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::value::cut;
use crate::device::DeviceName;
use crate::digest::Digest;
use crate::formats::key::PublicKey;

/// Base URL of a served folder: http or https, a host, no query, no fragment. Trailing slashes go.
pub(super) fn url(text: &str) -> Result<String, String> {
    // What stands before an @ may be a password.
    let shown = text.rsplit_once('@').map_or(text, |(_, rest)| rest);
    let wrong = |reason: &str| Err(format!("«{}» is not the URL of a served folder: {reason}", cut(shown)));
    let Some(rest) = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")) else {
        return wrong("it begins with neither http:// nor https://");
    };
    if !text.bytes().all(|b| b.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&b)) {
        return wrong("it holds characters that must be percent-encoded");
    }
    // File names are appended to it.
    if text.contains(['?', '#']) {
        return wrong("a folder has neither query (?) nor fragment (#)");
    }
    let authority = rest.split('/').next().unwrap_or("");
    let host = authority.rsplit('@').next().unwrap_or("");
    if host.is_empty() || host.starts_with(':') {
        return wrong("there is no host");
    }
    let port = match host.strip_prefix('[').map(|address| address.split_once(']')) {
        Some(Some((address, port))) if address.split('%').next().is_some_and(|a| a.parse::<std::net::Ipv6Addr>().is_ok()) => port,
        Some(_) => return wrong("what stands in brackets is not an IPv6 address"),
        None if host.matches(':').count() > 1 => return wrong("an IPv6 address stands in brackets"),
        None => host.find(':').map_or("", |colon| &host[colon..]),
    };
    match port.strip_prefix(':').map(str::parse::<u16>) {
        None if port.is_empty() => {}
        Some(Ok(1..)) => {}
        None | Some(Ok(0) | Err(_)) => return wrong("its port is not a number from 1 to 65535"),
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// A channel: part of a URL and of file names, so no `/`, no leading dot.
pub(super) fn channel(text: &str) -> Result<String, String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if text.is_empty() || text.len() > 64 || text.starts_with('.') || !text.bytes().all(good) {
        return Err(format!(
            "«{}» is not a channel: 1 to 64 letters, digits and . _ - are expected, no dot in front",
            cut(text)
        ));
    }
    Ok(text.to_owned())
}

/// An ed25519 key as Nix writes it, `name:base64`. The message does not repeat it: a secret key may stand there by mistake.
pub(super) fn public_key(text: &str) -> Result<String, String> {
    match text.parse::<PublicKey>() {
        Ok(key) => Ok(key.to_string()),
        Err(problem) => Err(problem.to_string()),
    }
}

/// The digest of a public key, as curl writes it.
pub(super) fn pinned_key(text: &str) -> Result<Digest, String> {
    let bytes = text.strip_prefix("sha256//").and_then(|digest| STANDARD.decode(digest).ok());
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .map(Digest::from_bytes)
        .ok_or_else(|| format!("«{}» is not sha256// and the base64 of 32 bytes", cut(text)))
}

/// What [`pinned_key`] reads.
pub(super) fn show_pinned_key(key: &Digest) -> String {
    format!("sha256//{}", STANDARD.encode(key.as_bytes()))
}

/// A block device by a name that does not depend on the order of discovery, or by path.
pub(super) fn device(text: &str) -> Result<String, String> {
    let named = ["LABEL=", "UUID=", "PARTLABEL=", "PARTUUID="].iter().any(|prefix| {
        text.strip_prefix(prefix)
            .is_some_and(|name| !name.is_empty() && !name.contains('/'))
    });
    let path = Path::new(text);
    let below_dev = text.len() > "/dev/".len() && path.starts_with("/dev") && only_normal(path);
    if (named || below_dev) && !text.contains(|c: char| c.is_control()) && text.len() <= 255 {
        // What is looked for in the end is this name.
        return match text.parse::<DeviceName>() {
            Ok(_) => Ok(text.to_owned()),
            Err(problem) => Err(problem.to_string()),
        };
    }
    Err(format!(
        "«{}» is not a device: write LABEL=, UUID=, PARTLABEL=, PARTUUID= and a name, or a path below /dev",
        cut(text)
    ))
}

/// The kernel's name of a file system type, or `auto`.
pub(super) fn fs_type(text: &str) -> Result<String, String> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    if text.is_empty() || text.len() > 32 || !text.bytes().all(good) {
        return Err(format!(
            "«{}» is not a file system type: write auto, ext4, xfs, btrfs, vfat or the like",
            cut(text)
        ));
    }
    Ok(text.to_owned())
}

/// One mount option.
pub(super) fn mount_option(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 255 || text.contains(|c: char| c == ',' || c.is_whitespace() || c.is_control()) {
        return Err(format!(
            "«{}» is not one mount option: write each as an element of its own",
            cut(text)
        ));
    }
    Ok(text.to_owned())
}

/// A folder below another one.
pub(super) fn relative_folder(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if text.is_empty() || text.len() > 255 || path.is_absolute() || !only_normal(path) || text.contains(|c: char| c.is_control()) {
        return Err(format!(
            "«{}» is not a folder on the cache disk: a relative path without «.» and «..» is expected",
            cut(text)
        ));
    }
    Ok(path.to_owned())
}

/// A file, by absolute path.
pub(super) fn absolute_file(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if !path.is_absolute() || text.ends_with('/') || text.len() > 4095 || !only_normal(path) || text.contains(|c: char| c.is_control()) {
        return Err(format!(
            "«{}» is not the path of a file: it begins with / and has no «..»",
            cut(text)
        ));
    }
    Ok(path.to_owned())
}

/// A mount point: absolute, and spelled in one way only, so that the same one cannot stand in the map twice.
pub(super) fn mount_point(text: &str) -> Result<(), String> {
    let path = Path::new(text);
    let spelled_plainly = text == "/" || (!text.ends_with('/') && !text.contains("//") && !text.split('/').any(|part| part == "."));
    if !path.is_absolute() || text.len() > 4095 || !spelled_plainly || !only_normal(path) || text.contains(|c: char| c.is_control()) {
        return Err(format!(
            "«{}» is not a mount point: an absolute path without «.», «..», doubled and trailing slashes is expected",
            cut(text)
        ));
    }
    Ok(())
}

/// A network interface, within the kernel's limits for its name.
pub(super) fn interface(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 15 || !text.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':') || text.starts_with('.')
    {
        return Err(format!(
            "«{}» is not a network interface: 1 to 15 characters, as in «eth0», are expected",
            cut(text)
        ));
    }
    Ok(text.to_owned())
}

/// The address of a DNS server.
pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("«{}» is not an IPv4 or IPv6 address", cut(text)))
}

/// A kernel module, `-` and `_` being the same.
pub(super) fn module(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 64 || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b)) {
        return Err(format!(
            "«{}» is not the name of a kernel module: letters, digits, _ and - are expected, no path, no .ko",
            cut(text)
        ));
    }
    Ok(text.to_owned())
}

/// Whether a path is made of names alone (and a root).
fn only_normal(path: &Path) -> bool {
    path.components()
        .all(|part| matches!(part, Component::Normal(_) | Component::RootDir))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    #[test]
    fn served_folders_are_named_by_plain_urls() {
        for (text, expected) in [
            ("http://a", Ok("http://a")),
            ("https://a.example:8443/x=1/%20y///", Ok("https://a.example:8443/x=1/%20y")),
            ("http://[fe80::1]:8080/x", Ok("http://[fe80::1]:8080/x")),
            ("http://[fe80::1%25eth0]/", Ok("http://[fe80::1%25eth0]")),
            ("http://u:p@10.0.2.2:80", Ok("http://u:p@10.0.2.2:80")),
            ("", Err("neither")),
            ("ftp://a", Err("neither")),
            ("http://", Err("no host")),
            ("http:///x", Err("no host")),
            ("http://:80/x", Err("no host")),
            ("http://u@/x", Err("no host")),
            ("http://a?b", Err("query")),
            ("http://a/#b", Err("query")),
            ("http://a b", Err("percent")),
            ("http://ä", Err("percent")),
            ("http://fe80::1/x", Err("brackets")),
            ("http://[fe80::1/x", Err("brackets")),
            ("http://[x]/", Err("brackets")),
            ("http://a:0", Err("port")),
            ("http://a:65536", Err("port")),
            ("http://a:", Err("port")),
            ("http://[::1]x", Err("port")),
        ] {
            check(text, url(text), expected);
        }
    }

    #[test]
    fn keys_are_checked_for_form_and_a_secret_one_is_called_so() {
        let public = format!("a-1:{}", STANDARD.encode([7; 32]));
        let secret = format!("a-1:{}", STANDARD.encode([7; 64]));
        let short = format!("a-1:{}", STANDARD.encode([7; 31]));
        let long = format!("{}:{}", "n".repeat(129), STANDARD.encode([7; 32]));
        for (text, expected) in [
            (public.as_str(), Ok(public.as_str())),
            (&secret, Err("secret")),
            (&short, Err("32 bytes")),
            (&long, Err("1 to 128")),
            ("a-1", Err("colon is missing")),
            (":AAAA", Err("name before the colon")),
            ("a:%%", Err("not base64")),
        ] {
            check(text, public_key(text), expected);
        }
        assert!(public_key(&secret).is_err_and(|told| !told.contains(&secret[4..20])));
    }

    #[test]
    fn names_that_become_paths_cannot_leave_their_folder() {
        for text in ["", "/a", "..", "a/../b", ".", "a\n"] {
            assert!(relative_folder(text).is_err(), "{text}");
        }
        assert!(relative_folder("a/b").is_ok());
        for text in ["", ".", "..", ".a", "a/b", "a b", "ä"] {
            assert!(channel(text).is_err(), "{text}");
        }
        for text in [
            "",
            "a",
            "/dev",
            "/dev/",
            "/dev/../etc/x",
            "LABEL=",
            "LABEL=a/b",
            "label=a",
            "LABEL=\"a",
            "/dev/.",
            "/dev/disk/by-label/",
            "/etc/x",
        ] {
            assert!(device(text).is_err(), "{text}");
        }
        for text in [
            "LABEL=a b",
            "UUID=1",
            "PARTLABEL=disk-main-root",
            "PARTUUID=1",
            "/dev/vda1",
            "/dev/disk/by-label/a",
        ] {
            assert!(device(text).is_ok(), "{text}");
        }
        for text in ["", "a", "/a/", "//a", "/a/./b", "/a/../b", "/a\n"] {
            assert!(mount_point(text).is_err(), "{text}");
        }
        assert!(mount_point("/").is_ok() && mount_point("/var/lib").is_ok());
        for text in ["", "a", "/", "/a/", "/a/../b"] {
            assert!(absolute_file(text).is_err(), "{text}");
        }
    }

    #[test]
    fn small_names_have_the_kernel_s_form() {
        assert!(interface("eth0").is_ok() && interface("enp0s31f6.100").is_ok());
        assert!(interface("").is_err() && interface("a/b").is_err() && interface("abcdefghijklmnop").is_err() && interface("..").is_err());
        assert!(module("virtio_blk").is_ok() && module("../evil").is_err() && module("a.ko").is_err());
        assert!(mount_option("subvol=@cache").is_ok() && mount_option("a,b").is_err() && mount_option("").is_err());
        assert!(fs_type("auto").is_ok() && fs_type("EXT4").is_err());
        assert!(address("fe80::1").is_ok() && address("dns.example").is_err());
    }

    fn check(text: &str, found: Result<String, String>, expected: Result<&str, &str>) {
        match (&found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
            (Err(found), Err(part)) => assert!(found.contains(part), "{text}: {found}"),
            (Ok(_), Err(_)) | (Err(_), Ok(_)) => panic!("{text}: {found:?}"),
        }
    }
}
