//! An fstab option list, split by who reads each word: the mount (attributes), the file system (options of `fsconfig`), or userspace.
//!
//! Words as in mount(8), fstab(5) and systemd.mount(5). Words that only userspace knows never reach the kernel; those that would change what a mount
//! means, and that this agent does not do, are refused by name instead of being dropped.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::foreign;

/// Attributes of a mount (not of its file system).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes {
    /// `ro`
    pub read_only: bool,
    /// `nosuid`
    pub no_suid: bool,
    /// `nodev`
    pub no_dev: bool,
    /// `noexec`
    pub no_exec: bool,
    /// `nodiratime`
    pub no_dir_atime: bool,
    /// `nosymfollow` (Linux 5.10)
    pub no_symfollow: bool,
    /// `noatime`, `relatime`, `strictatime`; `None` leaves the kernel's default (relatime), or for a bind what the source has.
    pub access_time: Option<AccessTime>,
}

/// When reading a file updates its access time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessTime {
    /// `noatime`
    Never,
    /// `relatime`
    Relative,
    /// `strictatime`
    Always,
}

/// One option for the file system itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsOption {
    /// The word before `=`.
    pub key: String,
    /// The text after `=`; `None` for a plain word.
    pub value: Option<String>,
}

/// A bind mount of another folder or file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bind {
    /// `bind`: the mount at the source only.
    Single,
    /// `rbind`: with everything mounted below it.
    Recursive,
}

/// A whole option list, understood.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MountOptions {
    /// For the mount.
    pub attributes: Attributes,
    /// For the file system, in the order given.
    pub file_system: Vec<FsOption>,
    /// `bind` or `rbind`.
    pub bind: Option<Bind>,
    /// `nofail`: the boot goes on without it.
    pub nofail: bool,
    /// `noauto`: not to be mounted unless asked for.
    pub noauto: bool,
    /// `x-initrd.mount`: wanted in stage 1.
    pub initrd: bool,
    /// `x-systemd.device-timeout=`: how long the device is waited for.
    pub device_timeout: Option<Duration>,
    /// `X-mount.mkdir[=MODE]`, the mode of the mount point if it must be made.
    pub mkdir_mode: Option<u32>,
    /// `X-mount.subdir=`: only this folder of the file system is mounted; relative and clean.
    pub subdir: Option<PathBuf>,
    /// `x-systemd.requires-mounts-for=`: what lies above these paths is mounted first.
    pub requires_mounts_for: Vec<String>,
}

impl MountOptions {
    /// Makes mount and superblock read-only, whatever was asked for.
    pub fn make_read_only(&mut self) {
        self.attributes.read_only = true;
        if !self.file_system.iter().any(|option| option.key == "ro") {
            self.file_system.push(FsOption {
                key: "ro".to_owned(),
                value: None,
            });
        }
    }
}

/// A word that cannot be done, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedOption {
    /// The option as it was written.
    pub option: String,
    /// Why, and the remedy.
    pub remedy: String,
}

impl fmt::Display for RefusedOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "option «{}» is refused: {}", self.option, self.remedy)
    }
}

impl std::error::Error for RefusedOption {}

const MKDIR_MODE: u32 = 0o755;

/// The words of an option list.
pub fn words<S: AsRef<str>>(options: &[S]) -> impl Iterator<Item = &str> {
    let lists = options.iter().flat_map(|list| list.as_ref().split(','));
    lists.map(str::trim).filter(|word| !word.is_empty())
}

/// Whether an option list makes a bind, whatever else is in it.
pub fn is_bind<S: AsRef<str>>(options: &[S]) -> bool {
    words(options).any(|word| matches!(word, "bind" | "rbind"))
}

/// Splits an option list. Every element may itself be a comma-separated list, as people write in `fileSystems.<name>.options`.
/// As with mount(8), the last of two contradicting words wins.
pub fn split<S: AsRef<str>>(options: &[S]) -> Result<MountOptions, RefusedOption> {
    let mut result = MountOptions::default();
    for word in words(options) {
        take(word, &mut result)?;
    }
    // A superblock that is to be read only must know it before it is made: else ext4 and xfs replay and write.
    if result.attributes.read_only && result.bind.is_none() {
        result.file_system.push(FsOption {
            key: "ro".to_owned(),
            value: None,
        });
    }
    if let (Some(_), Some(_)) = (result.bind, &result.subdir) {
        return Err(refuse("X-mount.subdir", "a bind names its folder as its source; leave it out"));
    }
    if let (Some(_), Some(option)) = (result.bind, result.file_system.first()) {
        return Err(refuse(
            &option.key,
            "a bind mount has no file system options; leave it out, or set it where the source is mounted",
        ));
    }
    Ok(result)
}

