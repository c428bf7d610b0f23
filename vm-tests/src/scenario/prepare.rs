//! Disks that are prepared at boot, and disks that must not be.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Scenario;
use crate::command::Tool;
use crate::disk::{Disk, FsType};
use crate::stage_1::workshop;
use crate::system::{Spec, System};
use crate::trial::{Boot, Trial};

/// The tests of this file.
pub const ALL: &[Scenario] = &[
    Scenario::new(
        "prepare-grow",
        "the last partition of a disk that has become larger grows over power cuts, with ext4 in a container, or XFS; one with something behind it stays",
        grow,
    )
    .nightly(),
    Scenario::new(
        "prepare",
        "a blank disk is prepared, with a LUKS container on it, opened and mounted at its first boot, and left alone from then on",
        blank,
    ),
    Scenario::new(
        "prepare-cut",
        "a preparation that power cuts end again and again is gone on with at each next boot",
        cut,
    )
    .nightly(),
    Scenario::new(
        "prepare-refused",
        "disks that hold something are not prepared, are named, and are the same byte for byte",
        refused,
    ),
];

const LIMIT: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// What makes file systems, and what looks whether there is none. A guest's initrd has no C library: theirs goes with them.
const PROGRAMS: [&str; 4] = ["mkfs.ext4", "mkfs.btrfs", "mkswap", "blkid"];

/// Places in the initrd, and files of the host.
fn programs() -> Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    let mut libraries = BTreeSet::new();
    for name in PROGRAMS {
        let file = ["/usr/sbin", "/sbin", "/usr/bin"].iter().map(|folder| Path::new(folder).join(name));
        let file = file
            .into_iter()
            .find(|file| file.is_file())
            .with_context(|| format!("there is no {name} (e2fsprogs, btrfs-progs, util-linux)"))?;
        let needed = Tool::new("ldd", LIMIT).arg(&file).text()?;
        libraries.extend(needed.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned));
        files.push((format!("/bin/{name}"), file));
    }
    files.extend(libraries.into_iter().map(|library| (library.clone(), PathBuf::from(library))));
    Ok(files)
}

