//! The fuzzers: built, seen to find a planted bug, and then run for a while on each parser.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use crate::cli::TestOptions;
use crate::command::{Tool, tail};
use crate::workspace::Workspace;

/// The agent's libraries with coverage, and libFuzzer, which is C++; on two cores, from nothing.
const BUILD_LIMIT: Duration = Duration::from_secs(30 * 60);
/// For each target in CI. Two at a time, they take less than the build from nothing, which took 150 s of processor time.
const SHORT: Duration = Duration::from_secs(4);
/// For each target in the nightly run.
const LONG: Duration = Duration::from_secs(10 * 60);
/// What libFuzzer may take to read the seeds, beyond the time that it was given.
const SLACK: Duration = Duration::from_secs(60);
/// Fewer inputs have proved nothing. The slowest target tries some hundred a second on a machine with much else to do.
const LEAST_INPUTS: u64 = 300;
/// The bug that was put there for the fuzzers to find.
const PLANTED: &str = "planted";
/// It is found in about three seconds, at 60,000 inputs a second; then the search ends.
const PLANTED_LIMIT: Duration = Duration::from_secs(60);

/// A target, as the fuzzer lists it: name and longest input.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    name: String,
    longest: u64,
}

/// What a run needs.
struct Fuzzers<'a> {
    workspace: &'a Workspace,
    program: PathBuf,
    seed: u32,
    time: Duration,
}

/// Runs the fuzzers that `options` asks for; how many targets passed and failed.
pub fn run(workspace: &Workspace, options: &TestOptions) -> Result<(u64, u64)> {
    let fuzzers = Fuzzers {
        workspace,
        program: build(workspace)?,
        seed: seed(options)?,
        time: if options.nightly { LONG } else { SHORT },
    };
    eprintln!(
        "fuzz: {} s for each target, seed {seed}; --seed {seed} tries the same inputs in the same order",
        fuzzers.time.as_secs(),
        seed = fuzzers.seed,
    );
    let wanted = |target: &Target| options.filter.as_ref().is_none_or(|text| target.name.contains(text.as_str()));
    let queue: Mutex<VecDeque<Target>> = Mutex::new(fuzzers.list()?.into_iter().filter(wanted).collect());
    let counts = Mutex::new((0, 0));
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.unwrap_or(2) {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(target) = next else { return };
                    let passed = fuzzers.attempt(&target);
                    let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
                    *if passed { &mut counts.0 } else { &mut counts.1 } += 1;
                }
            });
        }
    });
    Ok(counts.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn build(workspace: &Workspace) -> Result<PathBuf> {
    eprintln!("build: the fuzzers");
    // Flags from the environment would replace those of the alias, and nothing would be traced.
    Tool::new("cargo", BUILD_LIMIT)
        .without_env("RUSTFLAGS")
        .without_env("CARGO_ENCODED_RUSTFLAGS")
        .args(["fuzzers", "--quiet"])
        .current_dir(workspace.root())
        .watched()?;
    let program = workspace.target().join("x86_64-unknown-linux-gnu/fuzz/freshroot-fuzz");
    program.metadata().with_context(|| format!("looking for {}", program.display()))?;
    Ok(program)
}

/// The seed that was asked for, or one of the clock's; libFuzzer takes 32 bits, and 0 means «any» to it.
fn seed(options: &TestOptions) -> Result<u32> {
    let seed = match options.seed {
        Some(seed) => u32::try_from(seed).context("the fuzzers take a seed of at most 4294967295")?,
        None => SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.subsec_nanos()),
    };
    Ok(seed.max(1))
}