fn take(word: &str, result: &mut MountOptions) -> Result<(), RefusedOption> {
    let (key, value) = match word.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (word, None),
    };
    if key.is_empty() {
        return Err(refuse(word, "there is no name before «=»"));
    }
    if take_attribute(word, &mut result.attributes) || take_flag(word, result) {
        return Ok(());
    }
    match key {
        "x-systemd.device-timeout" => {
            result.device_timeout = Some(parse_time_span(value.unwrap_or("")).map_err(|remedy| refuse(word, remedy))?);
        }
        "X-mount.mkdir" | "x-mount.mkdir" => result.mkdir_mode = Some(mkdir_mode(word, value)?),
        "X-mount.subdir" | "x-mount.subdir" => result.subdir = Some(subdir(word, value)?),
        "x-systemd.requires-mounts-for" => {
            let paths = value.unwrap_or("").split_ascii_whitespace().map(unquoted);
            result.requires_mounts_for.extend(paths.map(str::to_owned));
        }
        "x-systemd.makefs" => {
            return Err(refuse(
                word,
                "no option of a mount makes a file system here, since a disk that looks empty may not be; make it once by hand, or have the disk prepared",
            ));
        }
        "X-mount.idmap" | "X-mount.owner" | "X-mount.group" | "X-mount.mode" => {
            return Err(refuse(
                word,
                "only mount(8) does this, and leaving it away would mount something else; set neededForBoot = false so that stage 2 mounts it",
            ));
        }
        "loop" | "offset" | "sizelimit" | "encryption" => {
            return Err(refuse(
                word,
                "entries on image files are not mounted in stage 1; set neededForBoot = false so that stage 2 mounts it",
            ));
        }
        "remount" | "move" => return Err(refuse(word, "an entry describes a new mount; leave it out")),
        "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" | "unbindable" | "runbindable" => {
            return Err(refuse(word, "systemd sets the propagation of all mounts in stage 2; leave it out"));
        }
        "comment" | "helper" | "uhelper" => {}
        key if key.starts_with("x-") || key.starts_with("X-") => {}
        key => result.file_system.push(FsOption {
            key: key.to_owned(),
            value: value.map(str::to_owned),
        }),
    }
    Ok(())
}

/// Words for the mount itself. True if `word` is one.
fn take_attribute(word: &str, to: &mut Attributes) -> bool {
    match word {
        "ro" => to.read_only = true,
        "rw" => to.read_only = false,
        "nosuid" => to.no_suid = true,
        "suid" => to.no_suid = false,
        "nodev" => to.no_dev = true,
        "dev" => to.no_dev = false,
        "noexec" => to.no_exec = true,
        "exec" => to.no_exec = false,
        "nodiratime" => to.no_dir_atime = true,
        "diratime" => to.no_dir_atime = false,
        "nosymfollow" => to.no_symfollow = true,
        "symfollow" => to.no_symfollow = false,
        "noatime" => to.access_time = Some(AccessTime::Never),
        "relatime" => to.access_time = Some(AccessTime::Relative),
        "strictatime" => to.access_time = Some(AccessTime::Always),
        "atime" | "norelatime" | "nostrictatime" => to.access_time = None,
        // mount(8): these let users mount, and mean the restrictions too unless a later word lifts them.
        "user" | "users" => {
            to.no_suid = true;
            to.no_dev = true;
            to.no_exec = true;
        }
        "owner" | "group" => {
            to.no_suid = true;
            to.no_dev = true;
        }
        _ => return false,
    }
    true
}

/// Plain words that userspace reads. True if `word` is one.
fn take_flag(word: &str, to: &mut MountOptions) -> bool {
    match word {
        "bind" => to.bind = Some(Bind::Single),
        "rbind" => to.bind = Some(Bind::Recursive),
        "nofail" => to.nofail = true,
        "fail" => to.nofail = false,
        "noauto" => to.noauto = true,
        "auto" => to.noauto = false,
        "x-initrd.mount" => to.initrd = true,
        // `async`, `nomand`, `nolazytime` say the default; `_rnetdev` and `_netdev` are for ordering in stage 2.
        "defaults" | "_netdev" | "_rnetdev" | "nouser" | "nousers" | "noowner" | "nogroup" | "async" | "nomand" | "nolazytime" => {}
        _ => return false,
    }
    true
}