fn with_programs(boot: Boot<'_>) -> Result<Boot<'_>> {
    Ok(programs()?.into_iter().fold(boot, |boot, (place, file)| boot.file(&place, &file)))
}

fn config() -> Value {
    let mount = |label: &str, kind: &str, options: &[&str]| json!({ "device": format!("/dev/disk/by-partlabel/disk-main-{label}"), "fsType": kind, "options": options });
    json!({
        "policy": { "mode": "offline" },
        "disks": { "main": {
            "device": "/dev/disk/by-id/virtio-disk1", "size": { "min": "200M", "max": "1G" }, "prepare": true,
            "partitions": [
                { "name": "swap", "size": "8M", "content": { "type": "swap" } },
                { "name": "keys", "size": "16M", "content": { "type": "filesystem", "format": "ext4", "label": "keys" } },
                { "name": "state", "size": "100%", "content": { "type": "btrfs", "subvolumes": ["logs"] } },
            ],
        } },
        "fileSystems": {
            "/keys": mount("keys", "ext4", &["noatime"]),
            "/persist": mount("state", "btrfs", &["subvol=logs"]),
        },
    })
}

fn boot<'a>(trial: &'a Trial<'a>, cache: &Disk, disk: &Disk, system: &System) -> Result<Boot<'a>> {
    with_programs(trial.boot().config(config()).disk(cache).disk(disk).system(system))
}

const WRITE: &str = "set -e; findmnt -n -o SOURCE /persist | grep -qF '/dev/vdb3[/logs]'; findmnt -n -o SOURCE /keys | grep -qx /dev/vdb2; echo kept | tee /persist/file >/keys/file";

/// A LUKS container, which the same boot opens, and a file system beside it.
fn crypt() -> Value {
    json!({
        "policy": { "mode": "offline" },
        "disks": { "main": {
            "device": "/dev/disk/by-id/virtio-disk1", "size": { "min": "128M", "max": "1G" }, "prepare": true,
            "partitions": [
                { "name": "keys", "size": "8M", "content": { "type": "filesystem", "format": "ext4", "label": "keys" } },
                { "name": "crypt", "size": "100%", "content": {
                    "type": "luks", "name": "state", "settings": { "keyFile": "/etc/keys/disks" },
                    "extraFormatArgs": ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"],
                    "content": { "type": "filesystem", "format": "ext4", "label": "state" },
                } },
            ],
        } },
        "luks": { "state": { "device": "/dev/disk/by-partlabel/disk-main-crypt", "keyFile": "/etc/keys/disks" } },
        "fileSystems": {
            "/keys": { "device": "LABEL=keys", "fsType": "ext4", "options": [] },
            "/persist": { "device": "/dev/mapper/state", "fsType": "ext4", "options": [] },
        },
    })
}

const WRITE_CRYPT: &str = "set -e; lsblk -n -s -o TYPE $(findmnt -n -o SOURCE /persist) | grep -qx crypt; findmnt -n -o SOURCE /keys | grep -qx /dev/vdb1; echo kept | tee /persist/file >/keys/file";
const LOOK: &str = "set -e; grep -qx kept /persist/file; grep -qx kept /keys/file";

fn with_tools<'a>(trial: &'a Trial<'a>, config: Value, cache: &Disk, disk: &Disk, system: &System) -> Boot<'a> {
    let boot = trial.boot().with_tools().config(config);
    boot.disk(cache).disk(disk).system(system).patience(2)
}

/// Three disks: ext4 in a LUKS container, XFS, and one behind whose partition there is something.
fn growing() -> Value {
    let disk = |number: u32, format: &str| {
        json!({
            "device": format!("/dev/disk/by-id/virtio-disk{number}"), "size": { "min": "128M", "max": "1G" }, "prepare": true, "grow": true,
            "partitions": [{ "name": "data", "size": "100%", "content": { "type": "filesystem", "format": format } }],
        })
    };
    let mount =
        |name: &str, format: &str| json!({ "device": format!("/dev/disk/by-partlabel/disk-{name}-data"), "fsType": format, "options": [] });
    let mut config = crypt();
    let more = json!({
        "disks": { "main": { "grow": true }, "next": disk(2, "xfs"), "stays": disk(3, "ext4") },
        "fileSystems": { "/xfs": mount("next", "xfs"), "/stays": mount("stays", "ext4") },
    });
    crate::lab::merge(&mut config, &more);
    config
}

fn grow(trial: &Trial<'_>) -> Result<()> {
    const LARGER: u64 = 200;
    let cache = trial.filled_cache()?;
    // An XFS needs 300 MB at least.
    let sizes = [160, 320, 160];
    let disks: Vec<Disk> = ["grown", "xfs", "stays"]
        .into_iter()
        .zip(sizes)
        .map(|(name, size)| Disk::blank(&trial.dir.join(format!("{name}.img")), size))
        .collect::<Result<_>>()?;
    let system = trial.lab.system(Spec::generation(1))?;
    let boot = || {
        let boot = with_tools(trial, growing(), &cache, &disks[0], &system);
        disks[1..].iter().fold(boot, Boot::disk)
    };
    let script = format!("{WRITE_CRYPT}; echo kept | tee /xfs/file >/stays/file");
    let booted = boot().script(&script).once("prepared")?;
    for number in 0..3 {
        let outcome = booted.text(&format!("/disks/{number}/outcome"));
        ensure!(outcome == "prepared", "report: {}", booted.report);
    }

    for (disk, size) in disks.iter().zip(sizes) {
        let file = File::options().write(true).open(disk.path()).context("opening the disk")?;
        file.set_len((size + LARGER) * MIB).context("making the disk larger")?;
    }
    write(&disks[2], (sizes[2] + 77) * MIB, &[1])?;
    let table = first_mib(&disks[2])?;
    // Each line is told before its step: how much of it is done when the power goes is the host's choice.
    for (number, line) in ["entries of the GPT, behind the old ones", "zeros behind the entries"]
        .iter()
        .enumerate()
    {
        let mut vm = boot().start(&format!("cut-{number}"))?;
        vm.wait_for(&[line])?;
        vm.cut_power()?;
    }
    let look = format!(
        "{LOOK}; grep -qx kept /xfs/file; grep -qx kept /stays/file
         size() {{ findmnt -b -n -o SIZE $1; }}
         echo sizes=$(size /persist),$(size /xfs),$(size /stays)
         test $(size /persist) -gt {}; test $(size /xfs) -gt {}; test $(size /stays) -lt {}",
        (sizes[0] + LARGER - 60) * MIB,
        (sizes[1] + LARGER - 100) * MIB,
        sizes[2] * MIB
    );
    let booted = boot().script(&look).once("grown")?;
    let disk_of = |name: &str| {
        let reports = booted.report["disks"].as_array();
        let report = reports.and_then(|reports| reports.iter().find(|report| report["name"] == name));
        report.with_context(|| format!("{name} is not in the report: {}", booted.report))
    };
    for (name, outcomes) in [
        ("main", ["grown", "unchanged"]),
        ("next", ["grown", "unchanged"]),
        ("stays", ["refused", "refused"]),
    ] {
        let report = disk_of(name)?;
        // The power may go before or after the last write.
        ensure!(outcomes.iter().any(|outcome| report["outcome"] == *outcome), "{name}: {report}");
    }
    let why = disk_of("stays")?["detail"].to_string();
    ensure!(
        why.contains(&format!("is not grown: the byte at {}", (sizes[2] + 77) * MIB)),
        "the third disk: {why}"
    );
    ensure!(first_mib(&disks[2])? == table, "the table of the third disk was written to");
    disks[..2].iter().try_for_each(table_is_sound)
}

fn first_mib(disk: &Disk) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(MIB)?];
    let file = File::open(disk.path()).with_context(|| format!("opening {}", disk.path().display()))?;
    file.read_exact_at(&mut bytes, 0)
        .with_context(|| format!("reading {}", disk.path().display()))?;
    Ok(bytes)
}

