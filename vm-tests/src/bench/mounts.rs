//! Mounting ten file systems: the agent's code for entries, against `mount -a` of util-linux, in one machine with udev's links and nothing in its caches.
//!
//! Both are programs that are started in the machine (`agent/examples/mounts.rs`), and are timed from their start to their end; modules are loaded already.
//! The disks are those of the boot test `zoo`. Once neither checks anything; once both do, the peer by `fsck -A` before `mount -a`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::figure::{Comparison, Figure, Target};
use crate::build;
use crate::initrd::Initrd;
use crate::qemu::{End, Machine};
use crate::scenario::zoo::disks::Zoo;
use crate::trial::Trial;

const INIT: &str = include_str!("../../guest/stage-1/mounts-init.sh");
/// Of one pair of both kinds, translated on a machine that has other things to do.
const PAIR_LIFE: Duration = Duration::from_secs(20);
const START_LIFE: Duration = Duration::from_secs(40);

/// The time to mount, without and with checks.
pub fn measure(trial: &Trial<'_>, pairs: u32) -> Result<Vec<Figure>> {
    let lab = trial.lab;
    let generic = lab.generic()?;
    let program = build::mounter(&lab.workspace)?;
    let zoo = Zoo::make(&trial.dir, &generic)?;
    let initrd = trial.dir.join("mounts-initrd");
    let mut initrd_parts = Initrd::new()
        .text("/init", INIT, 0o755)
        .file("/mounts", &program, 0o755)
        .text("/links", &zoo.links(), 0o644)
        .text("/fstab", &zoo.fstab("/mnt"), 0o644);
    for check in [false, true] {
        let mut config = zoo.config(None);
        config["kernel"] = json!({ "autoload": false });
        for (_, entry) in config["fileSystems"].as_object_mut().into_iter().flatten() {
            entry["noCheck"] = json!(!check);
        }
        let text = serde_json::to_string(&lab.config(&config)?).context("writing the configuration")?;
        initrd_parts = initrd_parts.text(if check { "/checked.json" } else { "/unchecked.json" }, &text, 0o644);
    }
    initrd_parts
        .text("/pairs", &pairs.to_string(), 0o644)
        .build_onto(generic.base(), &initrd)?;
    let machine = Machine::new(&generic.kernel.image, &initrd, "console=ttyS0 loglevel=4 panic=-1");
    let life = (START_LIFE + PAIR_LIFE * pairs) * lab.accelerator.patience();
    let mut vm = zoo.plugged_into(machine).start(lab.accelerator, &trial.dir, "mounts", life)?;
    let end = vm.wait_end()?;
    let said = vm.said();
    ensure!(
        end == End::PoweredOff && said.contains("MOUNTS-DONE"),
        "nothing was measured:\n{said}"
    );
    let entries = zoo.animals.len();
    [
        (false, Target::RatioAtMost(1.3), "neither checks, against mount -a"),
        (true, Target::RatioAtMost(1.3), "both check first, against fsck -A and mount -a"),
    ]
    .into_iter()
    .map(|(check, target, what)| {
        let runs = parse(&said, check)?;
        ensure!(runs.len() == pairs as usize, "{} pairs of {pairs} were measured", runs.len());
        let what = format!("mount {entries} file systems with nothing in the caches, {what}");
        Ok(Figure::compared(what, "ms", pairs, &Comparison::of(&runs)?, target))
    })
    .collect()
}

/// (ours, the peer's) of each line of one kind.
fn parse(said: &str, check: bool) -> Result<Vec<(f64, f64)>> {
    let mark = format!("PAIR check={check} ");
    let lines = said.lines().filter_map(|line| line.split_once(&mark));
    lines
        .map(|(_, rest)| {
            let number = |name: &str| {
                let word = rest.split_whitespace().find_map(|word| word.strip_prefix(name));
                word.and_then(|word| word.parse::<f64>().ok())
                    .with_context(|| format!("«{rest}» has no number {name}"))
            };
            Ok((number("ours=")?, number("peer=")?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn pairs_of_each_kind_are_read() {
        let said = "x\nPAIR check=false ours=10.5 peer=20 entries=10\nPAIR check=true ours=1 peer=2\n[ 1.0] PAIR check=false ours=3 peer=4 entries=10\r\n";
        assert_eq!(parse(said, false).unwrap(), [(10.5, 20.0), (3.0, 4.0)]);
        assert_eq!(parse(said, true).unwrap(), [(1.0, 2.0)]);
        assert!(parse("PAIR check=true ours=x peer=1", true).is_err());
    }
}
