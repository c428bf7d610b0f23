//! The links of docs/tuning.md, with the settings that it recommends: what a first fetch, a question to which nothing is new, and an update cost.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::images::Size;
use super::machine::Machine;
use super::real::{CACHE, Cached};
use super::shape::Shape;
use super::slow::{megabytes, on_the_wire};
use super::world::{Cost, World};
use super::{Ground, Test};

const OVERHEAD: u64 = 60_000;
/// Machines behind the cache.
const MACHINES: usize = 10;
/// How long a cache may tell what it was told before, and then some.
const FRESH: Duration = Duration::from_secs(20);

/// The tests.
pub const ALL: &[Test] = &[
    test("profile-adsl", "ADSL, 6 and 0.6 Mbit/s, 40 ms", adsl),
    test("profile-lte", "LTE, 20 and 5 Mbit/s, 60 ms, 0.5 % loss", lte),
    test("profile-cache", "ten machines, a cache, and that ADSL", cache),
];

const fn test(name: &'static str, what: &'static str, run: fn(&Ground) -> Result<Value>) -> Test {
    Test {
        name,
        what,
        limit: 300,
        nightly: true,
        run,
    }
}

/// Rows of a table: what, seconds, bytes that came over the link, requests over it.
#[derive(Default)]
struct Table(Vec<String>);

impl Table {
    fn row(&mut self, what: &str, seconds: f64, cost: &Cost) {
        let bytes = if cost.bytes < OVERHEAD {
            format!("{} bytes", cost.bytes)
        } else {
            megabytes(cost.bytes)
        };
        self.0.push(format!("{what} | {seconds:.1} s | {bytes} | {}", cost.requests.len()));
    }

    fn told(&self) -> Value {
        json!({ "note": self.0.join("\n        ") })
    }
}

/// Fetches, and adds a row. The image of `size` bytes may be followed by a share of it that was lost and came again.
fn row(table: &mut Table, world: &World<'_>, machine: &Machine, what: &str, size: u64) -> Result<()> {
    let mark = world.mark();
    let fetched = machine.fetch()?.ok()?;
    let cost = world.since(&mark);
    let most = on_the_wire(size) + size / 20 + OVERHEAD;
    ensure!(cost.bytes <= most, "{what}: {} bytes came, at most {most} are expected", cost.bytes);
    table.row(what, fetched.seconds, &cost);
    Ok(())
}

/// A first fetch, the same question again, an update, with these settings.
fn walk(table: &mut Table, world: &World<'_>, name: &str, settings: &Value) -> Result<()> {
    let (old, new) = (world.ground.offer(Size::Large, 1)?, world.ground.offer(Size::Large, 2)?);
    world.show(old)?;
    let machine = world.machine(&name.replace(' ', "-"), settings)?;
    row(table, world, &machine, &format!("{name}: first"), old.size)?;
    row(table, world, &machine, &format!("{name}: nothing new"), 0)?;
    world.show(new)?;
    row(table, world, &machine, &format!("{name}: update"), new.size)?;
    machine.has(new)
}

fn adsl_link() -> (Shape, Shape) {
    (Shape::new(6_000_000, 20), Shape::new(600_000, 20))
}

fn adsl(ground: &Ground) -> Result<Value> {
    let (down, up) = adsl_link();
    let world = World::new(ground, down, up)?;
    let _server = world.serve(ground.offer(Size::Large, 1)?)?;
    let mut table = Table::default();
    walk(&mut table, &world, "as it is", &json!({}))?;
    walk(
        &mut table,
        &world,
        "rateLimit 600K",
        &json!({ "transfer": { "rateLimit": "600K" } }),
    )?;
    Ok(table.told())
}

