//! Disks that are damaged, full, late, gone, swapped, doubled, or not what they were: rows 21, 23 and 24 of `docs/faults.md`, and data disks.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::Scenario;
use crate::disk::{Disk, FsType};
use crate::lab::{CACHE_LABEL, CHANNEL};
use crate::line::Line;
use crate::system::Spec;
use crate::trial::{Booted, Trial, cache_content, closed_port};

/// The tests of this file.
pub const ALL: &[Scenario] = &[
    Scenario::new(
        "cache-corrupt",
        "a cached image with a bad superblock, a bad middle and a zeroed tail costs the chunks that they lie in, and no more",
        corrupt,
    ),
    Scenario::new(
        "cache-unreadable",
        "a sector of the cached image that cannot be read costs its chunk, and no more",
        unreadable,
    ),
    Scenario::new(
        "cache-previous",
        "without a server, an image that is damaged or cannot be read gives way to the one before",
        previous,
    )
    .nightly(),
    Scenario::new(
        "cache-dead-sector",
        "a sector that stays unreadable although it was written is noticed, and the image boots from RAM",
        dead_sector,
    )
    .nightly(),
    Scenario::new(
        "cache-inodes",
        "a cache without inodes for an image is left as it is, and the image boots from RAM",
        inodes,
    ),
    Scenario::new(
        "cache-full",
        "a cache that is full of foreign files is left as it is, and the image boots from RAM",
        full,
    )
    .nightly(),
    Scenario::new(
        "cache-evict",
        "a cache that is full loses an image that no generation names, and keeps what boots",
        evicted,
    )
    .nightly(),
    Scenario::new(
        "cache-read-only",
        "a cache on a medium that takes no writes boots, and an update does not cost it",
        read_only,
    )
    .nightly(),
    Scenario::new(
        "cache-foreign",
        "a cache disk that holds no file system is named and left as it is, and one that is missing is waited for; the image boots from RAM",
        foreign,
    )
    .nightly(),
    Scenario::new(
        "data-disks",
        "data disks that are late, gone, swapped, doubled, blank, write-protected, hibernated or not unmounted are mounted or named, never emptied",
        data,
    ),
];

/// Those with systemd as stage 1.
pub const SYSTEMD: &[Scenario] = &[Scenario::new(
    "systemd-data-late",
    "under systemd a data disk that comes after 20 s is mounted, and one that never comes is named",
    systemd_late,
)
.nightly()];

/// Chunk size of today's publisher.
const CHUNK: u64 = 1 << 20;
/// How late a disk is.
const LATE: Duration = Duration::from_secs(20);

/// Where the cached image of generation 1 is, with its length.
fn image(trial: &Trial<'_>, generation: u32) -> Result<(String, u64)> {
    let (digest, size) = trial.lab.served(generation)?.image(CHANNEL)?;
    Ok((format!("/freshroot/images/{digest}.squashfs"), size))
}

/// Damages the image `file` on `disk`; returns the bytes of the chunks that are bad then.
fn damage(disk: &Disk, file: &str) -> Result<u64> {
    let mut bytes = disk.read(file)?;
    let size = bytes.len();
    // The superblock, and a byte in the middle.
    for at in [0, size / 2] {
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1;
        }
    }
    // The last chunk and a part of the one before.
    let last = (size as u64 - 1) % CHUNK + 1;
    let tail = size - usize::try_from(last + CHUNK / 2)?;
    bytes.get_mut(tail..).context("the image is shorter than two chunks")?.fill(0);
    disk.overwrite(file, &bytes)?;
    Ok(3 * CHUNK + last)
}

fn must_be_cached(booted: &Booted, generation: u32) -> Result<()> {
    ensure!(
        booted.generation()? == generation && booted.text("/source") == "cache",
        "report: {}",
        booted.report
    );
    Ok(())
}

fn warnings(booted: &Booted) -> String {
    booted.report["warnings"].to_string()
}

