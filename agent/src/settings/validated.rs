//! The last of the three types: plain values that were checked. Only this module's parent can make a [`Settings`].

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

use crate::digest::Digest;
use crate::formats::release::ChannelName;
use crate::http::proxy::{Exception, Proxy};
use crate::prepare::declaration::Declared;
use crate::stack::luks::LuksDevice;
use crate::stack::swap::SwapArea;
use crate::store_path::StorePath;

use super::value::Size;

/// A `fileSystems` entry as the file holds it: an object whose fields the mount code knows.
pub type FileSystemObject = serde_json::Value;

/// Everything that file and command line said, checked, with the default where they said nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Base URLs of served folders, mirrors in order, each without a trailing slash.
    pub urls: Vec<String>,
    /// The channel that is followed when no system is selected.
    pub channel: Option<String>,
    /// The toplevel that `freshroot.system=` (or the file) selects; see also [`Settings::init`].
    pub system: Option<StorePath>,
    /// Pins the manifest: it needs no signature then.
    pub manifest_sha256: Option<Digest>,
    /// ed25519 keys, `name:base64`, checked for form only.
    pub trusted_public_keys: Vec<String>,
    /// Whether a manifest may be used that nothing authorises.
    pub allow_unsigned: bool,
    /// The channel whose next answer is accepted although a newer one was accepted before.
    pub reset_floor: Option<ChannelName>,
    /// When the server is asked, and for how long.
    pub policy: Policy,
    /// Limits of transfers.
    pub transfer: Transfer,
    /// HTTP and TLS.
    pub http: Http,
    /// How a cached image is verified before it is mounted.
    pub verify: Verify,
    /// Where images are kept.
    pub cache: Cache,
    /// A medium that brings some.
    pub media: Media,
    /// The root file system.
    pub root: Root,
    /// The writable half of the store.
    pub store: Store,
    /// Mount point → entry: what is mounted besides the store.
    pub file_systems: BTreeMap<String, FileSystemObject>,
    /// Name below `/dev/mapper` → container that is opened in standalone mode.
    pub luks: BTreeMap<String, LuksDevice>,
    /// Disks that are declared as disko declares them, for preparing blank ones.
    pub disks: Vec<Declared>,
    /// Device or file → swap space that is turned on in standalone mode.
    pub swap_devices: BTreeMap<String, SwapArea>,
    /// The network, should it be needed.
    pub network: Network,
    /// Kernel modules, and which kernel this is.
    pub kernel: Kernel,
    /// What happens when nothing boots.
    pub on_failure: OnFailure,
    /// What is logged.
    pub log: LevelFilter,
    /// Names (as in the file) of guarded settings that the command line may set.
    pub command_line_may: Vec<&'static str>,
    /// The last `init=` of the command line.
    pub init: InitWord,
    /// Whether a freshroot has kexeced into this kernel already: then it is not done again.
    pub kexeced: bool,
    /// What follows `--` on the command line: arguments for the system's init.
    pub init_arguments: Vec<String>,
    /// What was odd and is to be logged: unknown names, refused attempts, values that were replaced by the configured ones.
    pub warnings: Vec<String>,
    /// Private, so that nobody else can make a `Settings`.
    pub(super) origins: BTreeMap<&'static str, Origin>,
}

/// When the server is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// The words of the decision table.
    pub mode: PolicyMode,
    /// Limit until a valid answer, while something bootable is cached.
    pub wait: Duration,
    /// Limit of a transfer, while something bootable is cached.
    pub fetch_wait: Duration,
    /// How old the last answer may be without asking; nothing: age decides nothing.
    pub max_age: Duration,
    /// How long keys are listened for before a long download, while something bootable is cached; nothing: not at all.
    pub countdown: Duration,
    /// Boots that a generation has without being blessed before others come first; 0 for any number.
    pub tries: u32,
}

/// Policies, in the words that HTTP caches use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyMode {
    /// Never ask.
    Offline,
    /// Boot what is cached, refresh from the running system (stale-while-revalidate).
    CacheFirst,
    /// Ask; boot what is cached if there is no answer (stale-if-error).
    Wait,
    /// Boot nothing that was not confirmed at this boot.
    RequireFresh,
}

