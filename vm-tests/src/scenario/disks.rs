//! Cache disks and persistent mounts.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{Scenario, must_refuse};
use crate::disk::{Disk, FsType};
use crate::lab::CACHE_LABEL;
use crate::system::Spec;
use crate::trial::{Booted, Trial};

/// The tests of this file.
pub const ALL: &[Scenario] = &[
    Scenario::new("disk-late", "a cache disk that comes late is waited for", late),
    Scenario::new("disk-twice", "a label that two disks have is refused, and both are named", twice),
    Scenario::new("disk-xfs", "a cache on xfs works", xfs_cache),
    Scenario::new(
        "persistence",
        "files on persistent mounts of every kind survive a reboot, tmpfs does not",
        persistence,
    ),
];

fn late(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.filled_cache()?;
    let system = trial.lab.system(Spec::generation(1))?;
    let mut vm = trial
        .boot()
        .config(json!({ "cache": { "wait": "60s" } }))
        .system(&system)
        .words("demo.then=poweroff")
        .start("boot")?;
    vm.wait_for(&["waiting for LABEL=CACHE"])?;
    // Not a wait for anything: this is how late the disk is.
    std::thread::sleep(std::time::Duration::from_secs(20));
    vm.plug(&disk, "late")?;
    let booted = Booted::read(&mut vm)?;
    ensure!(
        booted.generation()? == 1 && booted.text("/source") == "cache",
        "report: {}",
        booted.report
    );
    vm.wait_end()?;
    Ok(())
}

fn twice(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.filled_cache()?;
    let other = Disk::make(&trial.dir.join("other.img"), 64, FsType::Ext4, CACHE_LABEL)?;
    let system = trial.lab.system(Spec::generation(1))?;
    let mut vm = trial
        .boot()
        .config(json!({ "cache": { "wait": "5s" }, "policy": { "mode": "offline" } }))
        .disk(&disk)
        .disk(&other)
        .system(&system)
        // The kernel gives it to the agent as a variable; the shipped one has no tables for backtraces, and would abort at its first error.
        .words("RUST_BACKTRACE=1")
        .start("boot")?;
    must_refuse(&mut vm, &[CACHE_LABEL, "vda", "vdb"])
}

fn xfs_cache(trial: &Trial<'_>) -> Result<()> {
    let disk = Disk::make(&trial.dir.join("cache.img"), 512, FsType::Xfs, CACHE_LABEL)?;
    let system = trial.lab.system(Spec::generation(1))?;
    let server = trial.serve(&trial.lab.served(1)?)?;
    trial
        .boot()
        .disk(&disk)
        .server(server.address().port())
        .system(&system)
        .once("cold")?;
    drop(server);
    let booted = trial.boot().disk(&disk).system(&system).once("warm")?;
    ensure!(
        booted.generation()? == 1 && booted.text("/source") == "cache",
        "report: {}",
        booted.report
    );
    Ok(())
}

/// Makes a subvolume where the guest has no btrfs-progs: `BTRFS_IOC_SUBVOL_CREATE` takes 8 bytes of descriptor and 4088 of name.
pub const MAKE_SUBVOLUME: &str =
    r#"perl -e 'open(my $d, "<", "/srv/btrfs") or die $!; my $a = pack("q a4088", 0, "data"); ioctl($d, 0x5000940e, $a) or die $!'"#;

