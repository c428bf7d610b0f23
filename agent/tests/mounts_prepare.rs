//! Preparing disks, on real ones: loop devices that hold all kinds of things are refused and stay what they are, byte for byte; blank ones are prepared,
//! and what is made on them mounts.
//!
//! Needs root, losetup, and the tools that `vm-tests/packages.txt` names. Members of MD arrays and ZFS pools are written by their documented layout, since
//! their tools need kernel modules that not every kernel has.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, bail};
use freshroot::digest::{Digest, Hasher};
use freshroot::mount::growfs;
use freshroot::prepare::act::{carry_out, carry_out_growth};
use freshroot::prepare::blank::Refusal;
use freshroot::prepare::declaration::{Declared, declared};
use freshroot::prepare::look::{Intent, Looked, look, the_one};
use freshroot::prepare::plan::{Preparation, Step};
use freshroot::prepare::room::look_growth;
use freshroot::prepare::sysfs::known;
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
/// Drawn for each run: mkfs.btrfs refuses an id that any device of the machine has, and a second run beside this one has devices too.
static SEED: LazyLock<[u8; 16]> = LazyLock::new(|| {
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap();
    u128::from_str_radix(&uuid.trim().replace('-', ""), 16).unwrap().to_le_bytes()
});

/// One test at a time: devices of one test are not to be gone while another one looks at all of them, and a child that is just being started holds copies of
/// all descriptors.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(
        output.status.success(),
        "this test needs «{command}» to work: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A machine whose udev has made the links that a test wants, and whose devices and programs are those of this one.
struct Machine {
    root: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Machine {
    fn new() -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let root = tempfile::tempdir().unwrap();
        for name in ["sys", "dev", "proc"] {
            symlink(Path::new("/").join(name), root.path().join(name)).unwrap();
        }
        symlink("/usr/sbin", root.path().join("sbin")).unwrap();
        symlink("/usr/bin", root.path().join("bin")).unwrap();
        fs::create_dir_all(root.path().join("run/udev/data")).unwrap();
        Self { root, _alone: alone }
    }

    fn path(&self) -> &Path {
        self.root.path()
    }

    /// A disk of `size` bytes whose file `make` has filled, known as `/dev/disk/by-id/<id>`.
    fn disk(&self, id: &str, size: u64, make: impl FnOnce(&Path)) -> Disk {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        make(file.path());
        self.plug(id, file, "")
    }

    fn blank(&self, id: &str, size: u64) -> Disk {
        self.disk(id, size, |_| {})
    }

    /// One with logical sectors of 4096 bytes.
    fn blank_4096(&self, id: &str, size: u64) -> Disk {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        self.plug(id, file, "--sector-size 4096")
    }

    fn plug(&self, id: &str, file: tempfile::NamedTempFile, options: &str) -> Disk {
        let device = run(&format!("losetup --find --show --partscan {options} {}", file.path().display()));
        self.link(id, &device);
        let record = self.record(&device);
        Disk { file, device, record }
    }

    fn link(&self, id: &str, device: &str) {
        fs::write(self.record(device), format!("S:disk/by-id/{id}\n")).unwrap();
    }

    /// Where udev keeps what it knows of a device.
    fn record(&self, device: &str) -> PathBuf {
        let name = device.strip_prefix("/dev/").unwrap();
        let number = fs::read_to_string(format!("/sys/class/block/{name}/dev")).unwrap();
        self.path().join(format!("run/udev/data/b{}", number.trim()))
    }

    fn look(&self, declared: &Declared, intent: Intent) -> Result<Looked, Refusal> {
        let disks = known(self.path()).unwrap();
        let one = the_one(declared, &disks)?;
        look(self.path(), declared, one, intent, &SEED)
    }

    /// Looks, and does what is to be done until `before` ends it.
    fn prepare(&self, declared: &Declared, before: &mut dyn FnMut(&Step) -> Result<()>) -> Result<bool> {
        match self.look(declared, Intent::Write)? {
            Looked::Prepared => Ok(false),
            Looked::ToDo(preparation, hold) => carry_out(&preparation, &hold, before).map(|()| true),
        }
    }

    fn refusal(&self, declared: &Declared) -> String {
        match self.look(declared, Intent::Write) {
            Ok(looked) => panic!("it is not refused: {looked:?}"),
            Err(refusal) => refusal.to_string(),
        }
    }

    fn plan(&self, declared: &Declared) -> Preparation {
        match self.look(declared, Intent::Look).unwrap() {
            Looked::ToDo(preparation, _) => *preparation,
            Looked::Prepared => panic!("there is nothing to be done"),
        }
    }
}

/// Plugs a blank disk in, by its id and size.
type Blank = fn(&Machine, &str, u64) -> Disk;

/// A file that is plugged in as a disk, unplugged when dropped.
struct Disk {
    file: tempfile::NamedTempFile,
    device: String,
    record: PathBuf,
}

impl Disk {
    /// The digest of all its bytes, past every cache.
    fn digest(&self) -> Digest {
        run(&format!("blockdev --flushbufs {}", self.device));
        digest_of(self.file.path())
    }

