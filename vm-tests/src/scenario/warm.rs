//! The main job: over the network once, from the cache ever after.

use anyhow::{Result, ensure};
use serde_json::json;

use super::Scenario;
use crate::disk::Disk;
use crate::lab::CHANNEL;
use crate::system::Spec;
use crate::trial::{Trial, cache_content, closed_port};

/// The tests of this file.
pub const ALL: &[Scenario] = &[
    Scenario::new("cold", "a cold boot downloads the image once and keeps it", cold),
    Scenario::new(
        "warm-server-down",
        "a warm boot works with the server switched off and leaves images and generations byte-identical",
        server_down,
    ),
    Scenario::new("warm-no-request", "a warm boot of a selected system makes no request", no_request),
    Scenario::new("clean", "a power-off leaves the cache's file system clean", clean),
    Scenario::new("update", "a new release of the channel is fetched and booted", update),
    Scenario::new("forget", "a file on / or in the store is gone after a reboot", forget),
];

/// A cold boot that leaves a cache disk with generation 1, powered off.
pub fn fill(trial: &Trial<'_>) -> Result<Disk> {
    let server = trial.serve(&trial.lab.served(1)?)?;
    let disk = trial.empty_cache()?;
    trial.boot().disk(&disk).server(server.address().port()).once("boot")?;
    Ok(disk)
}

fn cold(trial: &Trial<'_>) -> Result<()> {
    let served = trial.lab.served(1)?;
    let (digest, size) = served.image(CHANNEL)?;
    let mut server = trial.serve(&served)?;
    let disk = trial.empty_cache()?;
    let booted = trial.boot().disk(&disk).server(server.address().port()).once("boot")?;
    ensure!(booted.generation()? == 1);
    ensure!(
        booted.text("/outcome") == "booted" && booted.text("/source") == "network",
        "report: {}",
        booted.report
    );
    server.stop()?;
    let images: u64 = server
        .requests()
        .iter()
        .filter(|one| one.path.ends_with(".squashfs"))
        .map(|one| one.bytes)
        .sum();
    ensure!(images == size, "{images} bytes of an image of {size} were served");
    let content = cache_content(&disk)?;
    ensure!(
        content
            .iter()
            .any(|(path, found)| path.ends_with(&format!("{digest}.squashfs")) && *found == digest),
        "the cache holds {content:?}"
    );
    ensure!(
        disk.list("/freshroot/reports")?.len() == 1,
        "there is not one report on the cache disk"
    );
    ensure!(disk.list("/freshroot/partial")?.is_empty(), "a partial image was left");
    Ok(())
}

fn server_down(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.filled_cache()?;
    let before = cache_content(&disk)?;
    // Channel mode asks, within the policy's wait, and then boots what is there.
    let booted = trial
        .boot()
        .config(json!({ "policy": { "wait": "3s" } }))
        .disk(&disk)
        .server(closed_port()?.port())
        .once("boot")?;
    ensure!(
        booted.generation()? == 1 && booted.text("/source") == "cache",
        "report: {}",
        booted.report
    );
    ensure!(
        !booted.text("/decision/reason").is_empty(),
        "the report gives no reason: {}",
        booted.report
    );
    ensure!(cache_content(&disk)? == before, "images or generations have changed");
    Ok(())
}

fn no_request(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.filled_cache()?;
    let mut server = trial.serve(&trial.lab.served(2)?)?;
    let system = trial.lab.system(Spec::generation(1))?;
    let booted = trial
        .boot()
        .disk(&disk)
        .server(server.address().port())
        .system(&system)
        .once("boot")?;
    ensure!(
        booted.generation()? == 1 && booted.number("/requests")? == 0,
        "report: {}",
        booted.report
    );
    server.stop()?;
    ensure!(server.requests().is_empty(), "the server was asked: {:?}", server.requests());
    Ok(())
}

fn update(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.filled_cache()?;
    let before = cache_content(&disk)?;
    let server = trial.serve(&trial.lab.served(2)?)?;
    let booted = trial.boot().disk(&disk).server(server.address().port()).once("new")?;
    ensure!(
        booted.generation()? == 2 && booted.text("/source") == "network",
        "report: {}",
        booted.report
    );
    drop(server);
    let after = cache_content(&disk)?;
    ensure!(
        before.iter().all(|old| after.contains(old)),
        "the previous generation is not kept: {after:?}"
    );
    // What was accepted is what boots, also without a server.
    let again = trial
        .boot()
        .config(json!({ "policy": { "wait": "3s" } }))
        .disk(&disk)
        .server(closed_port()?.port())
        .once("again")?;
    ensure!(again.generation()? == 2, "generation {} booted", again.generation()?);
    Ok(())
}

fn clean(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.filled_cache()?;
    ensure!(disk.is_clean()?, "the cache disk needs a journal replay after a power-off");
    Ok(())
}

fn forget(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.filled_cache()?;
    let system = trial.lab.system(Spec::generation(1))?;
    let write = "set -e; echo x >/root/kept; echo x >/nix/store/kept; cat /nix/store/kept; sync";
    trial.boot().disk(&disk).system(&system).script(write).once("write")?;
    let look = "set -e; ls -a /root /nix/store >/run/listing; ! grep -qx kept /run/listing; test -d /nix/.ro-store; test -e /nix/.ro-store/nix-path-registration; readlink -e /nix/.freshroot/init";
    trial.boot().disk(&disk).system(&system).script(look).once("look")?;
    Ok(())
}
