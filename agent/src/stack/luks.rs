//! The setting `luks`: containers that are opened before anything is mounted, as NixOS's `boot.initrd.luks.devices` says it.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::device::name::DeviceName;
use crate::foreign;
use crate::mount::entry::clean_path;

/// One container. Unknown fields are refused: a word that is not understood could be the one that matters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LuksDevice {
    /// The device that holds it, by path or by name.
    pub device: String,
    /// The key: a file of the initrd, a file on `keyFileDevice`, or a block device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<String>,
    /// The device, such as a stick, whose file system has the key file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file_device: Option<String>,
    /// Bytes of the key file that are skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file_offset: Option<u64>,
    /// Bytes of the key file that are the key; without it, all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file_size: Option<u64>,
    /// Seconds that `keyFileDevice`, or a key that is a block device, is waited for; 30 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file_timeout: Option<u32>,
    /// Whether a passphrase is asked for where the key does not open it. Without a key it always is, after the container's own tokens (TPM 2).
    #[serde(default)]
    pub fallback_to_password: bool,
    /// Seconds that a passphrase is waited for, each of three times; 60 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passphrase_timeout: Option<u32>,
    /// Whether discards go through to the disk.
    #[serde(default)]
    pub allow_discards: bool,
    /// Whether reads and writes bypass dm-crypt's work queues.
    #[serde(default)]
    pub bypass_workqueues: bool,
    /// Seconds that the device is waited for; 90 without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
}

/// Where the key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// A file of the initrd.
    File(PathBuf),
    /// A file on the file system of a device; its path begins at the root of that file system.
    OnDevice {
        /// The device.
        device: String,
        /// The file.
        file: PathBuf,
    },
    /// A block device, or a partition.
    Device(String),
}

impl LuksDevice {
    /// Checks an entry: its name, its device, and that what it says fits together.
    ///
    /// # Errors
    /// What is wrong, and the remedy.
    pub fn validate(&self, name: &str) -> Result<(), String> {
        let harmless = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
        if name.is_empty() || name.len() > 127 || !name.chars().all(harmless) || name.starts_with('.') {
            return Err(format!(
                "«{}» is no name below /dev/mapper: use letters, digits and ._-+",
                foreign::word(name)
            ));
        }
        let devices = [Some(&self.device), self.key_file_device.as_ref()].into_iter().flatten();
        for device in devices {
            device.parse::<DeviceName>().map_err(|problem| format!("{name}: {problem}"))?;
        }
        match self.key() {
            Some(Key::File(file) | Key::OnDevice { file, .. }) => {
                let text = file.to_string_lossy();
                clean_path(&text).map_err(|why| format!("{name}: the key file «{}» {why}", foreign::word(&text)))?;
            }
            Some(Key::Device(device)) => {
                device.parse::<DeviceName>().map_err(|problem| format!("{name}: {problem}"))?;
                if self.key_file_size.is_none() {
                    return Err(format!(
                        "{name}: the key is a whole device, so how much of it is the key has to be said: set keyFileSize"
                    ));
                }
            }
            None if self.key_file_device.is_some() => {
                return Err(format!(
                    "{name}: keyFileDevice is set, and no keyFile on it: set keyFile to its path there"
                ));
            }
            None => {}
        }
        if [self.timeout, self.key_file_timeout, self.passphrase_timeout].contains(&Some(0)) {
            return Err(format!("{name}: a limit of 0 seconds finds nothing; leave it out, or give a limit"));
        }
        Ok(())
    }

    /// Where the key is, if there is one.
    pub fn key(&self) -> Option<Key> {
        let file = self.key_file.as_deref()?;
        Some(match &self.key_file_device {
            Some(device) => Key::OnDevice {
                device: device.clone(),
                file: PathBuf::from(file),
            },
            None if file.starts_with("/dev/") => Key::Device(file.to_owned()),
            None => Key::File(PathBuf::from(file)),
        })
    }

    /// How long the device is waited for.
    pub fn wait(&self) -> Duration {
        Duration::from_secs(self.timeout.unwrap_or(90).into())
    }

    /// How long the key's device is waited for.
    pub fn key_wait(&self) -> Duration {
        Duration::from_secs(self.key_file_timeout.unwrap_or(30).into())
    }

    /// How long a passphrase is waited for.
    pub fn passphrase_wait(&self) -> Duration {
        Duration::from_secs(self.passphrase_timeout.unwrap_or(60).into())
    }

