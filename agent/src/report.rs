//! The report of a boot: what was decided and why, what it cost, what was odd. Written down in `docs/formats.md`.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::foreign;
use crate::formats::manifest::InitKind;
use crate::store_path::StorePath;

/// Where the report of the running system is, below the root.
pub const PATH: &str = "run/freshroot/boot.json";

/// How a boot ended, as far as the agent saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The system was handed over to.
    Booted,
    /// Nothing could be booted.
    Failed,
}

/// Where the image came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// From the cache, without a transfer of the image.
    Cache,
    /// Over the network, in this boot, and now in the cache.
    Network,
    /// Over the network, in this boot, into RAM.
    Ram,
    /// From a medium, where it is used in place.
    Medium,
}

/// The last decision.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Decided {
    /// The row of the decision table.
    pub rule: String,
    /// The sentence that was printed.
    pub reason: String,
}

/// The system that was chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChosenSystem {
    /// Its toplevel.
    pub toplevel: StorePath,
    /// Its name in the manifest.
    pub name: String,
    /// How it is started.
    pub init_kind: InitKind,
    /// The manifest's digest.
    pub manifest: Digest,
    /// The image's digest.
    pub image: Digest,
    /// The channel of the release, where there is one.
    pub channel: Option<String>,
    /// The serial of the release, where there is one.
    pub serial: Option<u64>,
    /// Whether every byte of the image was verified in this boot.
    pub verified: bool,
    /// What authorised it: `signature by <key>`, `pin` or `nothing (allowUnsigned)`.
    pub authority: String,
}

/// Bytes of a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Bytes {
    /// Bodies received over the network.
    pub received: u64,
    /// Taken from the partial image that was there.
    pub reused: u64,
}

/// One step and its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Its name.
    pub step: String,
    /// How long it took.
    pub milliseconds: u64,
    /// `ok`, or what went wrong.
    pub outcome: String,
}

/// The check of a file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// The device it is on.
    pub device: String,
    /// What it came to.
    pub result: String,
}

/// What went wrong, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What went wrong.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl Failure {
    /// A failure.
    pub fn new(what: impl std::fmt::Display, remedy: impl Into<String>) -> Self {
        Self {
            what: format!("{what:#}"),
            remedy: remedy.into(),
        }
    }
}

/// The network, as it was configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkReport {
    /// Interfaces.
    pub interface: String,
    /// Addresses with their prefix lengths.
    pub addresses: Vec<String>,
    /// Gateways.
    pub gateways: Vec<String>,
    /// Name servers.
    pub name_servers: Vec<String>,
}

/// What became of a declared disk that is to be prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskOutcome {
    /// It was blank, and has been prepared.
    Prepared,
    /// It has its partitions already.
    Unchanged,
    /// It had its partitions, and the last one has been grown.
    Grown,
    /// It is to be left alone, and nothing was written.
    Refused,
    /// Something went wrong; the next boot goes on with what was begun.
    Failed,
}

impl std::fmt::Display for DiskOutcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Prepared => "was blank, and has been prepared",
            Self::Unchanged => "has its partitions",
            Self::Grown => "had its partitions, and the last one has been grown",
            Self::Refused => "left alone, see the warning",
            Self::Failed => "something went wrong, see the warning",
        })
    }
}

/// A declared disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    /// Its name in the configuration.
    pub name: String,
    /// What became of it.
    pub outcome: DiskOutcome,
    /// Why.
    pub detail: Option<String>,
}

/// A report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Always 1.
    pub version: u64,
    /// The agent's version.
    pub agent: String,
    /// The kernel's identifier of this boot.
    pub boot_id: String,
    /// How it ended.
    pub outcome: Outcome,
    /// The last decision.
    pub decision: Decided,
    /// The system.
    pub system: Option<ChosenSystem>,
    /// Where its image came from.
    pub source: Option<Source>,
    /// What it cost.
    pub bytes: Bytes,
    /// HTTP requests made.
    pub requests: u64,
    /// Steps in order.
    pub steps: Vec<Step>,
    /// Disks whose file system was checked before it was mounted.
    #[serde(default)]
    pub checks: Vec<Check>,
    /// What was odd.
    pub warnings: Vec<String>,
    /// Why it failed.
    pub error: Option<Failure>,
    /// Failures in a row before this one, of this boot and of those before it: the pause doubles with each. In systemd's stage 1 another process makes it,
    /// when the cache is unmounted already.
    #[serde(default)]
    pub failures_before: u32,
    /// The network.
    pub network: Option<NetworkReport>,
    /// Disks that are declared to be prepared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskReport>,
}

impl Report {
    /// The report of a boot that has only begun.
    pub fn new(boot_id: &str) -> Self {
        Self {
            version: 1,
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: boot_id.trim().to_owned(),
            outcome: Outcome::Failed,
            decision: Decided::default(),
            system: None,
            source: None,
            bytes: Bytes::default(),
            requests: 0,
            steps: Vec::new(),
            checks: Vec::new(),
            warnings: Vec::new(),
            error: None,
            failures_before: 0,
            network: None,
            disks: Vec::new(),
        }
    }