fn corrupt(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.filled_cache()?;
    let before = cache_content(&disk)?;
    let (file, _) = image(trial, 1)?;
    let bad = damage(&disk, &file)?;
    ensure!(cache_content(&disk)? != before, "nothing is damaged: the test proves nothing");
    let mut server = trial.serve(&trial.lab.served(1)?)?;
    let system = trial.lab.system(Spec::generation(1))?;
    let booted = trial
        .boot()
        .disk(&disk)
        .server(server.address().port())
        .system(&system)
        .once("boot")?;
    ensure!(booted.generation()? == 1, "report: {}", booted.report);
    server.stop()?;
    let fetched: u64 = server
        .requests()
        .iter()
        .filter(|one| one.path.ends_with(".squashfs"))
        .map(|one| one.bytes)
        .sum();
    ensure!(fetched == bad, "{fetched} bytes of the image were served, {bad} were damaged");
    ensure!(cache_content(&disk)? == before, "images or generations are not as before");
    Ok(())
}

fn unreadable(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.filled_cache()?;
    let before = cache_content(&disk)?;
    let (file, size) = image(trial, 1)?;
    let bad = disk.unreadable(disk.sector_of(&file, size / 2)?);
    let server = trial.serve(&trial.lab.served(1)?)?;
    let line = Line::open(server.address())?;
    // In the middle of the one chunk that is asked for: the answer to the question before it is short.
    line.hold_at(CHUNK / 2);
    let system = trial.lab.system(Spec::generation(1))?;
    let mut vm = trial
        .boot()
        .disk(&bad)
        .server(line.port())
        .system(&system)
        .words("demo.then=poweroff")
        .start("boot")?;
    line.wait_held(Duration::from_secs(300))?;
    // The chunk is about to be written over what cannot be read; then a drive takes a spare sector.
    vm.remap(0, &disk)?;
    line.hold_at(u64::MAX);
    let booted = Booted::read(&mut vm)?;
    vm.wait_end()?;
    ensure!(booted.generation()? == 1, "report: {}", booted.report);
    ensure!(
        warnings(&booted).contains("error 5") || vm.said().contains("Input/output error"),
        "nothing says why the image is damaged: {}",
        booted.report
    );
    let received = booted.number("/bytes/received")?;
    ensure!(received < 2 * CHUNK, "{received} bytes were fetched for one chunk");
    ensure!(cache_content(&disk)? == before, "images or generations are not as before");
    Ok(())
}

fn dead_sector(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.filled_cache()?;
    let (file, size) = image(trial, 1)?;
    let bad = disk.unreadable(disk.sector_of(&file, size / 2)?);
    let booted = from_ram(trial, "boot", Some(&bad), json!({}))?;
    ensure!(
        warnings(&booted).contains("does not give back what is written"),
        "the report does not say why: {}",
        booted.report
    );
    ensure!(
        !disk.list("/freshroot/images")?.iter().any(|name| name.ends_with(".squashfs")) && disk.list("/freshroot/quarantine")?.len() == 1,
        "the bad image was not put aside"
    );
    Ok(())
}

fn previous(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.filled_cache()?;
    let server = trial.serve(&trial.lab.served(2)?)?;
    let booted = trial.boot().disk(&disk).server(server.address().port()).once("update")?;
    ensure!(booted.generation()? == 2, "report: {}", booted.report);
    drop(server);
    let both = cache_content(&disk)?;
    let (file, size) = image(trial, 2)?;
    let alone = |disk: &Disk, name: &str| {
        let boot = trial.boot().config(json!({ "policy": { "wait": "3s" } })).disk(disk);
        boot.server(closed_port()?.port()).once(name)
    };
    let bad = disk.unreadable(disk.sector_of(&file, size / 2)?);
    let booted = alone(&bad, "unreadable")?;
    must_be_cached(&booted, 1)?;
    ensure!(cache_content(&disk)? == both, "images or generations have changed");
    damage(&disk, &file)?;
    let damaged = cache_content(&disk)?;
    let booted = alone(&disk, "corrupt")?;
    must_be_cached(&booted, 1)?;
    ensure!(cache_content(&disk)? == damaged, "images or generations have changed");
    Ok(())
}

