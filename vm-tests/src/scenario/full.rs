//! Data disks without a free block.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::Scenario;
use super::zoo::disks::{from_medium, medium};
use crate::disk::{Disk, FsType};
use crate::trial::{Boot, Booted, Trial};

/// The tests of this file.
pub const ALL: &[Scenario] = &[Scenario::new(
    "data-full",
    "data disks without a free block boot after a power cut, with ext4, xfs and btrfs, and lose nothing; what cannot be made is named, and is made once there is room",
    full,
)
.nightly()];

const KINDS: [(&str, FsType, u64); 3] = [("ext4", FsType::Ext4, 16), ("xfs", FsType::Xfs, 320), ("btrfs", FsType::Btrfs, 160)];

/// Each disk, and a folder of it elsewhere; `new` is one that would have to be made on the ext4.
fn config(with_new: bool) -> Value {
    let bind = |from: &str, need: &str| json!({ "device": from, "fsType": "none", "options": ["bind"], "need": need });
    let mut entries = json!({});
    for (name, _, _) in KINDS {
        entries[format!("/disk/{name}")] = json!({ "device": format!("/dev/disk/by-id/virtio-{name}"), "fsType": name, "timeout": 60 });
        entries[format!("/there/{name}")] = bind(&format!("/disk/{name}/there"), "required");
    }
    if with_new {
        entries["/new/ext4"] = bind("/disk/ext4/new", "degraded");
    }
    let mut config = from_medium();
    config["fileSystems"] = entries;
    config
}

/// Fills each of them to its last block, and to its last folder, up to 100.
const FILL: &str = "set -e
    for kind in ext4 xfs btrfs; do
        disk=/disk/$kind; echo kept >/there/$kind/kept; sync -f $disk
        for time in 1 2 3; do ! cat /dev/zero >>$disk/fill; sync -f $disk; done
        n=0; while [ $n -lt 100 ] && mkdir $disk/folder-$n; do n=$((n+1)); done
        ! cat /dev/zero >>$disk/fill
        sync -f $disk; df -k $disk; echo FILL $kind $(stat -c %s $disk/fill) $n
    done";

/// What was there is there, and the ext4 takes nothing more.
const LOOK: &str = "set -e
    look() { grep -qx kept /there/$1/kept; test $(stat -c %s /disk/$1/fill) = $2; test $(find /disk/$1 -maxdepth 1 -name 'folder-*' | wc -l) = $3; cmp -n $2 /disk/$1/fill /dev/zero; }
";
const NOTHING_MORE: &str = "if mkdir /disk/ext4/more; then exit 1; fi
    findmnt -n -o SOURCE,FSTYPE,OPTIONS /new/ext4 | grep -qE '^freshroot-missing +tmpfs +ro'; if touch /new/ext4/file; then exit 1; fi
    rm /disk/ext4/fill; sync -f /disk/ext4";

fn full(trial: &Trial<'_>) -> Result<()> {
    let generic = trial.lab.generic()?;
    let medium = medium(&trial.dir, &generic)?;
    let disks: Vec<(Disk, &str)> = KINDS
        .into_iter()
        .map(|(name, kind, mebibytes)| Ok((Disk::make(&trial.dir.join(format!("{name}.img")), mebibytes, kind, name)?, name)))
        .collect::<Result<_>>()?;
    let boot = |with_new: bool| -> Boot<'_> {
        let boot = trial
            .boot()
            .config(config(with_new))
            .on(&generic)
            .patience(3)
            .disk_as(&medium, "medium");
        disks.iter().fold(boot, |boot, (disk, name)| boot.disk_as(disk, name))
    };

    let mut vm = boot(false).script(FILL).start("fill")?;
    let mut booted = Booted::read(&mut vm)?;
    booted.read_script(&mut vm)?;
    vm.cut_power()?;
    let lines: Vec<&str> = booted.script.lines().filter_map(|line| line.strip_prefix("FILL ")).collect();
    ensure!(lines.len() == KINDS.len(), "not every disk was filled:\n{}", booted.script);
    let look: String = lines.iter().map(|line| format!("look {}\n", line.trim_end())).collect();
    ensure!(!disks[0].0.is_clean()?, "the journal needs no replay: the test proves nothing");

    let booted = boot(true).script(&format!("{LOOK}{look}{NOTHING_MORE}")).once("full")?;
    let warnings = booted.report["warnings"].to_string();
    ensure!(
        warnings.contains("/new/ext4 is missing") && warnings.contains("No space left on device"),
        "report: {}",
        booted.report
    );
    ensure!(warnings.matches("is missing").count() == 1, "more is missing: {}", booted.report);

    let booted = boot(true)
        .script("set -e; findmnt -n -o SOURCE,FSTYPE /new/ext4 | grep -E '\\[/new\\] +ext4'; touch /new/ext4/file; for kind in ext4 xfs btrfs; do grep -qx kept /there/$kind/kept; done")
        .once("room")?;
    ensure!(
        !booted.report["warnings"].to_string().contains("missing"),
        "report: {}",
        booted.report
    );
    Ok(())
}