    /// Does one step, logs it with its time, and keeps both.
    pub fn step<T, E: std::fmt::Display>(&mut self, name: &str, work: impl FnOnce(&mut Self) -> Result<T, E>) -> Result<T, E> {
        log::debug!("{name} …");
        let started = Instant::now();
        let result = work(self);
        let milliseconds = started.elapsed().as_millis() as u64;
        let outcome = match &result {
            Ok(_) => "ok".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        log::info!("{name}: {} ({milliseconds} ms)", if result.is_ok() { "done" } else { "failed" });
        self.steps.push(Step {
            step: name.to_owned(),
            milliseconds,
            outcome,
        });
        result
    }

    /// Notes what the check of a file system came to.
    pub fn check(&mut self, device: &std::path::Path, result: String) {
        log::info!("{}: {result}", device.display());
        self.checks.push(Check {
            device: device.display().to_string(),
            result,
        });
    }

    /// How long this boot took, if it was one of this generation, from the cache: without what the network took.
    pub fn stage_1_of(&self, manifest: Digest) -> Option<Duration> {
        let booted = self.outcome == Outcome::Booted && self.source == Some(Source::Cache);
        let same = self.system.as_ref().is_some_and(|system| system.manifest == manifest);
        let own = |step: &&Step| !matches!(step.step.as_str(), "network" | "ask" | "fetch");
        let steps = self.steps.iter().filter(own);
        (booted && same).then(|| Duration::from_millis(steps.fold(0, |sum, step| sum.saturating_add(step.milliseconds))))
    }

    /// Warns, and remembers it.
    pub fn warn(&mut self, what: impl Into<String>) {
        let what = what.into();
        log::warn!("{what}");
        self.warnings.push(what);
    }

    /// Reads a report. The version is looked at first, so that a newer report is named as such.
    ///
    /// # Errors
    /// Malformed, or of another version.
    pub fn parse(text: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            version: u64,
        }
        let malformed = |error: serde_json::Error| anyhow!("the report is malformed: {}", foreign::sentence(&error.to_string()));
        let Version { version } = serde_json::from_str(text).map_err(malformed)?;
        ensure!(
            version == 1,
            "the report has version {version}, this program knows version 1: use the freshroot that is as new as the one in the initrd"
        );
        serde_json::from_str(text).map_err(malformed)
    }

    /// The report as a file holds it.
    ///
    /// # Errors
    /// Never in practice: all of it can be written as JSON.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

impl std::fmt::Display for Report {
    /// As `freshroot status` shows it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let outcome = match self.outcome {
            Outcome::Booted => "booted",
            Outcome::Failed => "failed",
        };
        writeln!(f, "outcome:   {outcome} (agent {}, boot {})", self.agent, self.boot_id)?;
        if let Some(Failure { what, remedy }) = &self.error {
            writeln!(f, "error:     {what}\nremedy:    {remedy}")?;
        }
        // A boot can end before it comes to a decision.
        if !self.decision.rule.is_empty() {
            writeln!(f, "decision:  {} [{}]", self.decision.reason, self.decision.rule)?;
        }
        if let Some(system) = &self.system {
            writeln!(f, "system:    {}", system.toplevel)?;
            let release = match (&system.channel, system.serial) {
                (Some(channel), Some(serial)) => format!("channel {channel}, serial {serial}; "),
                _ => String::new(),
            };
            let image = if system.verified { "image verified" } else { "image NOT verified" };
            writeln!(f, "manifest:  {} ({release}{}; {image})", system.manifest.short(), system.authority)?;
        }
        if let Some(source) = self.source {
            let source = match source {
                Source::Cache => "cache",
                Source::Network => "network, and kept in the cache",
                Source::Ram => "network, kept in RAM for this boot",
                Source::Medium => "medium, which is in use",
            };
            writeln!(f, "source:    {source}")?;
        }
        let requests = match self.requests {
            0 => "no requests".to_owned(),
            1 => "1 request".to_owned(),
            many => format!("{many} requests"),
        };
        let Bytes { received, reused } = self.bytes;
        writeln!(f, "network:   {requests}, {} received, {} reused", amount(received), amount(reused))?;
        if let Some(network) = &self.network {
            writeln!(f, "           {} {}", network.interface, network.addresses.join(" "))?;
        }
        for (
            number,
            Step {
                step,
                milliseconds,
                outcome,
            },
        ) in self.steps.iter().enumerate()
        {
            let title = if number == 0 { "steps:" } else { "" };
            let failed = if outcome == "ok" { String::new() } else { format!(": {outcome}") };
            writeln!(f, "{title:<11}{milliseconds:>6} ms {step}{failed}")?;
        }
        for (number, Check { device, result }) in self.checks.iter().enumerate() {
            let title = if number == 0 { "checks:" } else { "" };
            writeln!(f, "{title:<11}{device}: {result}")?;
        }
        for (number, disk) in self.disks.iter().enumerate() {
            let title = if number == 0 { "disks:" } else { "" };
            writeln!(f, "{title:<11}{} {}", disk.name, disk.outcome)?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning:   {warning}")?;
        }
        Ok(())
    }
}

/// Bytes as people read them.
fn amount(bytes: u64) -> String {
    match bytes {
        0 => "nothing".to_owned(),
        1..1_000_000 => format!("{bytes} bytes"),
        1_000_000.. => format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10),
    }
}