/// Limits of transfers.
#[derive(Debug, Clone, PartialEq)]
pub struct Transfer {
    /// A transfer that receives nothing for so long is given up.
    pub stall: Duration,
    /// Limit for finding a server's addresses, and for connecting.
    pub connect: Duration,
    /// Bytes a second below which a transfer is given up; 0: none.
    pub min_rate: u64,
    /// The time over which that is measured.
    pub min_rate_window: Duration,
    /// Limit of the transfer of an image; nothing: none.
    pub max_time: Duration,
    /// Bytes a second that are not exceeded; 0: any number.
    pub rate_limit: u64,
    /// Bytes that one boot may receive; 0: any number.
    pub budget: u64,
    /// Bytes that may be received a day; 0: any number.
    pub budget_per_day: u64,
    /// How many ranges of an image are asked for at once.
    pub parallel: u32,
}

impl Transfer {
    /// The least rate that holds: nothing is given up because it was slowed down here.
    pub fn least_rate(&self) -> u64 {
        match self.rate_limit {
            0 => self.min_rate,
            limit => self.min_rate.min(limit / 2),
        }
    }
}

/// HTTP and TLS.
#[derive(Debug, Clone, PartialEq)]
pub struct Http {
    /// PEM file in the initrd with the certificates that https trusts.
    pub ca_file: Option<PathBuf>,
    /// SHA-256 digests of the public keys that servers may have.
    pub pinned_public_keys: Vec<Digest>,
    /// PEM file with the client's certificate.
    pub client_cert_file: Option<PathBuf>,
    /// PEM file with its key; none: the same file.
    pub client_key_file: Option<PathBuf>,
    /// File with credentials.
    pub credentials_file: Option<PathBuf>,
    /// The proxy that requests take.
    pub proxy: Option<Proxy>,
    /// Hosts that are asked without it.
    pub no_proxy: Vec<Exception>,
}

/// How a cached image is verified before it is mounted, from strong to weak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// The whole image is hashed.
    Full,
    /// Only its size is compared: damage and tampering on the disk go unseen.
    Size,
}

/// Where images are kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Cache {
    /// `LABEL=`, `UUID=`, `PARTLABEL=`, `PARTUUID=` or a path below `/dev`; none: images are kept in RAM.
    pub device: Option<String>,
    /// Type of its file system; `auto` finds out.
    pub fs_type: String,
    /// Mount options.
    pub options: Vec<String>,
    /// Folder on it, relative, without `..`.
    pub path: PathBuf,
    /// How long a late device is waited for.
    pub wait: Duration,
    /// How many generations are kept at least.
    pub keep: u32,
}

/// A medium with a served folder.
#[derive(Debug, Clone, PartialEq)]
pub struct Media {
    /// In the words of [`Cache::device`]; none: there is none.
    pub device: Option<String>,
    /// The served folder on it, relative, without `..`.
    pub path: PathBuf,
}

/// The root file system.
#[derive(Debug, Clone, PartialEq)]
pub struct Root {
    /// Size of the tmpfs at `/`.
    pub tmpfs_size: Size,
}

/// The writable half of the store.
#[derive(Debug, Clone, PartialEq)]
pub struct Store {
    /// Size of the tmpfs at `/nix/.rw-store`.
    pub tmpfs_size: Size,
    /// A device for it instead, in the words of [`Cache::device`].
    pub rw_device: Option<String>,
}

/// Who configures the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkBy {
    /// The agent, when it needs it; taken down at the hand-over.
    Agent,
    /// Somebody else, such as systemd-networkd in the initrd: the agent waits for it when it needs it.
    System,
}

/// The network, should it be needed.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// Who configures it.
    pub by: NetworkBy,
    /// The one interface that may be used; none: any.
    pub interface: Option<String>,
    /// DNS servers that are asked before those of the lease.
    pub dns: Vec<IpAddr>,
    /// Whether IPv6 is configured by router advertisement.
    pub ipv6: bool,
    /// Limit for link and address together.
    pub wait: Duration,
    /// Whether addresses and routes are left to the running system.
    pub keep: bool,
    /// Values of all `ip=` of the command line, in order, as they stand there.
    pub ip: Vec<String>,
    /// Value of the last `BOOTIF=` of the command line, as it stands there.
    pub bootif: Option<String>,
    /// Values of all `nameserver=` of the command line, in order, as they stand there.
    pub nameserver: Vec<String>,
}

/// Kernel modules, and which kernel this is.
#[derive(Debug, Clone, PartialEq)]
pub struct Kernel {
    /// Modules that are loaded whatever the hardware.
    pub modules: Vec<String>,
    /// Whether modules are loaded whose alias matches the hardware.
    pub autoload: bool,
    /// Store path of the kernel that this initrd belongs to, without `/nix/store/`.
    pub store_name: Option<String>,
    /// Limit for hardware to settle.
    pub settle: Duration,
}