fn blank(trial: &Trial<'_>) -> Result<()> {
    let cache = trial.filled_cache()?;
    let disk = Disk::blank(&trial.dir.join("blank.img"), 160)?;
    let system = trial.lab.system(Spec::generation(1))?;
    let boot = || with_tools(trial, crypt(), &cache, &disk, &system);
    let booted = boot().script(WRITE_CRYPT).once("first")?;
    ensure!(booted.text("/disks/0/outcome") == "prepared", "report: {}", booted.report);
    table_is_sound(&disk)?;
    // Neither the table nor the head of the container.
    let before = fixed(&disk)?;
    let booted = boot().script(LOOK).once("second")?;
    ensure!(booted.text("/disks/0/outcome") == "unchanged", "report: {}", booted.report);
    ensure!(
        fixed(&disk)? == before,
        "the second boot wrote to the table or to the head of the container"
    );
    Ok(())
}

/// What nothing but a preparation writes to: the first MiB of the disk, and that of the container.
pub(super) fn fixed(disk: &Disk) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(2 * MIB)?];
    let (table, head) = bytes.split_at_mut(usize::try_from(MIB)?);
    let file = File::open(disk.path()).with_context(|| format!("opening {}", disk.path().display()))?;
    for (part, offset) in [(table, 0), (head, 9 * MIB)] {
        file.read_exact_at(part, offset)
            .with_context(|| format!("reading {}", disk.path().display()))?;
    }
    Ok(bytes)
}