fn refuse(option: &str, remedy: impl Into<String>) -> RefusedOption {
    RefusedOption {
        option: foreign::word(option),
        remedy: remedy.into(),
    }
}

fn mkdir_mode(word: &str, value: Option<&str>) -> Result<u32, RefusedOption> {
    match value {
        None => Ok(MKDIR_MODE),
        Some(text) => parse_mode(text).ok_or_else(|| refuse(word, "the mode is written in octal digits, as «0750»")),
    }
}

/// A folder below the root of a file system, which may be written with or without a slash in front.
fn subdir(word: &str, value: Option<&str>) -> Result<PathBuf, RefusedOption> {
    let mut path = PathBuf::new();
    for part in value.unwrap_or("").split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(refuse(word, "the folder is written without «..»")),
            part => path.push(part),
        }
    }
    if path.as_os_str().is_empty() {
        return Err(refuse(word, "a folder of the file system is missing behind «=»"));
    }
    Ok(path)
}

/// A word without the quotes around it: fstab lines have them where a list of paths is one option.
fn unquoted(word: &str) -> &str {
    word.trim_matches(['"', '\''])
}

/// A file mode in octal digits, at most 7777.
pub fn parse_mode(text: &str) -> Option<u32> {
    if text.is_empty() || text.len() > 5 || !text.bytes().all(|byte| matches!(byte, b'0'..=b'7')) {
        return None;
    }
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 => Some(mode),
        Ok(_) | Err(_) => None,
    }
}

