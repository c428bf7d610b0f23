//! A running system of which only the agent is there: a folder with its configuration, the report of a boot and a cache, in which the real program runs.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::images::{CHANNEL, Offer};
use super::net::Net;
use crate::command::tail;
use crate::lab::merge;

const BOOT_ID: &str = "0b5e3c56-0000-4000-8000-000000000000";
const CACHE: &str = "run/freshroot/cache/freshroot";

/// The machine.
#[derive(Debug)]
pub struct Machine {
    net: Net,
    root: PathBuf,
    log: PathBuf,
    config: Value,
}

/// What a fetch did.
#[derive(Debug)]
pub struct Fetched {
    /// What it printed.
    pub said: String,
    /// What it logged, the end of it.
    pub log: String,
    /// From its start to its end, in seconds.
    pub seconds: f64,
    /// Whether it went well.
    pub well: bool,
}

impl Fetched {
    /// Itself, if it went well.
    pub fn ok(self) -> Result<Self> {
        ensure!(self.well, "the agent failed: {}\n{}", self.said, self.log);
        Ok(self)
    }
}

/// A fetch that goes on.
#[derive(Debug)]
pub struct Fetching {
    child: Child,
    started: Instant,
    log: PathBuf,
}

impl Machine {
    /// A machine in `net` that asks `url` for the channel, in the new folder `root`; `agent` is its program, on the same file system. What it logs is
    /// added to `log`.
    pub fn new(net: &Net, root: &Path, agent: &Path, log: &Path, key: &str, url: &str) -> Result<Self> {
        let machine = Self {
            net: net.clone(),
            root: root.to_owned(),
            log: log.to_owned(),
            config: json!({
                "version": 1,
                "url": url,
                "channel": CHANNEL,
                "trustedPublicKeys": [key],
                "cache": { "device": "LABEL=cache", "keep": 2 },
            }),
        };
        machine.write("proc/sys/kernel/random/boot_id", &format!("{BOOT_ID}\n"))?;
        machine.write("proc/sys/kernel/osrelease", "6.1.0\n")?;
        machine.write("proc/cmdline", "quiet\n")?;
        machine.write("etc/nsswitch.conf", "hosts: files dns\n")?;
        let report = json!({
            "version": 1, "agent": "0", "bootId": BOOT_ID, "outcome": "booted", "decision": { "rule": "", "reason": "" }, "system": null, "source": "cache",
            "bytes": { "received": 0, "reused": 0 }, "requests": 0, "steps": [], "warnings": [], "error": null, "network": null,
        });
        machine.write("run/freshroot/boot.json", &report.to_string())?;
        let cache = machine.root.join(CACHE);
        fs::create_dir_all(&cache).with_context(|| format!("making {}", cache.display()))?;
        fs::hard_link(agent, machine.root.join("freshroot")).context("giving a machine its agent")?;
        machine.set(&json!({}))
    }

    /// The same with these settings over what it has.
    pub fn set(mut self, changes: &Value) -> Result<Self> {
        self.change(changes)?;
        Ok(self)
    }

    /// Changes its settings.
    pub fn change(&mut self, changes: &Value) -> Result<()> {
        merge(&mut self.config, changes);
        let text = serde_json::to_string_pretty(&self.config).context("writing the configuration")?;
        self.write("etc/freshroot/config.json", &text)
    }

    /// Writes a file of it.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.root.join(path);
        let parent = path.parent().context("a file without a folder")?;
        fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// Starts `freshroot fetch`.
    pub fn start(&self) -> Result<Fetching> {
        let file = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(&self.log)
            .with_context(|| format!("making {}", self.log.display()))?;
        let child = self
            .net
            .command("chroot")
            .arg(&self.root)
            .args(["/freshroot", "fetch"])
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .context("starting the agent")?;
        Ok(Fetching {
            child,
            started: Instant::now(),
            log: self.log.clone(),
        })
    }

    /// `freshroot fetch`, to its end.
    pub fn fetch(&self) -> Result<Fetched> {
        self.start()?.end()
    }

    /// Fails unless the image of `offer` is in the cache, and no partial one.
    pub fn has(&self, offer: &Offer) -> Result<()> {
        let path = self.root.join(CACHE).join(format!("images/{}.squashfs", offer.digest));
        let file = fs::File::open(&path).with_context(|| format!("the image is not in the cache: {}", path.display()))?;
        let found = super::images::digest(file)?;
        ensure!(
            found == offer.digest,
            "the cache holds an image whose digest is {found} instead of {}",
            offer.digest
        );
        let partial = self.root.join(CACHE).join("partial");
        let left = fs::read_dir(&partial).map_or(0, Iterator::count);
        ensure!(left == 0, "{left} files are left in {}", partial.display());
        Ok(())
    }
}

impl Fetching {
    /// Waits for its end. Every test has a deadline, so that has one, too.
    pub fn end(mut self) -> Result<Fetched> {
        let mut said = String::new();
        let mut output = self.child.stdout.take().context("the agent has no output")?;
        output.read_to_string(&mut said).context("reading what the agent says")?;
        let status = self.child.wait().context("waiting for the agent")?;
        let seconds = self.started.elapsed().as_secs_f64();
        let mut file = fs::OpenOptions::new()
            .append(true)
            .open(&self.log)
            .context("opening the agent's log")?;
        writeln!(file, "{said}== {seconds:.3} s, {status}").context("writing the agent's log")?;
        Ok(Fetched {
            said: said.trim_end().to_owned(),
            log: fs::read(&self.log).map(|bytes| tail(&bytes)).context("reading the agent's log")?,
            seconds,
            well: status.success(),
        })
    }

    /// Kills it as a power cut does.
    pub fn kill(mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().context("looking at the agent")? {
            bail!("the agent was to be killed, and had ended before ({status})");
        }
        self.child.kill().context("killing the agent")?;
        self.child.wait().context("waiting for the agent")?;
        Ok(())
    }
}
