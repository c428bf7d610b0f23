//! Preparing blank disks that the configuration declares (`disks.<name>.prepare`): observe → decide → plan → act.
//!
//! [`declaration`] is what was asked for, [`identity`] says which disk is meant, [`blank`] decides whether it may be touched, [`plan`] says what would be
//! written, to the byte, and [`grow`] what would be to grow a partition. Only [`look`] and [`room`] read disks, [`sysfs`] what the kernel says of them, and only [`act`] writes to them.

pub mod act;
pub mod blank;
pub mod claim;
pub mod content;
pub mod declaration;
pub mod grow;
pub mod identity;
pub mod layout;
pub mod look;
pub mod marks;
pub mod plan;
pub mod room;
pub mod sysfs;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::declaration::Declared;
    use crate::device::observe::BlockDevice;

    /// A declaration of three partitions.
    pub fn declared() -> Declared {
        let source = json!({
            "device": "serial=x", "size": {"min": "300M", "max": "8T"}, "prepare": true,
            "partitions": [
                {"name": "ESP", "size": "64M", "type": "EF00", "content": {"type": "filesystem", "format": "vfat", "label": "BOOT"}},
                {"name": "swap", "size": "16M", "content": {"type": "swap"}},
                {"name": "data", "size": "100%", "content": {"type": "btrfs", "label": "data", "subvolumes": ["logs", "keys"]}},
            ],
        });
        super::declaration::declared("main", &source).unwrap()
    }

    /// A blank disk.
    pub fn disk(name: &str) -> BlockDevice {
        BlockDevice {
            size: 1 << 30,
            ..BlockDevice::blank(name)
        }
    }
}