    fn nodes(&self) -> Vec<String> {
        // A kernel may be built without the formats of partition tables; then it is told.
        run(&format!("partx --update {}", self.device));
        (1..=9)
            .map(|number| format!("{}p{number}", self.device))
            .filter(|path| Path::new(path).exists())
            .collect()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The number may be another process' loop device in a moment.
        fs::remove_file(&self.record).unwrap();
        let detached = Command::new("losetup").args(["--detach", &self.device]).status();
        assert!(
            detached.is_ok_and(|status| status.success()) || std::thread::panicking(),
            "{} is left behind",
            self.device
        );
    }
}

fn digest_of(path: &Path) -> Digest {
    use std::io::Read as _;
    let mut file = File::open(path).unwrap();
    let (mut hasher, mut buffer) = (Hasher::default(), vec![0; 1 << 20]);
    loop {
        let length = file.read(&mut buffer).unwrap();
        if length == 0 {
            return hasher.finish();
        }
        hasher.update(&buffer[..length]);
    }
}

fn write(path: &Path, offset: u64, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

fn shell(command: &'static str) -> Box<dyn Fn(&Path)> {
    Box::new(move |path| {
        run(&command.replace("{}", path.to_str().unwrap()));
    })
}

fn bytes(pieces: Vec<(u64, Vec<u8>)>) -> Box<dyn Fn(&Path)> {
    Box::new(move |path| pieces.iter().for_each(|(offset, bytes)| write(path, *offset, bytes)))
}

/// The declaration of a disk with one partition.
fn one(id: &str, check: Option<&str>) -> Declared {
    let mut source = json!({
        "device": format!("/dev/disk/by-id/{id}"), "size": {"min": "16M", "max": "1T"}, "prepare": true,
        "partitions": [{"name": "data", "size": "100%", "content": {"type": "filesystem", "format": "ext4", "label": "data"}}],
    });
    if let Some(check) = check {
        source["blankCheck"] = check.into();
    }
    declared("main", &source).unwrap()
}

/// A superblock of MD: version 0.90 and 1.x have their fields in different places.
fn md(minor: u32) -> Vec<u8> {
    let mut block = vec![0; 256];
    block[..4].copy_from_slice(&0xa92b_4efc_u32.to_le_bytes());
    block[8..12].copy_from_slice(&minor.to_le_bytes());
    block
}

fn md_1(sector: u64) -> Vec<u8> {
    let mut block = md(0);
    block[4..8].copy_from_slice(&1_u32.to_le_bytes());
    block[16..32].copy_from_slice(&[7; 16]);
    block[144..152].copy_from_slice(&sector.to_le_bytes());
    block
}

/// A label of ZFS: the name-value list's head and a ring with one uberblock.
fn zfs_label() -> Vec<u8> {
    let mut label = vec![0; 256 << 10];
    label[16 << 10..][..12].copy_from_slice(&[1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    label[128 << 10..][..8].copy_from_slice(&0x00ba_b10c_u64.to_le_bytes());
    label
}

/// What is on a disk, how large it is, who made it so, and a word of the refusal.
type Case = (&'static str, u64, Box<dyn Fn(&Path)>, &'static str);

fn not_blank() -> Vec<Case> {
    const SIZE: u64 = 64 * MIB;
    let luks = "echo x | cryptsetup -q luksFormat --pbkdf-force-iterations";
    let luks_1: Box<dyn Fn(&Path)> = Box::new(move |path| {
        run(&format!("{luks} 1000 --type luks1 {}", path.display()));
    });
    let luks_2 = move |path: &Path| {
        run(&format!("{luks} 4 --pbkdf-memory 32 --type luks2 {}", path.display()));
    };
    let second_header: Box<dyn Fn(&Path)> = Box::new(move |path| {
        luks_2(path);
        write(path, 0, &[0; 16 << 10]);
    });
    let on_a_device = |command: &'static str| -> Box<dyn Fn(&Path)> {
        Box::new(move |path| {
            let device = run(&format!("losetup --find --show {}", path.display()));
            run(&command.replace("{}", &device));
            run(&format!("losetup --detach {device}"));
        })
    };
    vec![
        ("ext4", SIZE, shell("mkfs.ext4 -q -L data {}"), "it holds ext4 LABEL=data"),
        (
            "an ext4 whose first 8 MiB are gone",
            SIZE,
            shell("mkfs.ext4 -q -b 1024 {} && dd if=/dev/zero of={} bs=1M count=8 conv=notrunc status=none"),
            "copy of ext's superblock at 8389688",
        ),
        ("XFS", 320 * MIB, shell("mkfs.xfs -q {}"), "it holds xfs"),
        ("btrfs", 128 * MIB, shell("mkfs.btrfs -q {}"), "it holds btrfs"),
        (
            "a btrfs whose first superblock is gone",
            128 * MIB,
            shell("mkfs.btrfs -q {} && dd if=/dev/zero of={} bs=1M count=32 conv=notrunc status=none"),
            "copy of btrfs's superblock at 67108928",
        ),
        ("FAT", SIZE, shell("mkfs.vfat -n DATA {}"), "it holds vfat LABEL=DATA"),
        ("exFAT", SIZE, shell("mkfs.exfat {}"), "it holds exfat"),
        ("F2FS", SIZE, shell("mkfs.f2fs -q {}"), "it holds f2fs"),
        ("NTFS", SIZE, shell("mkfs.ntfs -q -Q -F {}"), "it holds ntfs"),
        // Its mkfs wants an /etc/mtab.
        ("NILFS", SIZE, bytes(vec![(1030, b"44".to_vec())]), "NILFS at 1030"),
        ("JFS", SIZE, shell("mkfs.jfs -q {}"), "JFS at 32768"),
        ("ReiserFS", SIZE, bytes(vec![(65588, b"ReIsEr2Fs".to_vec())]), "ReiserFS at 65588"),
        (
            "squashfs",
            SIZE,
            shell(
                "cd /tmp && mkdir -p /tmp/empty-$$ && mksquashfs /tmp/empty-$$ {}.sq -quiet -no-progress && dd if={}.sq of={} conv=notrunc status=none; rm -r {}.sq /tmp/empty-$$",
            ),
            "it holds squashfs",
        ),
        ("swap", SIZE, shell("mkswap -q {}"), "it holds swap"),
        ("LUKS 1", SIZE, luks_1, "it holds crypto_LUKS"),
        ("LUKS 2", SIZE, Box::new(luks_2), "it holds crypto_LUKS"),
        (
            "a LUKS 2 without its first header",
            SIZE,
            second_header,
            "header of LUKS 2 (second) at 16384",
        ),
        (
            "a member of LVM",
            SIZE,
            on_a_device("pvcreate -q -y --devices {} {}"),
            "it holds LVM2_member",
        ),
        ("a member of bcache", SIZE, on_a_device("make-bcache -B {}"), "it holds bcache"),
        ("a GPT", SIZE, shell("echo 'label: gpt' | sfdisk -q {}"), "a GPT at 512"),
        (
            "a GPT at the end only",
            SIZE,
            shell("echo 'label: gpt' | sfdisk -q {} && dd if=/dev/zero of={} bs=1M count=1 conv=notrunc status=none"),
            "the backup of a GPT at 67108352",
        ),
        (
            "an MBR",
            SIZE,
            shell("echo 'start=2048' | sfdisk -q -X dos {}"),
            "a boot sector or MBR at 510",
        ),
        (
            "a member of MD 0.90",
            SIZE,
            bytes(vec![(SIZE - (64 << 10), {
                let mut block = md(90);
                block[20..24].copy_from_slice(&[9; 4]);
                block
            })]),
            "it holds linux_raid_member",
        ),
        (
            "a member of MD 1.0",
            SIZE,
            bytes(vec![(SIZE - 8192, md_1(SIZE / 512 - 16))]),
            "it holds linux_raid_member",
        ),
        (
            "a member of MD 1.2",
            SIZE,
            bytes(vec![(4096, md_1(8))]),
            "it holds linux_raid_member",
        ),
        ("a device of ZFS", SIZE, bytes(vec![(0, zfs_label())]), "it holds zfs_member"),
        (
            "ZFS labels at the end only",
            SIZE,
            bytes(vec![(SIZE - (512 << 10), zfs_label()), (SIZE - (256 << 10), zfs_label())]),
            "ZFS label at 66715648",
        ),
        (
            "DRBD's data at the end",
            SIZE,
            bytes(vec![(SIZE - 4096 + 60, b"\x83\x74\x02\x6d".to_vec())]),
            "DRBD at 67104828",
        ),
        ("BitLocker", SIZE, bytes(vec![(3, b"-FVE-FS-".to_vec())]), "BitLocker at 3"),
        (
            "VMFS",
            SIZE,
            bytes(vec![(MIB, b"\x0d\xd0\x01\xc0".to_vec())]),
            "VMFS volume at 1048576",
        ),
        (
            "one byte in the middle",
            SIZE,
            bytes(vec![(SIZE / 2 + 12345, vec![1])]),
            "the byte at 33566777 is not zero",
        ),
        (
            "its very last byte",
            SIZE,
            bytes(vec![(SIZE - 1, vec![1])]),
            "the byte at 67108863 is not zero",
        ),
    ]
}

#[test]
fn what_is_not_blank_is_refused_by_name_and_stays_what_it_is_byte_for_byte() {
    let machine = Machine::new();
    let cases = not_blank();
    assert!(cases.len() >= 15);
    for (what, size, make, word) in cases {
        let disk = machine.disk("not-blank", size, make);
        let before = disk.digest();
        assert_ne!(before, blank_digest(size), "{what}: nothing was made");
        for check in [None, Some("sampled"), Some("full")] {
            let refusal = machine.refusal(&one("not-blank", check));
            assert!(
                refusal.contains(word) && refusal.contains(&disk.device) && refusal.contains("erase it by hand"),
                "{what}, {check:?}: {refusal}"
            );
        }
        assert_eq!(disk.digest(), before, "{what} was written to");
        println!("{what}: refused, unchanged");
    }
}

fn blank_digest(size: u64) -> Digest {
    static KNOWN: Mutex<BTreeMap<u64, Digest>> = Mutex::new(BTreeMap::new());
    *KNOWN.lock().unwrap().entry(size).or_insert_with(|| {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        digest_of(file.path())
    })
}

#[test]
fn of_a_large_disk_a_large_used_region_in_the_middle_is_met_by_samples_and_a_small_one_by_a_full_read() {
    let machine = Machine::new();
    // Sparse: nothing but what is written takes room. A sample is taken every 512 KiB.
    let size = 2048 * MIB;
    let disk = machine.blank("large", size);
    write(disk.file.path(), size / 2, &vec![1; 513 << 10]);
    let refusal = machine.refusal(&one("large", Some("sampled")));
    assert!(refusal.contains("is not zero"), "{refusal}");
    drop(disk);
    let disk = machine.blank("large", size);
    let at = size / 2 + (100 << 10);
    write(disk.file.path(), at, &[1; 100]);
    let refusal = machine.refusal(&one("large", Some("full")));
    assert!(refusal.contains(&format!("the byte at {at} is not zero")), "{refusal}");
    // What samples cannot see: docs/disks.md says so, and how likely it is.
    assert!(machine.look(&one("large", Some("sampled")), Intent::Look).is_ok());
}

/// What they need, and no more: all of it is read many times over. A btrfs begins at 109 MiB.
const THREE: u64 = 148 * MIB;

/// Five partitions of which every kernel that runs this can mount two.
fn three(id: &str) -> Declared {
    let source: Value = json!({
        "device": format!("/dev/disk/by-id/{id}"), "size": {"min": "140M", "max": "1G"}, "prepare": true,
        "partitions": [
            {"name": "ESP", "size": "8M", "type": "EF00", "content": {"type": "filesystem", "format": "vfat", "label": "BOOT"}},
            {"name": "swap", "size": "2M", "content": {"type": "swap", "label": "swap"}},
            {"name": "keys", "size": "8M", "content": {"type": "filesystem", "format": "ext4", "label": "keys", "extraArgs": ["-m", "0"]}},
            {"name": "raw", "size": "1M", "type": "EF02"},
            {"name": "data", "size": "100%", "content": {"type": "btrfs", "label": "data", "subvolumes": ["logs", "keys", "deep/down"]}},
        ],
    });
    declared("main", &source).unwrap()
}

/// What blkid says of one thing about a device.
fn tag(device: &str, name: &str) -> String {
    run(&format!("blkid -p -s {name} -o value {device}"))
}

fn assert_prepared(machine: &Machine, disk: &Disk, declared: &Declared) {
    assert!(matches!(machine.look(declared, Intent::Look).unwrap(), Looked::Prepared));
    for verify in ["sfdisk --verify", "sgdisk --verify"] {
        let said = run(&format!("{verify} {} 2>&1", disk.device));
        assert!(said.contains("No errors detected") || said.contains("No problems found"), "{said}");
    }
    let mut claim = vec![0; 512];
    disk.file.as_file().read_exact_at(&mut claim, 512 << 10).unwrap();
    assert_eq!(claim, [0; 512], "the claim is left");
    let nodes = disk.nodes();
    let kinds: Vec<String> = nodes
        .iter()
        .enumerate()
        .map(|(number, node)| if number == 3 { String::new() } else { tag(node, "TYPE") })
        .collect();
    assert_eq!(kinds, ["vfat", "swap", "ext4", "", "btrfs"]);
    let labels: Vec<String> = nodes.iter().map(|node| tag(node, "PART_ENTRY_NAME")).collect();
    assert_eq!(
        labels,
        [
            "disk-main-ESP",
            "disk-main-swap",
            "disk-main-keys",
            "disk-main-raw",
            "disk-main-data"
        ]
    );
    if let Err(errno) = unshare(CloneFlags::CLONE_NEWNS) {
        panic!("this test needs root, to mount in a name space of its own: {errno}");
    }
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    let at = tempfile::tempdir().unwrap();
    for (node, kind) in [(&nodes[2], "ext4"), (&nodes[4], "btrfs")] {
        mount(node, at.path(), kind, MountFlags::empty(), None).unwrap();
        fs::write(at.path().join("file"), "kept").unwrap();
        if kind == "btrfs" {
            for path in ["logs", "keys", "deep/down"] {
                run(&format!("btrfs subvolume show {}", at.path().join(path).display()));
            }
        }
        unmount(at.path(), UnmountFlags::empty()).unwrap();
        mount(node, at.path(), kind, MountFlags::empty(), None).unwrap();
        assert_eq!(fs::read_to_string(at.path().join("file")).unwrap(), "kept");
        unmount(at.path(), UnmountFlags::empty()).unwrap();
    }
}

#[test]
fn a_blank_disk_is_prepared_as_the_dry_run_said_mounts_and_is_left_alone_from_then_on() {
    let machine = Machine::new();
    let declared = three("blank");
    let disk = machine.blank("blank", THREE);
    let plan = machine.plan(&declared);
    assert_eq!(disk.digest(), blank_digest(THREE), "a dry run writes nothing");
    assert!(machine.prepare(&declared, &mut |_| Ok(())).unwrap());
    for step in &plan.steps {
        if let Step::Write(piece) = step
            && piece.what != "claim"
        {
            let mut bytes = vec![0; piece.bytes.len()];
            disk.file.as_file().read_exact_at(&mut bytes, piece.offset).unwrap();
            assert!(bytes == piece.bytes, "{piece:?}");
        }
        if let Step::Make(making) = step {
            let node = format!("--offset {} {}", making.start, disk.device);
            assert_eq!(tag(&node, "UUID"), making.made.uuid, "{}", making.label);
        }
    }
    assert_prepared(&machine, &disk, &declared);
    // Also where a claim is left on it, be it ours, another's or damaged: it may have been used for years.
    let claim = plan.steps.iter().find_map(|step| match step {
        Step::Write(piece) if piece.what == "claim" => Some(piece.bytes.clone()),
        Step::Write(_) | Step::Make(_) | Step::Flush | Step::Reread => None,
    });
    let claim = claim.unwrap();
    let without_backup = |disk: &Disk| write(Path::new(&disk.device), THREE - 512, &[0; 512]);
    let mut damaged = claim.clone();
    damaged[100] ^= 1;
    for claim in [vec![0; 512], damaged, claim] {
        write(Path::new(&disk.device), 512 << 10, &claim);
        without_backup(&disk);
        let before = disk.digest();
        assert!(!machine.prepare(&declared, &mut |_| Ok(())).unwrap());
        assert_eq!(disk.digest(), before);
    }
}

#[test]
fn a_preparation_that_is_cut_off_anywhere_is_gone_on_with_at_the_next_boot() {
    cut_off_anywhere(Machine::blank, 1);
}

#[test]
fn with_sectors_of_4096_bytes_a_preparation_is_gone_on_with_too() {
    cut_off_anywhere(Machine::blank_4096, 3);
}

/// At one of `every` steps.
fn cut_off_anywhere(blank: Blank, every: usize) {
    let machine = Machine::new();
    let declared = three("cut");
    let steps = {
        let _disk = blank(&machine, "cut", THREE);
        machine.plan(&declared).steps.len()
    };
    for last in (0..steps).step_by(every) {
        let disk = blank(&machine, "cut", THREE);
        let mut done = 0;
        let mut until = |_: &Step| {
            if done == last {
                bail!("the power is cut");
            }
            done += 1;
            Ok(())
        };
        let cut = machine.prepare(&declared, &mut until).unwrap_err();
        assert!(cut.to_string().contains("the power is cut"), "{cut:#}");
        // A kernel that finds a table there shows its partitions at the next boot.
        run(&format!("partx --update {} 2>&1 || true", disk.device));
        machine
            .prepare(&declared, &mut |_| Ok(()))
            .unwrap_or_else(|error| panic!("after {last} steps: {error:#}"));
        assert!(matches!(machine.look(&declared, Intent::Look).unwrap(), Looked::Prepared));
        // All of it where most is made anew.
        if last % 6 == 3 {
            assert_prepared(&machine, &disk, &declared);
        }
    }
}

#[test]
fn the_last_partition_of_a_larger_disk_grows_and_the_mounted_btrfs_in_it() {
    let machine = Machine::new();
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    let disks: [(u32, &str, u64, Blank); 3] = [
        (1, "ext4", 64 * MIB, Machine::blank),
        (5, "btrfs", THREE, Machine::blank),
        (5, "btrfs", THREE, Machine::blank_4096),
    ];
    for (number, kind, size, blank) in disks {
        let declared = if kind == "ext4" { one("larger", None) } else { three("larger") };
        let disk = blank(&machine, "larger", size);
        assert!(machine.prepare(&declared, &mut |_| Ok(())).unwrap());
        let grown = |intent| {
            let disks = known(machine.path()).unwrap();
            look_growth(machine.path(), &declared, the_one(&declared, &disks).unwrap(), intent)
        };
        assert!(grown(Intent::Write).unwrap().is_none(), "{kind}: there is nothing more");
        disk.file.as_file().set_len(size + 200 * MIB).unwrap();
        run(&format!("losetup --set-capacity {}", disk.device));
        // One byte of somebody's in what would be taken.
        write(Path::new(&disk.device), size + 99 * MIB + 5, &[1]);
        let before = disk.digest();
        let refusal = grown(Intent::Write).unwrap_err().to_string();
        let words = format!("is not grown: the byte at {}, behind disk-main-data", size + 99 * MIB + 5);
        assert!(refusal.contains(&words), "{refusal}");
        assert_eq!(disk.digest(), before, "{kind}");
        write(Path::new(&disk.device), size + 99 * MIB + 5, &[0]);
        let before = disk.digest();
        let (growth, _) = grown(Intent::Look).unwrap().unwrap();
        assert_eq!((disk.digest(), growth.to - growth.from), (before, 200 * MIB), "{kind}");

        // Not while something of it is in use.
        let node = disk.nodes().pop().unwrap();
        let at = tempfile::tempdir().unwrap();
        mount(&node, at.path(), kind, MountFlags::empty(), None).unwrap();
        fs::write(at.path().join("file"), "kept").unwrap();
        fs::remove_file(machine.path().join("proc")).unwrap();
        fs::create_dir(machine.path().join("proc")).unwrap();
        symlink("/proc/thread-self", machine.path().join("proc/self")).unwrap();
        let refusal = grown(Intent::Write).unwrap_err().to_string();
        assert!(refusal.contains("mounted at") || refusal.contains("somebody holds it"), "{refusal}");
        unmount(at.path(), UnmountFlags::empty()).unwrap();

        let (growth, file) = grown(Intent::Write).unwrap().unwrap();
        carry_out_growth(&growth, &file, Path::new(&disk.device), &mut |_| Ok(())).unwrap();
        drop(file);
        assert!(grown(Intent::Write).unwrap().is_none());
        for verify in ["sfdisk --verify", "sgdisk --verify"] {
            let said = run(&format!("{verify} {} 2>&1", disk.device));
            assert!(said.contains("No errors detected") || said.contains("No problems found"), "{said}");
        }
        // A kernel that knows no partition tables is told.
        run(&format!("partx --delete {0}; partx --add {0}", disk.device));
        assert_eq!(disk.nodes().pop().unwrap(), format!("{}p{number}", disk.device));
        mount(&node, at.path(), kind, MountFlags::empty(), None).unwrap();
        // Growing an ext4 takes CAP_SYS_RESOURCE, which root does not have everywhere: the boot `prepare-grow` does it.
        if kind == "btrfs" {
            let (from, to) = growfs::grow(at.path(), kind, growth.to).unwrap();
            assert!(to - from > 180 * MIB, "{from} to {to}");
            assert_eq!(growfs::grow(at.path(), kind, growth.to).unwrap(), (to, to), "again");
        }
        assert_eq!(fs::read_to_string(at.path().join("file")).unwrap(), "kept");
        unmount(at.path(), UnmountFlags::empty()).unwrap();
        drop(disk);
        fs::remove_dir_all(machine.path().join("proc")).unwrap();
        symlink("/proc", machine.path().join("proc")).unwrap();
    }
}

#[test]
fn what_does_not_grow_or_is_not_as_declared_is_named_and_stays_as_it_is() {
    let machine = Machine::new();
    // What the last partition holds on a disk that has become larger by 32 MiB, and words of the refusal.
    let cases = [
        ("mkfs.vfat {}", "holds vfat"),
        ("mkswap {}", "holds swap"),
        ("mkfs.ext2 -q {}", "holds ext2"),
        ("mkfs.ext3 -q {}", "holds ext3"),
        ("true", "holds nothing that is known"),
        // DRBD keeps what it knows at the end, behind a file system that looks like any other.
        (
            "mkfs.ext4 -q {} && printf '\\203\\164\\002\\155' | dd of={} bs=1 seek=$(($(blockdev --getsize64 {}) - 4036)) conv=notrunc status=none",
            "holds ext4 .*DRBD",
        ),
    ];
    for (make, words) in cases {
        let disk = machine.disk("stays", 64 * MIB, |file| {
            run(&format!(
                "echo 'start=2048, name=disk-stays-data' | sfdisk -q --label gpt {}",
                file.display()
            ));
        });
        let node = disk.nodes().pop().unwrap();
        run(&make.replace("{}", &node));
        disk.file.as_file().set_len(96 * MIB).unwrap();
        run(&format!("losetup --set-capacity {}", disk.device));
        let before = disk.digest();
        let refusal = refused(&machine, &growing("stays", "1G"));
        assert!(words.split(".*").all(|words| refusal.contains(words)), "{make}: {refusal}");
        assert_eq!(disk.digest(), before, "{make}");
    }
    // A size beyond the declared range, other labels, no table, and a table of another kind.
    let tables = [
        (
            "echo 'start=2048, name=disk-stays-data' | sfdisk -q --label gpt {}",
            "80M",
            "is not within 16M and 80M",
        ),
        (
            "echo 'start=2048, name=other' | sfdisk -q --label gpt {}",
            "1G",
            "no GPT with the declared partitions",
        ),
        ("true {}", "1G", "no GPT with the declared partitions"),
        (
            "echo 'start=2048' | sfdisk -q --label dos {}",
            "1G",
            "no GPT with the declared partitions",
        ),
        (
            "printf 'start=2048, size=2048, name=disk-stays-data\\nstart=8192, name=other' | sfdisk -q --label gpt {}",
            "1G",
            "not the partition that lies last",
        ),
    ];
    for (make, max, words) in tables {
        let disk = machine.disk("stays", 64 * MIB, |file| {
            run(&make.replace("{}", &file.display().to_string()));
            File::options().write(true).open(file).unwrap().set_len(96 * MIB).unwrap();
        });
        let before = disk.digest();
        let refusal = refused(&machine, &growing("stays", max));
        assert!(refusal.contains("is not grown: ") && refusal.contains(words), "{make}: {refusal}");
        assert_eq!(disk.digest(), before, "{make}");
    }
}

/// A disk that grows, and is not prepared.
fn growing(id: &str, max: &str) -> Declared {
    let source = json!({
        "device": format!("/dev/disk/by-id/{id}"), "size": {"min": "16M", "max": max}, "grow": true,
        "partitions": [{"name": "data", "size": "100%"}],
    });
    declared(id, &source).unwrap()
}

fn refused(machine: &Machine, declared: &Declared) -> String {
    let disks = known(machine.path()).unwrap();
    match look_growth(machine.path(), declared, the_one(declared, &disks).unwrap(), Intent::Write) {
        Ok(growth) => panic!("it is not refused: {growth:?}"),
        Err(refusal) => refusal.to_string(),
    }
}

#[test]
fn a_claimed_disk_that_somebody_has_used_meanwhile_is_refused_and_unchanged() {
    let machine = Machine::new();
    let declared = three("claimed");
    type Use = Box<dyn Fn(&str)>;
    let uses: Vec<(Use, &str)> = vec![
        (
            // It discards the disk first, and the claim with it.
            Box::new(|device| drop(run(&format!("mkfs.ext4 -q -F {device}")))),
            "it holds ext4",
        ),
        (
            Box::new(|device| drop(run(&format!("mkfs.ext4 -q -F -E nodiscard {device}")))),
            "is not ours",
        ),
        (
            Box::new(|device| drop(run(&format!("echo start=2M | sfdisk -q -X gpt {device}")))),
            "is not ours",
        ),
        (
            Box::new(|device| {
                let part = run(&format!(
                    "losetup --find --show --offset {} --sizelimit {} {device}",
                    11 * MIB,
                    8 * MIB
                ));
                run(&format!("mkfs.ext4 -q -L mine {part} && losetup --detach {part}"));
            }),
            "in the place of disk-main-keys is ext4 LABEL=mine",
        ),
        (
            Box::new(|device| write(Path::new(device), (512 << 10) + 100, &[1])),
            "a claim of ours that is damaged",
        ),
    ];
    for (number, (use_it, word)) in uses.into_iter().enumerate() {
        let disk = machine.blank("claimed", THREE);
        let mut after_two = 0;
        let cut = machine.prepare(&declared, &mut |_| {
            after_two += 1;
            if after_two > 2 { bail!("cut") } else { Ok(()) }
        });
        assert!(cut.is_err());
        use_it(&disk.device);
        let before = disk.digest();
        let refusal = machine.refusal(&declared);
        assert!(refusal.contains(word), "{number}: {refusal}");
        assert_eq!(disk.digest(), before, "{number}");
    }
    let disk = machine.blank("claimed", THREE);
    assert!(
        machine
            .prepare(&declared, &mut |step| if matches!(step, Step::Make(_)) {
                bail!("cut")
            } else {
                Ok(())
            })
            .is_err()
    );
    let before = disk.digest();
    let refusal = machine.refusal(&one("claimed", None));
    assert!(refusal.contains("another declaration"), "{refusal}");
    assert_eq!(disk.digest(), before);
}

#[test]
fn a_disk_that_is_written_to_between_the_look_and_the_first_write_is_refused() {
    let machine = Machine::new();
    let declared = one("raced", None);
    for (through_device, at) in [(true, 0), (false, 40 * MIB), (true, 300 * MIB - 1)] {
        let disk = machine.blank("raced", 300 * MIB);
        let Looked::ToDo(preparation, hold) = machine.look(&declared, Intent::Write).unwrap() else {
            panic!("it is not blank")
        };
        let path = if through_device {
            Path::new(&disk.device)
        } else {
            disk.file.path()
        };
        write(path, at, &[1]);
        let before = disk.digest();
        let mut steps = 0;
        let error = carry_out(&preparation, &hold, &mut |_| {
            steps += 1;
            Ok(())
        })
        .unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("since the first look") && text.contains(&format!("the byte at {at} is not zero")),
            "{text}"
        );
        assert_eq!(steps, 0);
        assert_eq!(disk.digest(), before);
    }
}

#[test]
fn a_blank_disk_that_is_not_as_declared_or_in_use_is_refused_and_stays_blank() {
    let machine = Machine::new();
    let size = 64 * MIB;
    let disk = machine.blank("used", size);
    let declared = one("used", None);
    let with = |pointer: &str, value: Value| {
        let mut source = declared.source.clone();
        *source.pointer_mut(pointer).unwrap() = value;
        freshroot::prepare::declaration::declared("main", &source).unwrap()
    };
    let refused = |declared: &Declared, word: &str| {
        let refusal = machine.refusal(declared);
        assert!(refusal.contains(word), "{word}: {refusal}");
    };
    refused(
        &with("/size/max", json!("32M")),
        "its size of 67108864 bytes is not within 16M and 32M",
    );
    refused(&with("/size/min", json!("65M")), "is not within 65M");
    refused(
        &with("/device", json!("/dev/disk/by-id/other")),
        "no disk has this name; there are: ",
    );
    refused(&with("/device", json!("serial=none")), &disk.device);

    let second = machine.blank("used", size);
    refused(
        &declared,
        &format!("several disks have this name: {}", disk.device.clone().min(second.device.clone())),
    );
    refused(&declared, &second.device);
    drop(second);

    let hold = File::options()
        .read(true)
        .custom_flags(nix::libc::O_EXCL)
        .open(&disk.device)
        .unwrap();
    refused(&declared, "somebody holds it");
    drop(hold);

    run(&format!("addpart {} 1 2048 4096", disk.device));
    refused(&declared, "it has partitions: ");
    run(&format!("delpart {} 1", disk.device));

    let above = run(&format!("losetup --find --show {}", disk.device));
    refused(&declared, &format!("it is behind {above}"));
    run(&format!("losetup --detach {above}"));

    assert_eq!(disk.digest(), blank_digest(size));
    drop(disk);

    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    let disk = machine.plug("used", file, "--read-only");
    refused(&declared, "it is read-only");
    drop(disk);

    let disk = machine.disk("used", size, |path| drop(run(&format!("mkfs.ext4 -q {}", path.display()))));
    let at = tempfile::tempdir().unwrap();
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    mount(&disk.device, at.path(), "ext4", MountFlags::RDONLY, None).unwrap();
    // This thread's view of the mounts is not that of the process' first thread, which /proc/self shows.
    fs::remove_file(machine.path().join("proc")).unwrap();
    fs::create_dir(machine.path().join("proc")).unwrap();
    symlink("/proc/thread-self", machine.path().join("proc/self")).unwrap();
    refused(&declared, &format!("it is mounted at {}", at.path().display()));
    unmount(at.path(), UnmountFlags::empty()).unwrap();
}

#[test]
fn a_disk_that_fails_to_be_read_is_not_blank() {
    let machine = Machine::new();
    let disk = machine.blank("failing", 64 * MIB);
    // The device is longer than what is behind it by now: the kernel answers with an I/O error.
    disk.file.as_file().set_len(40 * MIB).unwrap();
    for check in [None, Some("sampled"), Some("full")] {
        let refusal = machine.refusal(&one("failing", check));
        assert!(
            refusal.contains("Input/output error") || refusal.contains("os error 5"),
            "{refusal}"
        );
    }
    assert_eq!(digest_of(disk.file.path()), blank_digest(40 * MIB));
}

#[test]
fn without_a_program_nothing_is_written_and_one_that_fails_leaves_no_table() {
    let machine = Machine::new();
    let disk = machine.blank("program", 64 * MIB);
    for folder in ["bin", "sbin"] {
        fs::remove_file(machine.path().join(folder)).unwrap();
    }
    let error = machine.prepare(&one("program", None), &mut |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("there is no mkfs.ext4 here"), "{error}");
    assert_eq!(disk.digest(), blank_digest(64 * MIB));
    let program: PathBuf = machine.path().join("sbin/mkfs.ext4");
    fs::create_dir(machine.path().join("sbin")).unwrap();
    fs::write(&program, "#!/bin/sh\necho no inodes left\nexit 3\n").unwrap();
    run(&format!("chmod 0755 {}", program.display()));
    let error = machine.prepare(&one("program", None), &mut |_| Ok(())).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("exit status 3") && text.contains("no inodes left"), "{text}");
    assert!(run(&format!("sfdisk --dump {} 2>&1 || true", disk.device)).contains("does not contain a recognized partition table"));
    // Once the program works, the same declaration is gone on with.
    fs::remove_file(&program).unwrap();
    symlink("/usr/sbin/mkfs.ext4", &program).unwrap();
    assert!(machine.prepare(&one("program", None), &mut |_| Ok(())).unwrap());
}