/// Boots generation 1 from RAM beside a cache disk that cannot take it.
fn from_ram(trial: &Trial<'_>, name: &str, disk: Option<&Disk>, more: Value) -> Result<Booted> {
    let server = trial.serve(&trial.lab.served(1)?)?;
    let system = trial.lab.system(Spec::generation(1))?;
    let boot = trial.boot().config(more);
    let boot = disk.into_iter().fold(boot, |boot, disk| boot.disk(disk));
    let booted = boot.server(server.address().port()).system(&system).once(name)?;
    ensure!(
        booted.generation()? == 1 && booted.text("/source") == "ram",
        "report: {}",
        booted.report
    );
    Ok(booted)
}

fn inodes(trial: &Trial<'_>) -> Result<()> {
    let disk = Disk::make_ext4(&trial.dir.join("cache.img"), 192, CACHE_LABEL, &["-N", "32"])?;
    let booted = from_ram(trial, "boot", Some(&disk), json!({}))?;
    ensure!(
        warnings(&booted).contains("inode"),
        "the report does not say why: {}",
        booted.report
    );
    disk.check()?;
    let content = cache_content(&disk)?;
    ensure!(content.is_empty(), "something is kept that is not whole: {content:?}");
    Ok(())
}

fn full(trial: &Trial<'_>) -> Result<()> {
    let content = trial.dir.join("content");
    fs::create_dir(&content).with_context(|| format!("making {}", content.display()))?;
    let foreign = vec![b'x'; 90 << 20];
    fs::write(content.join("foreign"), &foreign).context("writing a foreign file")?;
    let disk = Disk::make_with(&trial.dir.join("cache.img"), 128, FsType::Ext4, CACHE_LABEL, Some(&content))?;
    let booted = from_ram(trial, "boot", Some(&disk), json!({}))?;
    ensure!(
        warnings(&booted).contains("the cache has room for"),
        "the report does not say why: {}",
        booted.report
    );
    ensure!(disk.read("/foreign")? == foreign, "what is not the cache's has changed");
    Ok(())
}

fn evicted(trial: &Trial<'_>) -> Result<()> {
    // Room for two images of 84 MB, and for little else.
    let disk = Disk::make(&trial.dir.join("cache.img"), 256, FsType::Ext4, CACHE_LABEL)?;
    let boot = |generation: u32, name: &str| {
        let server = trial.serve(&trial.lab.served(generation)?)?;
        trial.boot().disk(&disk).server(server.address().port()).once(name)
    };
    boot(1, "fill")?;
    let one = cache_content(&disk)?;
    let nobodys = format!("/freshroot/images/{}.squashfs", "0".repeat(64));
    disk.overwrite(&nobodys, &vec![b'x'; 80 << 20])?;
    let booted = boot(2, "update")?;
    ensure!(
        booted.generation()? == 2 && booted.text("/source") == "network",
        "report: {}",
        booted.report
    );
    let both = cache_content(&disk)?;
    ensure!(
        one.iter().all(|old| both.contains(old)) && both.len() > one.len(),
        "the cache holds {both:?}"
    );
    ensure!(!both.iter().any(|(file, _)| *file == nobodys), "what no generation names was kept");
    Ok(())
}

fn read_only(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.filled_cache()?;
    let before = fs::read(disk.path()).context("reading the cache disk")?;
    let server = trial.serve(&trial.lab.served(2)?)?;
    let booted = trial
        .boot()
        .config(json!({ "policy": { "wait": "10s" } }))
        .disk(&disk.read_only())
        .server(server.address().port())
        .once("boot")?;
    must_be_cached(&booted, 1)?;
    ensure!(!server.requests().is_empty(), "the server was not asked: the test proves nothing");
    ensure!(fs::read(disk.path())? == before, "the disk has changed");
    Ok(())
}

