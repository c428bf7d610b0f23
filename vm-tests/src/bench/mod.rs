//! Figures: what is measured, against what, and whether the target is reached. A number never fails the run; what cannot be measured does.

mod boot;
mod figure;
mod late;
mod links;
mod mounts;
mod size;
mod transfer;

use std::fs;

use anyhow::{Context, Result};

use crate::cli::DEFAULT_LEVEL;
use crate::lab::Lab;
use crate::trial::Trial;
use crate::workspace::Workspace;

/// A part of the figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The agent's size.
    Size,
    /// Memory and speed of fetching, speed of verifying.
    Transfer,
    /// Slow and lossy links.
    Links,
    /// Warm boots.
    Boot,
    /// File systems on disks.
    Mounts,
    /// Disks that come late.
    Late,
}

impl Part {
    /// The part that the command line calls so.
    pub fn by_name(name: &str) -> Option<Self> {
        match name {
            "size" => Some(Self::Size),
            "transfer" => Some(Self::Transfer),
            "links" => Some(Self::Links),
            "boot" => Some(Self::Boot),
            "mounts" => Some(Self::Mounts),
            "late" => Some(Self::Late),
            _ => None,
        }
    }
}

/// Measures, prints each figure as soon as it is there, and keeps all of them in `target/vm/bench.json`.
pub fn run(workspace: Workspace, pairs: u32, only: Option<Part>) -> Result<()> {
    let lab = Lab::new(workspace, DEFAULT_LEVEL)?;
    let trial = Trial::new(&lab, "bench")?;
    let load = fs::read_to_string("/proc/loadavg").context("reading /proc/loadavg")?;
    println!("load of this machine at the start: {}", load.trim_end());
    let mut figures = Vec::new();
    let mut note = |found: Vec<figure::Figure>| {
        for figure in &found {
            println!("{figure}");
        }
        figures.extend(found);
    };
    let wanted = |part: Part| only.is_none_or(|only| only == part);
    if wanted(Part::Size) {
        let (figure, table) = size::measure(&lab)?;
        println!("{table}");
        note(vec![figure]);
    }
    if wanted(Part::Transfer) {
        note(transfer::measure(&trial, pairs)?);
    }
    if wanted(Part::Links) {
        note(links::measure(&lab.workspace, pairs)?);
    }
    if wanted(Part::Boot) {
        note(boot::measure(&trial, pairs)?);
    }
    if wanted(Part::Mounts) {
        note(mounts::measure(&trial, pairs)?);
    }
    if wanted(Part::Late) {
        note(late::measure(&trial, pairs)?);
    }
    let out = lab.workspace.vm().join("bench.json");
    let text = serde_json::to_string_pretty(&figures).context("writing the figures as JSON")?;
    fs::write(&out, text).with_context(|| format!("writing {}", out.display()))?;
    println!("kept in {}", out.display());
    Ok(())
}
