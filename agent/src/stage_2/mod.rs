//! Commands for the running system.

pub mod bless;
pub mod check_mount;
pub mod fetch;
pub mod persist_retry;

use std::fs;
use std::io::{ErrorKind, Read as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use crate::report::{self, Report};

/// Reports are a few kilobytes.
const REPORT_LIMIT: u64 = 1 << 20;

/// The text of the report of the running system's boot.
///
/// # Errors
/// If there is none, or it cannot be read.
pub fn report_text(root: &Path) -> Result<String> {
    let path = root.join(report::PATH);
    let mut text = String::new();
    let file = match fs::File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("there is no report {}: was this system booted by freshroot?", path.display())
        }
        Err(error) => return Err(error).with_context(|| format!("opening {}", path.display())),
    };
    file.take(REPORT_LIMIT)
        .read_to_string(&mut text)
        .with_context(|| format!("reading {}", path.display()))?;
    Ok(text)
}

/// The report of this very boot.
///
/// # Errors
/// If there is none, it cannot be read, or it is of another boot.
pub fn own_report(root: &Path) -> Result<Report> {
    let path = root.join(report::PATH);
    let report = Report::parse(&report_text(root)?).with_context(|| format!("reading {}", path.display()))?;
    let boot_id = root.join("proc/sys/kernel/random/boot_id");
    let boot_id = fs::read_to_string(&boot_id).with_context(|| format!("reading {}", boot_id.display()))?;
    ensure!(
        report.boot_id == boot_id.trim(),
        "{} is of another boot ({}, this is {}): was this system booted by freshroot?",
        path.display(),
        report.boot_id,
        boot_id.trim()
    );
    Ok(report)
}