impl Fuzzers<'_> {
    fn list(&self) -> Result<Vec<Target>> {
        let text = Tool::new(path(&self.program)?, SLACK).env("FRESHROOT_FUZZ_TARGET", "list").text()?;
        let targets: Option<Vec<Target>> = text.lines().map(parse_target).collect();
        targets
            .filter(|all| !all.is_empty())
            .with_context(|| format!("the fuzzer lists its targets as «{text}»"))
    }

    fn attempt(&self, target: &Target) -> bool {
        let started = Instant::now();
        let result = self.fuzz(target);
        let seconds = started.elapsed().as_secs_f64();
        match result {
            Ok(told) => eprintln!("ok      {:<16} {told} ({seconds:.1} s)", target.name),
            Err(error) => {
                eprintln!("FAILED  {:<16} ({seconds:.1} s)\n{error:#}\n", target.name);
                return false;
            }
        }
        true
    }

    /// Runs one target; a sentence about what was done.
    fn fuzz(&self, target: &Target) -> Result<String> {
        let name = target.name.as_str();
        let folder = self.workspace.log_dir(&format!("fuzz-{name}"))?;
        let found = folder.join("corpus");
        fs::create_dir_all(&found).with_context(|| format!("making {}", found.display()))?;
        let own = self.workspace.root().join("agent/fuzz");
        let time = if name == PLANTED { PLANTED_LIMIT } else { self.time };
        let mut tool = Tool::new(path(&self.program)?, time + SLACK)
            .env("FRESHROOT_FUZZ_TARGET", name)
            .arg(&found)
            .arg(format!("-seed={}", self.seed))
            .arg(format!("-max_total_time={}", time.as_secs()))
            .arg(format!("-max_len={}", target.longest))
            .arg(format!("-artifact_prefix={}/", folder.display()))
            .args(["-timeout=20", "-rss_limit_mb=1024", "-print_final_stats=1"]);
        // What was found once is tried first, and is what new inputs are made of.
        for kind in ["corpus", "regressions"] {
            let seeds = own.join(kind).join(name);
            if seeds.exists() {
                tool = tool.arg(seeds);
            }
        }
        let words = own.join("dictionaries").join(format!("{name}.dict"));
        if words.exists() {
            tool = tool.arg(format!("-dict={}", words.display()));
        }
        let output = tool.output()?;
        let log = folder.join("log");
        fs::write(&log, &output.stderr).with_context(|| format!("writing {}", log.display()))?;
        let text = String::from_utf8_lossy(&output.stderr);
        let artifact = artifact(&folder)?;
        match (name, artifact) {
            (PLANTED, Some(_)) => Ok("the planted bug is found".to_owned()),
            (PLANTED, None) => bail!(
                "the planted bug was not found: the fuzzers are blind, or had too little time; see {}",
                log.display()
            ),
            (_, Some(input)) => bail!(
                "this input does not pass: {}\nto try it again: cargo run --package freshroot-fuzz -- {name} {0}\nto keep it, when it is mended: cp {0} agent/fuzz/regressions/{name}/\n{1}",
                input.display(),
                what_failed(&text)
            ),
            (_, None) if !output.status.success() => bail!("the fuzzer ended with {}: {}", output.status, tail(&output.stderr)),
            (_, None) => {
                let inputs =
                    inputs(&text).with_context(|| format!("the fuzzer does not say how many inputs it tried; see {}", log.display()))?;
                ensure!(inputs >= LEAST_INPUTS, "only {inputs} inputs were tried; see {}", log.display());
                Ok(format!("{inputs} inputs"))
            }
        }
    }
}

fn path(program: &Path) -> Result<&str> {
    program.to_str().with_context(|| format!("{} is not UTF-8", program.display()))
}

/// `name longest`.
fn parse_target(line: &str) -> Option<Target> {
    let (name, longest) = line.split_once(' ')?;
    Some(Target {
        name: name.to_owned(),
        longest: longest.parse().ok()?,
    })
}

/// The input that libFuzzer left because a target did not survive it: `crash-…`, `oom-…`, `timeout-…`, `leak-…`.
fn artifact(folder: &Path) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let path = entry.with_context(|| format!("listing {}", folder.display()))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if ["crash-", "oom-", "timeout-", "leak-"].iter().any(|kind| name.starts_with(kind)) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// How many inputs were tried, of libFuzzer's closing lines.
fn inputs(text: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
        .and_then(|number| number.trim().parse().ok())
}

/// The lines from where it failed on, without libFuzzer's own.
fn what_failed(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines
        .iter()
        .position(|line| line.contains("panicked at") || line.contains("ERROR: libFuzzer"))
        .unwrap_or(lines.len().saturating_sub(12));
    lines[from..].iter().take(12).copied().collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn the_closing_lines_are_read() {
        let text =
            "#5\tDONE   cov: 3\nDone 5 runs in 1 second(s)\nstat::number_of_executed_units: 14650\nstat::average_exec_per_sec:     915\n";
        assert_eq!(inputs(text), Some(14650));
        assert_eq!(inputs("INFO: Seed: 1"), None);
    }

    #[test]
    fn a_target_is_a_name_and_a_length() {
        let target = parse_target("part_map 2048").unwrap();
        assert_eq!((target.name.as_str(), target.longest), ("part_map", 2048));
        assert_eq!(parse_target("part_map"), None);
    }

    #[test]
    fn a_failure_is_told_from_its_panic_on() {
        let text = "INFO: Seed: 1\n#2\tINITED\nthread '<unnamed>' panicked at agent/fuzz/src/input.rs:70:5:\nwhy\n==1== ERROR: libFuzzer: deadly signal\n";
        assert!(what_failed(text).starts_with("thread '<unnamed>' panicked") && what_failed(text).contains("why"));
    }

    #[test]
    fn what_the_fuzzer_leaves_is_found() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("log"), "").unwrap();
        assert_eq!(artifact(folder.path()).unwrap(), None);
        let crash = folder.path().join("crash-0a");
        fs::write(&crash, "x").unwrap();
        assert_eq!(artifact(folder.path()).unwrap(), Some(crash));
    }

    #[test]
    fn a_seed_is_what_was_asked_for_and_never_nothing() {
        let asked = |seed| TestOptions {
            seed,
            ..TestOptions::default()
        };
        assert_eq!(seed(&asked(Some(7))).unwrap(), 7);
        assert_eq!(seed(&asked(Some(0))).unwrap(), 1);
        assert!(seed(&asked(Some(1 << 32))).is_err());
        assert!(seed(&asked(None)).unwrap() > 0);
    }
}
