//! Servers that others wrote: a cold fetch, a resume, asking again, and an update, with each.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::images::Size;
use super::link::Link;
use super::machine::Machine;
use super::net::{self, End, Net};
use super::servers;
use super::shape::Shape;
use super::slow::on_the_wire;
use super::world::{Cost, SERVER, World, address, mark, since};
use super::{Ground, Test};
use crate::command::Tool;

const OVERHEAD: u64 = 40_000;
const CHUNK: u64 = 1 << 20;
/// What may be on its way when an agent stops reading, in the link and in the kernels.
const UNDER_WAY: u64 = 256 << 10;
/// How long the configuration of the cache lets it answer for a channel without asking, and then some.
const FRESH: Duration = Duration::from_secs(20);
const MOUNT_LIMIT: Duration = Duration::from_secs(10);
/// Where the cache of the tests listens, as its configuration says.
pub const CACHE: &str = "10.78.0.1:8080";

/// The tests.
pub const ALL: &[Test] = &[
    test("nginx-cache", "nginx as a cache with slices in front of a slow server", nginx_cache),
    test("nginx", "nginx serves the folder", nginx),
    test("lighttpd", "lighttpd serves the folder", lighttpd),
    test(
        "python",
        "Python's http.server, which knows neither ranges nor entity tags, serves the folder",
        python,
    ),
    test("squid", "squid is the proxy", squid),
    test(
        "squid-password",
        "squid is the proxy, and wants a password: the right one passes, a wrong one is told as that",
        squid_password,
    ),
];

const fn test(name: &'static str, what: &'static str, run: fn(&Ground) -> Result<Value>) -> Test {
    Test {
        name,
        what,
        limit: 90,
        nightly: false,
        run,
    }
}

/// What a server can.
#[derive(Debug, Clone, Copy)]
struct Can {
    ranges: bool,
    tags: bool,
    /// Whether what it says of a channel may be as old as [`FRESH`].
    old: bool,
}

const ALL_OF_IT: Can = Can {
    ranges: true,
    tags: true,
    old: false,
};

/// squid asks the server with its own entity tag, and tells us what it has.
const REVALIDATES: Can = Can { tags: false, ..ALL_OF_IT };
const PROXY: &str = "10.77.0.1:3128";

/// A short queue: what is on its way when an agent stops reading comes for nothing.
fn fast() -> Shape {
    Shape {
        queue: UNDER_WAY / 2,
        ..Shape::new(50_000_000, 5)
    }
}

fn nginx(ground: &Ground) -> Result<Value> {
    let world = World::even(ground, fast())?;
    let _server = world.serve(ground.offer(Size::Medium, 1)?)?;
    walk(&world, ALL_OF_IT, &json!({}))
}

fn lighttpd(ground: &Ground) -> Result<Value> {
    let world = World::even(ground, fast())?;
    world.show(ground.offer(Size::Medium, 1)?)?;
    let _server = servers::lighttpd(&world.far, address(SERVER)?, &world.root(), &ground.dir)?;
    // It looks at a file only every second or two.
    let can = Can { old: true, ..ALL_OF_IT };
    walk(&world, can, &json!({}))
}

fn python(ground: &Ground) -> Result<Value> {
    let world = World::even(ground, fast())?;
    world.show(ground.offer(Size::Medium, 1)?)?;
    let _server = servers::python(&world.far, address(SERVER)?, &world.root(), &ground.dir)?;
    let can = Can {
        ranges: false,
        tags: false,
        old: false,
    };
    walk(&world, can, &json!({}))
}

fn squid(ground: &Ground) -> Result<Value> {
    let world = World::even(ground, fast())?;
    let _server = world.serve(ground.offer(Size::Medium, 1)?)?;
    let _proxy = servers::squid(&world.far, address(PROXY)?, None, &ground.dir)?;
    walk(&world, REVALIDATES, &json!({ "http": { "proxy": format!("http://{PROXY}") } }))
}

