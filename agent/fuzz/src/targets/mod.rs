//! The targets.

mod disks;
mod downloads;
mod kernel;
mod modules;
mod network;
pub(crate) mod planted;
mod publishing;
mod settings;
mod state;
pub(crate) mod trust;
mod words;

use crate::Target;

/// All targets, in the order in which they run.
pub static TARGETS: &[Target] = &[
    trust::ANSWER,
    trust::RELEASE,
    trust::MANIFEST,
    trust::GENERATION,
    state::STATE,
    downloads::CHUNK_INDEX,
    downloads::PART_MAP,
    downloads::CONTENT_RANGE,
    settings::COMMAND_LINE,
    settings::SETTINGS,
    words::WORDS,
    network::DHCP,
    network::NETLINK,
    kernel::UEVENT,
    kernel::REPORT,
    disks::SUPERBLOCK,
    disks::PARTITION_TABLE,
    modules::MODULES,
    publishing::REGISTRATION,
    publishing::KERNEL_PARAMS,
];

/// Not a parser of ours: a bug that no blind search finds. The fuzzers are run on it too, and must find it.
pub const PLANTED: Target = planted::PLANTED;
