//! Where things lie: the workspace, and what the harness keeps below `target/vm`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The folders of one checkout.
#[derive(Debug, Clone)]
pub struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// The workspace that this program was built from; `CARGO_TARGET_DIR` is honoured as cargo does.
    pub fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("the crate lies in no workspace")?
            .to_owned();
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
        fs::create_dir_all(target.join("vm")).with_context(|| format!("making {}", target.join("vm").display()))?;
        Ok(Self { root, target })
    }

    /// The checkout.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Cargo's output.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// What the harness makes and keeps from run to run.
    pub fn vm(&self) -> PathBuf {
        self.target.join("vm")
    }

    /// An empty folder for the logs and disks of one test; what an earlier run left there is removed.
    pub fn log_dir(&self, test: &str) -> Result<PathBuf> {
        let dir = self.vm().join("logs").join(test);
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("emptying {}", dir.display()))?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(dir)
    }
}

/// Makes `dir` by way of `build`, which fills a folder next to it that is then renamed: a folder that exists is complete.
/// Leftovers of an interrupted build are removed first.
pub fn once(dir: &Path, build: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if dir.exists() {
        return Ok(());
    }
    let name = dir.file_name().and_then(|name| name.to_str()).context("a folder without a name")?;
    let making = dir.with_file_name(format!("{name}.making"));
    if making.exists() {
        fs::remove_dir_all(&making).with_context(|| format!("removing the leftover {}", making.display()))?;
    }
    fs::create_dir_all(&making).with_context(|| format!("making {}", making.display()))?;
    build(&making)?;
    fs::rename(&making, dir).with_context(|| format!("renaming {} to {}", making.display(), dir.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_build_that_failed_leaves_no_finished_folder_and_is_tried_again() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("thing");
        let failed = once(&dir, |making| {
            fs::write(making.join("half"), "x").unwrap();
            anyhow::bail!("cut")
        });
        assert!(failed.is_err() && !dir.exists());
        once(&dir, |making| Ok(fs::write(making.join("whole"), "x")?)).unwrap();
        assert!(dir.join("whole").exists() && !dir.join("half").exists());
        once(&dir, |_| panic!("it is there already")).unwrap();
    }
}
