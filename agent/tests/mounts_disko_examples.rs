//! The examples in disko's tree, as NixOS flattens them, in our own words: each is mounted on disks that are partitioned as it says, or told what it needs. The table
//! is in the output. As root, in a mount name space of its own; needs losetup and sfdisk.
//!
//! The root is a tmpfs here, so that an example's `/` is mounted at `/persist`, and its `/nix` at `/nix/persist`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod disko;
    pub mod disks;
}

use std::fs;
use std::path::Path;

use freshroot::boot::system::entries;
use freshroot::device::DeviceName;
use freshroot::device::name::disko_partlabel;
use freshroot::mode::Mode;
use freshroot::mount::entry::MountKind;
use freshroot::mount::mount_log::MountLog;
use freshroot::mount::persist::{Outcome, apply};
use freshroot::settings::Settings;
use freshroot::uevent::Socket;
use serde_json::{Value, json};
use support::disko::{Partitioned, find};
use support::disks::{bare_root, private_mounts, run};

/// `example/` of disko at commit 878ec37d (14 March 2026), without the ending `.nix`.
const EXAMPLES: [&str; 39] = [
    "bcachefs",
    "boot-raid1",
    "btrfs-only-root-subvolume",
    "btrfs-subvolumes",
    "complex",
    "f2fs",
    "gpt-bios-compat",
    "gpt-name-with-whitespace",
    "gpt-unformatted",
    "hybrid",
    "hybrid-mbr",
    "hybrid-tmpfs-on-root",
    "legacy-table",
    "legacy-table-with-whitespace",
    "long-device-name",
    "luks-btrfs-raid",
    "luks-btrfs-subvolumes",
    "luks-interactive-login",
    "luks-lvm",
    "luks-on-mdadm",
    "lvm-raid",
    "lvm-sizes-sort",
    "lvm-thin",
    "mdadm",
    "mdadm-raid0",
    "mdadm-raid5-args",
    "multi-device-no-deps",
    "negative-size",
    "non-root-zfs",
    "simple-efi",
    "stand-alone",
    "swap",
    "tmpfs",
    "with-lib",
    "xfs-with-quota",
    "zfs",
    "zfs-encrypted-root",
    "zfs-over-legacy",
    "zfs-with-vdevs",
];

/// What an example is to come to in standalone mode.
enum Expected {
    /// All is mounted and written to, but for what this kernel does not know and is said so.
    Mounted,
    /// All that is on plain partitions; the rest is on devices that programs of the initrd make, as the boot of this name does.
    Stacked(&'static str),
    /// Refused before anything is mounted, in words that hold this.
    Refused(&'static str),
}

/// Name of a disk, and its partitions: name, MiB, and the program that makes the file system, if there is one.
type Disks = &'static [(&'static str, &'static [(&'static str, u64, &'static str)])];

struct Example {
    name: &'static str,
    disks: Disks,
    config: Value,
    expected: Expected,
}

fn part(disk: &str, partition: &str) -> String {
    let name = DeviceName::PartLabel(disko_partlabel("disk", disk, partition));
    name.link().unwrap().to_str().unwrap().to_owned()
}

fn on(device: &str, fs_type: &str, options: &[&str]) -> Value {
    json!({"device": device, "fsType": fs_type, "options": options, "need": "degraded"})
}

fn esp(disk: &str) -> Value {
    on(&part(disk, "ESP"), "vfat", &["umask=0077"])
}

const EFI: Disks = &[("main", &[("ESP", 40, "mkfs.vfat"), ("root", 16, "mkfs.ext4 -q")])];

/// An ESP and a root, which most examples have besides what they are about.
fn efi(name: &'static str, more: Value) -> Example {
    let mut config = json!({"fileSystems": {
        "/boot": esp("main"),
        "/persist": on(&part("main", "root"), "ext4", &["defaults"]),
    }});
    merge(&mut config, more);
    Example {
        name,
        disks: EFI,
        config,
        expected: Expected::Mounted,
    }
}

fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more,
    }
}

fn plain(name: &'static str, disks: Disks, file_systems: Value) -> Example {
    Example {
        name,
        disks,
        config: json!({"fileSystems": file_systems}),
        expected: Expected::Mounted,
    }
}

/// On a disk with an ESP, and the rest on devices of a stack.
fn stacked(name: &'static str, boot: &'static str, luks: Value, file_systems: Value) -> Example {
    Example {
        name,
        disks: &[],
        config: json!({"luks": luks, "fileSystems": file_systems}),
        expected: Expected::Stacked(boot),
    }
}

