//! Links that are slow, lossy, cut or silent; addresses that change or lead nowhere; names that come late.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::dns::NameServer;
use super::images::Size;
use super::shape::Shape;
use super::world::{DEVICE, World};
use super::{Ground, Test};

/// A packet of full size, and what of it is the body: without the heads of IP and TCP, and TCP's time stamps.
const PACKET: f64 = 1500.0;
const PAYLOAD: f64 = 1448.0;
/// What the channel's answer, the chunk index, heads and acknowledgements may take together.
const OVERHEAD: u64 = 40_000;
/// Length of a chunk, as the publishing side makes them.
pub const CHUNK: u64 = 1 << 20;
/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// The tests.
pub const ALL: &[Test] = &[
    Test {
        name: "slow",
        what: "a link of 256 kbit/s is used to 97 % from the start of the program to its end",
        limit: 120,
        nightly: false,
        run: slow,
    },
    Test {
        name: "silence",
        what: "a link that is silent for 30 s costs its silence and at most a chunk",
        limit: 120,
        nightly: false,
        run: silence,
    },
    Test {
        name: "lossy",
        what: "with 100 ms and 1 % loss the image comes, and little comes twice",
        limit: 120,
        nightly: false,
        run: lossy,
    },
    Test {
        name: "late-names",
        what: "a name server that answers after 3 s costs time only",
        limit: 60,
        nightly: false,
        run: late_names,
    },
    Test {
        name: "address",
        what: "another address in the middle of the download is noticed within seconds, and the download goes on",
        limit: 60,
        nightly: false,
        run: address,
    },
    Test {
        name: "link-down",
        what: "a link that goes down and comes back costs a pause, and no second request",
        limit: 60,
        nightly: false,
        run: link_down,
    },
    Test {
        name: "killed",
        what: "an agent that is killed in the middle fetches at most one chunk again",
        limit: 60,
        nightly: false,
        run: killed,
    },
    Test {
        name: "dead-ipv6",
        what: "a server's IPv6 address at which nobody answers costs less than a second",
        limit: 60,
        nightly: false,
        run: dead_ipv6,
    },
];

/// Bytes that `size` bytes of body need on a link, in full packets.
pub fn on_the_wire(size: u64) -> u64 {
    (size as f64 * PACKET / PAYLOAD) as u64
}

/// For people.
pub fn megabytes(bytes: u64) -> String {
    format!("{:.2} MB", bytes as f64 / 1e6)
}

fn slow(ground: &Ground) -> Result<Value> {
    let measured = use_of_a_slow_link(ground)?;
    let used = measured.get("used").and_then(Value::as_f64).unwrap_or_default();
    ensure!(used >= 0.97, "the link is used to {:.1} %", used * 100.0);
    Ok(measured)
}

/// Which share of what a link of 256 kbit/s can carry from the start of the program to its end was the image.
pub fn use_of_a_slow_link(ground: &Ground) -> Result<Value> {
    const RATE: u64 = 256_000;
    let world = World::even(ground, Shape::new(RATE, 20))?;
    let offer = ground.offer(Size::Small, 1)?;
    let _server = world.serve(offer)?;
    let machine = world.machine("machine", &json!({}))?;
    let fetched = machine.fetch()?.ok()?;
    machine.has(offer)?;
    // Only the image counts: answer, index, requests and waiting are what keeps it from 100 %.
    let used = offer.size as f64 * PACKET / PAYLOAD * 8.0 / (RATE as f64 * fetched.seconds);
    ensure!(used <= 1.0, "more than the link can carry: {used}");
    Ok(json!({
        "note": format!("{} in {:.1} s: {:.1} % of the link", megabytes(offer.size), fetched.seconds, used * 100.0),
        "used": used, "seconds": fetched.seconds,
    }))
}

