//! Texts: ours as our own writers make them, those of others as they were seen.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use freshroot::digest::Digest;
use freshroot::formats::chunk_index::ChunkIndex;
use freshroot::formats::part_map::PartMap;
use serde_json::{Value, json};

use super::Sink;
use crate::targets::trust::{key, signed_answer};

const SYSTEM: &str = "/nix/store/0c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-nixos-system-demo-26.05";
const KERNEL: &str = "2c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-linux-6.12.30";

fn small_manifest() -> Value {
    json!({
        "version": 1,
        "systems": [{"name": "default", "toplevel": SYSTEM, "initKind": "prepare-root"}],
        "kernel": {"storeName": KERNEL, "release": "6.12.30"},
        "image": {"sha256": Digest::of(b"image"), "size": 4096, "chunkIndex": {"sha256": Digest::of(b"index"), "size": 60}},
    })
}

fn full_manifest() -> Value {
    let mut full = small_manifest();
    let more = json!({
        "critical": ["image", "systems"],
        "systems": [
            {"name": "default", "toplevel": SYSTEM, "initKind": "scripted"},
            {"name": "gaming", "toplevel": "/nix/store/1c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-nixos-system-gaming", "initKind": "nixos-init"},
        ],
        "kernelParams": ["quiet", "a=\"b c\""],
        "boot": {"kernel": {"sha256": Digest::of(b"kernel"), "size": 9}, "initrd": {"sha256": Digest::of(b"initrd"), "size": 10}},
        "deltas": [{"from": Digest::of(b"old"), "sha256": Digest::of(b"delta"), "size": 7}],
        "note": "ignored",
    });
    for (field, value) in more.as_object().into_iter().flatten() {
        full[field] = value.clone();
    }
    full["image"]["verity"] = json!({
        "rootHash": "00ff", "salt": "", "algorithm": "sha256", "dataBlockSize": 4096, "hashBlockSize": 4096, "dataBlocks": 1,
    });
    full["image"]["zstd"] = json!({"version": "1.5.7", "level": 19});
    full
}