fn zfs(name: &'static str, datasets: &[(&str, &str)]) -> Example {
    let file_systems: serde_json::Map<String, Value> = datasets
        .iter()
        .map(|(place, dataset)| ((*place).to_owned(), on(dataset, "zfs", &["zfsutil"])))
        .collect();
    Example {
        name,
        disks: &[],
        config: json!({"fileSystems": file_systems}),
        expected: Expected::Refused("«zfs»"),
    }
}

fn on_partitions() -> Vec<Example> {
    vec![
        plain(
            "btrfs-only-root-subvolume",
            &[("main", &[("ESP", 40, "mkfs.vfat"), ("root", 140, "mkfs.btrfs -q")])],
            json!({"/boot": esp("main"), "/persist": on(&part("main", "root"), "btrfs", &["compress=zstd", "noatime"])}),
        ),
        Example {
            name: "btrfs-subvolumes",
            disks: &[("main", &[("ESP", 40, "mkfs.vfat"), ("root", 140, "subvolumes")])],
            config: json!({
                "fileSystems": {
                    "/boot": esp("main"),
                    "/persist": on(&part("main", "root"), "btrfs", &["subvol=/rootfs"]),
                    "/home": on(&part("main", "root"), "btrfs", &["compress=zstd", "subvol=/home"]),
                    "/nix/persist": on(&part("main", "root"), "btrfs", &["compress=zstd", "noatime", "subvol=/nix"]),
                    "/.swapvol": on(&part("main", "root"), "btrfs", &["subvol=/swap"]),
                    "/partition-root": on(&part("main", "root"), "btrfs", &[]),
                },
                "swapDevices": {"/.swapvol/swapfile": {}, "/.swapvol/swapfile2": {"options": ["defaults"]}, "/partition-root/swapfile": {}},
            }),
            expected: Expected::Mounted,
        },
        plain(
            "f2fs",
            &[(
                "main",
                &[
                    ("ESP", 40, "mkfs.vfat"),
                    ("root", 60, "mkfs.f2fs -q -O extra_attr,inode_checksum,sb_checksum,compression"),
                ],
            )],
            json!({"/boot": esp("main"),
                "/persist": on(&part("main", "root"), "f2fs", &["compress_algorithm=zstd:6,compress_chksum,atgc,gc_merge,lazytime,nodiscard"])}),
        ),
        plain(
            "gpt-bios-compat",
            &[("main", &[("boot", 1, ""), ("root", 16, "mkfs.ext4 -q")])],
            json!({"/persist": on(&part("main", "root"), "ext4", &["defaults"])}),
        ),
        plain(
            "gpt-name-with-whitespace",
            &[(
                "vdb",
                &[
                    ("ESP", 40, "mkfs.vfat"),
                    ("name with spaces", 40, "mkfs.vfat"),
                    ("name^with\\some@special#chars", 40, "mkfs.vfat"),
                    ("root", 16, "mkfs.ext4 -q"),
                ],
            )],
            json!({
                "/boot": esp("vdb"),
                "/name with spaces": on(&part("vdb", "name with spaces"), "vfat", &["defaults"]),
                "/name^with\\some@special#chars": on(&part("vdb", "name^with\\some@special#chars"), "vfat", &["defaults"]),
                "/persist": on(&part("vdb", "root"), "ext4", &["defaults"]),
            }),
        ),
        plain(
            "gpt-unformatted",
            &[("main", &[("ESP", 40, "mkfs.vfat"), ("empty", 8, ""), ("root", 16, "mkfs.ext4 -q")])],
            json!({"/boot": esp("main"), "/persist": on(&part("main", "root"), "ext4", &["defaults"])}),
        ),
        efi("hybrid", json!({})),
        plain(
            "hybrid-mbr",
            &[(
                "main",
                &[
                    ("TOW-BOOT-FI", 40, "mkfs.vfat"),
                    ("ESP", 40, "mkfs.vfat"),
                    ("root", 16, "mkfs.ext4 -q"),
                ],
            )],
            json!({"/boot": esp("main"), "/persist": on(&part("main", "root"), "ext4", &["defaults"])}),
        ),
        plain(
            "hybrid-tmpfs-on-root",
            &[("main", &[("ESP", 40, "mkfs.vfat"), ("nix", 16, "mkfs.ext4 -q")])],
            json!({"/boot": esp("main"), "/nix/persist": on(&part("main", "nix"), "ext4", &["defaults"])}),
        ),
        plain(
            "long-device-name",
            &[(
                "this-is-some-super-long-name-to-test-what-happens-when-the-name-is-too-long",
                &[("ESP", 40, "mkfs.vfat"), ("root", 16, "mkfs.ext4 -q")],
            )],
            json!({
                "/boot": esp("this-is-some-super-long-name-to-test-what-happens-when-the-name-is-too-long"),
                "/persist": on(
                    &part("this-is-some-super-long-name-to-test-what-happens-when-the-name-is-too-long", "root"),
                    "ext4",
                    &["defaults"],
                ),
            }),
        ),
        plain(
            "multi-device-no-deps",
            &[("disk0", &[("nix", 16, "mkfs.ext4 -q")]), ("disk1", &[("nix", 16, "mkfs.ext4 -q")])],
            json!({"/a": on(&part("disk0", "nix"), "ext4", &["defaults"]), "/b": on(&part("disk1", "nix"), "ext4", &["defaults"])}),
        ),
        plain(
            "negative-size",
            &[("disk0", &[("nix", 16, "mkfs.ext4 -q")])],
            json!({"/persist": on(&part("disk0", "nix"), "ext4", &["defaults"])}),
        ),
        efi("simple-efi", json!({})),
        efi(
            "swap",
            // The partition with a key of chance is left to the running system, and resumeDevice refused by the module.
            json!({"swapDevices": {part("main", "plainSwap"): {"discardPolicy": "both"}}}),
        ),
        efi(
            "tmpfs",
            json!({"fileSystems": {"/tmp": {"device": "tmpfs", "fsType": "tmpfs", "options": ["size=200M"]}}}),
        ),
        plain(
            "with-lib",
            &[("_dev_vdb", &[("boot", 1, ""), ("root", 16, "mkfs.ext4 -q")])],
            json!({"/persist": on(&part("_dev_vdb", "root"), "ext4", &["defaults"])}),
        ),
        plain(
            "xfs-with-quota",
            &[("main", &[("ESP", 40, "mkfs.vfat"), ("root", 320, "mkfs.xfs -q")])],
            json!({"/boot": esp("main"), "/persist": on(&part("main", "root"), "xfs", &["defaults", "pquota"])}),
        ),
        // A table without names: by the node of the partition, which the test fills in.
        plain(
            "legacy-table",
            &[("legacy", &[("ESP", 40, "mkfs.vfat"), ("root", 16, "mkfs.ext4 -q")])],
            json!({"/boot": on("@1", "vfat", &["umask=0077"]), "/persist": on("@2", "ext4", &["defaults"])}),
        ),
        plain(
            "legacy-table-with-whitespace",
            &[(
                "legacy",
                &[
                    ("ESP", 40, "mkfs.vfat"),
                    ("name with spaces", 40, "mkfs.vfat"),
                    ("root", 16, "mkfs.ext4 -q"),
                ],
            )],
            json!({
                "/boot": on("@1", "vfat", &["umask=0077"]),
                "/name_with_spaces": on("@2", "vfat", &["defaults"]),
                "/persist": on("@3", "ext4", &["defaults"]),
            }),
        ),
        plain(
            "stand-alone",
            &[("mbr", &[("root", 16, "mkfs.ext4 -q")])],
            json!({"/persist": on("@1", "ext4", &["defaults"])}),
        ),
        plain(
            "bcachefs",
            &[],
            json!({
                "/persist": on("/dev/disk/by-uuid/64e50034-ebe2-eaf8-1f93-cf56266a8d86", "bcachefs", &["X-mount.mkdir", "X-mount.subdir=subvolumes/root", "verbose"]),
                "/home": on("/dev/disk/by-uuid/64e50034-ebe2-eaf8-1f93-cf56266a8d86", "bcachefs", &["X-mount.mkdir", "X-mount.subdir=subvolumes/home"]),
                "/home/Documents": on("/dev/disk/by-uuid/64e50034-ebe2-eaf8-1f93-cf56266a8d87", "bcachefs", &["X-mount.mkdir"]),
            }),
        ),
    ]
}