fn lossy(ground: &Ground) -> Result<Value> {
    let shape = Shape::new(20_000_000, 50);
    let world = World::new(ground, shape.losing(0.01, ground.seed), shape.losing(0.01, !ground.seed))?;
    let offer = ground.offer(Size::Small, 1)?;
    let _server = world.serve(offer)?;
    let machine = world.machine("machine", &json!({}))?;
    let fetched = machine.fetch()?.ok()?;
    machine.has(offer)?;
    let (bytes, lost) = (world.link.down().bytes, world.link.down().lost);
    let most = on_the_wire(offer.size) + OVERHEAD + on_the_wire(offer.size) / 20;
    ensure!(bytes <= most, "{bytes} bytes came, at most {most} are expected");
    ensure!(lost > 0, "no packet was lost: nothing is proved");
    Ok(json!({ "note": format!("{} in {:.1} s, {lost} packets lost", megabytes(bytes), fetched.seconds), "seconds": fetched.seconds }))
}

fn silence(ground: &Ground) -> Result<Value> {
    let world = World::even(ground, Shape::new(8_000_000, 20))?;
    let offer = ground.offer(Size::Medium, 1)?;
    let _server = world.serve(offer)?;
    let machine = world.machine("machine", &json!({}))?;
    world.link.cut_after(on_the_wire(offer.size) / 2);
    let fetching = machine.start()?;
    world.link.wait_cut(LONG)?;
    // The silence is what is tested.
    std::thread::sleep(Duration::from_secs(30));
    world.link.mend();
    let fetched = fetching.end()?.ok()?;
    machine.has(offer)?;
    let bytes = world.link.down().bytes;
    let most = on_the_wire(offer.size + CHUNK) + OVERHEAD;
    ensure!(bytes <= most, "{bytes} bytes came, at most {most} are expected");
    // The transfer itself takes 4 s; the rest is the silence, and finding out that it is over.
    ensure!(fetched.seconds < 45.0, "it took {:.1} s", fetched.seconds);
    Ok(json!({ "note": format!("{} in {:.1} s", megabytes(bytes), fetched.seconds), "seconds": fetched.seconds }))
}

fn link_down(ground: &Ground) -> Result<Value> {
    let world = World::even(ground, Shape::new(8_000_000, 20))?;
    let offer = ground.offer(Size::Medium, 1)?;
    let _server = world.serve(offer)?;
    let machine = world.machine("machine", &json!({}))?;
    world.link.cut_after(on_the_wire(offer.size) / 2);
    let fetching = machine.start()?;
    world.link.wait_cut(LONG)?;
    world.near.ip(&["link", "set", DEVICE, "down"])?;
    world.link.mend();
    std::thread::sleep(Duration::from_secs(3));
    world.near.ip(&["link", "set", DEVICE, "up"])?;
    let fetched = fetching.end()?.ok()?;
    machine.has(offer)?;
    let bytes = world.link.down().bytes;
    let requests = world.link.heads().iter().filter(|head| head.asks().is_some()).count();
    ensure!(
        requests == 3,
        "{requests} requests were made: the answer, the index and the image are three"
    );
    // The kernel of the server sends some packets twice, as it cannot know what arrived.
    let most = on_the_wire(offer.size) + OVERHEAD + offer.size / 10;
    ensure!(bytes <= most, "{bytes} bytes came, at most {most} are expected");
    Ok(json!({ "note": format!("{} in {:.1} s", megabytes(bytes), fetched.seconds), "seconds": fetched.seconds }))
}

fn address(ground: &Ground) -> Result<Value> {
    let world = World::even(ground, Shape::new(8_000_000, 20))?;
    let offer = ground.offer(Size::Medium, 1)?;
    let _server = world.serve(offer)?;
    let machine = world.machine("machine", &json!({}))?;
    world.link.cut_after(on_the_wire(offer.size) / 2);
    let fetching = machine.start()?;
    world.link.wait_cut(LONG)?;
    world.near.ip(&["address", "del", "10.77.0.2/24", "dev", DEVICE])?;
    world.near.ip(&["address", "add", "10.77.0.3/24", "dev", DEVICE])?;
    world.link.mend();
    let fetched = fetching.end()?.ok()?;
    machine.has(offer)?;
    let bytes = world.link.down().bytes;
    let most = on_the_wire(offer.size + CHUNK) + OVERHEAD;
    ensure!(bytes <= most, "{bytes} bytes came, at most {most} are expected");
    // The transfer itself takes 4 s, and `transfer.stall` would be 30.
    ensure!(fetched.seconds < 15.0, "it took {:.1} s", fetched.seconds);
    Ok(json!({ "note": format!("{} in {:.1} s", megabytes(bytes), fetched.seconds), "seconds": fetched.seconds }))
}