fn persistence(trial: &Trial<'_>) -> Result<()> {
    let cache = trial.filled_cache()?;
    let make = |name: &str, mebibytes, fs_type| Disk::make(&trial.dir.join(format!("{name}.img")), mebibytes, fs_type, name);
    let ext4 = make("DATA", 64, FsType::Ext4)?;
    let xfs = make("XFS", 512, FsType::Xfs)?;
    let btrfs = make("BTRFS", 256, FsType::Btrfs)?;
    let vfat = make("VFAT", 64, FsType::Vfat)?;
    let swap = swap_disk(trial, "SWAP")?;
    let asleep = swap_disk(trial, "ASLEEP")?;
    put_to_sleep(&asleep)?;
    let asleep_before = std::fs::read(asleep.path())?;
    swap_units(trial, &ext4)?;
    let system = trial.lab.system(Spec::generation(1))?;
    let config = |btrfs_options: &[&str]| {
        json!({ "swapDevices": {
            "/dev/disk/by-label/SWAP": { "priority": 5, "discardPolicy": "once" },
            "/persist/swapfile": {},
            "LABEL=ASLEEP": {},
        }, "fileSystems": {
            "/persist": { "mountPoint": "/persist", "device": "LABEL=DATA", "fsType": "ext4", "options": ["noatime"] },
            "/var/lib/app": { "mountPoint": "/var/lib/app", "device": "/persist/app", "fsType": "none", "options": ["bind"], "depends": ["/persist"] },
            "/srv/xfs": { "mountPoint": "/srv/xfs", "device": "LABEL=XFS", "fsType": "xfs", "options": ["defaults"] },
            "/srv/btrfs": { "mountPoint": "/srv/btrfs", "device": "LABEL=BTRFS", "fsType": "btrfs", "options": btrfs_options },
            "/srv/vfat": { "mountPoint": "/srv/vfat", "device": "LABEL=VFAT", "fsType": "vfat", "options": ["umask=0077"] },
            "/etc/systemd/system.control": { "device": "/persist/units", "fsType": "none", "options": ["bind"] },
            "/srv/asleep": { "device": "LABEL=ASLEEP", "fsType": "ext4", "options": ["nofail"] },
            "/srv/scratch": { "mountPoint": "/srv/scratch", "device": "tmpfs", "fsType": "tmpfs", "options": ["size=16m", "mode=0700"] },
        } })
    };
    let boot = |options: &[&str]| {
        let boot = trial
            .boot()
            .config(config(options))
            .disk(&cache)
            .system(&system)
            .words("resume=LABEL=ASLEEP");
        [&ext4, &xfs, &btrfs, &vfat, &swap, &asleep]
            .into_iter()
            .fold(boot, |boot, disk| boot.disk(disk))
    };
    let files = "/persist/kept /var/lib/app/kept /srv/xfs/kept /srv/vfat/kept";
    let write = format!(
        "set -e; for f in {files} /srv/scratch/lost; do echo $f >$f; done; {MAKE_SUBVOLUME}; echo inside >/srv/btrfs/data/kept; test -e /persist/app/kept; dd if=/dev/zero of=/persist/swapfile bs=1M count=8 status=none; chmod 0600 /persist/swapfile; mkswap -q /persist/swapfile"
    );
    boot(&["defaults"]).script(&write).once("write")?;
    let look = format!(
        "set -e; for f in {files}; do grep -qx $f $f; done; test ! -e /srv/scratch/lost; grep -qx inside /srv/btrfs/kept; findmnt -n -o OPTIONS /srv/btrfs | grep -q subvol=/data; findmnt -n -o FSTYPE /srv/scratch | grep -qx tmpfs; {SWAP_IS_ON}"
    );
    let booted = boot(&["subvol=data", "compress=zstd"]).script(&look).once("look")?;
    ensure!(ext4.is_clean()?, "the data disk needs a journal replay after a power-off");
    let warnings = booted.report["warnings"].to_string();
    ensure!(
        warnings.contains("resume=LABEL=ASLEEP: nothing is resumed")
            && warnings.contains("/srv/asleep is missing: looking for its device: /dev/vd")
            && warnings.matches("holds a hibernated system, and is left alone").count() == 2,
        "report: {}",
        booted.report
    );
    ensure!(std::fs::read(asleep.path())? == asleep_before, "a hibernated system was written to");
    Ok(())
}

/// The agent turned it on, and the running system's unit for it has nothing to do, and does not fail at doing it again.
const SWAP_IS_ON: &str = r#"cat /proc/swaps; grep -q '^/dev/vd.*partition.*5$' /proc/swaps; grep -q '^/persist/swapfile' /proc/swaps; for unit in 'dev-disk-by\x2dlabel-SWAP.swap' persist-swapfile.swap; do systemctl is-active $unit; test "$(systemctl show -p ControlPID -p Result --value $unit | tr '\n' ' ')" = '0 success ' || { systemctl status $unit; false; }; done; ! systemctl --failed --plain | grep swap"#;

fn swap_disk(trial: &Trial<'_>, label: &str) -> Result<Disk> {
    let disk = Disk::blank(&trial.dir.join(format!("{label}.img")), 16)?;
    let program = crate::command::Tool::new("mkswap", std::time::Duration::from_secs(60));
    program.args(["-q", "-L", label]).arg(disk.path()).run()?;
    Ok(disk)
}

/// Writes the kernel's signature of a hibernated system over that of swap space.
fn put_to_sleep(disk: &Disk) -> Result<()> {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::options().write(true).open(disk.path())?;
    Ok(file.write_all_at(b"S1SUSPEND\0", 4086)?)
}

/// Units for swap as systemd's generator makes them of an fstab, in a folder that is persisted for them.
fn swap_units(trial: &Trial<'_>, data: &Disk) -> Result<()> {
    let folder = trial.dir.join("units");
    std::fs::create_dir_all(&folder)?;
    let swaps = [
        (r"dev-disk-by\x2dlabel-SWAP.swap", "/dev/disk/by-label/SWAP"),
        ("persist-swapfile.swap", "/persist/swapfile"),
    ];
    for (unit, what) in swaps {
        std::fs::write(folder.join(unit), format!("[Unit]\nBefore=swap.target\n[Swap]\nWhat={what}\n"))?;
    }
    let wants = swaps.map(|(unit, _)| unit).join(" ");
    std::fs::write(folder.join("swap.target"), format!("[Unit]\nDescription=Swaps\nRequires={wants}\n"))?;
    data.put(&folder, "/units")?;
    Ok(())
}