fn on_stacks() -> Vec<Example> {
    let key = json!({"crypted": {"device": part("main", "luks"), "keyFile": "/tmp/secret.key"}});
    let ext4 = |device: &str| on(device, "ext4", &["defaults"]);
    let on_md = |name: &'static str, array: &str| {
        stacked(
            name,
            "stack-md",
            json!({}),
            json!({"/persist": ext4(&format!("/dev/disk/by-partlabel/mdadm-{array}-primary"))}),
        )
    };
    vec![
        stacked(
            "boot-raid1",
            "stack-md",
            json!({}),
            json!({"/boot": on("/dev/md/boot", "vfat", &["umask=0077"]), "/persist": ext4("/dev/disk/by-partlabel/mdadm-raid1-primary")}),
        ),
        stacked(
            "luks-btrfs-raid",
            "stack-luks",
            json!({
                "p1": {"device": part("disk1", "crypt_p1"), "keyFile": "/tmp/secret.key", "allowDiscards": true},
                "p2": {"device": part("disk2", "crypt_p2"), "keyFile": "/tmp/secret.key", "allowDiscards": true},
            }),
            json!({"/persist": on("/dev/mapper/p2", "btrfs", &["rw", "relatime", "ssd"])}),
        ),
        stacked(
            "luks-btrfs-subvolumes",
            "stack-luks",
            key.clone(),
            json!({
                "/persist": on("/dev/mapper/crypted", "btrfs", &["compress=zstd", "noatime", "subvol=/root"]),
                "/.swapvol": on("/dev/mapper/crypted", "btrfs", &["subvol=/swap"]),
            }),
        ),
        stacked(
            "luks-interactive-login",
            "stack-luks",
            json!({"crypted": {"device": part("main", "luks"), "allowDiscards": true}}),
            json!({"/persist": ext4("/dev/mapper/crypted")}),
        ),
        stacked(
            "luks-lvm",
            "stack-luks, stack-lvm",
            key.clone(),
            json!({"/persist": ext4("/dev/pool/root"), "/home": ext4("/dev/pool/home")}),
        ),
        stacked(
            "luks-on-mdadm",
            "stack-luks, stack-md",
            json!({"crypted": {"device": "/dev/md/raid1", "keyFile": "/tmp/secret.key"}}),
            json!({"/persist": ext4("/dev/mapper/crypted")}),
        ),
        stacked(
            "lvm-raid",
            "stack-lvm",
            json!({}),
            json!({"/persist": ext4("/dev/pool/root"), "/home": ext4("/dev/pool/home")}),
        ),
        stacked(
            "lvm-sizes-sort",
            "stack-lvm",
            json!({}),
            json!({"/persist": ext4("/dev/pool/aaa"), "/home": ext4("/dev/pool/zzz")}),
        ),
        stacked(
            "lvm-thin",
            "none: thin pools are not tried",
            json!({}),
            json!({"/persist": ext4("/dev/mainpool/root"), "/home": ext4("/dev/mainpool/home")}),
        ),
        on_md("mdadm", "raid1"),
        on_md("mdadm-raid0", "raid0"),
        on_md("mdadm-raid5-args", "raid5"),
    ]
}

