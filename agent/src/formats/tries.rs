//! Boot tries and blessings on the cache disk.

use serde::{Deserialize, Serialize};

use super::{Refusal, parse_version_1};

/// One boot attempt of a generation. That its file is there is what counts; what it holds is for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Try {
    /// Always 1.
    pub version: u64,
    /// The kernel's identifier of the boot.
    pub boot_id: String,
    /// When, by this machine's clock.
    pub started: u64,
}

/// A generation was found good by the system that it booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Blessing {
    /// Always 1.
    pub version: u64,
    /// Grows with each blessing on this machine.
    pub sequence: u64,
    /// The kernel's identifier of the boot.
    pub boot_id: String,
    /// When, by this machine's clock: for people.
    pub blessed: u64,
}

impl Blessing {
    /// Reads a blessing.
    ///
    /// # Errors
    /// Malformed, or of another version.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        parse_version_1("blessing", text)
    }
}
