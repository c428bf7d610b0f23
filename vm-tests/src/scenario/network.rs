//! Networks that are late or different, and consoles.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::Scenario;
use crate::qemu::Nic;
use crate::system::Spec;
use crate::trial::{Booted, Trial, cache_content, must_power_off};

/// The tests of this file.
pub const ALL: &[Scenario] = &[
    Scenario::new("carrier-late", "a link that comes up after 20 s is waited for", late_carrier),
    Scenario::new("carrier-second", "of two network cards the one with a carrier is used", second_card),
    Scenario::new("ipv6-only", "a network with router advertisements and no IPv4 is enough", ipv6_only),
    Scenario::new(
        "countdown-key",
        "a key on the serial console takes the cached system instead of a long download",
        pressed_key,
    ),
    Scenario::new("consoles", "every console gets the messages", consoles),
    Scenario::new(
        "console-none",
        "a console that does not exist does not keep a machine from booting",
        no_console,
    ),
];

fn pressed_key(trial: &Trial<'_>) -> Result<()> {
    let server = trial.serve(&trial.lab.served(2)?)?;
    let disk = trial.filled_cache()?;
    let before = cache_content(&disk)?;
    let mut vm = trial
        .boot()
        .config(json!({ "policy": { "countdown": "60s" } }))
        .disk(&disk)
        .server(server.address().port())
        .words("demo.then=poweroff")
        .start("boot")?;
    vm.wait_for(&["press c for the cached system"])?;
    vm.press("c")?;
    let booted = Booted::read(&mut vm)?;
    must_power_off(&mut vm)?;
    ensure!(
        booted.generation()? == 1 && booted.text("/source") == "cache" && booted.text("/decision/rule") == "key-pressed",
        "report: {}",
        booted.report
    );
    ensure!(cache_content(&disk)? == before, "images or generations have changed");
    Ok(())
}

fn late_carrier(trial: &Trial<'_>) -> Result<()> {
    let server = trial.serve(&trial.lab.served(1)?)?;
    let disk = trial.empty_cache()?;
    let nic = Nic {
        carrier: false,
        ..Nic::plain()
    };
    let mut vm = trial
        .boot()
        .disk(&disk)
        .nic(nic)
        .words(&format!(
            "freshroot.url=http://10.0.2.2:{} demo.then=poweroff",
            server.address().port()
        ))
        .start("boot")?;
    vm.wait_for(&["waiting for a carrier"])?;
    // Not a wait for anything: this is how late the link is.
    std::thread::sleep(Duration::from_secs(20));
    vm.set_link(0, true)?;
    let booted = Booted::read(&mut vm)?;
    ensure!(
        booted.generation()? == 1 && booted.text("/source") == "network",
        "report: {}",
        booted.report
    );
    vm.wait_end()?;
    Ok(())
}

fn second_card(trial: &Trial<'_>) -> Result<()> {
    let server = trial.serve(&trial.lab.served(1)?)?;
    let disk = trial.empty_cache()?;
    let unplugged = Nic {
        carrier: false,
        mac: "52:54:00:12:34:01".to_owned(),
        ..Nic::plain()
    };
    let booted = trial
        .boot()
        .disk(&disk)
        .nic(unplugged)
        .server(server.address().port())
        .once("boot")?;
    ensure!(
        booted.generation()? == 1 && booted.text("/source") == "network",
        "report: {}",
        booted.report
    );
    Ok(())
}

fn ipv6_only(trial: &Trial<'_>) -> Result<()> {
    let server = trial.serve_at(&trial.lab.served(1)?, "[::1]:0")?;
    let disk = trial.empty_cache()?;
    let nic = Nic {
        ipv4: false,
        ..Nic::plain()
    };
    // fec0::2 is the host on QEMU's user network.
    let booted = trial
        .boot()
        .disk(&disk)
        .nic(nic)
        .words(&format!("freshroot.url=http://[fec0::2]:{}", server.address().port()))
        .once("boot")?;
    ensure!(
        booted.generation()? == 1 && booted.text("/source") == "network",
        "report: {}",
        booted.report
    );
    Ok(())
}

/// One console of each kind is all that a kernel takes: a screen and a serial port. What stands on the screen can be read in the machine.
fn consoles(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.filled_cache()?;
    let system = trial.lab.system(Spec::generation(1))?;
    let mut vm = trial
        .boot()
        .consoles("console=tty0 console=ttyS0")
        .disk(&disk)
        .system(&system)
        // A login prompt clears the screen.
        .words("systemd.mask=getty@tty1.service demo.then=poweroff")
        .script("cat /dev/vcs1")
        .start("boot")?;
    let mut booted = Booted::read(&mut vm)?;
    booted.read_script(&mut vm)?;
    vm.wait_end()?;
    for line in ["freshroot: initramfs: ", "freshroot: starting /nix/store/"] {
        ensure!(booted.script.contains(line), "the screen lacks «{line}»: {}", booted.script);
        ensure!(vm.said().contains(line), "the serial port lacks «{line}»");
    }
    Ok(())
}

/// Nothing can be heard of this boot; that it powers off by itself, and its report on the cache disk, are what tells.
fn no_console(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.filled_cache()?;
    let before = disk.list("/freshroot/reports")?.len();
    let system = trial.lab.system(Spec::generation(1))?;
    let mut vm = trial
        .boot()
        .consoles("console=nothing9")
        .disk(&disk)
        .system(&system)
        .words("demo.then=poweroff")
        .start("boot")?;
    let end = vm.wait_end()?;
    ensure!(end == crate::qemu::End::PoweredOff, "the machine did not power off but {end:?}");
    let after = disk.list("/freshroot/reports")?.len();
    ensure!(after == before + 1, "{before} reports before, {after} after");
    Ok(())
}
