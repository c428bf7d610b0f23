//! Power cuts: the machine is killed, and what its kernel held back is lost.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::Scenario;
use crate::lab::CHANNEL;
use crate::line::Line;
use crate::qemu::Vm;
use crate::trial::{Trial, cache_content, closed_port};

/// The tests of this file.
pub const ALL: &[Scenario] = &[
    Scenario::new(
        "cut-download",
        "a download that a power cut ended is resumed, and costs one chunk at most",
        download,
    ),
    Scenario::new(
        "cut-rename",
        "a power cut right after the image was committed leaves a cache that boots",
        rename,
    ),
    Scenario::new(
        "cut-update",
        "a power cut during an update leaves the old generation bootable without a server",
        update,
    ),
];

/// Where the download is stopped.
const CUT_AT: u64 = 30 << 20;
/// Chunk size of today's publisher.
const CHUNK: u64 = 1 << 20;
/// Answer, chunk index and the heads of two boots' responses.
const OVERHEAD: u64 = 64 << 10;
/// How long the guest gets to write what it has received.
const WRITE_LIMIT: Duration = Duration::from_secs(120);
const PACE: Duration = Duration::from_millis(200);
/// A guest that has nothing left to flush is silent; one that waits for a busy host is not silent for so long.
const QUIET: Duration = Duration::from_secs(6);

fn download(trial: &Trial<'_>) -> Result<()> {
    let served = trial.lab.served(1)?;
    let (_, size) = served.image(CHANNEL)?;
    let server = trial.serve(&served)?;
    let disk = trial.empty_cache()?;

    let line = Line::open(server.address())?;
    line.hold_at(CUT_AT);
    let mut vm = trial.boot().disk(&disk).server(line.port()).start("cut")?;
    line.wait_held(WRITE_LIMIT)?;
    wait_written(&mut vm, CUT_AT - CHUNK - OVERHEAD)?;
    vm.cut_power()?;
    let first = line.received();
    drop(line);

    let line = Line::open(server.address())?;
    let booted = trial.boot().disk(&disk).server(line.port()).once("resume")?;
    ensure!(booted.generation()? == 1);
    let twice = (first + line.received()).saturating_sub(size);
    ensure!(twice <= CHUNK + OVERHEAD, "{twice} bytes were fetched twice");
    ensure!(booted.number("/bytes/reused")? >= CUT_AT - 2 * CHUNK, "report: {}", booted.report);
    Ok(())
}

fn rename(trial: &Trial<'_>) -> Result<()> {
    let server = trial.serve(&trial.lab.served(1)?)?;
    let disk = trial.empty_cache()?;
    let mut vm = trial.boot().disk(&disk).server(server.address().port()).start("cut")?;
    // The first line after the commit; each write point before it has a test of its own in the layer of kills.
    vm.wait_for(&["system: /nix/store/"])?;
    vm.cut_power()?;
    drop(server);
    let server = trial.serve(&trial.lab.served(1)?)?;
    let booted = trial.boot().disk(&disk).server(server.address().port()).once("next")?;
    ensure!(booted.generation()? == 1);
    let fetched = booted.number("/bytes/received")?;
    ensure!(fetched <= CHUNK + OVERHEAD, "{fetched} bytes were fetched again");
    Ok(())
}

fn update(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.filled_cache()?;
    let before = cache_content(&disk)?;
    let server = trial.serve(&trial.lab.served(2)?)?;
    let line = Line::open(server.address())?;
    line.hold_at(CUT_AT);
    let mut vm = trial.boot().disk(&disk).server(line.port()).start("cut")?;
    line.wait_held(WRITE_LIMIT)?;
    vm.cut_power()?;
    drop((line, server));
    let after = cache_content(&disk)?;
    ensure!(
        before.iter().all(|old| after.contains(old)),
        "the old generation was touched: {after:?}"
    );
    let booted = trial
        .boot()
        .config(json!({ "policy": { "wait": "3s" } }))
        .disk(&disk)
        .server(closed_port()?.port())
        .once("old")?;
    ensure!(booted.generation()? == 1, "generation {} booted", booted.generation()?);
    Ok(())
}

/// Waits until the guest has written `bytes` to its first disk and then nothing more for a while: the map names a chunk only after the chunk's own
/// bytes. QEMU only counts: there is nothing to wait on.
fn wait_written(vm: &mut Vm, bytes: u64) -> Result<()> {
    let deadline = Instant::now() + WRITE_LIMIT;
    let (mut last, mut since) = (0, Instant::now());
    loop {
        let written = vm.written(0).context("counting what the guest wrote")?;
        if written != last {
            (last, since) = (written, Instant::now());
        }
        if written >= bytes && since.elapsed() >= QUIET {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!(
                "of {bytes} bytes received the guest has written {written} within {} s",
                WRITE_LIMIT.as_secs()
            );
        }
        std::thread::sleep(PACE);
    }
}