pub(super) fn table_is_sound(disk: &Disk) -> Result<()> {
    let verified = Tool::new("sfdisk", LIMIT).arg("--verify").arg(disk.path()).text()?;
    ensure!(verified.contains("No errors detected"), "{verified}");
    Ok(())
}

fn cut(trial: &Trial<'_>) -> Result<()> {
    let cache = trial.filled_cache()?;
    let system = trial.lab.system(Spec::generation(1))?;
    let disk = Disk::blank(&trial.dir.join("cut.img"), 256)?;
    // Each line is told before its step: how much of the step is done when the power goes is the host's choice.
    let lines = [
        "claim (sha256",
        "mkfs.ext4 -q",
        "mkfs.btrfs -q",
        "header of the backup GPT",
        "zeros over the claim",
    ];
    for (number, line) in lines.iter().enumerate() {
        let mut vm = boot(trial, &cache, &disk, &system)?.start(&format!("cut-{number}"))?;
        vm.wait_for(&[line]).with_context(|| format!("after {number} power cuts"))?;
        vm.cut_power()?;
    }
    let booted = boot(trial, &cache, &disk, &system)?.script(WRITE).once("again")?;
    let outcome = booted.text("/disks/0/outcome");
    ensure!(["prepared", "unchanged"].contains(&outcome), "{}", booted.report);
    table_is_sound(&disk)
}

