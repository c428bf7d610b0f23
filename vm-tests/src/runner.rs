//! All tests, layer by layer, with counts that cannot lie: a layer without a test fails the run.

use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cli::{DEFAULT_LEVEL, TestOptions};
use crate::command::Tool;
use crate::docs;
use crate::evaluation;
use crate::faults;
use crate::fuzz;
use crate::lab::Lab;
use crate::layer::{self, Layer};
use crate::links::{self, Ground};
use crate::qemu::NeverBegan;
use crate::scenario::{self, Test};
use crate::workspace::Workspace;

/// Compiling everything with the publishing side from nothing, and running it.
const CARGO_LIMIT: Duration = Duration::from_secs(30 * 60);
/// Cases of a property test in the nightly layer; proptest's own number is 256.
const NIGHTLY_CASES: &str = "20000";
/// Tests of links that run at a time.
const LINKS_AT_ONCE: usize = 3;
/// Where the chance of lossy links begins, unless told.
const LINKS_SEED: u64 = 1;
/// What two machines and the page cache of their disks want, in KiB.
const MEMORY_FOR_TWO: u64 = 6 << 20;

/// How many tests of a layer ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// The last line of a run.
impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

/// One layer's outcome.
#[derive(Debug)]
struct Outcome {
    layer: Layer,
    counts: Counts,
    time: Duration,
    /// Why it failed although no test did.
    trouble: Option<String>,
}

/// Runs what `options` asks for; returns whether all is well.
pub fn run(workspace: &Workspace, options: &TestOptions) -> Result<bool> {
    let mut outcomes = Vec::new();
    let programs = layer::programs(workspace)?;
    for layer in Layer::ALL {
        if !options.layers.is_empty() && !options.layers.contains(&layer) {
            continue;
        }
        eprintln!("== {}", layer.name());
        let started = Instant::now();
        let result = match layer {
            Layer::Boots => boots(workspace, options),
            Layer::Lint => lint(workspace, options),
            Layer::Module => module(workspace, options),
            Layer::Links => links(workspace, options),
            Layer::Fuzz => fuzz::run(workspace, options).map(|(passed, failed)| Counts {
                passed,
                failed,
                skipped: 0,
            }),
            Layer::Unit | Layer::Properties | Layer::Golden | Layer::Http | Layer::Kills | Layer::Mounts => {
                match layer.cargo_arguments(&programs) {
                    Some(arguments) if layer == Layer::Mounts => mounts(workspace, &arguments, options),
                    Some(arguments) if layer == Layer::Http => http(workspace, &arguments, options),
                    Some(arguments) if layer == Layer::Kills => kills(workspace, &arguments, options),
                    Some(arguments) => cargo_layer(workspace, &arguments, &[], options),
                    None => Ok(Counts::default()),
                }
            }
        };
        let (counts, trouble) = match result {
            Ok(counts) => (counts, emptiness(counts, options)),
            Err(error) => (Counts::default(), Some(format!("{error:#}"))),
        };
        if let Some(trouble) = &trouble {
            eprintln!("{}: {trouble}", layer.name());
        }
        outcomes.push(Outcome {
            layer,
            counts,
            time: started.elapsed(),
            trouble,
        });
    }
    Ok(summary(&outcomes, options))
}

/// A layer in which nothing ran has proved nothing; only a filter may ask for that.
fn emptiness(counts: Counts, options: &TestOptions) -> Option<String> {
    let empty = counts.passed + counts.failed == 0;
    (empty && options.filter.is_none()).then(|| "no test ran in this layer".to_owned())
}

/// Prints the table; returns whether all is well. Trouble counts as one failure, so that the last line tells it too.
fn summary(outcomes: &[Outcome], options: &TestOptions) -> bool {
    let mut total = Counts::default();
    println!("\n{:<12}{:>8}{:>8}{:>9}{:>10}", "layer", "passed", "failed", "skipped", "seconds");
    for outcome in outcomes {
        let mut counts = outcome.counts;
        if outcome.trouble.is_some() {
            counts.failed += 1;
        }
        total.add(counts);
        let Counts { passed, failed, skipped } = counts;
        let note = outcome.trouble.as_ref().map_or("", |_| "  the layer itself failed, see above");
        println!(
            "{:<12}{passed:>8}{failed:>8}{skipped:>9}{:>10.1}{note}",
            outcome.layer.name(),
            outcome.time.as_secs_f64()
        );
    }
    if !options.layers.is_empty() || options.filter.is_some() {
        println!("Not all tests were asked for (--layer, --filter).");
    }
    let ran = total.passed + total.failed > 0;
    if !ran {
        println!("No test ran at all: the filter matches nothing.");
        total.failed += 1;
    }
    println!("{total}");
    total.failed == 0
}

