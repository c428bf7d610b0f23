//! Servers that are down or lie: nothing of theirs is committed, and what is there boots.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{Scenario, must_refuse};
use crate::lab::CHANNEL;
use crate::line::Line;
use crate::publisher::Served;
use crate::qemu::End;
use crate::system::Spec;
use crate::trial::{Trial, cache_content, closed_port};

/// The tests of this file.
pub const ALL: &[Scenario] = &[
    Scenario::new(
        "down-poweroff",
        "without server and cache it says so, retries, and powers off",
        down_poweroff,
    ),
    Scenario::new("down-reboot", "the failure policy can be to reboot", down_reboot),
    Scenario::new("down-shell", "a shell that nobody uses ends in a reboot", down_shell),
    Scenario::new("image-flipped", "an image with one wrong byte is not committed", flipped),
    Scenario::new("image-short", "an image that was cut short is not committed", short),
    Scenario::new(
        "image-long",
        "an image that is longer than signed is not committed beyond its size",
        long,
    ),
    Scenario::new("image-html", "a web page instead of an image is not committed", html),
    Scenario::new("signature-bad", "a release with a damaged signature is not accepted", bad_signature),
    Scenario::new(
        "signature-foreign",
        "a release that somebody else signed is not accepted",
        foreign_signature,
    ),
    Scenario::new(
        "system-wrong",
        "an answer that does not hold the system that was asked for is refused",
        wrong_system,
    ),
];

fn down_poweroff(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.empty_cache()?;
    // The line takes connections and ends them, so that they can be counted.
    let line = Line::open(closed_port()?)?;
    let mut vm = trial
        .boot()
        .config(json!({ "policy": { "fetchWait": "15s" }, "onFailure": { "retries": 1 } }))
        .disk(&disk)
        .server(line.port())
        .start("boot")?;
    must_refuse(&mut vm, &[&format!("10.0.2.2:{}", line.port())])?;
    ensure!(line.connections() >= 2, "the server was tried {} times", line.connections());
    ensure!(cache_content(&disk)?.is_empty(), "something was committed");
    Ok(())
}

fn down_reboot(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.empty_cache()?;
    let mut vm = trial
        .boot()
        .config(json!({ "policy": { "fetchWait": "2s" }, "onFailure": { "action": "reboot" } }))
        .disk(&disk)
        .server(closed_port()?.port())
        .start("boot")?;
    let end = vm.wait_end()?;
    ensure!(end == End::Rebooted, "it should have rebooted: {end:?}");
    Ok(())
}

fn down_shell(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.empty_cache()?;
    let mut vm = trial
        .boot()
        .config(json!({ "policy": { "fetchWait": "2s" }, "onFailure": { "action": "shell", "shellTimeout": "15s" } }))
        .disk(&disk)
        .server(closed_port()?.port())
        .start("boot")?;
    let end = vm.wait_end()?;
    ensure!(vm.said().contains("shell"), "the console does not speak of a shell");
    ensure!(end == End::Rebooted, "it should have rebooted: {end:?}");
    Ok(())
}

fn flipped(trial: &Trial<'_>) -> Result<()> {
    with_image(trial, |mut bytes| {
        let middle = bytes.len() / 2;
        if let Some(byte) = bytes.get_mut(middle) {
            *byte ^= 1;
        }
        bytes
    })
}

fn short(trial: &Trial<'_>) -> Result<()> {
    with_image(trial, |mut bytes| {
        bytes.truncate(bytes.len() / 2);
        bytes
    })
}

fn html(trial: &Trial<'_>) -> Result<()> {
    with_image(trial, |_| b"<!DOCTYPE html><html><body>Please log in</body></html>\n".to_vec())
}

/// All chunks are there and right; what follows them is nobody's: either outcome is sound as long as the cache holds only what was signed.
fn long(trial: &Trial<'_>) -> Result<()> {
    let served = trial.own_served(2)?;
    let (digest, _) = served.image(CHANNEL)?;
    let image = served.dir().join("images").join(format!("{digest}.squashfs"));
    served.tamper(&image, |mut bytes| {
        bytes.extend_from_slice(&[0; 5000]);
        bytes
    })?;
    let disk = trial.filled_cache()?;
    let server = trial.serve(&served)?;
    trial
        .boot()
        .config(json!({ "policy": { "wait": "10s" } }))
        .disk(&disk)
        .server(server.address().port())
        .once("boot")?;
    for (path, found) in cache_content(&disk)? {
        if let Some(name) = path.strip_suffix(".squashfs") {
            ensure!(name.ends_with(&found), "{path} has the digest {found}");
        }
    }
    Ok(())
}

