//! Settings: a JSON file in the initrd and words on the kernel command line become one validated [`Settings`].
//!
//! Three steps, each with its own type, so that nothing unchecked can be used by mistake:
//! [`parsed`] (what the file says, line and column of what is wrong) → [`merged`] (file below command line, and what the command line may) →
//! [`validated`] (plain typed values). One [`table`] has a row for each setting; file, command line and `docs/settings.md` all come from it.

pub mod doc;
mod form;
pub mod merged;
pub mod nearest;
pub mod parsed;
pub mod row;
pub mod table;
mod validate;
pub mod validated;
pub mod value;

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::cmdline::CommandLine;
pub use crate::store_path::StorePath;
pub use validate::OUR_INIT;
pub use validated::{FailureAction, InitWord, NetworkBy, OnFailure, Origin, PolicyMode, Settings, Transfer, Verify};
pub use value::Size;

use parsed::ParsedFile;

/// The configuration file, below the root.
pub const CONFIG: &str = "etc/freshroot/config.json";
/// The kernel command line, below the root.
pub const CMDLINE: &str = "proc/cmdline";

/// A configuration of hundreds of mounts has a few dozen KiB.
const CONFIG_LIMIT: u64 = 4 << 20;
/// Kernels take 2 to 4 KiB from their loader, and more only from a bootconfig of at most 32 KiB.
const CMDLINE_LIMIT: u64 = 64 << 10;

impl Settings {
    /// Makes settings of what a file and a command line hold. `file` is the file's name, for errors, and its bytes.
    ///
    /// # Errors
    /// Names place, field and remedy. What is odd but no error is in [`Settings::warnings`].
    pub fn from_sources(file: Option<(&str, &[u8])>, command_line: &[u8]) -> Result<Self> {
        let line = CommandLine::parse(command_line)?;
        let file = match file {
            Some((name, bytes)) => ParsedFile::parse(name, bytes)?,
            None => ParsedFile::default(),
        };
        let merged = merged::merge(&file, &line)?;
        Self::from_merged(merged, &line).context("validating settings")
    }

    /// Reads [`CONFIG`] and [`CMDLINE`] below `root`. A configuration file that is absent is as if empty; the command line must be there.
    ///
    /// # Errors
    /// Those of reading, and of [`Settings::from_sources`].
    pub fn read(root: &Path) -> Result<Self> {
        Self::read_with(root, None, None)
    }

    /// As [`Settings::read`], with another file, which must be there, or another command line in place of those below `root`.
    ///
    /// # Errors
    /// Those of reading, and of [`Settings::from_sources`].
    pub fn read_with(root: &Path, config: Option<&Path>, command_line: Option<&[u8]>) -> Result<Self> {
        let path = config.map_or_else(|| root.join(CONFIG), Path::to_owned);
        let name = path.display().to_string();
        let file = read_config(&path)?;
        if file.is_none() && config.is_some() {
            bail!("there is no {name}");
        }
        let line = match command_line {
            Some(line) => line.to_owned(),
            None => read_command_line(&root.join(CMDLINE))?,
        };
        let mut settings = Self::from_sources(file.as_deref().map(|bytes| (name.as_str(), bytes)), &line)?;
        if file.is_none() {
            settings
                .warnings
                .push(format!("there is no {name}: defaults and the command line hold"));
        }
        Ok(settings)
    }
}

impl OnFailure {
    /// The failure policy for when [`Settings::read`] refused: that of the configuration file below `root` if the command line alone was at
    /// fault, else the default. It reports nothing, as the refusal has named what is wrong.
    pub fn despite_refusal(root: &Path) -> Self {
        let path = root.join(CONFIG);
        let Ok(Some(bytes)) = read_config(&path) else {
            return Self::default();
        };
        match Settings::from_sources(Some((&path.display().to_string(), &bytes)), b"") {
            Ok(settings) => settings.on_failure,
            Err(_) => Self::default(),
        }
    }
}

/// Reads a configuration file; none if there is none.
///
/// # Errors
/// It is there and cannot be read, or is far too long.
pub fn read_config(path: &Path) -> Result<Option<Vec<u8>>> {
    match File::open(path) {
        Ok(file) => bounded(file, path, CONFIG_LIMIT).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("opening {}", path.display())),
    }
}

/// Reads a kernel command line.
///
/// # Errors
/// It cannot be read, or is far too long.
pub fn read_command_line(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    bounded(file, path, CMDLINE_LIMIT)
}