fn on_pools() -> Vec<Example> {
    vec![
        zfs("complex", &[("/zfs_fs", "zroot/zfs_fs"), ("/zfs_legacy_fs", "zroot/zfs_legacy_fs")]),
        zfs("non-root-zfs", &[("/storage", "storage"), ("/storage/dataset", "storage/dataset")]),
        zfs("zfs", &[("/zfs_fs", "zroot/zfs_fs"), ("/zfs_crypted", "zroot/encrypted/test")]),
        zfs(
            "zfs-encrypted-root",
            &[("/persist", "zroot/root"), ("/nix/persist", "zroot/root/nix")],
        ),
        zfs("zfs-over-legacy", &[("/zfs_fs", "zroot/root/zfs_fs")]),
        zfs("zfs-with-vdevs", &[("/zfs_fs", "zroot/zfs_fs")]),
    ]
}

/// Makes the disks of an example, and fills in their nodes.
fn make(example: &mut Example, dir: &Path) -> Vec<Partitioned> {
    let mut made = Vec::new();
    for (disk, partitions) in example.disks {
        let table = if *disk == "mbr" { "dos" } else { "gpt" };
        let named: Vec<(String, u64)> = partitions
            .iter()
            .map(|(name, size, _)| match *disk {
                "legacy" | "mbr" => ((*name).to_owned(), *size),
                disk => (disko_partlabel("disk", disk, name), *size),
            })
            .collect();
        let named: Vec<(&str, u64)> = named.iter().map(|(name, size)| (name.as_str(), *size)).collect();
        let partitioned = Partitioned::new(dir, &format!("disk-{}", made.len()), table, &named);
        for (number, (_, _, program)) in (1..).zip(*partitions) {
            let node = partitioned.partition(number);
            match program.split_whitespace().collect::<Vec<_>>().as_slice() {
                [] => {}
                ["subvolumes"] => subvolumes(dir, &node),
                [program, arguments @ ..] => {
                    run(program, &[arguments, &[&node]].concat());
                }
            }
            let text = example
                .config
                .to_string()
                .replace(&format!("\"@{number}\""), &format!("\"{node}\""));
            example.config = serde_json::from_str(&text).unwrap();
        }
        made.push(partitioned);
    }
    made
}