fn lte(ground: &Ground) -> Result<Value> {
    let (down, up) = (Shape::new(20_000_000, 30), Shape::new(5_000_000, 30));
    let world = World::new(ground, down.losing(0.005, ground.seed), up.losing(0.005, !ground.seed))?;
    let _server = world.serve(ground.offer(Size::Large, 1)?)?;
    let mut table = Table::default();
    walk(&mut table, &world, "as it is", &json!({}))?;
    walk(&mut table, &world, "parallel 4", &json!({ "transfer": { "parallel": 4 } }))?;
    in_parts(&mut table, &world, "budget 8M", &json!({ "transfer": { "budget": "8M" } }))?;
    let both = json!({ "transfer": { "parallel": 4, "budget": "8M" } });
    in_parts(&mut table, &world, "parallel 4 and budget 8M", &both)?;
    Ok(table.told())
}

/// A first fetch with a budget for each boot: what it does not cover is fetched by the next one.
fn in_parts(table: &mut Table, world: &World<'_>, name: &str, settings: &Value) -> Result<()> {
    let offer = world.ground.offer(Size::Large, 1)?;
    world.show(offer)?;
    let machine = world.machine(&name.replace(' ', "-"), settings)?;
    let mark = world.mark();
    let mut seconds = 0.0;
    for number in 1..=4 {
        let fetched = machine.fetch()?;
        seconds += fetched.seconds;
        if fetched.well {
            machine.has(offer)?;
            table.row(&format!("{name}: first, in {number} parts"), seconds, &world.since(&mark));
            return Ok(());
        }
        ensure!(fetched.log.contains("transfer.budget"), "{}", fetched.log);
    }
    anyhow::bail!("the image is not there after four budgets that are half as large")
}

fn cache(ground: &Ground) -> Result<Value> {
    let (down, up) = adsl_link();
    let cached = Cached::new(ground, Size::Large, down, up)?;
    let (world, net) = (&cached.world, cached.machines()?);
    let machines: Vec<Machine> = (0..MACHINES)
        .map(|number| ground.machine(&net, &format!("machine-{number}"), &format!("http://{CACHE}")))
        .collect::<Result<_>>()?;
    let mut table = Table::default();
    // All at once; the time is that of the slowest. Says how many have fetched something.
    let all = || -> Result<(f64, usize)> {
        let fetching: Vec<_> = machines.iter().map(Machine::start).collect::<Result<_>>()?;
        let fetched: Vec<_> = fetching.into_iter().map(|one| one.end()?.ok()).collect::<Result<_>>()?;
        let slowest = fetched.iter().map(|one| one.seconds).fold(0.0, f64::max);
        Ok((slowest, fetched.iter().filter(|one| one.said.contains("is fetched")).count()))
    };
    let offers = [ground.offer(Size::Large, 1)?, ground.offer(Size::Large, 2)?];
    let within = |what: &str, cost: &Cost, size: u64| -> Result<()> {
        let most = on_the_wire(size) + size / 50 + OVERHEAD;
        ensure!(
            cost.bytes <= most,
            "{what}: {} bytes over the uplink, at most {most} are expected",
            cost.bytes
        );
        Ok(())
    };
    let mark = world.mark();
    let (seconds, count) = all()?;
    ensure!(count == MACHINES, "only {count} machines have fetched");
    let cost = world.since(&mark);
    within("first", &cost, offers[0].size)?;
    table.row("ten machines at once: first", seconds, &cost);
    let mark = world.mark();
    let (seconds, _) = all()?;
    let cost = world.since(&mark);
    within("nothing new", &cost, 0)?;
    table.row("ten machines at once: nothing new", seconds, &cost);
    world.show(offers[1])?;
    let end = Instant::now() + FRESH;
    let mark = world.mark();
    loop {
        let (seconds, count) = all()?;
        if count > 0 {
            // Whoever asked while the old one was still told asks again.
            let _late = all()?;
            let cost = world.since(&mark);
            within("update", &cost, offers[1].size)?;
            table.row("ten machines at once: update", seconds, &cost);
            break;
        }
        ensure!(Instant::now() < end, "the new generation is not found");
        std::thread::sleep(Duration::from_secs(1));
    }
    for machine in &machines {
        machine.has(offers[1]).context("after the update")?;
    }
    Ok(table.told())
}
