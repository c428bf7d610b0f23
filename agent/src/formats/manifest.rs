//! Manifests: what one published version consists of.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Refusal, check_critical, parse_version_1};
use crate::digest::Digest;
use crate::store_path::StorePath;

const FIELDS: &[&str] = &[
    "version",
    "critical",
    "systems",
    "kernel",
    "kernelParams",
    "image",
    "boot",
    "deltas",
];
const SYSTEMS_LIMIT: usize = 256;
/// The superblock: nothing shorter is a squashfs.
const IMAGE_MINIMUM: u64 = 96;
/// 1.8 million chunks: an image of 1.8 TB at today's chunk length.
const CHUNK_INDEX_LIMIT: u64 = 64 << 20;

/// How a system's toplevel is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InitKind {
    /// `init` does the activation itself, then starts the service manager (scripted stage 1, and what is no NixOS).
    Scripted,
    /// `prepare-root` does the activation, `init` is systemd (systemd stage 1, the default since NixOS 26.05).
    PrepareRoot,
    /// `init` is systemd and there is no `prepare-root`: nixos-init in the initrd does the activation.
    NixosInit,
}

impl fmt::Display for InitKind {
    /// As a manifest writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scripted => "scripted",
            Self::PrepareRoot => "prepare-root",
            Self::NixosInit => "nixos-init",
        })
    }
}

/// A file by content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRef {
    /// The digest of its bytes.
    pub sha256: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// One system in the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct System {
    /// A name for people.
    pub name: String,
    /// Its toplevel.
    pub toplevel: StorePath,
    /// How it is started.
    pub init_kind: InitKind,
}

/// The kernel that the image's modules belong to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kernel {
    /// `<hash>-linux-<version>`: the first component of its store path.
    pub store_name: String,
    /// As `uname -r` says it.
    pub release: String,
}

/// Parameters of the image's dm-verity tree, which is computed by the client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verity {
    /// Root hash, hexadecimal.
    pub root_hash: String,
    /// Salt, hexadecimal.
    pub salt: String,
    /// `sha256`.
    pub algorithm: String,
    /// Bytes.
    pub data_block_size: u32,
    /// Bytes.
    pub hash_block_size: u32,
    /// Number of data blocks.
    pub data_blocks: u64,
}

/// The compressor that made the image's blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zstd {
    /// Of libzstd.
    pub version: String,
    /// Compression level.
    pub level: i32,
}

/// The squashfs image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// The digest of its bytes.
    pub sha256: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Its chunk index.
    pub chunk_index: FileRef,
    /// Its dm-verity tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verity: Option<Verity>,
    /// What compressed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zstd: Option<Zstd>,
}

/// What a boot loader loads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// In `kernels/`.
    pub kernel: FileRef,
    /// In `initrds/`.
    pub initrd: FileRef,
}

/// A delta from another image to this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// The image that it starts from.
    pub from: Digest,
    /// The digest of the delta's bytes.
    pub sha256: Digest,
    /// The delta's length in bytes.
    pub size: u64,
}

/// A manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 1.
    pub version: u64,
    /// Fields that a reader must know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub critical: Vec<String>,
    /// The systems in the image; the first is the default one.
    pub systems: Vec<System>,
    /// The kernel that the image's modules belong to.
    pub kernel: Kernel,
    /// For generated command lines.
    #[serde(default)]
    pub kernel_params: Vec<String>,
    /// The squashfs image.
    pub image: Image,
    /// Kernel and initrd, where published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<Boot>,
    /// Deltas to this image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deltas: Vec<Delta>,
}

impl Manifest {
    /// Reads and validates a manifest.
    ///
    /// # Errors
    /// Malformed, of another version, with a critical field that is not known, or with values out of range.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let manifest: Self = parse_version_1("manifest", text)?;
        check_critical("manifest", &manifest.critical, FIELDS)?;
        let out_of_range = |what: String| Err(Refusal::Malformed(format!("the manifest is malformed: {what}")));
        if manifest.systems.is_empty() || manifest.systems.len() > SYSTEMS_LIMIT {
            return out_of_range(format!(
                "it names {} systems, 1 to {SYSTEMS_LIMIT} are expected",
                manifest.systems.len()
            ));
        }
        if manifest.image.size < IMAGE_MINIMUM {
            return out_of_range(format!("an image of {} bytes is no squashfs", manifest.image.size));
        }
        if manifest.image.chunk_index.size > CHUNK_INDEX_LIMIT {
            return out_of_range(format!(
                "a chunk index of {} bytes is over the limit of {CHUNK_INDEX_LIMIT}",
                manifest.image.chunk_index.size
            ));
        }
        Ok(manifest)
    }

    /// The default system.
    pub fn default_system(&self) -> Option<&System> {
        self.systems.first()
    }

    /// The system with this toplevel.
    pub fn system(&self, toplevel: &StorePath) -> Option<&System> {
        self.systems.iter().find(|system| system.toplevel == *toplevel)
    }
}