/// What happens when nothing boots.
#[derive(Debug, Clone, PartialEq)]
pub struct OnFailure {
    /// How it ends.
    pub action: FailureAction,
    /// Pause before the first retry or the action; it doubles from failure to failure.
    pub delay: Duration,
    /// What the doubling stops at.
    pub max_delay: Duration,
    /// After so long without a key a shell ends and the machine reboots.
    pub shell_timeout: Duration,
    /// How often the boot is tried again from the top before the action.
    pub retries: u32,
}

impl Default for OnFailure {
    fn default() -> Self {
        Self {
            action: FailureAction::Reboot,
            delay: Duration::from_secs(30),
            max_delay: Duration::from_secs(10 * 60),
            shell_timeout: Duration::from_secs(10 * 60),
            retries: 0,
        }
    }
}

/// How a boot that failed ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureAction {
    /// Reboot after the pause.
    Reboot,
    /// Power off after the pause.
    Poweroff,
    /// A shell on the console, with a timer.
    Shell,
}

/// What the last `init=` of the command line means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InitWord {
    /// There is none.
    Absent,
    /// `/nix/.freshroot/init`: whatever system the agent selects.
    Ours,
    /// `/nix/store/<hash>-<name>/init`: this system is selected.
    Toplevel(StorePath),
    /// Another program, as it stands there.
    Other(String),
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Neither file nor command line say anything.
    Default,
    /// The configuration file.
    File,
    /// The kernel command line.
    CommandLine {
        /// Offset of the word in bytes, from 0.
        position: usize,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the default"),
            Self::File => f.write_str("the configuration file"),
            Self::CommandLine { position } => write!(f, "the command line at byte {position}"),
        }
    }
}

impl Settings {
    /// Where the value of the setting `name` (as in the file, such as `policy.fetchWait`) comes from.
    /// `init` is a name too; what was not set, or does not exist, is [`Origin::Default`].
    pub fn origin(&self, name: &str) -> Origin {
        self.origins.get(name).copied().unwrap_or(Origin::Default)
    }

    /// What holds where nothing is said. `docs/settings.md` prints these.
    pub(super) fn defaults() -> Self {
        let seconds = Duration::from_secs;
        Self {
            urls: Vec::new(),
            channel: None,
            system: None,
            manifest_sha256: None,
            trusted_public_keys: Vec::new(),
            allow_unsigned: false,
            reset_floor: None,
            policy: Policy {
                mode: PolicyMode::Wait,
                wait: seconds(30),
                fetch_wait: seconds(5 * 60),
                max_age: seconds(0),
                countdown: seconds(5),
                tries: 0,
            },
            transfer: Transfer {
                stall: seconds(30),
                connect: seconds(10),
                // A modem's rate: less is no transfer, and 256 kbit/s are 32 times as much.
                min_rate: 1 << 10,
                min_rate_window: seconds(30),
                max_time: seconds(0),
                rate_limit: 0,
                budget: 0,
                budget_per_day: 0,
                parallel: 1,
            },
            http: Http {
                ca_file: None,
                pinned_public_keys: Vec::new(),
                client_cert_file: None,
                client_key_file: None,
                credentials_file: None,
                proxy: None,
                no_proxy: Vec::new(),
            },
            verify: Verify::Full,
            cache: Cache {
                device: None,
                fs_type: "auto".to_owned(),
                options: Vec::new(),
                path: PathBuf::from("freshroot"),
                wait: seconds(20),
                keep: 2,
            },
            media: Media {
                device: None,
                path: PathBuf::from("freshroot"),
            },
            root: Root {
                tmpfs_size: Size::Percent(50),
            },
            store: Store {
                tmpfs_size: Size::Percent(50),
                rw_device: None,
            },
            file_systems: BTreeMap::new(),
            luks: BTreeMap::new(),
            disks: Vec::new(),
            swap_devices: BTreeMap::new(),
            network: Network {
                by: NetworkBy::Agent,
                interface: None,
                dns: Vec::new(),
                ipv6: true,
                wait: seconds(60),
                keep: false,
                ip: Vec::new(),
                bootif: None,
                nameserver: Vec::new(),
            },
            kernel: Kernel {
                modules: Vec::new(),
                autoload: true,
                store_name: None,
                settle: seconds(10),
            },
            on_failure: OnFailure::default(),
            log: LevelFilter::Info,
            command_line_may: Vec::new(),
            init: InitWord::Absent,
            kexeced: false,
            init_arguments: Vec::new(),
            warnings: Vec::new(),
            origins: BTreeMap::new(),
        }
    }
}
