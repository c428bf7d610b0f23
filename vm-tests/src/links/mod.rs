//! Slow and broken links, and servers that others wrote: the real agent on real kernel TCP, in network namespaces.
//!
//! Each test is a process in namespaces of its own (network, mounts, processes): what it starts ends with it, also when it is killed. The links between
//! the network namespaces are programs of ours (`link.rs`), so they are the same on every kernel and in every run.

pub mod dns;
pub mod fleet;
pub mod images;
pub mod link;
pub mod machine;
pub mod measured;
pub mod net;
pub mod packet;
pub mod profiles;
pub mod real;
pub mod servers;
pub mod shape;
pub mod slow;
pub mod tun;
pub mod world;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::build;
use crate::command::{Tool, tail};
use crate::workspace::Workspace;
use images::{Offer, Size};
use machine::Machine;
use net::Net;

/// Scratch in memory, gone with the mount namespace.
const WORK: &str = "/run/work";
const MOUNT_LIMIT: Duration = Duration::from_secs(10);
const KEY: &str = "links-1";

/// A test: a sentence about one behaviour.
#[derive(Debug, Clone, Copy)]
pub struct Test {
    /// Its name; its logs are in the folder `links-<name>`.
    pub name: &'static str,
    /// What is the case if it passes.
    pub what: &'static str,
    /// It is ended after so many seconds.
    pub limit: u64,
    /// Whether it runs only in the nightly run.
    pub nightly: bool,
    /// Returns what was measured, with a sentence `note`.
    pub run: fn(&Ground) -> Result<Value>,
}

/// All tests, those first that take longest.
pub fn all() -> Vec<Test> {
    [slow::ALL, fleet::ALL, real::ALL, profiles::ALL].concat()
}

/// What tests stand on: made once, before them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ground {
    /// The checkout.
    pub checkout: PathBuf,
    /// The agent as it is shipped.
    pub agent: PathBuf,
    /// The key that agents trust.
    pub key: String,
    /// For logs of this test.
    pub dir: PathBuf,
    /// Where chance begins.
    pub seed: u64,
    offers: Vec<(Size, u32, Offer)>,
}

impl Ground {
    /// Builds what is needed.
    pub fn prepare(workspace: &Workspace, seed: u64) -> Result<Self> {
        let publisher = build::publisher(workspace)?;
        let agent = build::agent(workspace)?;
        let vm = workspace.vm();
        let key = publisher.key(&vm.join("keys"), KEY)?;
        let mut offers = Vec::new();
        for size in Size::ALL {
            for generation in [1, 2] {
                offers.push((size, generation, images::offer(&vm, &publisher, &key, size, generation)?));
            }
        }
        Ok(Self {
            checkout: workspace.root().to_owned(),
            agent,
            key: key.public,
            dir: PathBuf::new(),
            seed,
            offers,
        })
    }

    /// The folder that offers this.
    pub fn offer(&self, size: Size, generation: u32) -> Result<&Offer> {
        let found = self.offers.iter().find(|(one, number, _)| (*one, *number) == (size, generation));
        found
            .map(|(_, _, offer)| offer)
            .with_context(|| format!("there is no generation {generation} of {size:?}"))
    }

    /// A machine in `net` that asks `url`.
    pub fn machine(&self, net: &Net, name: &str, url: &str) -> Result<Machine> {
        let work = Path::new(WORK);
        Machine::new(
            net,
            &work.join(name),
            &work.join("agent"),
            &self.dir.join(format!("{name}.log")),
            &self.key,
            url,
        )
    }

    /// With chance beginning elsewhere.
    pub fn seeded(&self, seed: u64) -> Self {
        Self { seed, ..self.clone() }
    }

    /// Runs `test` in namespaces of its own, with its deadline. Returns what it measured.
    pub fn run(&self, workspace: &Workspace, test: &Test) -> Result<Value> {
        let dir = workspace.log_dir(&format!("links-{}", test.name))?;
        let ground = Self {
            dir: dir.clone(),
            ..self.clone()
        };
        let file = dir.join("ground.json");
        let text = serde_json::to_string(&ground).context("writing what a test stands on")?;
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
        let program = std::env::current_exe().context("finding this program")?;
        // Whatever ends first, of us, `timeout` and `unshare`: the test, which is PID 1 of its namespace, is killed with it, and all that it started with that.
        let started = Instant::now();
        let output = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "timeout", "--foreground", "--signal=KILL"])
            .arg(test.limit.to_string())
            .args(["setpriv", "--pdeathsig", "KILL"])
            .args([
                "unshare",
                "--net",
                "--mount",
                "--propagation=private",
                "--pid",
                "--fork",
                "--kill-child=KILL",
            ])
            .arg(program)
            .args(["inside", test.name])
            .arg(&file)
            .stdin(Stdio::null())
            .output()
            .context("starting a test in its namespaces (setpriv, timeout, unshare)")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        let log = dir.join("test.log");
        fs::write(&log, errors.as_bytes()).with_context(|| format!("writing {}", log.display()))?;
        if started.elapsed() >= Duration::from_secs(test.limit) {
            bail!("it was not done within {} s; {}", test.limit, tail(&output.stderr));
        }
        ensure!(output.status.success(), "{}", tail(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&text).with_context(|| format!("reading what the test measured: {text}"))
    }
}

/// The other side of [`Ground::run`]: in the namespaces.
pub fn inside(name: &str, ground: &Path) -> Result<()> {
    ensure!(
        std::process::id() == 1,
        "a test runs in namespaces of its own: vm-tests/run test --layer links --filter {name}"
    );
    let text = fs::read_to_string(ground).with_context(|| format!("reading {}", ground.display()))?;
    let ground: Ground = serde_json::from_str(&text).with_context(|| format!("reading {}", ground.display()))?;
    let test = [all(), measured::ALL.to_vec()]
        .concat()
        .into_iter()
        .find(|test| test.name == name)
        .with_context(|| format!("there is no test {name}"))?;
    // Names of namespaces, scratch, caches of servers: all in memory, and seen by nobody else.
    for place in ["/run", "/var/cache"] {
        Tool::new("mount", MOUNT_LIMIT)
            .args(["-t", "tmpfs", "-o", "mode=0755", "tmpfs", place])
            .run()?;
    }
    fs::create_dir_all(WORK).with_context(|| format!("making {WORK}"))?;
    let agent = Path::new(WORK).join("agent");
    fs::copy(&ground.agent, &agent).with_context(|| format!("copying {} to {}", ground.agent.display(), agent.display()))?;
    let measured = (test.run)(&ground)?;
    println!("{measured}");
    Ok(())
}
