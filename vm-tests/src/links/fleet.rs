//! Many machines behind one cache.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::images::Size;
use super::real::{CACHE, Cached};
use super::shape::Shape;
use super::slow::on_the_wire;
use super::{Ground, Test};

/// As many as one lab has.
const MACHINES: usize = 50;

/// The tests.
pub const ALL: &[Test] = &[Test {
    name: "fleet",
    what: "50 agents at once against one nginx cache behind a slow uplink: the uplink carries the image once",
    limit: 120,
    nightly: false,
    run: fleet,
}];

fn fleet(ground: &Ground) -> Result<Value> {
    let cached = Cached::new(ground, Size::Large, Shape::new(20_000_000, 20), Shape::new(5_000_000, 20))?;
    let net = cached.machines()?;
    let offer = ground.offer(Size::Large, 1)?;
    let machines: Vec<_> = (0..MACHINES)
        .map(|number| ground.machine(&net, &format!("machine-{number}"), &format!("http://{CACHE}")))
        .collect::<Result<_>>()?;
    let before = cached.world.mark();
    let fetching: Vec<_> = machines.iter().map(super::machine::Machine::start).collect::<Result<_>>()?;
    let mut slowest = 0.0f64;
    for (number, one) in fetching.into_iter().enumerate() {
        let fetched = one.end()?.ok().with_context(|| format!("machine {number}"))?;
        slowest = slowest.max(fetched.seconds);
    }
    for machine in &machines {
        machine.has(offer)?;
    }
    let uplink = cached.world.since(&before);
    // A slice is 256 KiB: a request for each, of the image and of the index; the channel's answer, and what the cache asks for again meanwhile.
    let slices = offer.size.div_ceil(256 << 10) + 10;
    let most = on_the_wire(offer.size) + 40_000 + 600 * slices;
    let of_all = offer.size * MACHINES as u64;
    ensure!(
        uplink.bytes <= most,
        "{} bytes over the uplink, at most {most} are expected for an image of {}",
        uplink.bytes,
        offer.size
    );
    ensure!(
        uplink.requests.len() as u64 <= slices,
        "{} requests over the uplink",
        uplink.requests.len()
    );
    Ok(json!({
        "note": format!(
            "{MACHINES} machines have {:.0} MB together after {slowest:.1} s; over the uplink {:.2} MB for an image of {:.2} MB, {} requests",
            of_all as f64 / 1e6,
            uplink.bytes as f64 / 1e6,
            offer.size as f64 / 1e6,
            uplink.requests.len()
        ),
        "seconds": slowest, "uplink": uplink.bytes, "requests": uplink.requests.len(),
    }))
}