fn with_image(trial: &Trial<'_>, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Result<()> {
    let served = trial.own_served(2)?;
    let (digest, _) = served.image(CHANNEL)?;
    let image = served.dir().join("images").join(format!("{digest}.squashfs"));
    served.tamper(&image, change)?;
    previous_boots(trial, &served)
}

fn bad_signature(trial: &Trial<'_>) -> Result<()> {
    let served = trial.own_served(2)?;
    let answer = served.answer(CHANNEL);
    let text = fs::read_to_string(&answer).with_context(|| format!("reading {}", answer.display()))?;
    let mut value: serde_json::Value = serde_json::from_str(&text).context("reading the answer")?;
    let place = value
        .pointer_mut("/release/signatures/0/sig")
        .context("the answer has no signature")?;
    let signature = place.as_str().unwrap_or_default();
    let first = if signature.starts_with('A') { "B" } else { "A" };
    *place = json!(format!("{first}{}", signature.get(1..).unwrap_or_default()));
    served.tamper(&answer, |_| value.to_string().into_bytes())?;
    previous_boots(trial, &served)
}

fn foreign_signature(trial: &Trial<'_>) -> Result<()> {
    let lab = trial.lab;
    let publisher = lab.publisher()?;
    // The same name as the trusted key: only its bytes differ.
    let foreign = publisher.key(&trial.dir.join("foreign-keys"), "demo-1")?;
    let served = Served::at(&trial.dir.join("served"));
    fs::create_dir(served.dir()).with_context(|| format!("making {}", served.dir().display()))?;
    for generation in [1, 2] {
        let system = lab.system(Spec::generation(generation))?;
        publisher.image(&system.image, served.dir(), CHANNEL, &foreign)?;
    }
    previous_boots(trial, &served)
}

/// Channel mode with generation 1 in the cache and `served` on the network: generation 1 boots, and nothing is committed.
fn previous_boots(trial: &Trial<'_>, served: &Served) -> Result<()> {
    let disk = trial.filled_cache()?;
    let before = cache_content(&disk)?;
    let server = trial.serve(served)?;
    let booted = trial
        .boot()
        .config(json!({ "policy": { "wait": "10s" } }))
        .disk(&disk)
        .server(server.address().port())
        .once("boot")?;
    ensure!(!server.requests().is_empty(), "the server was not asked: the test proves nothing");
    ensure!(
        booted.generation()? == 1 && booted.text("/source") == "cache",
        "report: {}",
        booted.report
    );
    let warned = booted
        .report
        .pointer("/warnings")
        .and_then(serde_json::Value::as_array)
        .is_some_and(|all| !all.is_empty());
    ensure!(warned, "the report does not warn: {}", booted.report);
    ensure!(cache_content(&disk)? == before, "images or generations have changed");
    Ok(())
}

fn wrong_system(trial: &Trial<'_>) -> Result<()> {
    let served = trial.own_served(2)?;
    let [one, two] = [1, 2].map(|generation| trial.lab.system(Spec::generation(generation)));
    let (one, two) = (one?, two?);
    let answer = |hash: &str| served.dir().join("by-system").join(format!("{hash}.json"));
    let other = answer(one.toplevel.hash());
    let bytes = fs::read(&other).with_context(|| format!("reading {}", other.display()))?;
    served.tamper(&answer(two.toplevel.hash()), |_| bytes)?;
    let server = trial.serve(&served)?;
    let disk = trial.empty_cache()?;
    let mut vm = trial
        .boot()
        .config(json!({ "policy": { "fetchWait": "15s" } }))
        .disk(&disk)
        .server(server.address().port())
        .system(&two)
        .start("boot")?;
    must_refuse(&mut vm, &[&two.toplevel.base])?;
    ensure!(cache_content(&disk)?.is_empty(), "something was committed");
    Ok(())
}
