//! The programs under test, built as they are shipped.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command::Tool;
use crate::publisher::Publisher;
use crate::workspace::Workspace;

/// Fat LTO on two cores, from nothing.
const LIMIT: Duration = Duration::from_secs(20 * 60);
/// The target that the alias `agent` of .cargo/config.toml names, with the flags of the shipped build.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The static agent, in the release profile: what boots in the tests is what is shipped.
pub fn agent(workspace: &Workspace) -> Result<PathBuf> {
    eprintln!("build: the agent, static");
    shipped(workspace, &[])?;
    built(workspace.target().join(TARGET).join("release/freshroot"))
}

/// The part of the agent that fetches, alone, built as the agent is: for the benchmark.
pub fn fetcher(workspace: &Workspace) -> Result<PathBuf> {
    eprintln!("build: the example that fetches, static");
    shipped(workspace, &["--example", "fetch"])?;
    built(workspace.target().join(TARGET).join("release/examples/fetch"))
}

/// The part of the agent that mounts what is on disks, alone, built as the agent is: for the benchmark.
pub fn mounter(workspace: &Workspace) -> Result<PathBuf> {
    eprintln!("build: the example that mounts, static");
    shipped(workspace, &["--example", "mounts"])?;
    built(workspace.target().join(TARGET).join("release/examples/mounts"))
}

/// The agent as it is shipped but for its symbols, in a folder of its own: for the table of what takes the room.
pub fn agent_with_symbols(workspace: &Workspace) -> Result<PathBuf> {
    eprintln!("build: the agent with its symbols");
    let target = workspace.vm().join("with-symbols");
    cargo(workspace)
        .args(["agent", "--quiet", "--config", "profile.release.strip = \"none\"", "--target-dir"])
        .arg(&target)
        .watched()?;
    built(target.join(TARGET).join("release/freshroot"))
}

fn shipped(workspace: &Workspace, more: &[&str]) -> Result<()> {
    cargo(workspace).args(["agent", "--quiet"]).args(more).watched()
}

/// Flags from the environment would replace those of the alias.
fn cargo(workspace: &Workspace) -> Tool {
    Tool::new("cargo", LIMIT)
        .without_env("RUSTFLAGS")
        .without_env("CARGO_ENCODED_RUSTFLAGS")
        .current_dir(workspace.root())
}

fn built(program: PathBuf) -> Result<PathBuf> {
    program.metadata().with_context(|| format!("looking for {}", program.display()))?;
    Ok(program)
}

/// The agent in the dev profile, for what it does on the host: plans.
pub fn plain_agent(workspace: &Workspace) -> Result<PathBuf> {
    eprintln!("build: the agent, for the host");
    Tool::new("cargo", LIMIT)
        .args([
            "build",
            "--quiet",
            "--package",
            "freshroot",
            "--features",
            "publish",
            "--bin",
            "freshroot",
        ])
        .current_dir(workspace.root())
        .watched()?;
    built(workspace.target().join("debug/freshroot"))
}

/// The publishing side, in the dev profile: it stays on the host.
pub fn publisher(workspace: &Workspace) -> Result<Publisher> {
    eprintln!("build: the publishing side");
    Tool::new("cargo", LIMIT)
        .args([
            "build",
            "--quiet",
            "--package",
            "freshroot",
            "--features",
            "publish",
            "--bin",
            "freshroot-publish",
        ])
        .current_dir(workspace.root())
        .watched()?;
    let program = workspace.target().join("debug/freshroot-publish");
    program.metadata().with_context(|| format!("looking for {}", program.display()))?;
    Ok(Publisher { program })
}

/// The publishing side as people build it, for the benchmark: a server that is not optimised would be what is measured.
pub fn fast_publisher(workspace: &Workspace) -> Result<Publisher> {
    eprintln!("build: the publishing side, optimised");
    Tool::new("cargo", LIMIT)
        .args(["build", "--quiet", "--release", "--package", "freshroot", "--features", "publish"])
        .args(["--bin", "freshroot-publish"])
        .current_dir(workspace.root())
        .watched()?;
    Ok(Publisher {
        program: built(workspace.target().join("release/freshroot-publish"))?,
    })
}