/// Checks that run nothing of the project: each is a name, a program and its arguments, from the top of the repository.
const LINTS: &[(&str, &str, &[&str])] = &[
    ("format", "cargo", &["fmt", "--all", "--check"]),
    (
        "clippy",
        "cargo",
        &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
    ),
    (
        "clippy-publish",
        "cargo",
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--features",
            "freshroot/publish",
            "--",
            "-D",
            "warnings",
        ],
    ),
    ("shell", "sh", &["-n", "vm-tests/run"]),
    ("ci", "sh", &["-n", ".ci/run"]),
    (
        "guest scripts",
        "sh",
        &[
            "-c",
            "for script in vm-tests/guest/*.sh vm-tests/guest/*/*.sh; do sh -n \"$script\" || exit; done",
        ],
    ),
];

fn lint(workspace: &Workspace, options: &TestOptions) -> Result<Counts> {
    let mut counts = Counts::default();
    for (name, program, arguments) in LINTS {
        if options.filter.as_ref().is_some_and(|text| !name.contains(text.as_str())) {
            continue;
        }
        let output = Tool::new(program, CARGO_LIMIT)
            .args(*arguments)
            .current_dir(workspace.root())
            .output()?;
        if output.status.success() {
            counts.passed += 1;
        } else {
            counts.failed += 1;
            let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            eprintln!("FAILED  {name}: {program} {}\n{err}{out}", arguments.join(" "));
        }
    }
    if options.filter.as_ref().is_none_or(|text| "docs".contains(text.as_str())) {
        let mut problems = docs::problems(workspace)?;
        problems.extend(faults::problems(workspace)?);
        if problems.is_empty() {
            counts.passed += 1;
        } else {
            counts.failed += 1;
            eprintln!("FAILED  docs:\n{}", problems.join("\n"));
        }
    }
    Ok(counts)
}

/// The NixOS module, by its own script; what it could not look at here, and why, stands in its output.
fn module(workspace: &Workspace, options: &TestOptions) -> Result<Counts> {
    if options.filter.is_some() {
        return Ok(Counts::default());
    }
    let mut counts = Counts::default();
    for (text, error) in evaluation::run(workspace)? {
        eprint!("{text}");
        let one = text.lines().last().map(parse_closing).unwrap_or_default();
        counts.add(one);
        if let Some(error) = error {
            eprintln!("{error}");
            if one.failed == 0 {
                anyhow::bail!("the module's script ended without a failed test, see above");
            }
        }
    }
    Ok(counts)
}

/// `N passed, N failed, N skipped`.
fn parse_closing(line: &str) -> Counts {
    let count = |word: &str| {
        let found = line.split(',').find_map(|part| part.trim().strip_suffix(word));
        found.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
    };
    Counts {
        passed: count("passed"),
        failed: count("failed"),
        skipped: count("skipped"),
    }
}

/// The mounts of this machine's kernel. One that has no vfat cannot run that test: it is said and counted as skipped, and left to the boots.
fn mounts(workspace: &Workspace, targets: &[String], options: &TestOptions) -> Result<Counts> {
    let known = || fs::read_to_string("/proc/filesystems").context("reading /proc/filesystems");
    let has_vfat = |text: &str| text.lines().any(|line| line.split_whitespace().last() == Some("vfat"));
    if !has_vfat(&known()?) {
        // It may be a module; that there is none is what is looked at next.
        Tool::new("modprobe", Duration::from_secs(10)).args(["--quiet", "vfat"]).output()?;
    }
    if has_vfat(&known()?) {
        return cargo_layer(workspace, targets, &[], options);
    }
    eprintln!("mounts: this kernel has no vfat: its test is skipped here, the boot test «persistence» mounts it");
    let mut counts = cargo_layer(workspace, targets, &[("FRESHROOT_TESTS_WITHOUT", "vfat")], options)?;
    if options.filter.is_none() && counts.passed > 0 {
        counts.passed -= 1;
        counts.skipped += 1;
    }
    Ok(counts)
}

/// Transfers, and what their tests have seen, as a table.
fn http(workspace: &Workspace, targets: &[String], options: &TestOptions) -> Result<Counts> {
    let folder = workspace.log_dir("http")?;
    // With one core all tests would run in a thread that is not called like them.
    let threads = std::thread::available_parallelism()
        .map_or(2, |count| count.get().max(2))
        .to_string();
    let variables = [(faults::RECORDS, &*folder.to_string_lossy()), ("RUST_TEST_THREADS", &threads)];
    let counts = cargo_layer(workspace, targets, &variables, options)?;
    faults::tell_transfers(workspace, &folder, options.filter.is_none() && counts.failed == 0)?;
    Ok(counts)
}

