//! Keys that are replaced, and floors that are reset: what boots of it with the server off.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{Scenario, must_refuse};
use crate::lab::CHANNEL;
use crate::trial::{Trial, closed_port};

/// The tests of this file.
pub const ALL: &[Scenario] = &[
    Scenario::new(
        "rotated-key",
        "a generation of a key that was replaced boots with the server off, once the machine has seen the new signature",
        rotated_key,
    ),
    Scenario::new(
        "reset-floor",
        "an older release is refused, accepted where the floor is reset, and then boots with the server off",
        reset_floor,
    ),
];

fn rotated_key(trial: &Trial<'_>) -> Result<()> {
    let (publisher, old) = (trial.lab.publisher()?, trial.lab.key()?);
    let new = publisher.key(&trial.dir.join("new-keys"), "demo-2")?;
    let (refreshed, missed) = (trial.filled_cache_as("refreshed.img")?, trial.filled_cache_as("missed.img")?);
    let served = trial.own_served(1)?;
    let image = served.image(CHANNEL)?.1;
    let only_new = json!({ "policy": { "wait": "3s", "fetchWait": "3s" }, "trustedPublicKeys": [new.public] });
    let off = || closed_port().map(|address| address.port());

    // 1. The publisher signs with both, 2. a machine that knows the old key alone asks, as at every boot.
    publisher.rotate(served.dir(), &new, &old, false)?;
    let server = trial.serve(&served)?;
    let booted = trial.boot().disk(&refreshed).server(server.address().port()).once("refresh")?;
    ensure!(
        booted.generation()? == 1 && booted.text("/source") == "cache",
        "report: {}",
        booted.report
    );
    ensure!(
        booted.number("/bytes/received")? < image / 100,
        "an image was fetched: {}",
        booted.report
    );
    drop(server);

    // 3. An initrd that trusts the new key alone. Nobody answers.
    let booted = trial
        .boot()
        .config(only_new.clone())
        .disk(&refreshed)
        .server(off()?)
        .once("server-off")?;
    ensure!(
        booted.generation()? == 1 && booted.text("/source") == "cache" && booted.text("/decision/rule") == "stale-if-error",
        "report: {}",
        booted.report
    );

    // A machine that missed the second step has nothing that it could trust, until it gets an answer; it has the image.
    let mut vm = trial.boot().config(only_new.clone()).disk(&missed).server(off()?).start("missed")?;
    must_refuse(&mut vm, &["signed by demo-1, which trustedPublicKeys does not hold"])?;
    publisher.rotate(served.dir(), &new, &old, true)?;
    let server = trial.serve(&served)?;
    let booted = trial
        .boot()
        .config(only_new.clone())
        .disk(&missed)
        .server(server.address().port())
        .once("missed-answer")?;
    ensure!(
        booted.generation()? == 1 && booted.text("/source") == "cache",
        "report: {}",
        booted.report
    );
    drop(server);
    let booted = trial.boot().config(only_new).disk(&missed).server(off()?).once("missed-off")?;
    ensure!(booted.generation()? == 1, "generation {} booted", booted.generation()?);
    Ok(())
}

fn reset_floor(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.filled_cache()?;
    let config = json!({ "policy": { "wait": "10s" }, "commandLineMay": ["resetFloor"] });
    let boot = |port: u16| trial.boot().config(config.clone()).disk(&disk).server(port);
    let server = trial.serve(&trial.lab.served(2)?)?;
    let booted = boot(server.address().port()).once("newer")?;
    ensure!(booted.generation()? == 2, "generation {} booted", booted.generation()?);
    drop(server);

    let server = trial.serve(&trial.lab.served(1)?)?;
    let port = server.address().port();
    let booted = boot(port).once("older")?;
    let warnings = booted.report["warnings"].to_string();
    ensure!(
        booted.generation()? == 2 && warnings.contains("has accepted 2 already") && warnings.contains("reset-floor=demo"),
        "report: {}",
        booted.report
    );
    let booted = boot(port).words("freshroot.reset-floor=demo").once("reset")?;
    let warnings = booted.report["warnings"].to_string();
    ensure!(
        booted.generation()? == 1 && booted.text("/decision/rule") == "fresh" && warnings.contains("however old"),
        "report: {}",
        booted.report
    );
    drop(server);

    let booted = boot(closed_port()?.port()).once("server-off")?;
    ensure!(
        booted.generation()? == 1 && booted.text("/decision/rule") == "stale-if-error",
        "what was withdrawn came back: {}",
        booted.report
    );
    Ok(())
}
