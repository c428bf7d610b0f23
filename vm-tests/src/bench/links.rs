//! Figures of slow and lossy links: what the layer `links` tests, measured and compared.

use std::fs;

use anyhow::{Context, Result};
use serde_json::Value;

use super::figure::{Comparison, Figure, Target};
use crate::links::measured::{DEFAULT, DEFAULT_CURL, KILLED, LOSSY, LOSSY_CURL, SLOW};
use crate::links::net::CONTROL;
use crate::links::slow::{CHUNK, on_the_wire};
use crate::links::{Ground, Test};
use crate::workspace::Workspace;

/// One packet: a request, and the head of its answer.
const REQUEST: u64 = 1500;
/// Two thirds of a minute each, and hardly any spread.
const SLOW_RUNS: u32 = 3;

/// How a slow link is used, what a kill costs, and a lossy link against curl.
pub fn measure(workspace: &Workspace, pairs: u32) -> Result<Vec<Figure>> {
    let ground = Ground::prepare(workspace, 1)?;
    let number = |test: &Test, seed: u64, field: &str| -> Result<f64> {
        let measured = ground.seeded(seed).run(workspace, test)?;
        let found = measured.get(field).and_then(Value::as_f64);
        found.with_context(|| format!("{} measured no {field}", test.name))
    };
    let slow: Result<Vec<f64>> = (0..pairs.min(SLOW_RUNS)).map(|_| Ok(number(&SLOW, 1, "used")? * 100.0)).collect();
    let killed: Result<Vec<f64>> = (0..pairs).map(|_| number(&KILLED, 1, "more")).collect();
    let lossy = |what: &str, ours: &Test, peer: &Test| -> Result<Figure> {
        let runs: Result<Vec<(f64, f64)>> = (1..=u64::from(pairs))
            .map(|seed| {
                eprintln!("bench: {}, seed {seed}", ours.name);
                Ok((number(ours, seed, "seconds")?, number(peer, seed, "seconds")?))
            })
            .collect();
        let what =
            format!("fetch, verify, write and commit {what} over 100 ms and 1 % loss, against curl -o on a link with the same losses");
        let compared = Comparison::of(&runs?)?;
        Ok(Figure::compared(what, "s", pairs, &compared, Target::RatioAtMost(1.1)))
    };
    let control = fs::read_to_string(CONTROL).with_context(|| format!("reading {CONTROL}"))?;
    Ok(vec![
        Figure::alone(
            "use of a link of 256 kbit/s, from the start of the program to its end: 1.2 MB of image in full packets",
            "%",
            slow?,
            Target::AtLeast(97.0),
        )?,
        Figure::alone(
            "bytes on the link more than without it, after a kill in the middle of 4 MB",
            "bytes",
            killed?,
            Target::AtMost((on_the_wire(CHUNK) + REQUEST) as f64),
        )?,
        lossy("4 MB by TCP Reno", &LOSSY, &LOSSY_CURL)?,
        lossy(
            &format!("16 MB by TCP {}, this kernel's default,", control.trim()),
            &DEFAULT,
            &DEFAULT_CURL,
        )?,
    ])
}