/// Kills, and how many there were.
fn kills(workspace: &Workspace, targets: &[String], options: &TestOptions) -> Result<Counts> {
    let folder = workspace.log_dir("kills")?;
    let [seed, points] = faults::kills_variables(options.seed, options.nightly);
    let variables = [
        (faults::RECORDS, &*folder.to_string_lossy()),
        (seed.0, &seed.1),
        (points.0, &points.1),
    ];
    let counts = cargo_layer(workspace, targets, &variables, options)?;
    faults::tell_kills(&folder, options.filter.is_none() && counts.failed == 0, options.nightly)?;
    Ok(counts)
}

fn cargo_layer(workspace: &Workspace, targets: &[String], variables: &[(&str, &str)], options: &TestOptions) -> Result<Counts> {
    let mut tool = Tool::new("cargo", CARGO_LIMIT)
        .args(["test", "--no-fail-fast", "--color", "never", "--features", "freshroot/publish"])
        .args(targets)
        .current_dir(workspace.root());
    for (name, value) in variables {
        tool = tool.env(name, value);
    }
    if let Some(seed) = options.seed {
        tool = tool.env("PROPTEST_RNG_SEED", seed.to_string());
    }
    if options.nightly {
        tool = tool.env("PROPTEST_CASES", NIGHTLY_CASES);
    }
    if let Some(filter) = &options.filter {
        tool = tool.arg("--").arg(filter);
    }
    let output = tool.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let counts = parse_counts(&text);
    if !output.status.success() {
        eprintln!("{}\n{text}", String::from_utf8_lossy(&output.stderr));
        if counts.failed == 0 {
            anyhow::bail!("cargo test failed without a failed test ({})", output.status);
        }
    }
    Ok(counts)
}

/// Adds up the lines `test result: ok. 3 passed; 0 failed; 1 ignored; …`. What a filter left out was not asked for, and is not counted.
fn parse_counts(output: &str) -> Counts {
    let mut all = Counts::default();
    for line in output.lines().filter_map(|line| line.strip_prefix("test result: ")) {
        let count = |word: &str| {
            let found = line.split([';', '.']).find_map(|part| part.trim().strip_suffix(word));
            found.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
        };
        all.add(Counts {
            passed: count("passed"),
            failed: count("failed"),
            skipped: count("ignored"),
        });
    }
    all
}

/// Links, some at a time: they are in nobody's way, and wait most of the time.
fn links(workspace: &Workspace, options: &TestOptions) -> Result<Counts> {
    let mut counts = Counts::default();
    let mut wanted = VecDeque::new();
    for test in links::all() {
        let named = options.filter.as_ref().is_none_or(|text| test.name.contains(text.as_str()));
        match (named, test.nightly && !options.nightly) {
            (false, _) => {}
            (true, true) => counts.skipped += 1,
            (true, false) => wanted.push_back(test),
        }
    }
    if wanted.is_empty() {
        return Ok(counts);
    }
    let ground = Ground::prepare(workspace, options.seed.unwrap_or(LINKS_SEED))?;
    let one = |test: &links::Test| {
        let started = Instant::now();
        let result = ground.run(workspace, test);
        let (name, seconds) = (test.name, started.elapsed().as_secs_f64());
        let mut counts = Counts::default();
        match result {
            Ok(measured) => {
                let note = measured.get("note").and_then(serde_json::Value::as_str).unwrap_or_default();
                eprintln!("ok      {name:<16} {} ({seconds:.1} s)\n        {note}", test.what);
                counts.passed = 1;
            }
            Err(error) => {
                eprintln!(
                    "FAILED  {name:<16} {} ({seconds:.1} s, seed {})\n        logs: target/vm/logs/links-{name}\n{error:#}\n",
                    test.what, ground.seed
                );
                counts.failed = 1;
            }
        }
        counts
    };
    counts.add(in_parallel(options.jobs.unwrap_or(LINKS_AT_ONCE), wanted, one));
    Ok(counts)
}

