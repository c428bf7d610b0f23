//! An ext2, ext3 or ext4 that seems clean is one of which `e2fsck -p` says so too, without a look at more. Real file systems, each given to both.
//! As root, in a mount name space of its own; needs e2fsprogs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod disks;
}

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use freshroot::mount::entry::DeviceFs;
use freshroot::mount::ext_clean::is_clean;
use freshroot::mount::options::MountOptions;
use freshroot::mount::system::mount_device;
use support::disks::{Disk, private_mounts, run};

/// A file system of these options of `mke2fs`.
fn made(dir: &Path, name: &str, megabytes: u64, options: &str) -> PathBuf {
    let file = Disk::file(dir, name, megabytes);
    let path = file.to_str().unwrap();
    let mut arguments = vec!["-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"];
    arguments.extend(options.split_whitespace());
    arguments.push(path);
    run("mke2fs", &arguments);
    file
}

fn ours(file: &Path) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let image = File::open(file).unwrap();
    is_clean(&image, image.metadata().unwrap().len(), now)
}

/// Whether e2fsck says «clean» of it and nothing else; it may change the file. Its exit code and words are in the error.
fn theirs(file: &Path) -> Result<(), String> {
    let output = Command::new("e2fsck").arg("-p").arg(file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) if said.contains(": clean, ") && said.lines().count() == 1 => Ok(()),
        code => Err(format!("{code:?}: {said}")),
    }
}

/// What is done to a file system, and whether it is clean then, by us and by e2fsck.
struct Case {
    name: &'static str,
    megabytes: u64,
    made: &'static str,
    /// Commands, each with the file at its end; «debugfs » begins one for it.
    done: &'static [&'static str],
    ours: bool,
    theirs: bool,
}

const fn case(name: &'static str, made: &'static str, done: &'static [&'static str], ours: bool, theirs: bool) -> Case {
    Case {
        name,
        megabytes: 40,
        made,
        done,
        ours,
        theirs,
    }
}

const WITHOUT_SUMS: &str = "-t ext4 -O ^metadata_csum";

const CASES: &[Case] = &[
    case("ext2", "-t ext2", &[], true, true),
    case("ext3", "-t ext3", &[], true, true),
    case("ext4", "-t ext4", &[], true, true),
    case("blocks of 1 KiB", "-t ext4 -b 1024", &[], true, true),
    case("blocks of 1 KiB, old groups", "-t ext3 -b 1024 -I 128", &[], true, true),
    case("newer features", "-t ext4 -O metadata_csum_seed,orphan_file", &[], true, true),
    case("without 64 bits", "-t ext4 -O ^64bit", &[], true, true),
    case("without checksums", WITHOUT_SUMS, &[], true, true),
    case("checksums of groups alone", "-t ext4 -O ^metadata_csum,uninit_bg", &[], true, true),
    case(
        "the same, of 32 bytes",
        "-t ext4 -b 1024 -O ^metadata_csum,uninit_bg,^64bit",
        &[],
        true,
        true,
    ),
    case("without a journal", "-t ext4 -O ^has_journal", &[], true, true),
    // 1 GiB of journal: its extents are in a block of their own.
    Case {
        megabytes: 300,
        ..case("with a copy", "-t ext4", &[], true, true)
    },
    Case {
        megabytes: 300 << 10,
        ..case("large", "-t ext4", &[], true, true)
    },
    case("a few mounts less than the most", "-t ext4", &["tune2fs -c 20 -C 19"], true, true),
    case("checked lately", "-t ext4", &["tune2fs -i 30d"], true, true),
    case("any number of mounts", "-t ext4", &["tune2fs -c -1 -C 900"], true, true),
    case(
        "counts that are behind",
        "-t ext4",
        &["debugfs ssv free_blocks_count 1"],
        true,
        true,
    ),
    case("dirty", "-t ext4", &["debugfs ssv state 0"], false, false),
    case("dirty, ext2", "-t ext2", &["debugfs ssv state 0"], false, false),
    case("errors", "-t ext4", &["debugfs ssv state 3"], false, false),
    case("as many mounts as the most", "-t ext4", &["tune2fs -c 20 -C 20"], false, false),
    case("more mounts", "-t ext4", &["tune2fs -c 20 -C 900"], false, false),
    case("not checked for long", "-t ext4", &["tune2fs -i 30d -T 20200101"], false, false),
    case("checked in days to come", "-t ext4", &["tune2fs -i 30d -T 20370101"], false, false),
    case(
        "a journal to be replayed",
        "-t ext4",
        &["debugfs feature +needs_recovery"],
        false,
        false,
    ),
    case("a list of orphans", "-t ext4", &["debugfs ssv last_orphan 12"], false, false),
    case(
        "orphans",
        "-t ext4 -O orphan_file",
        &["debugfs feature +orphan_present"],
        false,
        false,
    ),
    case("a broken descriptor", "-t ext4", &["debugfs set_bg 0 checksum 1"], false, false),
    case(
        "a bitmap in the wilderness",
        WITHOUT_SUMS,
        &["debugfs set_bg 0 block_bitmap 99999999"],
        false,
        false,
    ),
    case(
        "a broken checksum of groups alone",
        "-t ext4 -O ^metadata_csum,uninit_bg",
        &["debugfs set_bg 0 checksum 1"],
        false,
        false,
    ),
    Case {
        megabytes: 300,
        ..case(
            "other features in the copy",
            "-t ext4",
            &["debugfs feature -ext_attr"],
            false,
            false,
        )
    },
    // In doubt the program decides, and may say «clean».
    case("errors that were counted", "-t ext4", &["debugfs ssv error_count 1"], false, true),
    case("quotas", "-t ext4 -O quota", &[], false, true),
    case("clusters", "-t ext4 -O bigalloc -C 16384", &[], false, true),
    case("descriptors among the groups", "-t ext4 -O meta_bg,^resize_inode", &[], false, true),
    case("a journal with fast commits", "-t ext4 -O fast_commit", &[], false, true),
    case("protected from two mounts", "-t ext4 -O mmp", &[], false, true),
];