fn subvolumes(dir: &Path, node: &str) {
    run("mkfs.btrfs", &["-q", node]);
    let top = dir.join("top");
    fs::create_dir_all(&top).unwrap();
    run("mount", &[node, top.to_str().unwrap()]);
    for name in ["rootfs", "home", "nix", "swap"] {
        run("btrfs", &["subvolume", "create", top.join(name).to_str().unwrap()]);
    }
    run("umount", &[top.to_str().unwrap()]);
}

/// What came of it, and whether that is as it should be.
fn outcome(example: &Example, dir: &Path, events: &mut Socket) -> Result<String, String> {
    let mut config = example.config.clone();
    merge(&mut config, json!({"version": 1}));
    let settings =
        Settings::from_sources(Some((example.name, config.to_string().as_bytes())), b"").map_err(|error| format!("{error:#}"))?;
    let whose = entries(&settings, Mode::Systemd).map_err(|error| format!("under systemd: {error:#}"))?;
    if let Some(entry) = whose.iter().find(|entry| !matches!(entry.kind(), MountKind::Systemds { .. })) {
        return Err(format!("under systemd {entry} is the agent's"));
    }
    let list = match (entries(&settings, Mode::Standalone), &example.expected) {
        (Ok(list), Expected::Mounted | Expected::Stacked(_)) => list,
        (Err(error), Expected::Refused(word)) if error.to_string().contains(word) => return Ok(format!("refused: {error:#}")),
        (Ok(_), Expected::Refused(word)) => return Err(format!("{word} is not refused")),
        (Err(error), _) => return Err(format!("{error:#}")),
    };
    let sysroot = bare_root(dir);
    let outcomes = apply(&sysroot, &list, &mut |entry| find(entry, events), &mut MountLog::new()).unwrap();
    let known = fs::read_to_string("/proc/filesystems").unwrap();
    let mut told = Vec::new();
    let mut wrong = Vec::new();
    for entry in &outcomes {
        let place = entry.mount_point.display().to_string();
        let fs_type = config["fileSystems"][&place]["fsType"].as_str().unwrap_or_default().to_owned();
        let is_known = known.lines().any(|line| line.split_whitespace().last() == Some(&fs_type));
        let reason = match &entry.outcome {
            Outcome::Mounted => match fs::write(sysroot.join(place.trim_start_matches('/')).join("kept"), "x") {
                Ok(()) => {
                    told.push(format!("{place} mounted"));
                    continue;
                }
                Err(error) => error.to_string(),
            },
            Outcome::Missing { reason } => reason.clone(),
        };
        let good = match example.expected {
            Expected::Mounted => {
                (!is_known
                    && (reason.contains("does not know this file system") || (fs_type == "bcachefs" && reason.contains("no device is"))))
                    || reason.contains("quota support not available")
                    || reason.contains("lies below /home, which is missing")
            }
            Expected::Stacked(_) => reason.contains("no device is"),
            Expected::Refused(_) => false,
        };
        let first = if is_known || example.disks.is_empty() {
            reason.split(';').next().unwrap_or_default().to_owned()
        } else {
            format!("this kernel does not know {fs_type}")
        };
        if good { &mut told } else { &mut wrong }.push(format!("{place} missing: {first}"));
    }
    run("umount", &["-R", sysroot.to_str().unwrap()]);
    if wrong.is_empty() {
        Ok(told.join(", "))
    } else {
        Err(wrong.join(", "))
    }
}

#[test]
fn every_example_of_diskos_tree_is_mounted_or_told_what_it_needs() {
    let _alone = private_mounts();
    let mut events = Socket::open().unwrap();
    let mut examples: Vec<Example> = on_partitions().into_iter().chain(on_stacks()).chain(on_pools()).collect();
    let mut names: Vec<&str> = examples.iter().map(|example| example.name).collect();
    names.sort_unstable();
    assert_eq!(names, EXAMPLES);
    println!("| example | in standalone mode, here | devices of its kind in a boot | in systemd's stage 1 |\n|---|---|---|---|");
    let mut wrong = Vec::new();
    for example in &mut examples {
        let dir = tempfile::tempdir().unwrap();
        let _disks = make(example, dir.path());
        let boot = match example.expected {
            Expected::Mounted if example.disks.is_empty() => "none: Debian's kernels have no bcachefs",
            Expected::Mounted => "persistence",
            Expected::Stacked(boot) => boot,
            Expected::Refused(_) => "none",
        };
        match outcome(example, dir.path(), &mut events) {
            Ok(told) => println!("| {} | {told} | {boot} | systemd's |", example.name),
            Err(error) => wrong.push(format!("{}: {error}", example.name)),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
