//! What fails under systemd ends in the agent's failure policy, and where the agent cannot even start, in a reboot.

use anyhow::{Result, ensure};
use serde_json::json;

use super::super::{Scenario, must_refuse};
use super::boot;
use crate::line::Line;
use crate::qemu::{End, Nic};
use crate::system::Spec;
use crate::trial::{Trial, cache_content, closed_port};

/// The tests of this file.
pub const ALL: &[Scenario] = &[
    Scenario::new(
        "systemd-no-agent",
        "under systemd a missing agent ends in a reboot that systemd makes by itself",
        no_agent,
    ),
    Scenario::new(
        "systemd-killed",
        "under systemd an agent that is killed in the middle of a download ends in the failure policy",
        killed,
    ),
    Scenario::new(
        "systemd-no-driver",
        "under systemd a network card without a driver and an empty cache end in the failure policy",
        no_driver,
    ),
    Scenario::new(
        "systemd-down",
        "under systemd two ways lead into the failure policy when server and cache are gone, and it is carried out once",
        down,
    ),
    Scenario::new(
        "systemd-broken-config",
        "under systemd a configuration that cannot be read ends in a reboot that names the place",
        broken_config,
    ),
    Scenario::new(
        "systemd-disk-required",
        "under systemd a missing disk that is required ends in the failure policy",
        disk_required,
    ),
    Scenario::new(
        "systemd-disk-degraded",
        "under systemd a missing disk that may be missing is an empty read-only folder, and the machine boots",
        disk_degraded,
    ),
];

fn no_agent(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.filled_cache()?;
    let system = trial.lab.system(Spec::generation(1))?;
    let mut vm = trial
        .boot()
        .systemd(trial.stage_1().without_agent())
        .disk(&disk)
        .system(&system)
        .start("boot")?;
    let end = vm.wait_end()?;
    ensure!(vm.said().contains("freshroot-last"), "the last resort was not started");
    ensure!(end == End::Rebooted, "it should have rebooted: {end:?}");
    ensure!(disk.is_clean()?, "the cache disk needs a journal replay");
    Ok(())
}

/// Kills the agent once it has received something: the line holds it there.
const KILL: &str = "\
[Unit]
DefaultDependencies=no
After=sysroot-run.mount
[Service]
Type=exec
ExecStart=/bin/sh -c 'i=0; until [ -n \"$(find /sysroot/run/freshroot/cache/freshroot/partial -size +4096k 2>/dev/null)\" ] || [ $i = 600 ]; do i=$((i+1)); sleep 0.5; done; systemctl kill --signal=KILL freshroot.service'
[Install]
WantedBy=initrd.target
";

fn killed(trial: &Trial<'_>) -> Result<()> {
    let server = trial.serve(&trial.lab.served(1)?)?;
    let line = Line::open(server.address())?;
    line.hold_at(20 << 20);
    let disk = trial.empty_cache()?;
    let mut vm = trial
        .boot()
        .systemd(trial.stage_1().unit("kill-the-agent.service", KILL))
        .config(json!({ "transfer": { "stall": "10min" } }))
        .disk(&disk)
        .server(line.port())
        .start("boot")?;
    must_refuse(&mut vm, &["killed"])?;
    ensure!(cache_content(&disk)?.is_empty(), "something was committed");
    Ok(())
}

fn no_driver(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.empty_cache()?;
    let mut vm = boot(trial)
        .config(json!({ "network": { "wait": "10s" }, "policy": { "fetchWait": "15s" } }))
        .disk(&disk)
        .nic(Nic::plain())
        .words(&format!(
            "freshroot.url=http://10.0.2.2:{} modprobe.blacklist=virtio_net",
            closed_port()?.port()
        ))
        .start("boot")?;
    must_refuse(&mut vm, &["no network", "driver"])
}

/// The unit of the boot fails, and with it initrd-fs.target and initrd.target, which lead to emergency.target: both ways are taken.
fn down(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.empty_cache()?;
    let port = closed_port()?.port();
    let mut vm = boot(trial)
        .config(json!({ "policy": { "fetchWait": "5s" }, "onFailure": { "delay": "10s" } }))
        .disk(&disk)
        .server(port)
        .start("boot")?;
    must_refuse(
        &mut vm,
        &[
            &format!("10.0.2.2:{port}"),
            "Emergency Shell",
            "another process carries the failure policy out",
        ],
    )?;
    let said = vm.said();
    let times = said.matches("freshroot: power off in 10 s").count();
    ensure!(times == 1, "the failure policy was carried out {times} times:\n{said}");
    ensure!(
        !said.contains("freshroot-last"),
        "the last resort was started, which nothing needed"
    );
    ensure!(disk.is_clean()?, "the cache disk needs a journal replay");
    Ok(())
}

fn broken_config(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.filled_cache()?;
    let system = trial.lab.system(Spec::generation(1))?;
    let broken = "{ \"version\": 1,\n  \"cache\": \n}";
    let mut vm = trial
        .boot()
        .systemd(trial.stage_1().text("/etc/freshroot/config.json", broken, 0o644))
        .disk(&disk)
        .system(&system)
        .start("boot")?;
    // Nothing is known of another policy.
    let end = vm.wait_end()?;
    ensure!(end == End::Rebooted, "it should have rebooted: {end:?}");
    let said = vm.said();
    for word in ["THE BOOT FAILED", "/etc/freshroot/config.json", "line 3"] {
        ensure!(said.contains(word), "the console does not say «{word}»:\n{said}");
    }
    Ok(())
}

fn disk_required(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.filled_cache()?;
    let system = trial.lab.system(Spec::generation(1))?;
    let persist = json!({ "/data": { "device": "LABEL=GONE", "fsType": "ext4", "timeout": 15 } });
    let mut vm = trial
        .boot()
        .systemd(trial.stage_1().argument("persist", persist))
        .disk(&disk)
        .system(&system)
        .start("boot")?;
    must_refuse(&mut vm, &["/data"])?;
    ensure!(disk.is_clean()?, "the cache disk needs a journal replay");
    Ok(())
}

fn disk_degraded(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.filled_cache()?;
    let system = trial.lab.system(Spec::generation(1))?;
    let persist = json!({ "/data": { "device": "LABEL=GONE", "fsType": "ext4", "timeout": 15, "need": "degraded" } });
    let agent = trial.lab.agent()?;
    let booted = trial
        .boot()
        .systemd(
            trial.stage_1()
                .argument("persist", persist)
                .program("/running/demo/freshroot", &agent),
        )
        .disk(&disk)
        .system(&system)
        .script(
            "findmnt -n -o SOURCE,FSTYPE /data; echo x >/data/x && echo written; /run/demo/freshroot check-mount /data; echo status $?; systemctl is-active multi-user.target",
        )
        .once("boot")?;
    ensure!(booted.generation()? == 1, "generation {} booted", booted.generation()?);
    for word in ["freshroot-missing", "tmpfs", "Read-only", "status 1", "\nactive\n"] {
        ensure!(
            booted.script.contains(word),
            "the script did not write «{word}»:\n{}",
            booted.script
        );
    }
    ensure!(!booted.script.contains("written"), "the stand-in takes writes:\n{}", booted.script);
    let warned = booted
        .report
        .pointer("/warnings")
        .is_some_and(|all| all.to_string().contains("/data"));
    ensure!(warned, "the report does not warn of /data: {}", booted.report);
    Ok(())
}