#[test]
fn what_seems_clean_is_clean_to_e2fsck_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut told = Vec::new();
    for case in CASES {
        let file = made(dir.path(), "file", case.megabytes, case.made);
        for command in case.done {
            let path = file.to_str().unwrap();
            match command.strip_prefix("debugfs ") {
                Some(words) => run("debugfs", &["-w", "-R", words, path]),
                None => {
                    let words: Vec<&str> = command.split(' ').chain([path]).collect();
                    run(words[0], &words[1..])
                }
            };
        }
        let (ours, theirs) = (ours(&file), theirs(&file));
        if (ours, theirs.is_ok()) != (case.ours, case.theirs) {
            told.push(format!("{}: {ours}, {theirs:?}", case.name));
        }
        fs::remove_file(&file).unwrap();
    }
    assert!(told.is_empty(), "{}", told.join("\n"));
}

/// Bytes of a file that are changed, each by itself: their first, how many, what they are.
type Places = (u64, u64, &'static str);

/// A number that `debugfs` prints after some words.
fn number(file: &Path, command: &str, before: &str) -> u64 {
    let said = run("debugfs", &["-R", command, file.to_str().unwrap()]);
    let (_, rest) = said.split_once(before).unwrap_or_else(|| panic!("{command}: {said}"));
    let mut digits = rest.trim_start().split(|c: char| !c.is_ascii_digit());
    digits.next().unwrap().parse().unwrap()
}

#[test]
fn whatever_byte_is_changed_nothing_seems_clean_that_e2fsck_would_look_at() {
    // In RAM: e2fsck makes everything last.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut told = Vec::new();
    for options in [
        "-t ext4 -O ^metadata_csum",
        "-t ext4 -O ^metadata_csum,^64bit,uninit_bg",
        "-t ext4 -O metadata_csum",
        "-t ext3",
    ] {
        let file = made(dir.path(), "file", 10, &format!("{options} -b 1024 -N 64 -J size=1"));
        let inodes = number(&file, "stats", "inode table at") * 1024;
        let journal = number(&file, "bmap <8> 0", "") * 1024;
        // All but labels, names, statistics and what is reserved.
        let mut places: Vec<Places> = vec![
            (1024, 0x78, "superblock"),
            (1024 + 0xc8, 0xb8, "superblock, from 0xc8"),
            (1024 + 0x194, 4, "superblock, from 0x194"),
            (1024 + 0x240, 0x44, "superblock, from 0x240"),
            (1024 + 0x3fc, 4, "superblock, from 0x3fc"),
            (2048, 128, "descriptors"),
            (inodes + 7 * 256, 0x88, "the journal's inode"),
            (journal, 0x58, "the journal"),
            (journal + 0xfc, 4, "the journal, from 0xfc"),
            (8193 * 1024, 0x78, "copy of the superblock"),
        ];
        if options == "-t ext3" {
            places.push((number(&file, "stat <8>", "(IND):") * 1024, 64, "pointers to the journal"));
        }
        let whole = fs::read(&file).unwrap();
        let image = File::options().write(true).open(&file).unwrap();
        let mut clean = 0;
        for (first, count, what) in places {
            for at in first..first + count {
                let byte = whole[at as usize];
                let changed = byte ^ if at % 2 == 0 { 0x01 } else { 0xff };
                image.write_all_at(&[changed], at).unwrap();
                if !ours(&file) {
                    image.write_all_at(&[byte], at).unwrap();
                    continue;
                }
                clean += 1;
                if let Err(said) = theirs(&file) {
                    told.push(format!("{options}: {what} at {:#x}: {said}", at - first));
                    image.write_all_at(&whole, 0).unwrap();
                }
                // What is clean has its counts set right at most.
                image.write_all_at(&whole[..4096], 0).unwrap();
                image.write_all_at(&[byte], at).unwrap();
            }
        }
        assert!(clean > 50, "{options}: nothing is clean");
    }
    assert!(told.is_empty(), "{}", told.join("\n"));
}

#[test]
fn what_the_kernel_has_unmounted_is_clean_and_a_copy_of_what_it_has_mounted_is_not() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    for (options, fs) in [
        ("-t ext4", DeviceFs::Ext4),
        ("-t ext3", DeviceFs::Ext3),
        ("-t ext2", DeviceFs::Ext2),
    ] {
        let file = made(dir.path(), "file", 40, options);
        let disk = Disk::plug(&file);
        let at = dir.path().join("at");
        fs::create_dir_all(&at).unwrap();
        mount_device(disk.path(), fs, &MountOptions::default())
            .unwrap()
            .attach(&at)
            .unwrap();
        fs::write(at.join("kept"), "words").unwrap();
        File::open(&at).unwrap().sync_all().unwrap();
        rustix::fs::sync();
        let copy = dir.path().join("copy");
        fs::copy(&file, &copy).unwrap();
        assert!(!ours(&copy) && theirs(&copy).is_err(), "{options}");
        run("umount", &[at.to_str().unwrap()]);
        drop(disk);
        assert!(ours(&file), "{options}");
        assert_eq!(theirs(&file), Ok(()), "{options}");
        // What e2fsck has mended is clean.
        assert!(ours(&copy), "{options}");
    }
}