#[test]
fn the_program_prints_what_it_would_write_writes_it_when_asked_to_and_fails_where_a_disk_is_refused() {
    let machine = Machine::new();
    let disk = machine.blank("program", 64 * MIB);
    let config = machine.path().join("config.json");
    let disks = json!({"version": 1, "disks": {"main": one("program", None).source}});
    fs::write(&config, disks.to_string()).unwrap();
    let freshroot = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_freshroot"))
            .args([
                "prepare",
                "--root",
                machine.path().to_str().unwrap(),
                "--config",
                config.to_str().unwrap(),
            ])
            .args(arguments)
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, out, _) = freshroot(&["--dry-run"]);
    assert_eq!(code, Some(0));
    for line in [
        "  partition 1: disk-main-data, 65011712 bytes at 1048576, type 0fc63daf-8483-4772-8e79-3d69d8477de4, id ",
        "  write  512 bytes at 524288: claim (sha256 ",
        "  run    mkfs.ext4 -q -U ",
        " -L data <65011712 bytes at 1048576: disk-main-data>",
        "  write  512 bytes at 67108352: header of the backup GPT (sha256 ",
        "  write  512 bytes at 0: protective MBR (sha256 ",
    ] {
        assert!(out.contains(line), "«{line}» is not in {out}");
    }
    assert_eq!(disk.digest(), blank_digest(64 * MIB));
    let (code, out, errors) = freshroot(&[]);
    assert_eq!(
        (code, out.as_str()),
        (Some(0), "disks.main: was blank, and has been prepared\n"),
        "{errors}"
    );
    assert_eq!(tag(&disk.nodes()[0], "TYPE"), "ext4");
    assert_eq!(freshroot(&[]).1, "disks.main: has its partitions\n");
    drop(disk);
    let disk = machine.disk("program", 64 * MIB, |path| drop(run(&format!("mkfs.ext4 -q {}", path.display()))));
    let before = disk.digest();
    for arguments in [&["--dry-run"][..], &[]] {
        let (code, out, errors) = freshroot(arguments);
        assert_eq!((code, out.as_str()), (Some(1), ""));
        assert!(errors.contains("is not prepared: it holds ext4"), "{errors}");
    }
    assert_eq!(disk.digest(), before);
}