    /// Whether somebody is asked, once what is tried before has not opened it.
    pub const fn may_ask(&self) -> bool {
        self.key_file.is_none() || self.fallback_to_password
    }

    /// What `cryptsetup` is told to open the container on `device` as `name`.
    pub fn arguments(&self, name: &str, device: &Path, by: &Unlock) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = ["open", "--type", "luks"].map(OsString::from).into();
        match by {
            Unlock::Key(file) => {
                arguments.extend(["--key-file".into(), file.clone().into_os_string()]);
                for (word, number) in [("--keyfile-offset", self.key_file_offset), ("--keyfile-size", self.key_file_size)] {
                    arguments.extend(number.into_iter().flat_map(|number| [word.into(), number.to_string().into()]));
                }
            }
            Unlock::Token => arguments.push("--token-only".into()),
            Unlock::Passphrase => arguments.extend([
                "--tries".into(),
                TRIES.to_string().into(),
                "--timeout".into(),
                self.passphrase_wait().as_secs().to_string().into(),
            ]),
        }
        if self.allow_discards {
            arguments.push("--allow-discards".into());
        }
        if self.bypass_workqueues {
            arguments.extend(["--perf-no_read_workqueue".into(), "--perf-no_write_workqueue".into()]);
        }
        arguments.extend([device.as_os_str().to_owned(), name.into()]);
        arguments
    }
}

/// How often a passphrase may be mistyped.
pub const TRIES: u32 = 3;

/// By what a container is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unlock {
    /// A file, or a device.
    Key(PathBuf),
    /// What the container's header names: a TPM, where cryptsetup has the plugin for it.
    Token,
    /// What somebody types.
    Passphrase,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn parsed(json: &str) -> LuksDevice {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn what_cannot_be_opened_is_refused_by_name() {
        for (name, json, word) in [
            ("a/b", r#"{"device": "/dev/vda"}"#, "no name below /dev/mapper"),
            ("", r#"{"device": "/dev/vda"}"#, "no name below /dev/mapper"),
            ("crypt", r#"{"device": "vda"}"#, "«vda» does not name a device"),
            ("crypt", r#"{"device": "/dev/vda", "keyFile": "key"}"#, "«key» is not absolute"),
            ("crypt", r#"{"device": "/dev/vda", "keyFile": "/dev/sdb"}"#, "set keyFileSize"),
            ("crypt", r#"{"device": "/dev/vda", "keyFileDevice": "LABEL=k"}"#, "set keyFile"),
            ("crypt", r#"{"device": "/dev/vda", "timeout": 0}"#, "0 seconds"),
        ] {
            let problem = parsed(json).validate(name).unwrap_err();
            assert!(problem.contains(word), "{problem}");
        }
        assert!(serde_json::from_str::<LuksDevice>(r#"{"device": "/dev/vda", "yubikey": {}}"#).is_err());
    }

    #[test]
    fn cryptsetup_is_told_what_the_entry_says() {
        let entry = parsed(
            r#"{"device": "LABEL=crypt", "keyFile": "/keys/disk", "keyFileDevice": "LABEL=stick", "keyFileOffset": 16, "keyFileSize": 32,
                "allowDiscards": true, "bypassWorkqueues": true}"#,
        );
        entry.validate("crypt-data").unwrap();
        assert_eq!(
            entry.key(),
            Some(Key::OnDevice {
                device: "LABEL=stick".into(),
                file: "/keys/disk".into()
            })
        );
        assert!(!entry.may_ask());
        let told = |entry: &LuksDevice, by: &Unlock| {
            let words = entry.arguments("crypt-data", Path::new("/dev/vda"), by);
            words
                .iter()
                .map(|word| word.to_string_lossy().into_owned())
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            told(&entry, &Unlock::Key("/run/key".into())),
            "open --type luks --key-file /run/key --keyfile-offset 16 --keyfile-size 32 --allow-discards --perf-no_read_workqueue \
             --perf-no_write_workqueue /dev/vda crypt-data"
        );
        let plain = parsed(r#"{"device": "/dev/vda", "passphraseTimeout": 20}"#);
        assert!(plain.may_ask());
        assert_eq!(told(&plain, &Unlock::Token), "open --type luks --token-only /dev/vda crypt-data");
        assert_eq!(
            told(&plain, &Unlock::Passphrase),
            "open --type luks --tries 3 --timeout 20 /dev/vda crypt-data"
        );
    }
}
