//! Kinds of toplevels, and the kernel they belong to.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{Scenario, must_refuse};
use crate::lab::CHANNEL;
use crate::publisher::Served;
use crate::system::{Kind, Spec};
use crate::trial::Trial;

/// The tests of this file.
pub const ALL: &[Scenario] = &[
    Scenario::new("kind-scripted", "a toplevel whose init is the stage-2 script boots", scripted),
    Scenario::new(
        "kernel-other",
        "an image for another kernel is refused, and the kernel named",
        other_kernel,
    ),
];

fn scripted(trial: &Trial<'_>) -> Result<()> {
    let lab = trial.lab;
    let system = lab.system(Spec {
        kind: Kind::Scripted,
        ..Spec::generation(1)
    })?;
    let served = Served::at(&trial.dir.join("served"));
    lab.publisher()?.image(&system.image, served.dir(), CHANNEL, &lab.key()?)?;
    let server = trial.serve(&served)?;
    let disk = trial.empty_cache()?;
    let booted = trial
        .boot()
        .disk(&disk)
        .server(server.address().port())
        .system(&system)
        .once("boot")?;
    ensure!(
        booted.generation()? == 1 && booted.text("/system/initKind") == "scripted",
        "report: {}",
        booted.report
    );
    Ok(())
}

fn other_kernel(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.filled_cache()?;
    let system = trial.lab.system(Spec::generation(1))?;
    let other = "00000000000000000000000000000000-linux-9.9.9";
    let mut vm = trial
        .boot()
        .config(json!({ "kernel": { "storeName": other }, "policy": { "mode": "offline" } }))
        .disk(&disk)
        .system(&system)
        .start("boot")?;
    must_refuse(&mut vm, &[other, &system.kernel_store_name])?;
    ensure!(disk.check().is_ok());
    Ok(())
}
