//! What the benchmark measures on links, each in namespaces of its own like a test. Numbers never fail here.

use std::fs;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::images::{Offer, Size, digest};
use super::net::CONTROL;
use super::shape::Shape;
use super::slow;
use super::world::{SERVER, World};
use super::{Ground, Test};

/// The share of a link of 256 kbit/s that is used.
pub const SLOW: Test = test("measure-slow", slow::use_of_a_slow_link);
/// What is fetched again after a kill.
pub const KILLED: Test = test("measure-killed", slow::killed);
/// Seconds of the agent on a lossy link, with Reno.
pub const LOSSY: Test = test("measure-lossy", |ground| lossy(ground, Size::Medium, Control::Reno, agent));
/// The same of curl.
pub const LOSSY_CURL: Test = test("measure-lossy-curl", |ground| lossy(ground, Size::Medium, Control::Reno, curl));
/// Seconds of the agent on a lossy link, with what this kernel has by default.
pub const DEFAULT: Test = test("measure-default", |ground| lossy(ground, Size::Large, Control::Default, agent));
/// The same of curl.
pub const DEFAULT_CURL: Test = test("measure-default-curl", |ground| lossy(ground, Size::Large, Control::Default, curl));
/// All of them.
pub const ALL: &[Test] = &[SLOW, KILLED, LOSSY, LOSSY_CURL, DEFAULT, DEFAULT_CURL];

/// How TCP finds its speed.
#[derive(Debug, Clone, Copy)]
enum Control {
    Reno,
    /// As this kernel does unless told.
    Default,
}

const fn test(name: &'static str, run: fn(&Ground) -> Result<Value>) -> Test {
    Test {
        name,
        what: "a figure of the benchmark",
        limit: 300,
        nightly: false,
        run,
    }
}

/// 100 ms there and back at 20 Mbit/s, and every hundredth packet lost, either way; the same packets by their number for the same seed.
fn lossy(ground: &Ground, size: Size, control: Control, fetch: fn(&World<'_>, &Offer) -> Result<f64>) -> Result<Value> {
    let shape = Shape::new(20_000_000, 50);
    let world = World::new(ground, shape.losing(0.01, ground.seed), shape.losing(0.01, !ground.seed))?;
    let control = match control {
        Control::Reno => "reno".to_owned(),
        // The namespace that this process was started in has not been told anything.
        Control::Default => fs::read_to_string(CONTROL).with_context(|| format!("reading {CONTROL}"))?,
    };
    world.far.control(control.trim())?;
    let offer = ground.offer(size, 1)?;
    let _server = world.serve(offer)?;
    let seconds = fetch(&world, offer)?;
    Ok(json!({ "seconds": seconds, "lost": world.link.down().lost, "control": control.trim() }))
}

fn agent(world: &World<'_>, offer: &Offer) -> Result<f64> {
    let machine = world.machine("machine", &json!({}))?;
    let fetched = machine.fetch()?.ok()?;
    machine.has(offer)?;
    Ok(fetched.seconds)
}

fn curl(world: &World<'_>, offer: &Offer) -> Result<f64> {
    let file = world.ground.dir.join("peer");
    let started = Instant::now();
    let status = world
        .near
        .command("curl")
        .args(["-s", "-o"])
        .arg(&file)
        .arg(format!("http://{SERVER}/{}", offer.path()))
        .stdout(Stdio::null())
        .status()
        .context("starting curl")?;
    let seconds = started.elapsed().as_secs_f64();
    ensure!(status.success(), "curl failed: {status}");
    let found = digest(fs::File::open(&file).context("opening what curl fetched")?)?;
    ensure!(found == offer.digest, "curl fetched something else");
    Ok(seconds)
}
