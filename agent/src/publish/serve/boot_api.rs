//! Pixiecore's API, `/v1/boot/<mac>`: answered by the served folder's `hosts.json` and what was published for the machine's channel.

use std::io::Read as _;
use std::os::fd::BorrowedFd;

use anyhow::{Context as _, Result, ensure};

use super::file;
use crate::publish::folder::TEXT_LIMIT;
use crate::publish::hosts::{HOSTS, HostId, Hosts};
use crate::publish::netboot::pixiecore::Answer;
use crate::publish::netboot::{PIXIECORE, script_path};

/// The MAC address of a request's path, if it is one of this API.
pub fn mac(path: &str) -> Option<&str> {
    path.strip_prefix("/v1/boot/")
}

/// What the URLs of an answer begin with: what the server was told, else the host that the request names. Nothing if that is no host: then naked paths
/// are answered, which Pixiecore resolves against its API server.
pub fn base(told: Option<&str>, host: Option<&str>) -> String {
    if let Some(url) = told {
        return url.to_owned();
    }
    let plain = |host: &&str| !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-_:[]".contains(c));
    host.filter(plain).map_or_else(String::new, |host| format!("http://{host}"))
}

/// The answer for a machine. None: it is not to be booted from here.
///
/// # Errors
/// If the served folder holds what it should not, or cannot be read.
pub fn answer(root: BorrowedFd<'_>, mac: &str, base: &str) -> Result<Option<Vec<u8>>> {
    let Ok(id @ HostId::Mac(_)) = mac.parse::<HostId>() else {
        return Ok(None);
    };
    let path = match read(root, HOSTS)? {
        None => PIXIECORE.to_owned(),
        Some(hosts) => match Hosts::parse(&hosts)?.channel(&id) {
            Some(channel) => script_path(channel, "pixiecore.json"),
            None => return Ok(None),
        },
    };
    match read(root, &path)? {
        Some(text) => {
            let answer = Answer::parse(text.as_bytes()).with_context(|| format!("reading {path}"))?;
            answer.based(base).to_bytes().map(Some)
        }
        None => Ok(None),
    }
}

fn read(root: BorrowedFd<'_>, path: &str) -> Result<Option<String>> {
    let Some(found) = file::open(root, path).with_context(|| format!("opening {path}"))? else {
        return Ok(None);
    };
    ensure!(found.size <= TEXT_LIMIT, "{path} is longer than {TEXT_LIMIT} bytes");
    let mut text = String::new();
    found
        .file
        .take(TEXT_LIMIT)
        .read_to_string(&mut text)
        .with_context(|| format!("reading {path}"))?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs::{self, File};
    use std::os::fd::AsFd as _;

    #[test]
    fn urls_begin_with_what_was_told_or_with_the_host_that_was_asked() {
        for (told, host, expected) in [
            (Some("https://a/x"), Some("b"), "https://a/x"),
            (None, Some("b:8080"), "http://b:8080"),
            (None, Some("[::1]:80"), "http://[::1]:80"),
            (None, Some("b/\"x"), ""),
            (None, Some(""), ""),
            (None, None, ""),
        ] {
            assert_eq!(base(told, host), expected, "{told:?} {host:?}");
        }
    }

    #[test]
    fn a_machine_gets_what_its_channel_boots_and_one_that_is_not_listed_nothing() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("netboot")).unwrap();
        let put = |path: &str, kernel: &str| {
            let text = format!(r#"{{"kernel":"{kernel}","initrd":["/i"],"cmdline":"quiet"}}"#);
            fs::write(folder.path().join(path), text).unwrap();
        };
        put(PIXIECORE, "/default");
        put("netboot/lab.pixiecore.json", "/lab");
        let root = File::open(folder.path()).unwrap();
        let asked = |mac: &str| {
            let bytes = answer(root.as_fd(), mac, "http://h").unwrap()?;
            Some(Answer::parse(&bytes).unwrap().kernel)
        };
        let (known, unknown) = ("00:1f:29:12:34:56", "00:1f:29:12:34:57");
        assert_eq!(asked(known).as_deref(), Some("http://h/default"));
        assert_eq!(asked("x"), None);
        let hosts = |channel: &str| format!(r#"{{"version":1,"hosts":{{"{known}":{{"channel":"{channel}"}}}}}}"#);
        fs::write(folder.path().join(HOSTS), hosts("lab")).unwrap();
        assert_eq!(asked(known).as_deref(), Some("http://h/lab"));
        assert_eq!(asked("00-1F-29-12-34-56").as_deref(), Some("http://h/lab"));
        assert_eq!(asked(unknown), None);
        fs::write(folder.path().join(HOSTS), hosts("gone")).unwrap();
        assert_eq!(asked(known), None);
        fs::write(folder.path().join(HOSTS), "{").unwrap();
        assert!(answer(root.as_fd(), known, "").is_err());
    }
}
