//! A program run to its end inside another root, with a time limit and its output in the log.
//!
//! The root is changed in a thread that has its own idea of it (`unshare(CLONE_FS)`); a child of that thread starts there. So nothing
//! has to run between fork and exec, and the agent's own root stays what it was.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, unshare};

use crate::tool::watch;

/// Runs `program` (a path in `root`) with `root` as its root and nothing but `env` in its environment.
///
/// Its output is logged line by line, named after the program. Errors: it cannot be started, ends with anything but 0, or takes longer than
/// `limit`; then it and its process group are killed. The last lines of its output are in the error.
pub fn run_in_root(root: &Path, program: &Path, env: &[(OsString, OsString)], limit: Duration) -> Result<()> {
    let (reader, writer) = std::io::pipe().context("making a pipe")?;
    let mut child = std::thread::scope(|scope| {
        let spawned = std::thread::Builder::new()
            .spawn_scoped(scope, || spawn_in_root(root, program, env, writer))
            .context("starting a thread")?;
        spawned
            .join()
            .map_err(|_| anyhow!("the thread that starts {} panicked", program.display()))?
    })?;
    let ended = watch(&mut child, OwnedFd::from(reader), program, limit)?;
    if ended.status.success() {
        return Ok(());
    }
    Err(anyhow!("{} {ended}", program.display()))
}

fn spawn_in_root(root: &Path, program: &Path, env: &[(OsString, OsString)], output: std::io::PipeWriter) -> Result<Child> {
    // Before the root changes: `Stdio::null()` would look for /dev/null in the new root.
    let input = std::fs::File::open("/dev/null").context("opening /dev/null")?;
    unshare(CloneFlags::CLONE_FS).context("taking the working folder of a thread apart")?;
    rustix::process::chroot(root).with_context(|| format!("changing the root of a thread to {}", root.display()))?;
    rustix::process::chdir("/").context("changing into the new root")?;
    let errors = output.try_clone().context("copying a pipe")?;
    Command::new(program)
        .env_clear()
        .envs(env.iter().map(|(key, value)| (key.as_os_str(), value.as_os_str())))
        .stdin(input)
        .stdout(output)
        .stderr(errors)
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {} in {}", program.display(), root.display()))
}

/// `env` with `key` set to `value`, unless it has one when `keep` is set.
pub fn with_variable(env: &[(OsString, OsString)], key: &str, value: &str, keep: bool) -> Vec<(OsString, OsString)> {
    let mut env = env.to_vec();
    match env.iter_mut().find(|(name, _)| name == OsStr::new(key)) {
        Some(_) if keep => {}
        Some((_, old)) => *old = value.into(),
        None => env.push((key.into(), value.into())),
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_added_replaced_or_kept() {
        let env = vec![(OsString::from("A"), OsString::from("1"))];
        assert_eq!(with_variable(&env, "A", "2", true), env);
        assert_eq!(with_variable(&env, "A", "2", false), [("A".into(), "2".into())]);
        assert_eq!(with_variable(&env, "B", "2", true).len(), 2);
    }
}