pub(super) fn trust(sink: &mut Sink<'_>) -> Result<()> {
    let release = |manifest: &str, channel: &str| {
        json!({
            "version": 1, "channel": channel, "serial": 3, "created": 1_700_000_000_u64, "notAfter": 1_800_000_000_u64,
            "manifest": Digest::of(manifest.as_bytes()),
        })
        .to_string()
    };
    let (small, full) = (small_manifest().to_string(), full_manifest().to_string());
    sink.put("manifest", "small", &small)?;
    sink.put("manifest", "full", &full)?;
    sink.put("manifest", "pretty", serde_json::to_string_pretty(&small_manifest())?)?;
    sink.put("release", "stable", release(&small, "stable"))?;
    sink.put("release", "critical", r#"{"version":1,"critical":["serial"],"channel":"a.b-c_1","serial":18446744073709551615,"created":0,"manifest":"0000000000000000000000000000000000000000000000000000000000000000"}"#)?;
    // One step beside what is right, here and below: a fuzzer finds the way across more easily than the way there.
    sink.put("release", "channel-with-a-slash", release(&small, "a/b"))?;
    sink.put(
        "release",
        "serial-0",
        release(&small, "stable").replace("\"serial\":3", "\"serial\":0"),
    )?;
    let mut beside = small_manifest();
    beside["systems"] = json!([]);
    sink.put("manifest", "no-systems", beside.to_string())?;
    let twin = |hash: &str| json!({"name": "a", "toplevel": SYSTEM.replace("0c5f", hash), "initKind": "scripted"});
    beside["systems"] = json!([twin("0c5f"), twin("1c5f"), twin("0c5f")]);
    sink.put("manifest", "twins", beside.to_string())?;
    beside["image"]["size"] = 95.into();
    sink.put("manifest", "small-image", beside.to_string())?;
    sink.put("release", "newer", r#"{"version":2,"channel":[]}"#)?;
    for (name, manifest, channel, signers) in [
        ("signed", &small, "stable", &["ours"][..]),
        ("full", &full, "stable", &["theirs", "ours"]),
        ("testing", &small, "testing", &["ours"]),
        ("foreign", &small, "stable", &["theirs"]),
        ("unsigned", &small, "stable", &[]),
    ] {
        let answer = signed_answer(&release(manifest, channel), manifest, signers);
        sink.put("answer", name, &answer)?;
        let answer: Value = serde_json::from_slice(&answer)?;
        let generation = json!({
            "version": 1, "release": answer["release"], "manifest": manifest, "sequence": 2, "accepted": 1_700_000_001_u64,
            "source": "http://images.example/channels/stable.json", "etag": "\"abc\"",
        });
        sink.put("generation", name, generation.to_string())?;
    }
    let pinned = json!({"version": 1, "release": null, "manifest": small, "sequence": 1, "accepted": 0, "source": "http://a"});
    sink.put("generation", "pinned", pinned.to_string())?;
    let blessing = json!({"version": 1, "sequence": 3, "bootId": "6f1c2d6e-6f5b-4e0e-9a43-3f0b8c1f6a52", "blessed": 1_700_000_002_u64});
    sink.put("generation", "blessing", blessing.to_string())?;
    let state = json!({
        "version": 1, "channels": {"stable": {"serial": 7, "confirmed": 1_800_000_000_u64}, "testing": {"serial": 12, "withdrawn": [{"serial": 9000, "created": 1_799_000_000_u64}]}},
        "time": 1_799_999_000_u64, "received": {"day": 20_833, "bytes": 1_000_000}, "rates": {"https://images.example:443": 750_000},
    });
    sink.put("state", "full", state.to_string())?;
    sink.put("state", "empty", r#"{"version":1}"#)?;
    sink.put("state", "newer", r#"{"version":2,"channels":[]}"#)?;
    sink.put("state", "foreign", r#"{"version":1,"channels":{"a/b":{}},"note":null}"#)?;
    sink.put("answer", "portal", "<!DOCTYPE html><html><head><title>Log in</title></head></html>")
}

pub(super) fn downloads(sink: &mut Sink<'_>) -> Result<()> {
    let chunks = |lengths: &[u32]| ChunkIndex::new(lengths.iter().map(|length| (*length, Digest::of(&length.to_le_bytes()))));
    sink.put("chunk_index", "one", chunks(&[4096])?.to_bytes())?;
    sink.put("chunk_index", "some", chunks(&[1 << 20, 1 << 20, 4 << 20, 1, 77])?.to_bytes())?;
    sink.put("chunk_index", "many", chunks(&(1..50).collect::<Vec<_>>())?.to_bytes())?;
    let mut empty = chunks(&[4096, 1])?.to_bytes();
    empty[24..28].fill(0);
    empty[16..24].copy_from_slice(&1_u64.to_le_bytes());
    sink.put("chunk_index", "empty-chunk", empty)?;
    for (name, size, numbers) in [
        ("none", 10_u64, &[][..]),
        ("some", 5_000_000, &[2_u32, 0, 2, 9]),
        ("torn", 1, &[1, 3, 5]),
    ] {
        let map = PartMap {
            image_size: size,
            chunk_index: Digest::of(b"index"),
        };
        let entries = numbers.iter().flat_map(|number| number.to_le_bytes());
        let mut bytes: Vec<u8> = [&size.to_le_bytes()[..], &8_u16.to_le_bytes()].concat();
        bytes.extend(entries.clone());
        sink.put("part_map", name, &bytes)?;
        let mut bytes: Vec<u8> = [&size.to_le_bytes()[..], &8_u16.to_le_bytes(), &map.header()].concat();
        bytes.extend(entries);
        bytes.extend((name == "torn").then_some(7));
        sink.put("part_map", &format!("{name}-whole"), &bytes)?;
    }
    for (name, status, asked, length, headers) in [
        ("part", 206_u16, 1_u8, Some(10_u64), "bytes 10-19/100"),
        ("whole", 200, 1, Some(100), ""),
        ("unknown-total", 206, 1, None, "bytes 10-19/*"),
        ("two", 206, 1, None, "bytes 10-19/100\nbytes 0-9/100"),
        ("refused", 416, 1, Some(0), "bytes */100"),
        ("not-asked", 206, 0, None, "Bytes 0010-19/100"),
    ] {
        let mut bytes = status.to_le_bytes().to_vec();
        bytes.push(asked);
        bytes.extend([10_u64, 19, 100].into_iter().flat_map(u64::to_le_bytes));
        bytes.push(length.is_some().into());
        bytes.extend(length.into_iter().flat_map(u64::to_le_bytes));
        bytes.extend(headers.bytes());
        sink.put("content_range", name, bytes)?;
    }
    Ok(())
}

/// Configurations and command lines are those of the golden tests.
pub(super) fn settings(sink: &mut Sink<'_>) -> Result<()> {
    let agent = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |path: &Path| fs::read(path).with_context(|| format!("reading {}", path.display()));
    let full = read(&agent.join("../initrd-module/tests/golden/config-full.json"))?;
    sink.put("settings", "full", &full)?;
    for case in [
        "persistent-entries-are-mounted-in-order",
        "a-mirror-is-asked-after-the-first-server",
        "a-bad-entry-is-refused-by-its-name",
    ] {
        let root = agent.join("tests/golden").join(case).join("root");
        let config = read(&root.join("etc/freshroot/config.json"))?;
        let line = read(&root.join("proc/cmdline"))?;
        sink.put("settings", case, &config)?;
        sink.put("command_line", case, [&config[..], &[0xff], &line].concat())?;
    }
    let may = br#"{"version":1,"trustedPublicKeys":["a-1:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="],"cache":{"device":"LABEL=cache","options":["noatime"]},"commandLineMay":["verify","cache.device"]}"#;
    for (name, line) in [
        (
            "listed",
            "freshroot.verify=size freshroot.cache.device=LABEL=other freshroot.allow-unsigned",
        ),
        ("quoted", r#""key=a b" key="a b" a"b c"d ="x" "" -- "single user" a="b c""#),
        (
            "network",
            "ip=192.0.2.9::192.0.2.1:255.255.255.0:host:eth0:off BOOTIF=01-52-54-00-12-34-56 nameserver=[2001:db8::1]",
        ),
        (
            "modules",
            "modprobe.blacklist=a,b-c nvme_core.io_timeout=4294967295 usb-storage.quirks=\"1:2:u 3:4:u\"",
        ),
        (
            "policy",
            "freshroot.policy.mode=offline freshroot.policy.fetch-wait=1h30min freshroot.root.tmpfs-size=50% freshroot.kexec=1 init=/nix/.freshroot/init",
        ),
    ] {
        sink.put("command_line", name, line)?;
        sink.put(
            "command_line",
            &format!("{name}-over-file"),
            [&may[..], &[0xff], line.as_bytes()].concat(),
        )?;
    }
    for (name, entries) in [
        ("ours", json!({"/proc": {"fsType": "tmpfs"}})),
        ("below-ours", json!({"/run/freshroot/cache": {"fsType": "tmpfs"}})),
        (
            "bind-of-a-later-mount",
            json!({"/a": {"device": "/z/a", "fsType": "none", "options": ["bind"]}, "/z": {"device": "LABEL=z", "fsType": "ext4"}}),
        ),
        (
            "parent-that-waits",
            json!({"/a": {"fsType": "tmpfs", "depends": ["/z"]}, "/a/b": {"fsType": "tmpfs"}, "/z": {"fsType": "tmpfs"}}),
        ),
        (
            "circle",
            json!({"/a": {"fsType": "tmpfs", "depends": ["/b"]}, "/b": {"fsType": "tmpfs", "depends": ["/a"]}}),
        ),
        (
            "created",
            json!({"/a": {"device": "/p/a", "options": ["bind", "X-mount.mkdir=0750"], "fsType": "none", "create": {"mode": "0700", "uid": 1}}}),
        ),
    ] {
        sink.put("settings", name, json!({"version": 1, "fileSystems": entries}).to_string())?;
    }
    sink.put("settings", "listed", may)
}

pub(super) fn words(sink: &mut Sink<'_>) -> Result<()> {
    let public = key("ours").public().to_string();
    for (name, word) in [
        ("mac", "52:54:00:12:34:56"),
        ("bootif", "01-52-54-00-12-34-56"),
        ("prefix", "2001:db8::9/64"),
        ("ip-dhcp", "eth0:dhcp:1400"),
        (
            "ip-static",
            "192.0.2.9:192.0.2.2:192.0.2.1:255.255.255.0:host.example:eth0:off:192.0.2.53:192.0.2.54:192.0.2.3",
        ),
        ("ip-odd-mask", "192.0.2.9::192.0.2.1:255.0.255.0::eth0:off"),
        ("ip-six", "[2001:db8::9]::[2001:db8::1]:64::eth0:none:9000:[2001:db8::53]"),
        ("digest", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        ("store-path", SYSTEM),
        ("channel", "stable-26.05"),
        ("public-key", public.as_str()),
        ("device-label", "LABEL=\"my cache\""),
        ("device-link", "/dev/disk/by-partlabel/disk\\x2dmain-root"),
        ("device-path", "/dev/mapper/vg-root"),
        ("duration", "1h30min"),
        ("span", "1min 30s"),
        ("size", "512MiB"),
        ("percent", "50%"),
        ("url", "https://user:word@images.example:8443/freshroot?x=1#y"),
    ] {
        sink.put("words", name, word)?;
    }
    Ok(())
}

/// As a Debian kernel writes them.
pub(super) fn kernel(sink: &mut Sink<'_>) -> Result<()> {
    for (name, text) in [
        (
            "block",
            "add@/devices/virtual/block/loop0\0ACTION=add\0DEVPATH=/devices/virtual/block/loop0\0SUBSYSTEM=block\0MAJOR=7\0MINOR=0\0DEVNAME=loop0\0DEVTYPE=disk\0DISKSEQ=1\0SEQNUM=1234\0",
        ),
        (
            "pci",
            "add@/devices/pci0000:00/0000:00:03.0\0ACTION=add\0DEVPATH=/devices/pci0000:00/0000:00:03.0\0SUBSYSTEM=pci\0PCI_CLASS=20000\0PCI_ID=1AF4:1000\0MODALIAS=pci:v00001AF4d00001000sv00001AF4sd00000001bc02sc00i00\0SEQNUM=700\0",
        ),
        (
            "mounts",
            "24 1 0:22 / / rw,relatime shared:1 - tmpfs none rw,size=2g\n31 24 7:0 / /nix/.ro-store ro,relatime - squashfs /dev/loop0 ro\n36 24 0:30 / /mnt/with\\040blank\\011tab rw - ext4 /dev/sda1 rw\n40 36 0:31 /sub /mnt/with\\040blank\\011tab/below rw - proc proc rw\n44 24 0:40 / /sysroot rw - tmpfs none rw\n",
        ),
    ] {
        sink.put("uevent", name, text)?;
    }
    let properties =
        b"ACTION=add\0DEVPATH=/devices/virtual/block/loop0\0SUBSYSTEM=block\0DEVLINKS=/dev/disk/by-id/a /dev/disk/by-label/b\0";
    let mut udev = b"libudev\0\xfe\xed\xca\xfe".to_vec();
    udev.extend([40, 40, properties.len() as u32, 0, 0, 0, 0].into_iter().flat_map(u32::to_ne_bytes));
    udev.extend(properties);
    sink.put("uevent", "udev", udev)?;
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    for case in [
        "a-report-shows-how-the-system-was-booted",
        "a-report-shows-why-a-boot-failed",
        "a-report-of-a-newer-version-is-refused",
    ] {
        let path = golden.join(case).join("root/run/freshroot/boot.json");
        sink.put(
            "report",
            case,
            fs::read(&path).with_context(|| format!("reading {}", path.display()))?,
        )?;
    }
    let files = [
        "kernel/fs/ext4/ext4.ko.xz: kernel/lib/crc16.ko.xz kernel/fs/mbcache.ko.xz kernel/fs/jbd2/jbd2.ko.xz\nkernel/lib/crc16.ko.xz:\nkernel/drivers/nvme/host/nvme.ko: kernel/drivers/nvme/host/nvme-core.ko\nkernel/drivers/nvme/host/nvme-core.ko:",
        "# Aliases extracted from modules themselves.\nalias fs-ext4 ext4\nalias pci:v*d*sv*sd*bc01sc08i02* nvme\nalias usb:v046DpC24[0-9a-f]d*dc*dsc*dp*ic*isc*ip*in* hid_x\nalias platform:rtc-cmos rtc_cmos\nalias acpi*:PNP0[!A-C]??:* pnp\nalias char-major-10-236 loop\nalias *-any any",
        "softdep ext4 pre: crc32c post: crypto-x\nsoftdep nvme pre: a b",
        "kernel/drivers/block/loop.ko\nkernel/drivers/rtc/rtc-cmos.ko",
        "pci:v00001AF4d00001001sv00001AF4sd00000002bc01sc08i02\nusb:v046DpC24fd0101dc00dsc00dp00ic03isc01ip02in00\nfs-ext4\nacpi:PNP0D10:",
    ];
    sink.put("modules", "debian", files.join("\0"))?;
    sink.put("modules", "aliases", ["", files[1], "", "", files[4]].join("\0"))?;
    sink.put(
        "modules",
        "patterns",
        "\0alias a[]-]b x\nalias a[^!]* y\nalias [ z\nalias \\*\\ w\nalias **? v\0\0\0a]b\naab\n[\n*\\\na",
    )
}

pub(super) fn publishing(sink: &mut Sink<'_>) -> Result<()> {
    let entry = |path: &str, references: &[&str]| {
        let mut entry = format!(
            "{path}\nsha256:1b4sb93wp679q4zx9k1ignby1yna3z7c4c2ri3wphylbc2dwsys0\n196040\n\n{}\n",
            references.len()
        );
        references.iter().for_each(|reference| entry += &format!("{reference}\n"));
        entry
    };
    let libc = "/nix/store/3c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-glibc-2.41";
    sink.put("registration", "closure", entry(libc, &[libc]) + &entry(SYSTEM, &[libc]))?;
    sink.put("registration", "not-whole", entry(SYSTEM, &[libc]))?;
    sink.put("registration", "one", entry(libc, &[]))?;
    sink.put(
        "kernel_params",
        "usual",
        "console=ttyS0,115200 loglevel=4 root=fstab \"a=b c\" x=\"y z\"\n",
    )?;
    sink.put("kernel_params", "ipxe", "a=${net0/mac} b=\"c  d\" ; || #e")?;
    // Linux, Documentation/arch/x86/boot.rst: magic, version, and where the release stands.
    let mut head = vec![0; 0x260];
    head[0x202..0x206].copy_from_slice(b"HdrS");
    head[0x20e..0x210].copy_from_slice(&0x40_u16.to_le_bytes());
    head[0x240..0x256].copy_from_slice(b"6.12.30 (nixbld@host) ");
    sink.put("kernel_params", "bzimage", head)
}
