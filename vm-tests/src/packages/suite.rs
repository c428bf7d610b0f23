//! Packages of one Debian suite with all that they depend on: downloaded and unpacked into a folder, never configured and never on the host.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use sha2::{Digest as _, Sha256};

use crate::command::Tool;
use crate::workspace::once;

/// 60 s on a busy machine; a slow mirror takes longer.
const LIMIT: Duration = Duration::from_secs(30 * 60);
/// Nothing reads these in a machine that lives for a minute.
const EXCLUDE: &[&str] = &["/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*"];
/// /bin and its kin are links everywhere since Debian 12, but the packages of Debian 12 still hold files below them.
const MERGE: &str = r#"for d in bin sbin lib lib64; do mkdir -p "$1/usr/$d" && ln -s "usr/$d" "$1/$d"; done"#;

/// A suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// Debian 12.
    Bookworm,
    /// What becomes the next Debian: as new as it gets without what is broken for a day, which unstable is now and then.
    Testing,
}

impl Suite {
    /// As mirrors call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Testing => "testing",
        }
    }
}

/// The folder with `packages` of `suite`, made unless it is there. It is kept as it is: who wants what the suite has today removes it.
pub fn unpacked(vm: &Path, suite: Suite, packages: &[&str]) -> Result<PathBuf> {
    let include = packages.join(",");
    let recipe = format!("1 {} {include} {EXCLUDE:?} {MERGE}", suite.name());
    let key: String = Sha256::digest(recipe.as_bytes())
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let dir = vm.join(format!("suite-{}-{key}", suite.name()));
    once(&dir, |making| {
        eprintln!("packages: unpacking systemd and its tools from Debian {} (once)", suite.name());
        Tool::new("mmdebstrap", LIMIT)
            .args(["--quiet", "--variant=extract", "--format=directory", "--skip=check/empty"])
            .args(EXCLUDE.iter().map(|path| format!("--dpkgopt=path-exclude={path}")))
            .arg(format!("--setup-hook={MERGE}"))
            // Unstable and testing promise a new list every week; a mirror that lags behind is as good here. Signatures are checked.
            .arg("--aptopt=Acquire::Check-Valid-Until \"false\"")
            .args(["--include", &include])
            .arg(suite.name())
            .arg(making)
            .run()
    })?;
    Ok(dir)
}
