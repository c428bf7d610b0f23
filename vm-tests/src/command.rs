//! Other programs: run to the end with a limit, or an error that holds what they said.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// How much of a failed program's output goes into the error, in bytes from its end.
const TAIL: usize = 4000;

/// A program that is about to be run; `timeout` from coreutils ends it at the limit.
#[derive(Debug)]
pub struct Tool {
    program: String,
    limit: Duration,
    command: Command,
}

impl Tool {
    /// `program` from `PATH`, with at most `limit` to finish.
    pub fn new(program: &str, limit: Duration) -> Self {
        let mut command = Command::new("timeout");
        // The foreground flag keeps Ctrl-C working: the program stays in our process group.
        command.args(["--foreground", "--kill-after=10"]);
        command.arg(limit.as_secs().max(1).to_string()).arg(program);
        command.stdin(Stdio::null());
        Self {
            program: program.to_owned(),
            limit,
            command,
        }
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Removes a variable from its environment.
    pub fn without_env(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Sets its working directory.
    pub fn current_dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Reads its standard input from `file`.
    pub fn stdin(mut self, file: std::fs::File) -> Self {
        self.command.stdin(file);
        self
    }

    /// Runs it with its output kept, whatever its exit status.
    pub fn output(mut self) -> Result<Output> {
        self.command
            .output()
            .with_context(|| format!("starting {} (through timeout)", self.program))
    }

    /// Runs it and returns what it wrote to standard output; an exit status other than 0 is an error with the end of what it said.
    pub fn text(self) -> Result<String> {
        let (program, limit) = (self.program.clone(), self.limit);
        let output = self.output()?;
        if output.status.code() == Some(124) {
            bail!("{program} took more than {} s and was ended", limit.as_secs());
        }
        if !output.status.success() {
            let both = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
            bail!("{program} failed ({}):\n{}", output.status, tail(&both));
        }
        String::from_utf8(output.stdout).with_context(|| format!("reading what {program} wrote"))
    }

    /// Runs it for its effect.
    pub fn run(self) -> Result<()> {
        self.text().map(drop)
    }

    /// Runs it with our own standard output and error, for what people want to watch.
    pub fn watched(mut self) -> Result<()> {
        let status = self
            .command
            .status()
            .with_context(|| format!("starting {} (through timeout)", self.program))?;
        if status.code() == Some(124) {
            bail!("{} took more than {} s and was ended", self.program, self.limit.as_secs());
        }
        if !status.success() {
            bail!("{} failed ({status})", self.program);
        }
        Ok(())
    }
}

/// The end of `bytes` as text, at most [`TAIL`] bytes.
pub fn tail(bytes: &[u8]) -> String {
    let start = bytes.len().saturating_sub(TAIL);
    String::from_utf8_lossy(bytes.get(start..).unwrap_or_default())
        .trim_end()
        .to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_failing_program_is_named_with_its_words() {
        let error = Tool::new("sh", Duration::from_secs(5))
            .args(["-c", "echo no such thing >&2; exit 3"])
            .run()
            .unwrap_err();
        let text = format!("{error:#}");
        assert!(text.starts_with("sh failed") && text.contains("no such thing"), "{text}");
    }

    #[test]
    fn a_program_that_hangs_is_ended_at_its_limit() {
        let error = Tool::new("sleep", Duration::from_secs(1)).arg("30").run().unwrap_err();
        assert!(format!("{error:#}").contains("more than 1 s"));
    }

    #[test]
    fn a_tail_is_the_end() {
        let long = vec![b'x'; TAIL + 10];
        assert_eq!(tail(&long).len(), TAIL);
        assert_eq!(tail(b"short\n"), "short");
    }
}