/// A disk that must not be touched: its name, what makes it so on the host, and words of the refusal.
type Case = (&'static str, fn(&Disk) -> Result<()>, &'static [&'static str]);

/// Size of each, in MiB.
pub(super) const SIZE: u64 = 64;

/// The first three are made by a machine, with the tools and the kernel of LVM and MD.
const CASES: [Case; 10] = [
    ("raid", nothing, &["it holds linux_raid_member"]),
    ("raid-old", nothing, &["it holds linux_raid_member"]),
    ("lvm", nothing, &["it holds LVM2_member"]),
    ("ext4", ext4, &["it holds ext4 LABEL=precious", "blkid sees"]),
    ("luks", luks, &["it holds crypto_LUKS"]),
    ("gpt-end", gpt_at_the_end, &["the backup of a GPT at 67108352"]),
    ("zfs-end", zfs_at_the_end, &["ZFS label at 66715648"]),
    (
        "middle",
        |disk| write(disk, 32 * MIB + 12345, &[1]),
        &["the byte at 33566777 is not zero"],
    ),
    ("small", nothing, &["its size of 67108864 bytes is not within"]),
    ("free", nothing, &[]),
];

fn nothing(_: &Disk) -> Result<()> {
    Ok(())
}

fn write(disk: &Disk, offset: u64, bytes: &[u8]) -> Result<()> {
    let file = File::options().write(true).open(disk.path());
    file.and_then(|file| file.write_all_at(bytes, offset))
        .with_context(|| format!("writing to {}", disk.path().display()))
}

pub(super) fn ext4(disk: &Disk) -> Result<()> {
    Disk::make(disk.path(), SIZE, FsType::Ext4, "precious").map(drop)
}

fn luks(disk: &Disk) -> Result<()> {
    let key = tempfile::NamedTempFile::new().context("making a key file")?;
    std::fs::write(key.path(), crate::lab::STACK_KEY).context("writing a key file")?;
    Tool::new("cryptsetup", LIMIT)
        .args([
            "luksFormat",
            "-q",
            "--type",
            "luks2",
            "--pbkdf",
            "pbkdf2",
            "--pbkdf-force-iterations",
            "1000",
        ])
        .args([disk.path(), key.path()])
        .run()
}

fn gpt_at_the_end(disk: &Disk) -> Result<()> {
    Tool::new("sgdisk", LIMIT).args(["--new", "1"]).arg(disk.path()).run()?;
    write(disk, 0, &vec![0; usize::try_from(MIB)?])
}

/// The third and the fourth label: heads of their name-value lists, and an uberblock each.
fn zfs_at_the_end(disk: &Disk) -> Result<()> {
    const LABEL: u64 = 256 << 10;
    for start in [SIZE * MIB - 2 * LABEL, SIZE * MIB - LABEL] {
        write(disk, start + (16 << 10), &[1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])?;
        write(disk, start + (128 << 10), &0x00ba_b10c_u64.to_le_bytes())?;
    }
    Ok(())
}

pub(super) fn digest(disk: &Disk) -> Result<String> {
    let text = Tool::new("sha256sum", LIMIT).arg(disk.path()).text()?;
    Ok(text.split_whitespace().next().unwrap_or_default().to_owned())
}

fn refused(trial: &Trial<'_>) -> Result<()> {
    let disks: Vec<Disk> = CASES
        .iter()
        .map(|(name, make, _)| {
            let disk = Disk::blank(&trial.dir.join(format!("{name}.img")), SIZE)?;
            make(&disk).with_context(|| format!("making the disk {name}"))?;
            Ok(disk)
        })
        .collect::<Result<_>>()?;
    let cache = trial.filled_cache()?;
    let mut made = disks[..3].to_vec();
    made.push(cache.clone());
    workshop::run(
        trial,
        &made,
        "modprobe raid1
         mdadm --create /dev/md0 --run --force --level=1 --raid-devices=1 --metadata=1.2 /dev/vda
         mdadm --create /dev/md1 --run --force --level=1 --raid-devices=1 --metadata=0.90 /dev/vdb
         mdadm --stop /dev/md0; mdadm --stop /dev/md1; lvm pvcreate -q /dev/vdc",
        LIMIT,
    )?;
    let before = disks.iter().map(digest).collect::<Result<Vec<_>>>()?;

    let declared: serde_json::Map<String, Value> = CASES
        .iter()
        .zip(1..)
        .map(|((name, _, _), number)| {
            let min = if *name == "small" { "100M" } else { "16M" };
            let disk = json!({
                "device": format!("serial=disk{number}"), "size": { "min": min, "max": "1G" }, "prepare": true,
                "partitions": [{ "name": "data", "size": "100%", "content": { "type": "filesystem", "format": "ext4" } }],
            });
            ((*name).to_owned(), disk)
        })
        .collect();
    let mount = |name: &str| json!({ "device": format!("/dev/disk/by-partlabel/disk-{name}-data"), "fsType": "ext4", "options": [], "need": "degraded", "timeout": 2 });
    let config = json!({
        "policy": { "mode": "offline" }, "disks": declared,
        "fileSystems": { "/old": mount("ext4"), "/new": mount("free") },
    });
    let system = trial.lab.system(Spec::generation(1))?;
    let boot = trial.boot().config(config).disk(&cache).system(&system);
    let booted = with_programs(disks.iter().fold(boot, Boot::disk))?
        .script("set -e; findmnt -n -o SOURCE /old | grep -qx freshroot-missing; findmnt -n -o FSTYPE /new | grep -qx ext4")
        .once("boot")?;

    let reports = booted.report["disks"].as_array().context("the report has no disks")?;
    for (((name, _, words), disk), before) in CASES.iter().zip(&disks).zip(before) {
        let report = reports.iter().find(|report| report["name"] == *name);
        let report = report.with_context(|| format!("{name} is not in the report: {}", booted.report))?;
        let detail = report["detail"].as_str().unwrap_or_default();
        let same = digest(disk)? == before;
        if words.is_empty() {
            ensure!(report["outcome"] == "prepared" && !same, "a blank disk among the others: {report}");
            continue;
        }
        ensure!(
            report["outcome"] == "refused" && words.iter().all(|word| detail.contains(word)) && detail.contains("/dev/vd"),
            "{name}: {report}"
        );
        ensure!(same, "{name} was written to");
        println!("{name}: {detail}");
    }
    Ok(())
}