fn foreign(trial: &Trial<'_>) -> Result<()> {
    let disk = Disk::blank(&trial.dir.join("swap.img"), 64)?;
    crate::command::Tool::new("mkswap", Duration::from_secs(60))
        .args(["-L", CACHE_LABEL])
        .arg(disk.path())
        .run()?;
    let before = fs::read(disk.path()).context("reading the disk")?;
    let booted = from_ram(trial, "swap", Some(&disk), json!({ "cache": { "wait": "5s" } }))?;
    ensure!(
        warnings(&booted).contains("holds «swap», and is not mounted"),
        "report: {}",
        booted.report
    );
    ensure!(fs::read(disk.path())? == before, "the disk has changed");
    let booted = from_ram(trial, "missing", None, json!({ "cache": { "wait": "5s" } }))?;
    ensure!(warnings(&booted).contains("no device is LABEL=CACHE"), "report: {}", booted.report);
    Ok(())
}

/// A data disk that holds its name.
fn named(trial: &Trial<'_>, name: &str, label: &str) -> Result<Disk> {
    let content = trial.dir.join(format!("content-{name}"));
    fs::create_dir(&content).with_context(|| format!("making {}", content.display()))?;
    fs::write(content.join("name"), format!("{name}\n")).context("writing a name")?;
    Disk::make_with(&trial.dir.join(format!("{name}.img")), 16, FsType::Ext4, label, Some(&content))
}

/// Marks `disk` as swap space that holds a hibernated system (`HIBERNATE_SIG` of Linux `kernel/power/swap.c`, at the end of the first page).
fn hibernate(disk: &Disk) -> Result<()> {
    let file = fs::File::options().write(true).open(disk.path()).context("opening a disk")?;
    file.write_all_at(b"S1SUSPEND\0", 4096 - 10).context("writing a signature")
}

/// The program and its configuration for the running system.
fn tools(trial: &Trial<'_>, config: &Value) -> Result<Disk> {
    let content = trial.dir.join("tools");
    fs::create_dir(&content).with_context(|| format!("making {}", content.display()))?;
    fs::copy(trial.lab.agent()?, content.join("freshroot")).context("copying the agent")?;
    let text = serde_json::to_string(&trial.lab.config(config)?).context("writing the configuration")?;
    fs::write(content.join("config.json"), text).context("writing the configuration")?;
    Disk::make_with(&trial.dir.join("tools.img"), 64, FsType::Ext4, "TOOLS", Some(Path::new(&content)))
}

