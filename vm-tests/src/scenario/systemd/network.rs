//! Networks that are configured by systemd-networkd, and are late, broken or not needed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::super::Scenario;
use super::boot;
use crate::qemu::{End, Nic};
use crate::system::Spec;
use crate::trial::{Booted, Trial};

/// The tests of this file.
pub const ALL: &[Scenario] = &[
    Scenario::new(
        "systemd-no-network",
        "a warm boot makes no request and does not wait for a networkd that never comes up",
        no_network,
    ),
    Scenario::new(
        "systemd-second-card",
        "under systemd a second network card without DHCP is not waited for",
        second_card,
    ),
    Scenario::new(
        "systemd-late-link",
        "under systemd a link that comes up late is waited for",
        late_link,
    ),
];

/// What systemd-networkd-wait-online waits for, in milliseconds. Nothing else in a boot takes as long for the network.
const WAIT_ONLINE: u64 = 120_000;

fn no_network(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.filled_cache()?;
    let mut server = trial.serve(&trial.lab.served(2)?)?;
    let system = trial.lab.system(Spec::generation(1))?;
    let stuck = "[Service]\nTimeoutStartSec=infinity\nExecStartPre=!/bin/sleep infinity\n";
    let booted = trial
        .boot()
        .systemd(trial.stage_1().unit("systemd-networkd.service.d/stuck.conf", stuck))
        .disk(&disk)
        .server(server.address().port())
        .system(&system)
        .script("journalctl -b -o cat --no-pager UNIT=systemd-networkd.service")
        .once("boot")?;
    ensure!(
        booted.generation()? == 1 && booted.number("/requests")? == 0,
        "report: {}",
        booted.report
    );
    ensure!(
        booted.script.contains("Starting systemd-networkd.service") && !booted.script.contains("Started systemd-networkd.service"),
        "networkd was not stuck in its start, so that the test proves nothing:\n{}",
        booted.script
    );
    server.stop()?;
    ensure!(server.requests().is_empty(), "the server was asked: {:?}", server.requests());
    Ok(())
}

fn second_card(trial: &Trial<'_>) -> Result<()> {
    let server = trial.serve(&trial.lab.served(1)?)?;
    let disk = trial.empty_cache()?;
    let mute = Nic {
        mac: "52:54:00:12:34:01".to_owned(),
        mute: true,
        ..Nic::plain()
    };
    // The mute one has the lower number, for whoever takes the first.
    let booted = boot(trial)
        .disk(&disk)
        .nic(mute)
        .server(server.address().port())
        .script("journalctl -b -o cat --no-pager UNIT=systemd-networkd-wait-online.service")
        .once("boot")?;
    ensure!(
        booted.generation()? == 1 && booted.text("/source") == "network",
        "report: {}",
        booted.report
    );
    let waited = step(&booted, "network")?;
    ensure!(waited < WAIT_ONLINE, "{waited} ms were spent on the network: {}", booted.report);
    ensure!(
        booted.script.starts_with("SCRIPT-END"),
        "systemd-networkd-wait-online was started:\n{}",
        booted.script
    );
    Ok(())
}

/// Milliseconds of the step `name` in the agent's report, all its runs together.
fn step(booted: &Booted, name: &str) -> Result<u64> {
    let steps = booted
        .report
        .pointer("/steps")
        .and_then(serde_json::Value::as_array)
        .context("no steps")?;
    let times: Vec<u64> = steps
        .iter()
        .filter(|step| step.get("step").and_then(serde_json::Value::as_str) == Some(name))
        .filter_map(|step| step.get("milliseconds").and_then(serde_json::Value::as_u64))
        .collect();
    ensure!(!times.is_empty(), "the report has no step «{name}»: {}", booted.report);
    Ok(times.iter().sum())
}

fn late_link(trial: &Trial<'_>) -> Result<()> {
    let server = trial.serve(&trial.lab.served(1)?)?;
    let disk = trial.empty_cache()?;
    let nic = Nic {
        carrier: false,
        ..Nic::plain()
    };
    let mut vm = boot(trial)
        .config(json!({ "network": { "wait": "3min" } }))
        .disk(&disk)
        .nic(nic)
        .words(&format!(
            "freshroot.url=http://10.0.2.2:{} demo.then=poweroff",
            server.address().port()
        ))
        .start("boot")?;
    vm.wait_for(&["waiting for"])?;
    // Not a wait for anything: this is how late the link is.
    std::thread::sleep(Duration::from_secs(15));
    vm.set_link(0, true)?;
    let booted = Booted::read(&mut vm)?;
    ensure!(
        booted.generation()? == 1 && booted.text("/source") == "network",
        "report: {}",
        booted.report
    );
    ensure!(vm.wait_end()? == End::PoweredOff, "it did not power off");
    Ok(())
}
