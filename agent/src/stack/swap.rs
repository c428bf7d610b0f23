//! The setting `swapDevices`: swap space that is turned on in standalone mode, as NixOS's `swapDevices` says it.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::device::name::DeviceName;
use crate::foreign;
use crate::mount::entry::clean_path;

/// One swap device or file, in JSON. Unknown fields are refused: a word that is not understood could be the one that matters.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SwapDevice {
    /// Which one is filled first: the highest; without it, the kernel counts down from -2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// When freed space is discarded; without it, never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discard_policy: Option<DiscardPolicy>,
    /// The options of an fstab line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// When freed swap space is discarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiscardPolicy {
    /// All of it, when it is turned on.
    Once,
    /// Pages as they are freed.
    Pages,
    /// Both.
    Both,
}

/// Where swap space is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// On a device.
    Device(DeviceName),
    /// In a file of the system, absolute and clean.
    File(PathBuf),
}

/// Swap space, validated. Only [`SwapDevice::validate`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwapArea {
    /// Where it is.
    pub place: Place,
    /// The flags of swapon(2).
    pub flags: i32,
    /// `noauto`: it is not turned on by itself.
    pub noauto: bool,
    /// Words that say nothing about swap space.
    pub unknown: Vec<String>,
}

/// `SWAP_FLAG_*` of Linux `include/linux/swap.h`.
const PREFER: i32 = 0x8000;
const DISCARD: i32 = 0x1_0000;
const DISCARD_ONCE: i32 = 0x2_0000;
const DISCARD_PAGES: i32 = 0x4_0000;
/// The highest priority: what is left of 16 bits beside [`PREFER`].
const MOST: u32 = 0x7fff;

impl SwapDevice {
    /// Checks an entry, `device` being its name: a device in any of the words for one, or the absolute path of a file.
    ///
    /// # Errors
    /// What is wrong, and the remedy.
    pub fn validate(&self, device: &str) -> Result<SwapArea, String> {
        let shown = foreign::word(device);
        let place = if device.starts_with('/') && !device.starts_with("/dev/") {
            Place::File(clean_path(device).map_err(|why| format!("the swap file «{shown}» {why}"))?)
        } else {
            Place::Device(device.parse().map_err(|problem| format!("{problem}"))?)
        };
        let mut priority = None;
        let mut discard = None;
        let mut noauto = false;
        let mut unknown = Vec::new();
        for word in crate::mount::options::words(&self.options) {
            match word.split_once('=').map_or((word, None), |(key, value)| (key, Some(value))) {
                ("pri", Some(value)) => {
                    priority = Some(
                        value
                            .parse()
                            .map_err(|_| format!("«{shown}»: «{}» is no priority", foreign::word(word)))?,
                    );
                }
                ("discard", None) => discard = Some(DiscardPolicy::Both),
                ("discard", Some("once")) => discard = Some(DiscardPolicy::Once),
                ("discard", Some("pages")) => discard = Some(DiscardPolicy::Pages),
                ("noauto", None) => noauto = true,
                ("defaults" | "sw" | "auto" | "nofail", None) | ("comment", _) => {}
                (key, _) if key.starts_with("x-") || key.starts_with("X-") => {}
                (_, _) => unknown.push(foreign::word(word)),
            }
        }
        let priority = self.priority.or(priority);
        if priority.is_some_and(|priority| priority > MOST) {
            return Err(format!("«{shown}»: the priority is at most {MOST}"));
        }
        let discard = match self.discard_policy.or(discard) {
            None => 0,
            Some(DiscardPolicy::Once) => DISCARD | DISCARD_ONCE,
            Some(DiscardPolicy::Pages) => DISCARD | DISCARD_PAGES,
            Some(DiscardPolicy::Both) => DISCARD,
        };
        let priority = priority.and_then(|priority| i32::try_from(priority).ok());
        Ok(SwapArea {
            place,
            flags: discard | priority.map_or(0, |priority| PREFER | priority),
            noauto,
            unknown,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn valid(device: &str, json: &str) -> SwapArea {
        serde_json::from_str::<SwapDevice>(json).unwrap().validate(device).unwrap()
    }

    #[test]
    fn fields_and_options_become_the_flags_of_the_kernel() {
        for (json, flags) in [
            ("{}", 0),
            (r#"{"priority": 0}"#, 0x8000),
            (r#"{"priority": 32767}"#, 0xffff),
            (r#"{"discardPolicy": "once"}"#, 0x3_0000),
            (r#"{"discardPolicy": "pages"}"#, 0x5_0000),
            (r#"{"discardPolicy": "both", "priority": 5}"#, 0x1_8005),
            (
                r#"{"options": ["defaults", "nofail,discard=once,pri=3,x-systemd.makefs"]}"#,
                0x3_8003,
            ),
            (r#"{"options": ["discard"]}"#, 0x1_0000),
            (r#"{"options": ["pri=3"], "priority": 4}"#, 0x8004),
        ] {
            let area = valid("LABEL=swap", json);
            assert_eq!((area.flags, area.noauto, area.unknown), (flags, false, vec![]), "{json}");
        }
        let area = valid("LABEL=swap", r#"{"options": ["noauto", "noatime"]}"#);
        assert!(area.noauto && area.unknown == ["noatime"]);
    }

    #[test]
    fn a_path_below_dev_is_a_device_and_any_other_a_file() {
        for (text, expected) in [
            ("LABEL=swap", Place::Device("LABEL=swap".parse().unwrap())),
            (
                "/dev/disk/by-partlabel/disk-main-swap",
                Place::Device("PARTLABEL=disk-main-swap".parse().unwrap()),
            ),
            ("/dev/vg/swap", Place::Device("/dev/vg/swap".parse().unwrap())),
            ("/var//lib/swapfile", Place::File("/var/lib/swapfile".into())),
        ] {
            assert_eq!(valid(text, "{}").place, expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (device, json) in [
            ("swapfile", "{}"),
            ("/a/../b", "{}"),
            ("LABEL=", "{}"),
            ("LABEL=a", r#"{"priority": 32768}"#),
            ("LABEL=a", r#"{"options": ["pri=-1"]}"#),
        ] {
            let device_is_named = |reason: &str| reason.contains(device);
            let refused = serde_json::from_str::<SwapDevice>(json)
                .unwrap()
                .validate(device)
                .expect_err(device);
            assert!(device_is_named(&refused), "{refused}");
        }
        for json in [r#"{"size": 5}"#, r#"{"discardPolicy": "always"}"#, r#"{"randomEncryption": true}"#] {
            assert!(serde_json::from_str::<SwapDevice>(json).is_err(), "{json}");
        }
    }
}
