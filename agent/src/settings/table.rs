//! The table of settings. File, command line and `docs/settings.md` are read, and written, by it: a setting that has no row does not exist.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

use log::LevelFilter;

use super::form;
use super::nearest::nearest;
use super::row::Guard::{Free, Listed, ListedIfWeaker, Never, Strict};
use super::row::Kind::{Bytes, List, Number, Objects, Size, Switch, Text, Time};
use super::row::Row;
use super::row::Separator::{Spaces, SpacesOrCommas};
use super::validated::{FailureAction, NetworkBy, PolicyMode, Settings, Verify};
use super::value::{cut, show_bytes, show_duration};
use crate::formats::release::ChannelName;
use crate::http::proxy::{Exception, Proxy};
use crate::prepare::declaration::{Declared, declared};
use crate::stack::luks::LuksDevice;
use crate::stack::swap::SwapDevice;
use crate::store_path::StorePath;

/// A wait that may be nothing: look once.
const NOTHING: Duration = Duration::ZERO;
/// Less is no wait: DNS, TCP and TLS alone take that long on a slow link.
const SECOND: Duration = Duration::from_secs(1);
/// Less is over before somebody has read the screen.
const READING: Duration = Duration::from_secs(10);

/// The row whose name, as in the file, is `name`.
pub fn by_name(name: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.name == name)
}

/// The row whose name behind `freshroot.` is `kebab`.
pub fn by_kebab(kebab: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.kebab() == kebab)
}

