//! The programs under test, built as they are shipped.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command::Tool;
use crate::publisher::Publisher;
use crate::workspace::Workspace;

/// Fat LTO on two cores, from nothing.
const LIMIT: Duration = Duration::from_secs(20 * 60);
/// Named, so that build scripts and procedural macros stay dynamic (crt-static would break them).
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The static agent, in the release profile: what boots in the tests is what is shipped.
pub fn agent(workspace: &Workspace) -> Result<PathBuf> {
    eprintln!("build: the agent, static");
    Tool::new("cargo", LIMIT)
        .args([
            "build",
            "--quiet",
            "--release",
            "--package",
            "freshroot",
            "--bin",
            "freshroot",
            "--target",
            TARGET,
        ])
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .current_dir(workspace.root())
        .watched()?;
    let program = workspace.target().join(TARGET).join("release/freshroot");
    program.metadata().with_context(|| format!("looking for {}", program.display()))?;
    Ok(program)
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