/// A span as systemd.time(7) writes it: «90», «90s», «1min 30s», «500ms». What never ends is refused, since nobody may be there.
pub fn parse_time_span(text: &str) -> Result<Duration, &'static str> {
    const GRAMMAR: &str = "a time span is written as «90», «90s», «1min 30s» or «500ms»";
    const ENDLESS: &str = "every wait in stage 1 has an end; write a limit, as «10min»";
    let text = text.trim();
    if text == "infinity" {
        return Err(ENDLESS);
    }
    let mut total: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().map_err(|_| GRAMMAR)?;
        rest = rest[digits..].trim_start();
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let milliseconds = match &rest[..letters] {
            "ms" | "msec" => 1,
            "" | "s" | "sec" | "second" | "seconds" => 1000,
            "m" | "min" | "minute" | "minutes" => 60_000,
            "h" | "hr" | "hour" | "hours" => 3_600_000,
            _ => return Err(GRAMMAR),
        };
        rest = rest[letters..].trim_start();
        total = number
            .checked_mul(milliseconds)
            .and_then(|span| total.checked_add(span))
            .ok_or(GRAMMAR)?;
    }
    match (text, total) {
        ("", _) => Err(GRAMMAR),
        (_, 0) => Err(ENDLESS),
        (_, total) => Ok(Duration::from_millis(total)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    fn words(list: &str) -> MountOptions {
        split(&[list]).unwrap()
    }

    fn fs(list: &str) -> Vec<String> {
        let show = |option: FsOption| option.value.map_or(option.key.clone(), |value| format!("{}={value}", option.key));
        words(list).file_system.into_iter().map(show).collect()
    }

    #[test]
    fn words_of_userspace_never_reach_the_kernel() {
        for list in [
            "defaults",
            "nofail",
            "noauto",
            "auto",
            "nouser",
            "_netdev",
            "x-systemd.automount",
            "x-systemd.requires=a.service",
            "X-mount.mkdir",
            "X-anything=1",
            "x-initrd.mount",
            "comment=of mine",
            "bind",
            "rw",
            "async",
            "",
        ] {
            assert_eq!(fs(list), Vec::<String>::new(), "{list}");
        }
    }

    #[test]
    fn the_rest_reaches_the_file_system_in_order() {
        for (list, expected) in [
            ("subvol=@home,compress=zstd:3,noatime", &["subvol=@home", "compress=zstd:3"][..]),
            ("subvol=/a=b", &["subvol=/a=b"]),
            ("size=50%,mode=1777", &["size=50%", "mode=1777"]),
            ("errors=remount-ro,discard,x-y", &["errors=remount-ro", "discard"]),
            ("ro,noload", &["noload", "ro"]),
            ("sync,lazytime,dirsync", &["sync", "lazytime", "dirsync"]),
        ] {
            assert_eq!(fs(list), expected, "{list}");
        }
    }

    #[test]
    fn the_last_of_two_contradicting_words_wins() {
        let none = Attributes::default();
        for (list, expected) in [
            ("ro", Attributes { read_only: true, ..none }),
            ("ro,rw", none),
            (
                "nosuid,nodev,noexec",
                Attributes {
                    no_suid: true,
                    no_dev: true,
                    no_exec: true,
                    ..none
                },
            ),
            (
                "user,exec",
                Attributes {
                    no_suid: true,
                    no_dev: true,
                    ..none
                },
            ),
            (
                "exec,user",
                Attributes {
                    no_suid: true,
                    no_dev: true,
                    no_exec: true,
                    ..none
                },
            ),
            (
                "noatime",
                Attributes {
                    access_time: Some(AccessTime::Never),
                    ..none
                },
            ),
            (
                "noatime,relatime",
                Attributes {
                    access_time: Some(AccessTime::Relative),
                    ..none
                },
            ),
            (
                "strictatime,nodiratime",
                Attributes {
                    access_time: Some(AccessTime::Always),
                    no_dir_atime: true,
                    ..none
                },
            ),
            (
                "nosymfollow",
                Attributes {
                    no_symfollow: true,
                    ..none
                },
            ),
        ] {
            assert_eq!(words(list).attributes, expected, "{list}");
        }
    }

    #[test]
    fn what_the_words_mean_for_us_is_kept() {
        assert!(words("nofail").nofail);
        assert!(words("noauto").noauto);
        assert!(words("x-initrd.mount").initrd);
        assert_eq!(words("bind,ro").bind, Some(Bind::Single));
        assert_eq!(words("rbind").bind, Some(Bind::Recursive));
        assert_eq!(words("X-mount.mkdir").mkdir_mode, Some(0o755));
        assert_eq!(words("X-mount.mkdir=0700").mkdir_mode, Some(0o700));
        assert_eq!(
            words("x-systemd.device-timeout=1min 30s").device_timeout,
            Some(Duration::from_secs(90))
        );
        assert_eq!(words("X-mount.subdir=/a//b/").subdir, Some("a/b".into()));
        assert_eq!(words("x-systemd.requires-mounts-for=/a \"/b\"").requires_mounts_for, ["/a", "/b"]);
        assert_eq!(
            split(&["nofail,ro", "noatime"]).unwrap().attributes.access_time,
            Some(AccessTime::Never)
        );
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for bad in [
            "X-mount.subdir=",
            "X-mount.subdir=a/../b",
            "bind,X-mount.subdir=a",
            "x-systemd.makefs",
            "X-mount.owner=me",
            "loop",
            "loop=/dev/loop3",
            "remount",
            "shared",
            "bind,subvol=a",
            "X-mount.mkdir=9",
            "x-systemd.device-timeout=infinity",
            "x-systemd.device-timeout=0",
            "x-systemd.device-timeout",
            "=a",
        ] {
            let refused = split(&[bad]).expect_err(bad);
            assert!(!refused.remedy.is_empty() && bad.contains(&refused.option), "{refused}");
        }
    }

    #[test]
    fn time_spans_are_those_of_systemd() {
        for (text, seconds) in [
            ("90", 90.0),
            ("90s", 90.0),
            ("1min 30s", 90.0),
            ("1min30s", 90.0),
            ("500ms", 0.5),
            ("2 h", 7200.0),
        ] {
            assert_eq!(parse_time_span(text).unwrap().as_secs_f64(), seconds, "{text}");
        }
        for bad in [
            "",
            "s",
            "-1",
            "1.5s",
            "10 parsecs",
            "99999999999999999999",
            "99999999999999999h",
            "infinity",
            "0s",
        ] {
            assert!(parse_time_span(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_list_is_split_or_refused(list in "\\PC{0,60}") {
            if let Ok(options) = split(&[&list]) {
                for option in options.file_system {
                    prop_assert!(!option.key.starts_with("x-") && !option.key.starts_with("X-") && !option.key.contains(','));
                }
            }
        }
    }
}
