//! A job, in a child of the test, that is disturbed at system calls that change a disk: at a sample of them, or at each.
//!
//! A job more is a test of its own: `if !was_child(|folder| …) { disturb("its name", &template, &[Fault::Kill], least, &|point, folder| …); }`. What is looked at afterwards
//! is the caller's; that something boots is [`super::boots`].
#![allow(dead_code, reason = "each test program uses its share")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::Result;
use freshroot::digest::Digest;
use freshroot::fetch::retry::jitter;

use super::strace::{Ended, FOLDER, run, run_limited};

/// All that changes a disk. Those that an architecture does not have are passed over by strace.
const CALLS: &[&str] = &[
    "write",
    "pwrite64",
    "fsync",
    "fdatasync",
    "?rename",
    "?renameat",
    "?renameat2",
    "?unlink",
    "?unlinkat",
    "?mkdir",
    "?mkdirat",
    "openat",
    "ftruncate",
    "fallocate",
];
/// How many points of each job, if nobody says it: a few of each kind of call.
const AT_MOST: usize = 32;
/// Say which points are met: how many of each job, by which seed, or just one.
const POINTS: &str = "FRESHROOT_KILLS_POINTS";
const SEED: &str = "FRESHROOT_KILLS_SEED";
const ONE: &str = "FRESHROOT_KILLS_POINT";
/// In the place of a call: the size that no file may exceed.
const SIZE: &str = "size";
/// Names the folder for what is told of it (`record.rs`).
const RECORDS: &str = "FRESHROOT_TEST_RECORDS";
const BEGIN: &str = "job-begins";
const END: &str = "job-ends";
/// More than any other thread of a child makes of the same call. strace counts by thread: so many are made before the job, lest another thread is met.
const OTHERS: usize = 40;
/// Does `job` in the folder that the parent names, if this process is such a child; says whether it is.
pub fn was_child(job: impl FnOnce(&Path) -> Result<()>) -> bool {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return false;
    };
    let folder = Path::new(&folder);
    let mut nowhere = File::create("/dev/null").unwrap();
    for _ in 0..OTHERS {
        nowhere.write_all(b"x").unwrap();
        drop(File::open(folder.join(BEGIN)));
    }
    let outcome = job(folder);
    drop(File::open(folder.join(END)));
    if let Err(error) = outcome {
        panic!("the job ends with an error: {error:#}");
    }
    true
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    // In the order of their age: it counts for reports.
    let mut entries: Vec<_> = fs::read_dir(from).unwrap().map(Result::unwrap).collect();
    entries.sort_by_key(|entry| entry.metadata().unwrap().modified().unwrap());
    for entry in entries {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// One line of a trace: the call and its arguments as strace prints them.
pub struct Call {
    /// The call's name.
    pub name: String,
    /// The whole line.
    pub line: String,
}

/// What strace writes of a whole run of a job: a line for each call, with its thread.
fn strace_lines(name: &str, template: &Path) -> String {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("cache");
    copy(template, &folder);
    let log = scratch.path().join("log");
    let options = [
        format!("-o{}", log.display()),
        "-y".to_owned(),
        format!("-etrace={}", CALLS.join(",")),
    ];
    let (ended, told) = run(name, &folder, &options);
    assert_eq!(ended, Ended::Passed, "{told}");
    fs::read_to_string(log).unwrap()
}

/// The calls of each thread. What goes on in one while another is told of stands in two lines, of which the second tells nothing new.
fn by_thread(text: &str) -> BTreeMap<&str, Vec<Call>> {
    let mut threads: BTreeMap<&str, Vec<Call>> = BTreeMap::new();
    for line in text.lines() {
        let Some((thread, line)) = line.split_once(char::is_whitespace) else {
            continue;
        };
        let line = line.trim_start();
        if let Some((name, _)) = line.split_once('(').filter(|_| !line.starts_with('<')) {
            threads.entry(thread).or_default().push(Call {
                name: name.to_owned(),
                line: line.to_owned(),
            });
        }
    }
    threads
}

fn thread_of_job(text: &str) -> &str {
    let begins = text.lines().find(|line| line.contains(BEGIN));
    begins
        .expect("the job's first call is in the trace")
        .split_whitespace()
        .next()
        .unwrap()
}

/// The calls of the job's thread that strace saw in a whole run of a job, up to the job's end, and the number of those before it begins.
pub fn trace(name: &str, template: &Path) -> (Vec<Call>, usize) {
    let text = strace_lines(name, template);
    let mut threads = by_thread(&text);
    let mut calls = threads.remove(thread_of_job(&text)).unwrap();
    let at = |what: &str| calls.iter().position(|call| call.line.contains(what)).unwrap();
    let (begin, end) = (calls.iter().rposition(|call| call.line.contains(BEGIN)).unwrap(), at(END));
    for call in CALLS {
        let most = threads
            .values()
            .map(|calls| calls.iter().filter(|other| other.name == *call).count())
            .max();
        assert!(most.unwrap_or(0) < OTHERS, "{call}: another thread makes it {most:?} times");
    }
    calls.truncate(end);
    (calls, begin + 1)
}

/// How a call is disturbed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process is killed when it enters the call.
    Kill,
    /// The call fails with this error, once.
    Error(&'static str),
    /// The call fails with this error from here on.
    AlwaysError(&'static str),
    /// No file grows beyond a size: a write that would is cut short there, and the next one fails.
    Short,
}

/// A call that is disturbed: the `nth` of its name in its thread, the `index`-th of its name in the job.
pub struct Point {
    /// The call's name.
    pub call: String,
    nth: usize,
    /// Which one of that name it is in the job, from 1.
    pub index: usize,
    /// What happens to it.
    pub fault: Fault,
}

impl Point {
    /// As [`ONE`] names it: call, number, kind.
    fn name(&self) -> String {
        let kind = match self.fault {
            Fault::Kill => "kill".to_owned(),
            Fault::Error(error) => error.to_owned(),
            Fault::AlwaysError(error) => format!("{error}+"),
            Fault::Short => "short".to_owned(),
        };
        format!("{}:{}:{kind}", self.call, self.index)
    }
}

fn points(calls: &[Call], begin: usize, faults: &[Fault]) -> Vec<Point> {
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let mut points = Vec::new();
    for (position, call) in calls.iter().enumerate() {
        let (nth, index) = counts.entry(&call.name).or_default();
        *nth += 1;
        if position < begin {
            continue;
        }
        *index += 1;
        for fault in faults.iter().filter(|fault| **fault != Fault::Short) {
            points.push(Point {
                call: call.name.clone(),
                nth: *nth,
                index: *index,
                fault: *fault,
            });
        }
    }
    if faults.contains(&Fault::Short) {
        points.extend(sizes(&calls[begin..]).into_iter().map(|size| Point {
            call: SIZE.to_owned(),
            nth: size,
            index: size,
            fault: Fault::Short,
        }));
    }
    points
}

/// Sizes of files at which a write of the job is cut in its middle, behind its first byte, or before its last.
fn sizes(calls: &[Call]) -> BTreeSet<usize> {
    let mut sizes = BTreeSet::new();
    for call in calls.iter().filter(|call| call.name == "write" || call.name == "pwrite64") {
        let Some((arguments, _)) = call.line.rsplit_once(") = ") else {
            continue;
        };
        let numbers: Vec<usize> = arguments.rsplit(", ").map_while(|word| word.parse().ok()).collect();
        let (length, offset) = match numbers[..] {
            [length] => (length, 0),
            [offset, length, ..] => (length, offset),
            [] => continue,
        };
        sizes.extend(
            [1, length / 2, length - length.min(1)]
                .map(|part| offset + part)
                .into_iter()
                .filter(|size| *size > 0),
        );
    }
    sizes
}

/// The number that a variable holds.
fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is not a number: {text}")))
}

/// As many points as there is time for, or the one that was asked for. Which ones is told, so that they can be met again.
fn sample(test: &str, points: Vec<Point>) -> Vec<Point> {
    if let Ok(one) = std::env::var(ONE) {
        let found: Vec<Point> = points.into_iter().filter(|point| point.name() == one).collect();
        println!("{test}: {one} is met {} times", found.len());
        return found;
    }
    let most = number(POINTS).map_or(AT_MOST, |number| usize::try_from(number).unwrap());
    if points.len() <= most {
        return points;
    }
    let seed = number(SEED).unwrap_or_else(|| jitter() >> 32);
    println!("{test}: {most} of {} points, {SEED}={seed}", points.len());
    let mut numbered: Vec<_> = points
        .into_iter()
        .map(|point| (Digest::of(format!("{seed} {test} {}", point.name()).as_bytes()), point))
        .collect();
    numbered.sort_by_key(|(order, _)| *order);
    numbered.into_iter().take(most).map(|(_, point)| point).collect()
}

/// What meets this point again.
fn again(test: &str, point: &Point) -> String {
    let program = std::env::current_exe().unwrap();
    let stem = program.file_stem().unwrap().to_string_lossy();
    let program = stem.rsplit_once('-').map_or(&*stem, |(program, _)| program);
    format!(
        "{ONE}={} cargo test --package freshroot --test {program} -- --exact {test}",
        point.name()
    )
}

/// Runs the job of the test `test` once for each point of a sample, on all cores, each time on a copy of `template`, and checks what is found. Says how
/// many faults were met. A job of fewer points than `least` is not the job.
pub fn disturb(test: &str, template: &Path, faults: &[Fault], least: usize, check: &(dyn Fn(&Point, &Path) + Sync)) -> usize {
    let (calls, begin) = trace(test, template);
    disturb_at(test, template, points(&calls, begin, faults), least, true, check)
}

/// The same for a job that has threads, at calls that one thread alone makes so often. Threads do not run the same way twice: a point may not be met.
pub fn disturb_threads(test: &str, template: &Path, faults: &[Fault], least: usize, check: &(dyn Fn(&Point, &Path) + Sync)) -> usize {
    let text = strace_lines(test, template);
    let threads = by_thread(&text);
    let job = thread_of_job(&text);
    let begins = text.lines().filter(|line| line.contains(BEGIN)).count();
    let before_job: usize = text.lines().position(|line| line.contains(BEGIN)).unwrap();
    let is_older = |thread: &str| text.lines().take(before_job + begins).any(|line| line.starts_with(thread));
    let mut all = Vec::new();
    for (thread, calls) in threads.iter().filter(|(thread, _)| **thread == job || !is_older(thread)) {
        let begin = calls.iter().rposition(|call| call.line.contains(BEGIN)).map_or(0, |at| at + 1);
        let end = calls.iter().position(|call| call.line.contains(END)).unwrap_or(calls.len());
        let alone = |point: &Point| {
            let others = threads.iter().filter(|(other, _)| *other != thread);
            others
                .map(|(_, calls)| calls.iter().filter(|call| call.name == point.call).count())
                .all(|count| count < point.nth)
        };
        all.extend(points(&calls[..end], begin, faults).into_iter().filter(alone));
    }
    disturb_at(test, template, all, least, false, check)
}

/// The same, at these points; `exactly`: each kill has to be met.
fn disturb_at(
    test: &str,
    template: &Path,
    points: Vec<Point>,
    least: usize,
    exactly: bool,
    check: &(dyn Fn(&Point, &Path) + Sync),
) -> usize {
    let scratch = tempfile::tempdir().unwrap();
    let all = points.len();
    assert!(all >= least, "{all} points: the trace is not that of the job");
    let points = sample(test, points);
    let (next, missed, failures) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(Vec::new()));
    let started = Instant::now();
    let work = || {
        while let Some(point) = points.get(next.fetch_add(1, Ordering::SeqCst)) {
            let folder = scratch.path().join(point.name());
            copy(template, &folder);
            let how = match point.fault {
                Fault::Kill => format!("signal=KILL:when={}", point.nth),
                Fault::Error(error) => format!("error={error}:when={}", point.nth),
                Fault::AlwaysError(error) => format!("error={error}:when={}+", point.nth),
                Fault::Short => String::new(),
            };
            let options = [
                "-o/dev/null".to_owned(),
                format!("-etrace={}", point.call),
                format!("-einject={}:{how}", point.call),
            ];
            let (ended, told) = match point.fault {
                Fault::Short => run_limited(test, &folder, point.nth),
                Fault::Kill | Fault::Error(_) | Fault::AlwaysError(_) => run(test, &folder, &options),
            };
            let checked = catch_unwind(AssertUnwindSafe(|| {
                let is_as_told = (ended == Ended::Killed) == (point.fault == Fault::Kill);
                missed.fetch_add(usize::from(!is_as_told), Ordering::SeqCst);
                assert!(is_as_told || !exactly, "{}: {ended:?}\n{told}", point.name());
                check(point, &folder);
            }));
            if let Err(panic) = checked {
                let words = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| format!("{panic:?}"));
                failures.lock().unwrap().push(format!(
                    "{words}\n    the child said: {}\n    again: {}",
                    told.lines().rfind(|line| line.contains("error:")).unwrap_or(""),
                    again(test, point)
                ));
            }
            fs::remove_dir_all(&folder).unwrap();
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        work();
    });
    println!("{test}: {} of {all} points, {:.1} s", points.len(), started.elapsed().as_secs_f32());
    let missed = missed.into_inner();
    // Threads that meet each other at other places are as good, as long as most points are met.
    assert!(2 * missed <= points.len(), "{missed} of {} kills were not met", points.len());
    if let Some(folder) = std::env::var_os(RECORDS) {
        let record = serde_json::json!({"kills": test, "points": points.len() - missed, "of": all});
        let file = Path::new(&folder).join(format!("{}-{test}.jsonl", std::process::id()));
        let mut file = File::options().append(true).create(true).open(file).unwrap();
        file.write_all(format!("{record}\n").as_bytes()).unwrap();
    }
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "{} of {} points:\n{}",
        failures.len(),
        points.len(),
        failures.join("\n")
    );
    points.len()
}

/// The path of a call's first argument, a descriptor that strace writes as `3</path>`.
pub fn descriptor(line: &str) -> String {
    line.split_once('<').unwrap().1.split_once('>').unwrap().0.to_owned()
}
