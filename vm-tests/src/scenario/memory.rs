//! How much RAM is enough.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{Scenario, must_refuse};
use crate::disk::{Disk, FsType};
use crate::lab::{CACHE_LABEL, CHANNEL};
use crate::publisher::Served;
use crate::system::{Kind, Spec};
use crate::trial::Trial;

/// The tests of this file.
pub const ALL: &[Scenario] = &[
    Scenario::new("ram-only", "a machine without a disk keeps the image in RAM", ram_only),
    Scenario::new(
        "ram-small",
        "an image that does not fit into RAM is refused before it is fetched",
        ram_small,
    ),
    Scenario::new("ram-1g", "1 GB of RAM is enough for an image of 600 MB with a disk", one_gigabyte),
];

/// Unreclaimable memory of a booted demo system, with room: it has 60–100 MB.
const SHMEM_LIMIT_KIB: u64 = 150 << 10;

fn ram_only(trial: &Trial<'_>) -> Result<()> {
    let server = trial.serve(&trial.lab.served(1)?)?;
    let booted = trial
        .boot()
        .config(json!({ "cache": Value::Null }))
        .memory(2048)
        .server(server.address().port())
        .once("boot")?;
    ensure!(
        booted.generation()? == 1 && booted.text("/outcome") == "booted",
        "report: {}",
        booted.report
    );
    Ok(())
}

fn padded(trial: &Trial<'_>) -> Result<Served> {
    let lab = trial.lab;
    let system = lab.system(Spec {
        generation: 1,
        kind: Kind::PrepareRoot,
        padded: true,
    })?;
    let served = Served::at(&trial.dir.join("served"));
    lab.publisher()?.image(&system.image, served.dir(), CHANNEL, &lab.key()?)?;
    Ok(served)
}

fn ram_small(trial: &Trial<'_>) -> Result<()> {
    let served = padded(trial)?;
    let mut server = trial.serve(&served)?;
    let mut vm = trial
        .boot()
        .config(json!({ "cache": Value::Null, "policy": { "fetchWait": "20s" } }))
        .memory(768)
        .server(server.address().port())
        .start("boot")?;
    must_refuse(&mut vm, &["RAM"])?;
    server.stop()?;
    let images: u64 = server
        .requests()
        .iter()
        .filter(|one| one.path.ends_with(".squashfs"))
        .map(|one| one.bytes)
        .sum();
    ensure!(images == 0, "{images} bytes were fetched before it was refused");
    Ok(())
}

fn one_gigabyte(trial: &Trial<'_>) -> Result<()> {
    let served = padded(trial)?;
    let (_, size) = served.image(CHANNEL)?;
    ensure!(size >= 600_000_000, "the padded image has only {size} bytes");
    let server = trial.serve(&served)?;
    let disk = Disk::make(&trial.dir.join("cache.img"), 2048, FsType::Ext4, CACHE_LABEL)?;
    let booted = trial
        .boot()
        .memory(1024)
        .patience(3)
        .disk(&disk)
        .server(server.address().port())
        .once("cold")?;
    ensure!(booted.generation()? == 1);
    drop(server);
    let system_memory = booted.memory("Shmem")?;
    ensure!(system_memory <= SHMEM_LIMIT_KIB, "{system_memory} KiB are held in tmpfs");
    let (total, available) = (booted.memory("MemTotal")?, booted.memory("MemAvailable")?);
    ensure!(available * 2 >= total, "of {total} KiB only {available} KiB are available");
    Ok(())
}