fn squid_password(ground: &Ground) -> Result<Value> {
    let world = World::even(ground, fast())?;
    let _server = world.serve(ground.offer(Size::Medium, 1)?)?;
    let _proxy = servers::squid(&world.far, address(PROXY)?, Some(("agent", "sesame")), &ground.dir)?;
    let by = |password: &str| json!({ "http": { "proxy": format!("http://agent:{password}@{PROXY}") }, "policy": { "fetchWait": "2s" } });
    let wrong = world.machine("wrong", &by("barley"))?.fetch()?;
    ensure!(!wrong.well, "a wrong password passes");
    ensure!(
        wrong.log.contains("407") && wrong.log.contains("http.proxy") && !wrong.log.contains("barley"),
        "{}",
        wrong.log
    );
    walk(&world, REVALIDATES, &by("sesame"))
}

/// A cold fetch; the same again, in two halves; a question to which nothing is new; and an update.
fn walk(world: &World<'_>, can: Can, settings: &Value) -> Result<Value> {
    let machine = |name: &str| world.machine(name, settings);
    Walk {
        ground: world.ground,
        link: &world.link,
        can,
        show: &|generation| world.show(world.ground.offer(Size::Medium, generation)?),
    }
    .run(machine("one")?, machine("two")?)
}

struct Walk<'a> {
    ground: &'a Ground,
    /// In front of the machines.
    link: &'a Link,
    can: Can,
    show: &'a dyn Fn(u32) -> Result<()>,
}

impl Walk<'_> {
    fn run(&self, one: Machine, mut two: Machine) -> Result<Value> {
        let (old, new) = (self.ground.offer(Size::Medium, 1)?, self.ground.offer(Size::Medium, 2)?);
        let cold = self.step(&one, "it boots next|nothing that is cached boots")?;
        one.has(old)?;
        self.within("cold", &cold, old.size, 3)?;

        two.change(&json!({ "transfer": { "budget": old.size / 2 } }))?;
        let before = mark(self.link);
        let half = two.fetch()?;
        ensure!(
            !half.well && half.log.contains("transfer.budget"),
            "half of the image is no image: {}",
            half.log
        );
        two.change(&json!({ "transfer": null }))?;
        let rest = self.step(&two, "is fetched")?;
        two.has(old)?;
        let resumed = since(self.link, &before);
        let asked = rest
            .requests
            .iter()
            .find(|head| head.asks().is_some_and(|path| path.ends_with(".squashfs")));
        let range = asked
            .and_then(|head| head.range.as_deref())
            .context("the rest was not asked for by range")?;
        ensure!(range != "bytes=0-", "the whole was asked for: {range}");
        let twice = if self.can.ranges { CHUNK } else { old.size / 2 };
        self.within("resumed", &resumed, old.size + twice + UNDER_WAY, 6)?;

        let same = self.step(&one, "nothing to do")?;
        ensure!(same.requests.len() == 1, "more than one question: {:?}", same.requests);
        ensure!(same.bytes < OVERHEAD, "{} bytes for nothing new", same.bytes);
        let status = if self.can.tags { 304 } else { 200 };
        ensure!(same.statuses == [status], "the answer is {:?} instead of {status}", same.statuses);

        (self.show)(2)?;
        let update = self.update(&one)?;
        one.has(new)?;
        self.within("updated", &update, new.size, 4)?;
        let shown = |cost: &Cost| format!("{:.2} MB, {} requests", cost.bytes as f64 / 1e6, cost.requests.len());
        Ok(json!({
            "note": format!(
                "cold {}; in two halves {}; nothing new {} bytes, {}; update {}",
                shown(&cold), shown(&resumed), same.bytes, status, shown(&update)
            ),
            "cold": cold.bytes, "resumed": resumed.bytes, "same": same.bytes, "update": update.bytes,
        }))
    }

    /// A fetch that goes well and says one of these.
    fn step(&self, machine: &Machine, words: &str) -> Result<Cost> {
        let before = mark(self.link);
        let fetched = machine.fetch()?.ok()?;
        ensure!(
            words.split('|').any(|words| fetched.said.contains(words)),
            "it says: {}",
            fetched.said
        );
        Ok(since(self.link, &before))
    }

    /// The new generation, as soon as the server tells of it.
    fn update(&self, machine: &Machine) -> Result<Cost> {
        let end = Instant::now() + FRESH;
        loop {
            let before = mark(self.link);
            let fetched = machine.fetch()?.ok()?;
            if fetched.said.contains("is fetched") {
                return Ok(since(self.link, &before));
            }
            ensure!(
                self.can.old && Instant::now() < end,
                "the new generation is not found: {}",
                fetched.said
            );
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    fn within(&self, what: &str, cost: &Cost, size: u64, requests: usize) -> Result<()> {
        let most = on_the_wire(size) + OVERHEAD + size / 50;
        ensure!(cost.bytes <= most, "{what}: {} bytes, at most {most} are expected", cost.bytes);
        ensure!(cost.requests.len() <= requests, "{what}: {:?}", cost.requests);
        Ok(())
    }
}

/// A cache with its machines behind a link to the server, as the documentation has it.
pub struct Cached<'a> {
    /// The server's side of the link is `far`; its near side is where the cache runs.
    pub world: World<'a>,
    _servers: [net::Process; 2],
}