/// Does `one` with all that are wanted, so many at a time.
fn in_parallel<T: Send>(jobs: usize, wanted: VecDeque<T>, one: impl Fn(&T) -> Counts + Sync) -> Counts {
    let queue = Mutex::new(wanted);
    let total = Mutex::new(Counts::default());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(next) = next else { return };
                    let counts = one(&next);
                    total.lock().unwrap_or_else(PoisonError::into_inner).add(counts);
                }
            });
        }
    });
    total.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn boots(workspace: &Workspace, options: &TestOptions) -> Result<Counts> {
    let mut counts = Counts::default();
    let mut wanted = VecDeque::new();
    for scenario in scenario::all() {
        let named = options
            .filter
            .as_ref()
            .is_none_or(|text| scenario.name().contains(text) || scenario.folder().contains(text));
        match (named, scenario.nightly() && !options.nightly) {
            (false, _) => {}
            (true, true) => counts.skipped += 1,
            (true, false) => wanted.push_back(scenario),
        }
    }
    if wanted.is_empty() {
        return Ok(counts);
    }
    let lab = Lab::new(workspace.clone(), DEFAULT_LEVEL)?;
    let jobs = options.jobs.map_or_else(jobs_for_memory, Ok)?;
    counts.add(in_parallel(jobs, wanted, |scenario| attempt(scenario, &lab)));
    Ok(counts)
}

fn attempt(scenario: &Test, lab: &Lab) -> Counts {
    let started = Instant::now();
    let (folder, name) = (scenario.folder(), scenario.name());
    let mut result = scenario.run(lab);
    // Whatever is tested has not been started yet: nothing of ours can be the reason. A second time it is told as any failure.
    if let Err(error) = &result
        && let Some(never) = error.downcast_ref::<NeverBegan>()
    {
        eprintln!("again   {folder:<20} {never}");
        result = scenario.run(lab);
    }
    let seconds = started.elapsed().as_secs_f64();
    match result {
        Ok(()) => {
            eprintln!("ok      {folder:<20} {name} ({seconds:.1} s)");
            Counts {
                passed: 1,
                ..Counts::default()
            }
        }
        Err(error) => {
            eprintln!("FAILED  {folder:<20} {name} ({seconds:.1} s)\n        logs: target/vm/logs/{folder}\n{error:#}\n");
            Counts {
                failed: 1,
                ..Counts::default()
            }
        }
    }
}

fn jobs_for_memory() -> Result<usize> {
    let text = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let available = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|value| value.trim().strip_suffix(" kB"))
        .and_then(|value| value.trim().parse::<u64>().ok())
        .context("/proc/meminfo does not say what is available")?;
    Ok(if available >= MEMORY_FOR_TWO { 2 } else { 1 })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn results_of_all_test_programs_are_added_up() {
        let output = "running 3 tests\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
            test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 5 filtered out; finished in 1.00s\n";
        let counts = parse_counts(output);
        assert_eq!(
            counts,
            Counts {
                passed: 13,
                failed: 2,
                skipped: 1
            }
        );
        assert_eq!(counts.to_string(), "13 passed, 2 failed, 1 skipped");
        assert_eq!(
            Counts {
                passed: 1,
                ..Counts::default()
            }
            .to_string(),
            "1 passed, 0 failed"
        );
    }

    #[test]
    fn an_empty_layer_is_trouble_unless_a_filter_asked_for_less() {
        let options = TestOptions::default();
        let one = Counts {
            passed: 1,
            ..Counts::default()
        };
        let only_skipped = Counts {
            skipped: 4,
            ..Counts::default()
        };
        assert!(emptiness(Counts::default(), &options).is_some());
        assert!(emptiness(only_skipped, &options).is_some());
        assert!(emptiness(one, &options).is_none());
        let filtered = TestOptions {
            filter: Some("x".to_owned()),
            ..options
        };
        assert!(emptiness(Counts::default(), &filtered).is_none());
    }

    fn outcome(counts: Counts, trouble: Option<&str>) -> Outcome {
        Outcome {
            layer: Layer::Unit,
            counts,
            time: Duration::ZERO,
            trouble: trouble.map(str::to_owned),
        }
    }

    #[test]
    fn a_run_is_well_only_if_something_ran_and_nothing_failed() {
        let options = TestOptions::default();
        let one = Counts {
            passed: 1,
            ..Counts::default()
        };
        assert!(summary(&[outcome(one, None)], &options));
        assert!(!summary(&[outcome(one, Some("no test ran"))], &options));
        assert!(!summary(&[outcome(Counts { failed: 1, ..one }, None)], &options));
        assert!(!summary(&[outcome(Counts::default(), None)], &options));
        assert!(!summary(&[], &options));
    }

    #[test]
    fn boot_tests_have_folders_of_their_own() {
        let mut folders: Vec<String> = scenario::all().iter().map(Test::folder).collect();
        let count = folders.len();
        folders.sort_unstable();
        folders.dedup();
        assert_eq!(folders.len(), count);
    }
}