/// What an agent that is killed in the middle costs.
pub fn killed(ground: &Ground) -> Result<Value> {
    // A short queue: what a link holds when its machine dies is lost, and is not the agent's.
    let world = World::even(
        ground,
        Shape {
            queue: 64_000,
            ..Shape::new(8_000_000, 10)
        },
    )?;
    let offer = ground.offer(Size::Medium, 1)?;
    let _server = world.serve(offer)?;
    let whole = world.mark();
    world.machine("undisturbed", &json!({}))?.fetch()?.ok()?;
    let whole = world.since(&whole).bytes;
    let machine = world.machine("machine", &json!({}))?;
    let both = world.mark();
    world.link.cut_after(on_the_wire(offer.size) / 2);
    let fetching = machine.start()?;
    world.link.wait_cut(LONG)?;
    fetching.kill()?;
    world.link.mend();
    let mark = world.mark();
    let fetched = machine.fetch()?.ok()?;
    machine.has(offer)?;
    let (again, bytes) = (world.since(&mark), world.since(&both).bytes);
    let ranges = again.requests.iter().filter(|head| head.range.is_some()).count();
    ensure!(ranges == 1, "what is missing is asked for once: {:?}", again.requests);
    let more = bytes.saturating_sub(whole);
    let most = on_the_wire(CHUNK) + OVERHEAD;
    ensure!(
        more <= most,
        "{more} bytes came more than without the kill, at most {most} are expected"
    );
    Ok(json!({
        "note": format!("{} in two runs, {} more than in one; {} requests in the second", megabytes(bytes), megabytes(more), again.requests.len()),
        "seconds": fetched.seconds, "more": more, "requests": again.requests.len(),
    }))
}

/// The machine asks a name whose server is late or has a dead address; returns the seconds and the number of DNS questions.
fn by_name(world: &World<'_>, name: &str, dead: bool, late: Duration) -> Result<(f64, u64)> {
    let (server, gone) = ([10, 77, 0, 1], "fd77::dead".parse().ok().filter(|_| dead));
    let names = NameServer::start(&world.far, IpAddr::from(server), Ipv4Addr::from(server), gone, late)?;
    let machine = world.machine(name, &json!({ "url": "http://images.test" }))?;
    machine.write("etc/resolv.conf", "nameserver 10.77.0.1\noptions timeout:2 attempts:2\n")?;
    let fetched = machine.fetch()?.ok()?;
    machine.has(world.ground.offer(Size::Tiny, 1)?)?;
    Ok((fetched.seconds, names.asked()))
}

fn dead_ipv6(ground: &Ground) -> Result<Value> {
    let world = World::even(ground, Shape::new(20_000_000, 10))?;
    let _server = world.serve(ground.offer(Size::Tiny, 1)?)?;
    let (alive, _) = by_name(&world, "alive", false, Duration::ZERO)?;
    let (dead, _) = by_name(&world, "dead", true, Duration::ZERO)?;
    let cost = dead - alive;
    ensure!(cost < 1.0, "{dead:.2} s with a dead address, {alive:.2} s without");
    Ok(json!({ "note": format!("{dead:.2} s with it, {alive:.2} s without"), "seconds": cost }))
}

fn late_names(ground: &Ground) -> Result<Value> {
    let world = World::even(ground, Shape::new(20_000_000, 10))?;
    let _server = world.serve(ground.offer(Size::Tiny, 1)?)?;
    let (seconds, asked) = by_name(&world, "late", false, Duration::from_secs(3))?;
    ensure!(seconds >= 3.0, "the answer was not late: {seconds:.2} s");
    ensure!(seconds < 30.0, "it took {seconds:.1} s");
    Ok(json!({ "note": format!("{seconds:.1} s, {asked} questions"), "seconds": seconds }))
}