impl<'a> Cached<'a> {
    /// The server offers `size`, and is reached over `uplink`.
    pub fn new(ground: &'a Ground, size: Size, down: Shape, up: Shape) -> Result<Self> {
        let world = World::new(ground, down, up)?;
        // The configuration in the documentation names its server; here that is ours.
        let hosts = ground.dir.join("hosts");
        fs::write(&hosts, "127.0.0.1 localhost\n10.77.0.1 images.example.org\n").with_context(|| format!("writing {}", hosts.display()))?;
        Tool::new("mount", MOUNT_LIMIT).arg("--bind").arg(&hosts).arg("/etc/hosts").run()?;
        let server = world.serve(ground.offer(size, 1)?)?;
        let conf = ground.checkout.join("docs/nginx-cache.conf");
        let cache = servers::nginx_cache(&world.near, address("127.0.0.1:8080")?, &conf, &ground.dir)?;
        Ok(Self {
            world,
            _servers: [server, cache],
        })
    }

    /// Where its machines are, by cable; their own names for things.
    pub fn machines(&self) -> Result<Net> {
        let machines = Net::new("machines")?;
        let end = |net, device, addresses| End { net, device, addresses };
        net::cable(
            end(&self.world.near, "lan0", &["10.78.0.1/24"]),
            end(&machines, "lan0", &["10.78.0.2/24"]),
        )?;
        Ok(machines)
    }
}

fn nginx_cache(ground: &Ground) -> Result<Value> {
    let uplink = Shape::new(8_000_000, 20);
    let cached = Cached::new(ground, Size::Medium, uplink, uplink)?;
    let world = &cached.world;
    let machines = Net::new("machines")?;
    let end = |net, addresses| End {
        net,
        device: "lan0",
        addresses,
    };
    let lan = net::link(
        end(&machines, &["10.78.0.2/24"]),
        end(&world.near, &["10.78.0.1/24"]),
        fast(),
        fast(),
    )?;
    let machine = |name: &str| ground.machine(&machines, name, &format!("http://{CACHE}"));
    let walk = Walk {
        ground,
        link: &lan,
        can: Can { old: true, ..ALL_OF_IT },
        show: &|generation| world.show(ground.offer(Size::Medium, generation)?),
    };
    let before = world.mark();
    let mut measured = walk.run(machine("one")?, machine("two")?)?;
    let sizes = ground.offer(Size::Medium, 1)?.size + ground.offer(Size::Medium, 2)?.size;
    let uplink = world.since(&before);
    // A request for each slice, and its head.
    let slices = sizes.div_ceil(256 << 10) + 40;
    let most = on_the_wire(sizes) + OVERHEAD + 600 * slices;
    ensure!(
        uplink.bytes <= most,
        "{} bytes over the uplink, at most {most} are expected",
        uplink.bytes
    );
    ensure!(
        uplink.requests.len() as u64 <= slices,
        "{} requests over the uplink",
        uplink.requests.len()
    );
    let note = measured.get("note").and_then(Value::as_str).unwrap_or_default();
    let note = format!(
        "{note}; over the uplink {:.2} MB, {} requests, for {:.2} MB of images",
        uplink.bytes as f64 / 1e6,
        uplink.requests.len(),
        sizes as f64 / 1e6
    );
    if let Some(place) = measured.get_mut("note") {
        *place = Value::from(note);
    }
    Ok(measured)
}