/// What the scripts in the guest are made of.
const WORDS: &str = "set -ex
    is() { test \"$(cat \"$1/name\")\" = \"$2\" || { echo \"$1 holds $(cat \"$1/name\"), not $2\"; exit 1; }; }
    missing() { findmnt -n -o SOURCE,FSTYPE,OPTIONS \"$1\" | tail -n 1 | grep -qE 'freshroot-missing +tmpfs +ro' || { echo \"$1 is not missing\"; exit 1; }
                ! touch \"$1/x\" 2>/dev/null || { echo \"$1 takes writes\"; exit 1; }; }
";

fn data(trial: &Trial<'_>) -> Result<()> {
    let cache = trial.filled_cache()?;
    let [a, b, within, after, gone, dirty, protected] =
        ["a", "b", "within", "after", "gone", "dirty", "protected"].map(|name| named(trial, name, &name.to_uppercase()));
    let (a, b, within, after, gone, dirty, protected) = (a?, b?, within?, after?, gone?, dirty?, protected?);
    let twice = [named(trial, "twice-1", "TWICE")?, named(trial, "twice-2", "TWICE")?];
    let original = named(trial, "original", "COPIED")?;
    let copy = Disk::at(&trial.dir.join("copy.img"));
    fs::copy(original.path(), copy.path()).context("copying a disk")?;
    let replaced = Disk::blank(&trial.dir.join("replaced.img"), 24)?;
    let hibernated = Disk::blank(&trial.dir.join("hibernated.img"), 16)?;
    crate::command::Tool::new("mkswap", Duration::from_secs(60))
        .args(["-L", "HIBERNATED"])
        .arg(hibernated.path())
        .run()?;
    let stale = named(trial, "stale", "STALE")?;
    for disk in [&hibernated, &stale] {
        hibernate(disk)?;
    }
    let config = json!({
        "cache": { "wait": "60s" },
        "fileSystems": {
            "/after": { "device": "LABEL=AFTER", "fsType": "ext4", "need": "degraded", "timeout": 5 },
            "/by-id": { "device": "/dev/disk/by-id/virtio-serial-b", "fsType": "ext4", "need": "degraded", "timeout": 5 },
            "/by-label": { "device": "LABEL=A", "fsType": "ext4", "need": "degraded", "timeout": 5 },
            "/by-path": { "device": "/dev/vdb", "fsType": "ext4", "need": "degraded", "timeout": 5 },
            "/copied": { "device": "LABEL=COPIED", "fsType": "ext4", "need": "degraded", "timeout": 5 },
            "/dirty": { "device": "LABEL=DIRTY", "fsType": "ext4", "need": "degraded", "timeout": 5 },
            "/gone": { "device": "LABEL=GONE", "fsType": "ext4", "need": "degraded", "timeout": 5 },
            "/hibernated": { "device": "LABEL=HIBERNATED", "fsType": "ext4", "need": "degraded", "timeout": 5 },
            "/protected": { "device": "LABEL=PROTECTED", "fsType": "ext4", "need": "degraded", "timeout": 5 },
            "/replaced": { "device": "/dev/disk/by-id/virtio-replaced", "fsType": "ext4", "need": "degraded", "timeout": 5 },
            "/stale": { "device": "/dev/disk/by-id/virtio-stale", "fsType": "ext4", "need": "degraded", "timeout": 5 },
            "/tools": { "device": "LABEL=TOOLS", "fsType": "ext4" },
            "/twice": { "device": "LABEL=TWICE", "fsType": "ext4", "need": "degraded", "timeout": 5 },
            // Last in order: what is waited for when a disk vanishes that was found.
            "/within": { "device": "LABEL=WITHIN", "fsType": "ext4", "need": "degraded", "timeout": 120 },
        },
    });
    let tools = tools(trial, &config)?;
    let system = trial.lab.system(Spec::generation(1))?;
    let untouched = [&hibernated, &stale, &replaced, &protected, &twice[0], &twice[1]];
    let before = untouched.iter().map(|disk| fs::read(disk.path())).collect::<Result<Vec<_>, _>>()?;
    let boot = |pair: [(&Disk, &str); 2]| {
        let boot = trial
            .boot()
            .with_tools()
            .patience(3)
            .config(config.clone())
            .system(&system)
            .disk(&cache);
        let boot = pair.into_iter().fold(boot, |boot, (disk, serial)| boot.disk_as(disk, serial));
        let all = [
            (&tools, "tools"),
            (&dirty, "dirty"),
            (&original, "original"),
            (&twice[0], "twice-1"),
            (&twice[1], "twice-2"),
            (&replaced, "replaced"),
            (&hibernated, "hibernated"),
            (&stale, "stale"),
        ];
        all.into_iter()
            .fold(boot, |boot, (disk, serial)| boot.disk_as(disk, serial))
            .disk_as(&protected.read_only(), "protected")
    };

    let script = format!(
        "{WORDS}
        for place in after copied gone hibernated replaced stale twice; do missing /$place; done
        is /by-label a; is /by-id b; is /by-path a; is /within within; is /protected protected
        ! touch /protected/x 2>/dev/null
        mkdir -p /etc/freshroot; cp /tools/config.json /etc/freshroot/
        /tools/freshroot persist-retry /after & retry=$!
        echo PLUG-AFTER >/dev/console
        wait $retry; is /after after; touch /after/written; sync /after/written
        echo kept >/dirty/kept; sync /dirty/kept"
    );
    let mut vm = boot([(&a, "serial-a"), (&b, "serial-b")])
        .disk_as(&copy, "copy")
        .disk_as(&gone, "gone")
        .script(&script)
        .start("first")?;
    vm.wait_for(&["waiting for LABEL=WITHIN"])?;
    vm.unplug("gone")?;
    // Not a wait for anything: this is how late the disk is.
    std::thread::sleep(LATE);
    vm.plug(&within, "within")?;
    let mut booted = Booted::read(&mut vm)?;
    vm.wait_for(&["PLUG-AFTER"])?;
    vm.plug(&after, "after")?;
    booted.read_script(&mut vm)?;
    vm.cut_power()?;
    let said = warnings(&booted);
    for words in [
        "/after is missing: looking for its device: no device is LABEL=AFTER",
        "/gone is missing: its disk was pulled out",
        "/replaced is missing",
        "LABEL=TWICE is on several devices",
        "LABEL=COPIED is on several devices",
        "/hibernated is missing: looking for its device: /dev/",
        "/stale is missing: looking for its device: /dev/",
        "holds a hibernated system",
        "/protected is mounted for reading only",
        "/by-path is named /dev/vdb",
    ] {
        ensure!(said.contains(words), "the report does not say «{words}»: {}", booted.report);
    }
    ensure!(!dirty.is_clean()?, "the journal needs no replay: the test proves nothing");

    // The disks in another order, and one copy less.
    let script = format!(
        "{WORDS}
        for place in gone hibernated replaced stale twice; do missing /$place; done
        is /by-label a; is /by-id b; is /by-path b; is /within within; is /protected protected; is /copied original
        is /after after; test -e /after/written; grep -qx kept /dirty/kept; touch /dirty/more"
    );
    boot([(&b, "serial-b"), (&a, "serial-a")])
        .disk_as(&within, "within")
        .disk_as(&after, "after")
        .script(&script)
        .once("second")?;
    for (disk, before) in untouched.iter().zip(&before) {
        ensure!(
            fs::read(disk.path())? == *before,
            "{} is not as it was, byte for byte",
            disk.path().display()
        );
    }
    ensure!(dirty.is_clean()?, "the data disk needs a journal replay after a power-off");
    ensure!(gone.is_clean()?, "the disk that was pulled out was written to");
    Ok(())
}

fn systemd_late(trial: &Trial<'_>) -> Result<()> {
    let cache = trial.filled_cache()?;
    let within = named(trial, "within", "WITHIN")?;
    let system = trial.lab.system(Spec::generation(1))?;
    let persist = json!({
        "/within": { "device": "LABEL=WITHIN", "fsType": "ext4", "timeout": 240, "need": "degraded" },
        "/gone": { "device": "LABEL=GONE", "fsType": "ext4", "timeout": 15, "need": "degraded" },
    });
    let script = format!("{WORDS} is /within within; touch /within/written; missing /gone");
    let mut vm = trial
        .boot()
        .systemd(trial.stage_1().argument("persist", persist))
        .patience(2)
        .disk(&cache)
        .system(&system)
        .script(&script)
        .words("demo.then=poweroff")
        .start("boot")?;
    // Printed by systemd's manager once it is up.
    vm.wait_for(&["LABEL=WITHIN", "WITHIN"])?;
    // Not a wait for anything: this is how late the disk is.
    std::thread::sleep(LATE);
    vm.plug(&within, "within")?;
    let mut booted = Booted::read(&mut vm)?;
    booted.read_script(&mut vm)?;
    vm.wait_end()?;
    ensure!(warnings(&booted).contains("/gone"), "report: {}", booted.report);
    ensure!(within.is_clean()?, "the data disk needs a journal replay");
    Ok(())
}
