//! The test binary runs one of its tests again, in a child under strace(1), which kills it or lets a system call fail.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Output};

/// Names the folder that a child works on; in a test's own process it is not set.
pub const FOLDER: &str = "FRESHROOT_TEST_FOLDER";

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By SIGKILL.
    Killed,
    /// The test in it passed.
    Passed,
    /// The test in it failed.
    Failed,
}

/// Runs the test `name` of this binary in a child that works on `folder`, with these options of strace.
pub fn run(name: &str, folder: &Path, options: &[String]) -> (Ended, String) {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq"]).args(options);
    run_by(strace, name, folder)
}

/// The same without strace, where no file may grow beyond `limit` bytes.
#[allow(dead_code, reason = "for the kills")]
pub fn run_limited(name: &str, folder: &Path, limit: usize) -> (Ended, String) {
    let mut limited = Command::new("env");
    // Without the signal, the write that comes to the limit is cut short, and the next one fails.
    limited.args(["--ignore-signal=XFSZ", "prlimit", &format!("--fsize={limit}")]);
    run_by(limited, name, folder)
}

fn run_by(mut program: Command, name: &str, folder: &Path) -> (Ended, String) {
    let output = program
        .arg(std::env::current_exe().unwrap())
        // strace counts the system calls of each thread by themselves.
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder)
        .env("RUST_BACKTRACE", "0")
        // cargo sets it; the loader then looks for its libraries in dozens of places.
        .env_remove("LD_LIBRARY_PATH")
        .output();
    let output: Output = output.unwrap_or_else(|error| {
        panic!("{program:?} does not start ({error}): install it with «apt-get install strace util-linux coreutils»")
    });
    let told = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let refused = told.contains("PTRACE_") || told.contains("ptrace(");
    assert!(
        !refused,
        "strace may not trace: allow ptrace (CAP_SYS_PTRACE, kernel.yama.ptrace_scope, the container's seccomp profile)\n{told}"
    );
    let ended = match (output.status.signal(), output.status.success()) {
        (Some(9), _) => Ended::Killed,
        (_, true) => Ended::Passed,
        (_, false) => Ended::Failed,
    };
    assert!(
        ended == Ended::Killed || told.contains("running 1 test"),
        "the child did not run {name}:\n{told}"
    );
    (ended, told)
}