fn bounded(file: File, path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("reading {}", path.display()))?;
    if bytes.len() as u64 > limit {
        bail!("{} is longer than {limit} bytes", path.display());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    const HASH: &str = "0123456789abcdfghijklmnpqrsvwxyz";

    fn from(file: &str, line: &str) -> Result<Settings> {
        Settings::from_sources(Some(("config.json", file.as_bytes())), line.as_bytes())
    }

    /// A value for each setting, different from the default and from all others of its type, as the command line writes it.
    fn samples() -> Vec<(&'static str, String)> {
        let own = |text: &str| text.to_owned();
        vec![
            ("url", own("http://a http://b")),
            ("channel", own("stable")),
            ("system", format!("/nix/store/{HASH}-a")),
            ("manifestSha256", "ab".repeat(32)),
            ("trustedPublicKeys", own("a-1:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=")),
            ("allowUnsigned", own("true")),
            ("resetFloor", own("testing")),
            ("verify", own("size")),
            ("policy.mode", own("offline")),
            ("policy.wait", own("1s")),
            ("policy.fetchWait", own("2s")),
            ("policy.maxAge", own("16s")),
            ("policy.countdown", own("17s")),
            ("policy.tries", own("3")),
            ("transfer.stall", own("3s")),
            ("transfer.connect", own("4s")),
            ("transfer.minRate", own("2K")),
            ("transfer.minRateWindow", own("14s")),
            ("transfer.maxTime", own("15s")),
            ("transfer.rateLimit", own("3M")),
            ("transfer.budget", own("5G")),
            ("transfer.budgetPerDay", own("7G")),
            ("transfer.parallel", own("6")),
            ("http.caFile", own("/ca.pem")),
            ("http.pinnedPublicKeys", own("sha256//BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=")),
            ("http.clientCertFile", own("/cert.pem")),
            ("http.clientKeyFile", own("/key.pem")),
            ("http.credentialsFile", own("/credentials")),
            ("http.proxy", own("socks5://proxy:1081")),
            ("http.noProxy", own("lan.example 10.0.0.0/8")),
            ("cache.device", own("LABEL=a")),
            ("cache.fsType", own("ext4")),
            ("cache.options", own("noatime,ro")),
            ("cache.path", own("a/b")),
            ("cache.wait", own("5s")),
            ("cache.keep", own("7")),
            ("media.device", own("LABEL=m")),
            ("media.path", own("m/n")),
            ("root.tmpfsSize", own("10%")),
            ("store.tmpfsSize", own("11%")),
            ("store.rwDevice", own("LABEL=b")),
            ("network.by", own("system")),
            ("network.interface", own("eth1")),
            ("network.dns", own("10.0.0.1 fe80::1")),
            ("network.ipv6", own("false")),
            ("network.wait", own("6s")),
            ("network.keep", own("true")),
            ("kernel.modules", own("virtio_net loop")),
            ("kernel.autoload", own("false")),
            ("kernel.storeName", format!("{HASH}-linux-6.6.1")),
            ("kernel.settle", own("8s")),
            ("onFailure.action", own("shell")),
            ("onFailure.delay", own("9s")),
            ("onFailure.maxDelay", own("11s")),
            ("onFailure.shellTimeout", own("12s")),
            ("onFailure.retries", own("13")),
            ("log", own("trace")),
            ("commandLineMay", own("verify")),
        ]
    }

    #[test]
    fn each_value_goes_to_its_own_place_and_nowhere_else() {
        let defaults = Settings::defaults();
        let samples = samples();
        for row in table::TABLE {
            let Some((_, text)) = samples.iter().find(|(name, _)| *name == row.name) else {
                assert!(["fileSystems", "luks", "swapDevices", "disks"].contains(&row.name), "{}", row.name);
                continue;
            };
            let mut settings = Settings::defaults();
            row.put(&mut settings, &row::Input::Text(text.clone())).unwrap();
            for other in table::TABLE {
                let expected = if other.name == row.name {
                    text.clone()
                } else {
                    (other.show)(&defaults)
                };
                assert_eq!((other.show)(&settings), expected, "{} after {}", other.name, row.name);
            }
        }
    }

    #[test]
    fn a_full_file_fills_the_fields_that_carry_its_names() {
        let file = format!(
            r#"{{"version": 1, "url": ["http://a/", "https://b"], "channel": "stable", "system": "/nix/store/{HASH}-a",
            "manifestSha256": "{digest}", "allowUnsigned": true, "resetFloor": "testing", "verify": "size", "http": {{"caFile": "/ca.pem", "pinnedPublicKeys": ["sha256//{pin}"], "clientCertFile": "/c.pem", "clientKeyFile": "/k.pem",
            "credentialsFile": "/cr", "proxy": "http://user:word@proxy:3128", "noProxy": ["a.example", "10.0.0.0/8"]}},
            "policy": {{"mode": "require-fresh", "wait": 1, "fetchWait": "2s", "maxAge": "1d", "countdown": 0, "tries": 4}}, "transfer": {{"stall": "3s", "connect": "4s", "minRate": "2K", "minRateWindow": "20s", "maxTime": "1h", "rateLimit": 1048576, "budget": "1G", "budgetPerDay": "2G", "parallel": 2}},
            "cache": {{"device": "LABEL=a", "fsType": "xfs", "options": ["ro"], "path": "x", "wait": "5s", "keep": 7}},
            "media": {{"device": "LABEL=m", "path": "y"}},
            "root": {{"tmpfsSize": "1G"}}, "store": {{"tmpfsSize": "10%", "rwDevice": "LABEL=b"}},
            "fileSystems": {{"/a": {{"device": "LABEL=c"}}}},
            "disks": {{"main": {{"device": "serial=x", "size": {{"min": "1G", "max": "2G"}}, "partitions": [{{"name": "a", "size": "100%"}}]}}}},
            "network": {{"by": "system", "interface": "eth0", "dns": ["::1"], "ipv6": false, "wait": "6s", "keep": true}},
            "kernel": {{"modules": ["loop"], "autoload": false, "storeName": "{HASH}-linux-6.6.1", "settle": 8}},
            "onFailure": {{"action": "poweroff", "delay": "9s", "maxDelay": "10s", "shellTimeout": "11s", "retries": 12}},
            "log": "debug", "commandLineMay": ["verify"]}}"#,
            digest = "ab".repeat(32),
            pin = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="
        );
        let s = from(&file, "").unwrap();
        let seconds = Duration::from_secs;
        assert_eq!(s.urls, ["http://a", "https://b"]);
        assert_eq!(s.reset_floor.as_ref().map(ToString::to_string).as_deref(), Some("testing"));
        assert_eq!((s.policy.mode, s.verify), (PolicyMode::RequireFresh, Verify::Size));
        assert_eq!((s.policy.wait, s.policy.fetch_wait, s.policy.tries), (seconds(1), seconds(2), 4));
        assert_eq!((s.policy.max_age, s.policy.countdown), (seconds(24 * 3600), seconds(0)));
        assert_eq!(s.transfer.budget_per_day, 2 << 30);
        assert_eq!((s.transfer.stall, s.transfer.connect), (seconds(3), seconds(4)));
        assert_eq!(
            (s.transfer.min_rate, s.transfer.min_rate_window, s.transfer.max_time),
            (2048, seconds(20), seconds(3600))
        );
        assert_eq!(
            (s.transfer.rate_limit, s.transfer.budget, s.transfer.parallel),
            (1 << 20, 1 << 30, 2)
        );
        assert_eq!(s.http.pinned_public_keys[0].as_bytes(), &[7; 32]);
        assert_eq!(s.http.proxy.as_ref().map(ToString::to_string).as_deref(), Some("http://proxy:3128"));
        assert_eq!((s.http.no_proxy.len(), s.http.client_key_file.is_some()), (2, true));
        assert!(!format!("{s:?}").contains("word@"), "what is dumped holds no password");
        assert_eq!((s.cache.wait, s.cache.keep, s.cache.fs_type.as_str()), (seconds(5), 7, "xfs"));
        assert_eq!((s.root.tmpfs_size, s.store.tmpfs_size), (Size::Bytes(1 << 30), Size::Percent(10)));
        assert_eq!(
            (s.cache.device.as_deref(), s.store.rw_device.as_deref()),
            (Some("LABEL=a"), Some("LABEL=b"))
        );
        assert_eq!((s.media.device.as_deref(), s.media.path.to_str()), (Some("LABEL=m"), Some("y")));
        assert_eq!(s.file_systems["/a"]["device"], "LABEL=c");
        assert_eq!((s.disks.len(), s.disks[0].prepare), (1, false));
        assert_eq!(s.network.by, NetworkBy::System);
        assert_eq!((s.network.wait, s.network.ipv6, s.network.keep), (seconds(6), false, true));
        assert_eq!((s.kernel.settle, s.kernel.autoload), (seconds(8), false));
        assert_eq!((s.on_failure.action, s.on_failure.retries), (FailureAction::Poweroff, 12));
        assert_eq!(
            (s.on_failure.delay, s.on_failure.max_delay, s.on_failure.shell_timeout),
            (seconds(9), seconds(10), seconds(11))
        );
        assert_eq!(s.command_line_may, ["verify"]);
        assert!(
            table::TABLE
                .iter()
                .all(|row| s.origin(row.name) == Origin::File || matches!(row.name, "trustedPublicKeys" | "luks" | "swapDevices"))
        );
    }

    #[test]
    fn standard_words_of_the_command_line_are_kept_as_they_stand() {
        let line = format!(
            "ip=dhcp ip=10.0.0.2::10.0.0.1:255.255.255.0::eth0:off ip= ip nameserver=10.0.0.3 BOOTIF=01-52-54-00-00-00-01 \
             init=/bin/sh init=/nix/store/{HASH}-a/init freshroot.kexec=1 -- single \"a b\""
        );
        let settings = from("{\"version\": 1}", &line).unwrap();
        assert_eq!(settings.network.ip, ["dhcp", "10.0.0.2::10.0.0.1:255.255.255.0::eth0:off"]);
        assert_eq!(settings.network.nameserver, ["10.0.0.3"]);
        assert_eq!(settings.network.bootif.as_deref(), Some("01-52-54-00-00-00-01"));
        assert_eq!(settings.init, InitWord::Toplevel(format!("/nix/store/{HASH}-a").parse().unwrap()));
        assert_eq!(
            settings.origin("init"),
            Origin::CommandLine {
                position: line.rfind("init=").unwrap()
            }
        );
        assert!(settings.kexeced);
        assert_eq!(settings.init_arguments, ["single", "a b"]);
    }

    #[test]
    fn values_that_do_not_fit_together_are_warned_about() {
        for (line, expected) in [
            ("freshroot.on-failure.delay=1h", vec!["onFailure.maxDelay (10min) is shorter"]),
            ("init=/nix/.freshroot/init", vec![]),
            ("freshroot.transfer.rate-limit=1K", vec![]),
            (
                "freshroot.transfer.rate-limit=1K freshroot.transfer.min-rate=1K",
                vec!["transfer.minRate is more than half"],
            ),
        ] {
            let settings = from("{\"version\": 1, \"allowUnsigned\": true}", line).unwrap();
            assert_eq!(settings.warnings.len(), expected.len(), "{line}: {:?}", settings.warnings);
            assert!(
                settings
                    .warnings
                    .iter()
                    .zip(expected)
                    .all(|(warning, part)| warning.starts_with(part)),
                "{line}"
            );
            assert!(settings.on_failure.max_delay >= settings.on_failure.delay);
        }
        assert!(from("{\"version\": 1}", "").unwrap().warnings[0].contains("nothing can be authorised"));
    }

    #[test]
    fn file_and_command_line_are_read_below_a_root() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let message = |settings: Result<Settings>| format!("{:#}", settings.unwrap_err());
        assert!(message(Settings::read(root.path())).contains("proc/cmdline"));
        put(CMDLINE, "freshroot.log=debug\n");
        let settings = Settings::read(root.path()).unwrap();
        assert!(settings.log == log::LevelFilter::Debug && settings.warnings.iter().any(|w| w.contains("config.json")));
        put(CONFIG, "{\"version\": 1, \"lgo\": 1}");
        assert!(message(Settings::read(root.path())).contains("config.json, line 1, column 20: there is no setting lgo"));
        assert!(Settings::read_with(root.path(), None, Some(b"")).is_err());
        let missing = root.path().join("missing.json");
        assert!(message(Settings::read_with(root.path(), Some(&missing), Some(b""))).contains("there is no"));
        put("other.json", "{\"version\": 1, \"log\": \"warn\"}");
        let settings = Settings::read_with(root.path(), Some(&root.path().join("other.json")), Some(b"freshroot.cache.keep=3")).unwrap();
        assert_eq!((settings.log, settings.cache.keep), (log::LevelFilter::Warn, 3));
        put(CMDLINE, &"a".repeat(70_000));
        assert!(message(Settings::read(root.path())).contains("longer than 65536 bytes"));
    }

    #[test]
    fn the_configured_failure_policy_outlives_a_refused_command_line() {
        let root = tempfile::tempdir().unwrap();
        let config = root.path().join(CONFIG);
        assert_eq!(OnFailure::despite_refusal(root.path()), OnFailure::default());
        std::fs::create_dir_all(config.parent().unwrap()).unwrap();
        for (file, expected) in [
            (
                "{\"version\": 1, \"onFailure\": {\"action\": \"poweroff\"}}",
                FailureAction::Poweroff,
            ),
            ("{\"version\": 2, \"onFailure\": {\"action\": \"poweroff\"}}", FailureAction::Reboot),
        ] {
            std::fs::write(&config, file).unwrap();
            assert!(Settings::read_with(root.path(), None, Some(b"freshroot.system=x")).is_err());
            assert_eq!(OnFailure::despite_refusal(root.path()).action, expected);
        }
    }
}
