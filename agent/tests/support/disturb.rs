//! A job, in a child of the test, that is disturbed at each system call that changes a disk.

use std::collections::BTreeMap;
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

use super::strace::{Ended, FOLDER, run};

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
/// Points of one job and one kind of fault: all kills, and half of the refusals.
const AT_MOST: usize = 90;
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

/// The calls of the job's thread that strace saw in a whole run of a job, up to the job's end, and the number of those before it begins.
pub fn trace(name: &str, template: &Path) -> (Vec<Call>, usize) {
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
    let text = fs::read_to_string(log).unwrap();
    let begins = text
        .lines()
        .find(|line| line.contains(BEGIN))
        .expect("the job's first call is in the trace");
    let thread_of_job = begins.split_whitespace().next().unwrap();
    let mut calls: Vec<Call> = text
        .lines()
        .filter_map(|line| line.split_once(char::is_whitespace).filter(|(thread, _)| *thread == thread_of_job))
        .filter_map(|(_, line)| {
            let line = line.trim_start();
            let name = line.split_once('(')?.0.to_owned();
            Some(Call {
                name,
                line: line.to_owned(),
            })
        })
        .collect();
    let at = |what: &str| calls.iter().position(|call| call.line.contains(what)).unwrap();
    let (begin, end) = (calls.iter().rposition(|call| call.line.contains(BEGIN)).unwrap(), at(END));
    for call in CALLS {
        let others = text
            .lines()
            .filter(|line| !line.starts_with(thread_of_job) && line.contains(&format!(" {call}(")));
        let others: Vec<&str> = others.collect();
        assert!(others.len() < OTHERS, "{call}: {others:#?}");
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
        for fault in faults {
            points.push(Point {
                call: call.name.clone(),
                nth: *nth,
                index: *index,
                fault: *fault,
            });
        }
    }
    points
}

/// As many points as there is time for. Which ones is told, so that they can be met again.
fn sample(points: Vec<Point>) -> Vec<Point> {
    if points.len() <= AT_MOST {
        return points;
    }
    let seed = match std::env::var("FRESHROOT_KILLS_SEED") {
        Ok(seed) => seed.parse().expect("FRESHROOT_KILLS_SEED is a number"),
        Err(_) => jitter() >> 32,
    };
    println!("{AT_MOST} of {} points, FRESHROOT_KILLS_SEED={seed}", points.len());
    let mut numbered: Vec<_> = points
        .into_iter()
        .enumerate()
        .map(|(number, point)| (Digest::of(format!("{seed} {number}").as_bytes()), point))
        .collect();
    numbered.sort_by_key(|(order, _)| *order);
    numbered.into_iter().take(AT_MOST).map(|(_, point)| point).collect()
}

/// Runs the job of the test `test` once for each point, on all cores, each time on a copy of `template`, and checks what is found. Says how many faults
/// were met; fewer than `least` are not all of the job.
pub fn disturb(test: &str, template: &Path, faults: &[Fault], least: usize, check: &(dyn Fn(&Point, &Path) + Sync)) -> usize {
    let scratch = tempfile::tempdir().unwrap();
    let (calls, begin) = trace(test, template);
    let points = sample(points(&calls, begin, faults));
    assert!(points.len() >= least, "{} points: the trace is not that of the job", points.len());
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let started = Instant::now();
    let work = || {
        while let Some(point) = points.get(next.fetch_add(1, Ordering::SeqCst)) {
            let folder = scratch.path().join(format!("{}-{}-{:?}", point.call, point.nth, point.fault));
            copy(template, &folder);
            let how = match point.fault {
                Fault::Kill => format!("signal=KILL:when={}", point.nth),
                Fault::Error(error) => format!("error={error}:when={}", point.nth),
                Fault::AlwaysError(error) => format!("error={error}:when={}+", point.nth),
            };
            let options = [
                "-o/dev/null".to_owned(),
                format!("-etrace={}", point.call),
                format!("-einject={}:{how}", point.call),
            ];
            let (ended, told) = run(test, &folder, &options);
            let checked = catch_unwind(AssertUnwindSafe(|| {
                assert_eq!(
                    ended == Ended::Killed,
                    point.fault == Fault::Kill,
                    "{} {}:\n{told}",
                    point.call,
                    point.index
                );
                check(point, &folder);
            }));
            if let Err(panic) = checked {
                let words = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| format!("{panic:?}"));
                failures.lock().unwrap().push(format!(
                    "{words}\n    the child said: {}",
                    told.lines().rfind(|line| line.contains("error:")).unwrap_or("")
                ));
            }
            fs::remove_dir_all(&folder).unwrap();
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        work();
    });
    println!("{test}: {} points, {:.1} s", points.len(), started.elapsed().as_secs_f32());
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
