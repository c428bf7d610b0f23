//! A local boot loader: GRUB in front of a file system with a cache, as `grub-install` would put it there, but without a loop device or a mount.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::command::Tool;
use crate::disk::Disk;

const LIMIT: Duration = Duration::from_secs(120);
/// Debian's package grub-pc-bin.
pub const GRUB_BIOS: &str = "/usr/lib/grub/i386-pc";
/// Where the partition begins; GRUB's core is in front of it.
const START: u64 = 1 << 20;
/// The first sector's code, before the disk's signature and the table of partitions.
const CODE: usize = 440;

/// A disk at `out` with one partition, which has the bytes of `partition`, and GRUB, which boots what `kexec-boot --save` put into `folder` on the file
/// system called `label`.
pub fn disk(partition: &Disk, label: &str, folder: &str, work: &Path, out: &Path) -> Result<Disk> {
    let size = partition.path().metadata().context("looking at the partition")?.len();
    File::create(out)
        .and_then(|file| file.set_len(START + size))
        .with_context(|| format!("making {}", out.display()))?;
    let table = work.join("partitions");
    fs::write(&table, format!("label: dos\nstart={}, type=83\n", START / 512)).context("writing the table of partitions")?;
    Tool::new("sfdisk", LIMIT)
        .args(["--quiet", "--no-reread"])
        .arg(out)
        .stdin(File::open(&table).context("opening the table of partitions")?)
        .run()?;
    Tool::new("dd", LIMIT)
        .arg(format!("if={}", partition.path().display()))
        .arg(format!("of={}", out.display()))
        .args(["bs=1M", "seek=1", "conv=notrunc,sparse", "status=none"])
        .run()?;
    let core = core(label, folder, work)?;
    ensure!(core.len() as u64 + 512 <= START, "GRUB's core has {} bytes", core.len());
    let first = fs::read(Path::new(GRUB_BIOS).join("boot.img")).with_context(|| format!("reading boot.img in {GRUB_BIOS}"))?;
    let file = OpenOptions::new().write(true).open(out).context("opening the disk")?;
    let code = first.get(..CODE).context("boot.img is too short")?;
    file.write_all_at(code, 0).context("writing GRUB's first sector")?;
    // boot.img loads it from the second sector, if nobody tells it otherwise.
    file.write_all_at(&core, 512).context("writing GRUB's core")?;
    Ok(Disk::at(out))
}

/// GRUB's core with its configuration: the lines that a person adds to an existing one.
fn core(label: &str, folder: &str, work: &Path) -> Result<Vec<u8>> {
    let memdisk = work.join("memdisk");
    fs::create_dir_all(memdisk.join("boot/grub")).context("making GRUB's memory disk")?;
    let config = format!(
        "serial --unit=0\nterminal_output serial\nset timeout=0\n\
         search --no-floppy --set=root --label {label}\nset freshroot=($root){folder}\nsource $freshroot/grub.cfg\n"
    );
    fs::write(memdisk.join("boot/grub/grub.cfg"), config).context("writing GRUB's configuration")?;
    let (tar, core) = (work.join("memdisk.tar"), work.join("core.img"));
    Tool::new("tar", LIMIT)
        .arg("-C")
        .arg(&memdisk)
        .arg("-cf")
        .arg(&tar)
        .arg("boot")
        .run()?;
    Tool::new("grub-mkimage", LIMIT)
        .args(["-d", GRUB_BIOS, "-O", "i386-pc", "-p", "(memdisk)/boot/grub", "-m"])
        .arg(&tar)
        .arg("-o")
        .arg(&core)
        .args(["biosdisk", "part_msdos", "ext2", "memdisk", "tar", "normal", "serial", "linux"])
        .args(["configfile", "search", "search_label"])
        .run()?;
    fs::read(&core).with_context(|| format!("reading {}", core.display()))
}