/// Whether `name` is a level above settings, such as `policy`.
pub fn is_group(name: &str) -> bool {
    TABLE
        .iter()
        .any(|row| row.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
}

/// Every setting, in the order of the docs.
pub static TABLE: &[Row] = &[
    Row {
        name: "url",
        kind: List {
            form: "base URL (http or https) of a served folder",
            separator: Spaces,
            or_one: true,
            put: |s, texts| all(texts, form::url).map(|urls| s.urls = urls),
        },
        guard: Free,
        show: |s| s.urls.join(" "),
        about: "Where releases and images are served; mirrors are tried in this order. Trust is in signatures, not in the server.",
    },
    Row {
        name: "channel",
        kind: Text {
            form: "1 to 64 letters, digits and `._-`",
            put: |s, text| form::channel(text).map(|channel| s.channel = Some(channel)),
        },
        guard: Strict,
        show: |s| s.channel.clone().unwrap_or_default(),
        about: "The channel that is followed when no system is selected.",
    },
    Row {
        name: "system",
        kind: Text {
            form: "`/nix/store/<hash>-<name>`",
            put: |s, text| parse::<StorePath>(text).map(|path| s.system = Some(path)),
        },
        guard: Strict,
        show: |s| s.system.as_ref().map(ToString::to_string).unwrap_or_default(),
        about: "The toplevel to boot. It selects; it authenticates nothing.",
    },
    Row {
        name: "manifestSha256",
        kind: Text {
            form: "64 lower-case hexadecimal digits",
            put: |s, text| parse(text).map(|digest| s.manifest_sha256 = Some(digest)),
        },
        // A pin in the initrd is there to hold: another one from the command line would let in what the configuration shuts out.
        guard: ListedIfWeaker(|configured, wanted| {
            configured.manifest_sha256.is_some() && wanted.manifest_sha256 != configured.manifest_sha256
        }),
        show: |s| s.manifest_sha256.as_ref().map(ToString::to_string).unwrap_or_default(),
        about: "The one manifest that may be used; it needs no signature then.",
    },
    Row {
        name: "trustedPublicKeys",
        kind: List {
            form: "`name:base64`, an ed25519 key as Nix writes it",
            separator: Spaces,
            or_one: false,
            put: |s, texts| all(texts, form::public_key).map(|keys| s.trusted_public_keys = keys),
        },
        guard: Listed,
        show: |s| s.trusted_public_keys.join(" "),
        about: "Keys that may sign manifests and releases.",
    },
    Row {
        name: "allowUnsigned",
        kind: Switch(|s| &mut s.allow_unsigned),
        guard: Listed,
        show: |s| s.allow_unsigned.to_string(),
        about: "Whether manifests may be used that nobody signed. Every boot says so aloud.",
    },
    Row {
        name: "resetFloor",
        kind: Text {
            form: "1 to 64 letters, digits and `._-`",
            put: |s, text| parse::<ChannelName>(text).map(|channel| s.reset_floor = Some(channel)),
        },
        guard: Listed,
        show: |s| s.reset_floor.as_ref().map(ToString::to_string).unwrap_or_default(),
        about: "A channel whose next valid answer is accepted although this machine has accepted a newer one before: see [decisions.md](decisions.md#how-old-an-answer-may-be). Remove it afterwards: as long as it stands there, old answers are accepted.",
    },
    Row {
        name: "verify",
        kind: Text {
            form: "`full` or `size`",
            put: |s, text| choice(text, &VERIFY).map(|verify| s.verify = verify),
        },
        guard: ListedIfWeaker(|configured, wanted| configured.verify == Verify::Full && wanted.verify == Verify::Size),
        show: |s| word(s.verify, &VERIFY),
        about: "How a cached image is verified before it is mounted: the whole image is hashed, or only its size is compared.",
    },
    Row {
        name: "policy.mode",
        kind: Text {
            form: "`offline`, `cache-first`, `wait` or `require-fresh`",
            put: |s, text| choice(text, &POLICY_MODE).map(|mode| s.policy.mode = mode),
        },
        guard: Strict,
        show: |s| word(s.policy.mode, &POLICY_MODE),
        about: "When the server is asked: never; after the boot; before it, with the cache as fall-back; before it, without one.",
    },
    Row {
        name: "policy.wait",
        kind: Time {
            least: SECOND,
            place: |s| &mut s.policy.wait,
        },
        guard: Free,
        show: |s| show_duration(s.policy.wait),
        about: "Limit until a valid answer, while something bootable is cached.",
    },
    Row {
        name: "policy.fetchWait",
        kind: Time {
            least: SECOND,
            place: |s| &mut s.policy.fetch_wait,
        },
        guard: Free,
        show: |s| show_duration(s.policy.fetch_wait),
        about: "Limit of a transfer, estimated or elapsed, while something bootable is cached; what was received is kept.",
    },
    Row {
        name: "policy.maxAge",
        kind: Time {
            least: NOTHING,
            place: |s| &mut s.policy.max_age,
        },
        // It decides whether somebody is asked at all.
        guard: Strict,
        show: |s| show_duration(s.policy.max_age),
        about: "How old the last answer may be without asking, under `cache-first` and `wait`. `0`: any age will do under `cache-first`, none under `wait`.",
    },
    Row {
        name: "policy.countdown",
        kind: Time {
            least: NOTHING,
            place: |s| &mut s.policy.countdown,
        },
        guard: Free,
        show: |s| show_duration(s.policy.countdown),
        about: "How long keys are listened for on the consoles before a long download, while something bootable is cached: `c` boots that, `d` downloads. `0`: not at all.",
    },
    Row {
        name: "policy.tries",
        kind: Number {
            least: 0,
            most: 100,
            place: |s| &mut s.policy.tries,
        },
        guard: Free,
        show: |s| s.policy.tries.to_string(),
        about: "A generation that was booted so often without `freshroot bless` since is used only when nothing else boots; `0`: tries are not counted.",
    },
    Row {
        name: "transfer.stall",
        kind: Time {
            least: SECOND,
            place: |s| &mut s.transfer.stall,
        },
        guard: Free,
        show: |s| show_duration(s.transfer.stall),
        about: "A transfer that receives nothing for so long is given up, and the next mirror tried.",
    },
    Row {
        name: "transfer.connect",
        kind: Time {
            least: SECOND,
            place: |s| &mut s.transfer.connect,
        },
        guard: Free,
        show: |s| show_duration(s.transfer.connect),
        about: "Limit for finding the addresses of a server, and for connecting to one of them, proxy and TLS included.",
    },
    Row {
        name: "transfer.minRate",
        kind: Bytes(|s| &mut s.transfer.min_rate),
        guard: Free,
        show: |s| show_bytes(s.transfer.min_rate),
        about: "Bytes a second: a transfer that is slower over `transfer.minRateWindow` is given up, and the next mirror tried. `0`: none is too slow.",
    },
    Row {
        name: "transfer.minRateWindow",
        kind: Time {
            least: SECOND,
            place: |s| &mut s.transfer.min_rate_window,
        },
        guard: Free,
        show: |s| show_duration(s.transfer.min_rate_window),
        about: "The time over which `transfer.minRate` is measured.",
    },
    Row {
        name: "transfer.maxTime",
        kind: Time {
            least: NOTHING,
            place: |s| &mut s.transfer.max_time,
        },
        guard: Free,
        show: |s| show_duration(s.transfer.max_time),
        about: "Limit of the transfer of an image, also where nothing is cached; what was received is kept. `0`: as long as it takes.",
    },
    Row {
        name: "transfer.rateLimit",
        kind: Bytes(|s| &mut s.transfer.rate_limit),
        guard: Free,
        show: |s| show_bytes(s.transfer.rate_limit),
        about: "Bytes a second that are not exceeded, all transfers together. `0`: as fast as it goes.",
    },
    Row {
        name: "transfer.budget",
        kind: Bytes(|s| &mut s.transfer.budget),
        guard: Free,
        show: |s| show_bytes(s.transfer.budget),
        about: "Bytes of answers that one boot may receive; what came is kept, and the next boot goes on. `0`: any number.",
    },
    Row {
        name: "transfer.budgetPerDay",
        kind: Bytes(|s| &mut s.transfer.budget_per_day),
        guard: Free,
        show: |s| show_bytes(s.transfer.budget_per_day),
        about: "Bytes of answers that may be received a day, by boots and `freshroot fetch` together; counted on the cache disk. What came is kept. `0`: any number.",
    },
    Row {
        name: "transfer.parallel",
        kind: Number {
            least: 1,
            most: 16,
            place: |s| &mut s.transfer.parallel,
        },
        guard: Free,
        show: |s| s.transfer.parallel.to_string(),
        about: "How many ranges of an image are asked for at once. More than one helps where a single connection does not fill the link, and costs a server as many connections.",
    },
    Row {
        name: "http.caFile",
        kind: Text {
            form: "path in the initrd",
            put: |s, text| form::absolute_file(text).map(|path| s.http.ca_file = Some(path)),
        },
        guard: Listed,
        show: |s| s.http.ca_file.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        about: "PEM file with the certificates that https trusts.",
    },
    Row {
        name: "http.pinnedPublicKeys",
        kind: List {
            form: "`sha256//` and the base64 of a digest of `SubjectPublicKeyInfo`, as curl's `--pinnedpubkey` takes it",
            separator: SpacesOrCommas,
            or_one: false,
            put: |s, texts| all(texts, form::pinned_key).map(|keys| s.http.pinned_public_keys = keys),
        },
        guard: Listed,
        show: |s| {
            s.http
                .pinned_public_keys
                .iter()
                .map(form::show_pinned_key)
                .collect::<Vec<_>>()
                .join(" ")
        },
        about: "Public keys, of which an https server must have one. Alone they decide, and names and dates of certificates do not count; with `http.caFile` both must hold.",
    },
    Row {
        name: "http.clientCertFile",
        kind: Text {
            form: "path in the initrd",
            put: |s, text| form::absolute_file(text).map(|path| s.http.client_cert_file = Some(path)),
        },
        guard: Listed,
        show: |s| path(s.http.client_cert_file.as_ref()),
        about: "PEM file with the certificate that the machine shows https servers, intermediates behind it.",
    },
    Row {
        name: "http.clientKeyFile",
        kind: Text {
            form: "path in the initrd",
            put: |s, text| form::absolute_file(text).map(|path| s.http.client_key_file = Some(path)),
        },
        guard: Listed,
        show: |s| path(s.http.client_key_file.as_ref()),
        about: "PEM file with its key. None: it stands in `http.clientCertFile`.",
    },
    Row {
        name: "http.credentialsFile",
        kind: Text {
            form: "path in the initrd",
            put: |s, text| form::absolute_file(text).map(|path| s.http.credentials_file = Some(path)),
        },
        guard: Listed,
        show: |s| path(s.http.credentials_file.as_ref()),
        about: "File of one line, `bearer TOKEN` or `basic USER:PASSWORD`: sent to the servers of `url` that are asked by https and have no user in their URL.",
    },
    Row {
        name: "http.proxy",
        kind: Text {
            form: "`http://`, `https://` or `socks5://`, `user:password@` if need be, host and port",
            put: |s, text| Proxy::parse(text).map(|proxy| s.http.proxy = Some(proxy)),
        },
        guard: Free,
        show: |s| s.http.proxy.as_ref().map(ToString::to_string).unwrap_or_default(),
        about: "The proxy that requests take; names are resolved by it. Variables of the environment are not looked at.",
    },
    Row {
        name: "http.noProxy",
        kind: List {
            form: "host, domain, address, network as `10.0.0.0/8`, or `*`",
            separator: SpacesOrCommas,
            or_one: false,
            put: |s, texts| all(texts, Exception::parse).map(|exceptions| s.http.no_proxy = exceptions),
        },
        guard: Free,
        show: |s| s.http.no_proxy.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        about: "Hosts that are asked without the proxy; a name stands for all below it, too. The machine itself always is.",
    },
    Row {
        name: "cache.device",
        kind: Text {
            form: "`LABEL=`, `UUID=`, `PARTLABEL=`, `PARTUUID=` or a path below `/dev`",
            put: |s, text| form::device(text).map(|device| s.cache.device = Some(device)),
        },
        guard: Listed,
        show: |s| s.cache.device.clone().unwrap_or_default(),
        about: "The disk that keeps images. None: they are kept in RAM, and fetched at every boot.",
    },
    Row {
        name: "cache.fsType",
        kind: Text {
            form: "`auto` or a file system type",
            put: |s, text| form::fs_type(text).map(|fs_type| s.cache.fs_type = fs_type),
        },
        guard: Listed,
        show: |s| s.cache.fs_type.clone(),
        about: "Type of its file system; `auto` finds out.",
    },
    Row {
        name: "cache.options",
        kind: List {
            form: "mount option",
            separator: SpacesOrCommas,
            or_one: false,
            put: |s, texts| all(texts, form::mount_option).map(|options| s.cache.options = options),
        },
        guard: Listed,
        show: |s| s.cache.options.join(","),
        about: "Options it is mounted with.",
    },
    Row {
        name: "cache.path",
        kind: Text {
            form: "relative path without `..`",
            put: |s, text| form::relative_folder(text).map(|path| s.cache.path = path),
        },
        guard: Listed,
        show: |s| s.cache.path.display().to_string(),
        about: "Folder on it that is ours.",
    },
    Row {
        name: "cache.wait",
        kind: Time {
            least: NOTHING,
            place: |s| &mut s.cache.wait,
        },
        guard: Free,
        show: |s| show_duration(s.cache.wait),
        about: "How long a late disk is waited for; `0` looks once.",
    },
    Row {
        name: "cache.keep",
        // Two: a new image must never displace the only one that is known to boot.
        kind: Number {
            least: 2,
            most: 1000,
            place: |s| &mut s.cache.keep,
        },
        guard: Free,
        show: |s| s.cache.keep.to_string(),
        about: "How many generations are kept at least.",
    },
    Row {
        name: "media.device",
        kind: Text {
            form: "as `cache.device`",
            put: |s, text| form::device(text).map(|device| s.media.device = Some(device)),
        },
        // It is only read, and what is read is verified: an ISO's command line names its own medium.
        guard: Free,
        show: |s| s.media.device.clone().unwrap_or_default(),
        about: "A medium with a served folder, such as an ISO or a stick: it is asked before the servers, and its images are used where they are. It is waited for like the cache.",
    },
    Row {
        name: "media.path",
        kind: Text {
            form: "relative path without `..`",
            put: |s, text| form::relative_folder(text).map(|path| s.media.path = path),
        },
        guard: Free,
        show: |s| s.media.path.display().to_string(),
        about: "The served folder on it.",
    },
    Row {
        name: "root.tmpfsSize",
        kind: Size(|s| &mut s.root.tmpfs_size),
        guard: Free,
        show: |s| s.root.tmpfs_size.to_string(),
        about: "Size of the tmpfs at `/`.",
    },
    Row {
        name: "store.tmpfsSize",
        kind: Size(|s| &mut s.store.tmpfs_size),
        guard: Free,
        show: |s| s.store.tmpfs_size.to_string(),
        about: "Size of the tmpfs that takes writes to `/nix/store`.",
    },
    Row {
        name: "store.rwDevice",
        kind: Text {
            form: "as `cache.device`",
            put: |s, text| form::device(text).map(|device| s.store.rw_device = Some(device)),
        },
        guard: Listed,
        show: |s| s.store.rw_device.clone().unwrap_or_default(),
        about: "A disk that takes writes to `/nix/store` instead of the tmpfs.",
    },
    Row {
        name: "fileSystems",
        kind: Objects {
            form: "mount point → entry",
            put: put_file_systems,
        },
        guard: Never,
        show: |s| s.file_systems.keys().cloned().collect::<Vec<_>>().join(" "),
        about: "What is mounted besides the store, as NixOS's `fileSystems` says it.",
    },
    Row {
        name: "luks",
        kind: Objects {
            form: "name → container",
            put: put_luks,
        },
        guard: Never,
        show: |s| s.luks.keys().cloned().collect::<Vec<_>>().join(" "),
        about: "LUKS containers that are opened in standalone mode, as NixOS's `boot.initrd.luks.devices` says it.",
    },
    Row {
        name: "disks",
        kind: Objects {
            form: "name → declaration",
            put: put_disks,
        },
        guard: Never,
        show: |s| s.disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>().join(" "),
        about: "Disks as disko declares them. With `prepare` in it, one that is blank is partitioned and gets its file systems; with `grow`, the last partition of one that has become larger grows: see [disks.md](disks.md).",
    },
    Row {
        name: "swapDevices",
        kind: Objects {
            form: "device or file → swap space",
            put: put_swap_devices,
        },
        guard: Never,
        show: |s| s.swap_devices.keys().cloned().collect::<Vec<_>>().join(" "),
        about: "Swap space that is turned on in standalone mode where it is there, as NixOS's `swapDevices` says it.",
    },
    Row {
        name: "network.by",
        kind: Text {
            form: "`agent` or `system`",
            put: |s, text| choice(text, &NETWORK_BY).map(|by| s.network.by = by),
        },
        guard: Free,
        show: |s| word(s.network.by, &NETWORK_BY),
        about: "Who configures the network: the agent, when it needs it, or the system around it (systemd-networkd), for which the agent then waits.",
    },
    Row {
        name: "network.interface",
        kind: Text {
            form: "name of an interface",
            put: |s, text| form::interface(text).map(|name| s.network.interface = Some(name)),
        },
        guard: Free,
        show: |s| s.network.interface.clone().unwrap_or_default(),
        about: "The one interface that may be used. None: any with a link.",
    },
    Row {
        name: "network.dns",
        kind: List {
            form: "IPv4 or IPv6 address",
            separator: SpacesOrCommas,
            or_one: false,
            put: |s, texts| all(texts, form::address).map(|dns| s.network.dns = dns),
        },
        guard: Free,
        show: |s| s.network.dns.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        about: "DNS servers that are asked before those of the lease.",
    },
    Row {
        name: "network.ipv6",
        kind: Switch(|s| &mut s.network.ipv6),
        guard: Free,
        show: |s| s.network.ipv6.to_string(),
        about: "Whether IPv6 is configured by router advertisement.",
    },
    Row {
        name: "network.wait",
        kind: Time {
            least: SECOND,
            place: |s| &mut s.network.wait,
        },
        guard: Free,
        show: |s| show_duration(s.network.wait),
        about: "Limit for link and address together.",
    },
    Row {
        name: "network.keep",
        kind: Switch(|s| &mut s.network.keep),
        guard: Free,
        show: |s| s.network.keep.to_string(),
        about: "Whether addresses and routes are left to the running system.",
    },
    Row {
        name: "kernel.modules",
        kind: List {
            form: "kernel module",
            separator: SpacesOrCommas,
            or_one: false,
            put: |s, texts| all(texts, form::module).map(|modules| s.kernel.modules = modules),
        },
        guard: Free,
        show: |s| s.kernel.modules.join(" "),
        about: "Modules that are loaded whatever the hardware.",
    },
    Row {
        name: "kernel.autoload",
        kind: Switch(|s| &mut s.kernel.autoload),
        guard: Free,
        show: |s| s.kernel.autoload.to_string(),
        about: "Whether modules are loaded whose alias matches the hardware.",
    },
    Row {
        name: "kernel.storeName",
        kind: Text {
            form: "`<hash>-<name>`",
            put: |s, text| match StorePath::from_store_name(text) {
                Ok(path) => {
                    s.kernel.store_name = Some(path.store_name().to_owned());
                    Ok(())
                }
                Err(problem) => Err(problem.to_string()),
            },
        },
        // Whoever builds the initrd knows its kernel; a command line that claims another one would boot an image without its modules.
        guard: Never,
        show: |s| s.kernel.store_name.clone().unwrap_or_default(),
        about: "Store path of the kernel that this initrd belongs to, without `/nix/store/`: images that name another one need kexec.",
    },
    Row {
        name: "kernel.settle",
        kind: Time {
            least: NOTHING,
            place: |s| &mut s.kernel.settle,
        },
        guard: Free,
        show: |s| show_duration(s.kernel.settle),
        about: "Limit for hardware to settle after modules were loaded.",
    },
    Row {
        name: "onFailure.action",
        kind: Text {
            form: "`reboot`, `poweroff` or `shell`",
            put: |s, text| choice(text, &FAILURE_ACTION).map(|action| s.on_failure.action = action),
        },
        // A shell is no way around trust that the command line does not have: where the initrd holds one, rdinit= starts it.
        guard: Free,
        show: |s| word(s.on_failure.action, &FAILURE_ACTION),
        about: "What happens when nothing boots.",
    },
    Row {
        name: "onFailure.delay",
        // Not nothing: a machine that reboots at full speed wears itself and its server out.
        kind: Time {
            least: SECOND,
            place: |s| &mut s.on_failure.delay,
        },
        guard: Free,
        show: |s| show_duration(s.on_failure.delay),
        about: "Pause before the first retry or the action; it doubles from failure to failure.",
    },
    Row {
        name: "onFailure.maxDelay",
        kind: Time {
            least: SECOND,
            place: |s| &mut s.on_failure.max_delay,
        },
        guard: Free,
        show: |s| show_duration(s.on_failure.max_delay),
        about: "What the doubling stops at.",
    },
    Row {
        name: "onFailure.shellTimeout",
        kind: Time {
            least: READING,
            place: |s| &mut s.on_failure.shell_timeout,
        },
        guard: Free,
        show: |s| show_duration(s.on_failure.shell_timeout),
        about: "After so long without a key a shell ends and the machine reboots.",
    },
    Row {
        name: "onFailure.retries",
        kind: Number {
            least: 0,
            most: 1000,
            place: |s| &mut s.on_failure.retries,
        },
        guard: Free,
        show: |s| s.on_failure.retries.to_string(),
        about: "How often the boot is tried again from the top before the action.",
    },
    Row {
        name: "log",
        kind: Text {
            form: "`error`, `warn`, `info`, `debug` or `trace`",
            put: |s, text| choice(text, &LOG).map(|level| s.log = level),
        },
        guard: Free,
        show: |s| word(s.log, &LOG),
        about: "What is logged. The agent as it is shipped leaves out what only `trace` would show.",
    },
    Row {
        name: "commandLineMay",
        kind: List {
            form: "name of a setting",
            separator: SpacesOrCommas,
            or_one: false,
            put: |s, texts| all(texts, listable).map(|names| s.command_line_may = names),
        },
        guard: Never,
        show: |s| s.command_line_may.join(" "),
        about: "Guarded settings that the command line may set.",
    },
];

/// The words of a setting that takes one of a few.
type Choices<T, const N: usize> = [(&'static str, T); N];

const VERIFY: Choices<Verify, 2> = [("full", Verify::Full), ("size", Verify::Size)];
const POLICY_MODE: Choices<PolicyMode, 4> = [
    ("offline", PolicyMode::Offline),
    ("cache-first", PolicyMode::CacheFirst),
    ("wait", PolicyMode::Wait),
    ("require-fresh", PolicyMode::RequireFresh),
];
const NETWORK_BY: Choices<NetworkBy, 2> = [("agent", NetworkBy::Agent), ("system", NetworkBy::System)];
const FAILURE_ACTION: Choices<FailureAction, 3> = [
    ("reboot", FailureAction::Reboot),
    ("poweroff", FailureAction::Poweroff),
    ("shell", FailureAction::Shell),
];
const LOG: Choices<LevelFilter, 5> = [
    ("error", LevelFilter::Error),
    ("warn", LevelFilter::Warn),
    ("info", LevelFilter::Info),
    ("debug", LevelFilter::Debug),
    ("trace", LevelFilter::Trace),
];

fn choice<T: Copy>(text: &str, choices: &[(&'static str, T)]) -> Result<T, String> {
    let words = choices.iter().map(|(word, _)| *word);
    match choices.iter().find(|(word, _)| *word == text) {
        Some((_, value)) => Ok(*value),
        None => Err(format!(
            "«{}» is none of {}{}",
            cut(text),
            words.clone().collect::<Vec<_>>().join(", "),
            nearest(text, words).map(|word| format!("; is {word} meant?")).unwrap_or_default()
        )),
    }
}

fn word<T: Copy + PartialEq>(value: T, choices: &[(&'static str, T)]) -> String {
    choices.iter().find(|(_, v)| *v == value).map_or("", |(word, _)| word).to_owned()
}

fn path(path: Option<&std::path::PathBuf>) -> String {
    path.map(|path| path.display().to_string()).unwrap_or_default()
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|problem: T::Err| problem.to_string())
}

fn all<T>(texts: &[&str], read: fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    texts.iter().map(|text| read(text)).collect()
}

fn put_file_systems(settings: &mut Settings, map: &serde_json::Map<String, serde_json::Value>) -> Result<(), String> {
    for (mount_point, entry) in map {
        form::mount_point(mount_point)?;
        if !entry.is_object() {
            return Err(format!("the entry of «{}» is not an object", cut(mount_point)));
        }
    }
    settings.file_systems = map.iter().map(|(at, entry)| (at.clone(), entry.clone())).collect();
    Ok(())
}

fn put_luks(settings: &mut Settings, map: &serde_json::Map<String, serde_json::Value>) -> Result<(), String> {
    let mut devices = std::collections::BTreeMap::new();
    for (name, object) in map {
        let device: LuksDevice = serde_json::from_value(object.clone())
            .map_err(|error| format!("«{}»: {}", cut(name), crate::foreign::sentence(&error.to_string())))?;
        device.validate(name)?;
        devices.insert(name.clone(), device);
    }
    settings.luks = devices;
    Ok(())
}

fn put_disks(settings: &mut Settings, map: &serde_json::Map<String, serde_json::Value>) -> Result<(), String> {
    let mut disks: Vec<Declared> = Vec::with_capacity(map.len());
    for (name, source) in map {
        let disk = declared(name, source)?;
        if let Some(other) = disks.iter().find(|other| other.device == disk.device) {
            return Err(format!(
                "{} and {} are both {}: declare each disk once",
                other.name,
                disk.name,
                cut(&disk.device.to_string())
            ));
        }
        let labels = disks.iter().flat_map(|other| &other.partitions).map(|partition| &partition.label);
        if let Some(label) = labels.clone().find(|label| disk.partitions.iter().any(|own| own.label == **label)) {
            return Err(format!(
                "{}: the label «{}» is that of a partition of another disk: give it another one",
                disk.name,
                cut(label)
            ));
        }
        disks.push(disk);
    }
    settings.disks = disks;
    Ok(())
}

fn put_swap_devices(settings: &mut Settings, map: &serde_json::Map<String, serde_json::Value>) -> Result<(), String> {
    let mut areas = std::collections::BTreeMap::new();
    for (device, object) in map {
        let entry: SwapDevice = serde_json::from_value(object.clone())
            .map_err(|error| format!("«{}»: {}", cut(device), crate::foreign::sentence(&error.to_string())))?;
        areas.insert(device.clone(), entry.validate(device)?);
    }
    settings.swap_devices = areas;
    Ok(())
}

/// A name that `commandLineMay` may hold. Names that need no listing do no harm there.
fn listable(name: &str) -> Result<&'static str, String> {
    match by_name(name) {
        Some(Row { guard: Never, name, .. }) => Err(format!("«{name}» can never be set from the command line: remove it from the list")),
        Some(row) => Ok(row.name),
        None => Err(format!(
            "«{}» is not a setting{}",
            cut(name),
            nearest(name, TABLE.iter().map(|row| row.name))
                .map(|name| format!("; is {name} meant?"))
                .unwrap_or_default()
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::settings::row::Input;

    #[test]
    fn names_are_unique_in_each_spelling_and_lead_back_to_their_row() {
        for row in TABLE {
            assert_eq!(TABLE.iter().filter(|other| other.kebab() == row.kebab()).count(), 1, "{}", row.name);
            assert!(!is_group(row.name), "{} is a level and a setting at once", row.name);
            assert_eq!(by_name(row.name).unwrap().name, by_kebab(&row.kebab()).unwrap().name);
            assert!(row.about.ends_with('.') && !row.about.contains('|'), "{}", row.name);
        }
        let row = by_name("policy.fetchWait").unwrap();
        assert_eq!(
            (row.kebab().as_str(), row.pointer().as_str()),
            ("policy.fetch-wait", "/policy/fetchWait")
        );
        assert!(is_group("policy") && !is_group("pol") && !is_group("url"));
    }

    #[test]
    fn what_a_row_shows_it_reads_back() {
        for row in TABLE {
            let mut settings = Settings::defaults();
            let shown = (row.show)(&settings);
            if !shown.is_empty() {
                row.put(&mut settings, &Input::Text(shown)).unwrap();
                assert_eq!(settings, Settings::defaults(), "{}", row.name);
            }
        }
    }

    #[test]
    fn a_value_that_is_refused_leaves_no_trace() {
        for row in TABLE {
            for input in [
                Input::Text("\u{1}garbage\u{1}".to_owned()),
                Input::Json(serde_json::json!([1])),
                Input::Json(serde_json::json!(-1)),
                Input::Json(serde_json::json!(1e300)),
            ] {
                let mut settings = Settings::defaults();
                assert!(row.put(&mut settings, &input).is_err(), "{} takes {input:?}", row.name);
                assert_eq!(settings, Settings::defaults(), "{}", row.name);
            }
        }
    }
}
