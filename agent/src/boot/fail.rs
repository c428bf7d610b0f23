//! The failure policy under systemd's stage 1. Units lead here: that of the boot when it failed, by itself or because its program was killed or is
//! missing, and `emergency.service`, whatever it was that failed.

use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};

use super::Stage;
use super::attempt::read_settings;
use super::failing::Failing;
use crate::failure::{self, EndBy};
use crate::mode::Mode;
use crate::report::{self, Failure, Outcome, Report};

const LOCK: &str = "run/freshroot/fail.lock";
/// What systemd itself looks for (systemd(1), `/etc/initrd-release`).
pub const INITRD_RELEASE: &str = "etc/initrd-release";
/// systemd answers at once or is in trouble itself; the list is a help, not a need.
const LIST_LIMIT: Duration = Duration::from_secs(5);
/// Between two looks at the program that lists.
const LIST_LOOK: Duration = Duration::from_millis(50);
/// More names do not fit on a screen.
const LISTED: usize = 8;

/// Says why the boot failed, and carries the policy out; `unit` led here. Returns only if another process does the same already.
///
/// # Errors
/// If this is no initrd, or the kernel refuses to reboot or to power off.
pub fn fail(root: &Path, unit: Option<&str>) -> Result<()> {
    ensure!(
        root.join(INITRD_RELEASE).exists(),
        "fail is for an initrd, where units call it when nothing boots, and it ends the machine: here is none (there is no /{INITRD_RELEASE})"
    );
    crate::console::init(root, log::LevelFilter::Info);
    // Held until the machine ends.
    let _lock = match lock(root) {
        Ok(Some(lock)) => Some(lock),
        Ok(None) => {
            log::warn!("another process carries the failure policy out already: nothing to do");
            return Ok(());
        }
        Err(error) => {
            log::warn!("the failure policy is carried out without a lock: {error:#}");
            None
        }
    };
    let (policy, settings) = read_settings();
    if let Ok(settings) = &settings {
        log::set_max_level(settings.log);
    }
    let boot_id = fs::read_to_string(root.join("proc/sys/kernel/random/boot_id")).unwrap_or_default();
    let told = told(root, boot_id.trim());
    let failure = match (&settings, &told) {
        // Without settings no boot came far enough to say more.
        (Err(refusal), Told::Nothing) => refusal.clone(),
        (Ok(_) | Err(_), _) => reason(&told, unit, &failed_units()),
    };
    let mut report = match told {
        Told::Report(report) => *report,
        Told::Nothing | Told::Unreadable(_) => Report::new(&boot_id),
    };
    report.outcome = Outcome::Failed;
    let stage = Stage::new(Mode::Systemd, crate::cli::SYSROOT.into());
    let failing = Failing {
        stage: &stage,
        policy: &policy,
        failures: 0,
        again: false,
    };
    let pause = failing.tell(failure, report, settings.as_ref().ok(), &|pause| {
        failure::next_words(&policy, pause)
    });
    Err(failure::act(root, &policy, pause, EndBy::Systemd))
}

/// The lock of which there is one in a boot; none if somebody else holds it.
fn lock(root: &Path) -> Result<Option<File>> {
    let path = root.join(LOCK);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("locking {}", path.display())),
    }
}

/// What the boot itself has left to be read.
#[derive(Debug)]
enum Told {
    /// Its report.
    Report(Box<Report>),
    /// Nothing of this boot.
    Nothing,
    /// Something that cannot be read, and why.
    Unreadable(String),
}

fn told(root: &Path, boot_id: &str) -> Told {
    let path = root.join(report::PATH);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Told::Nothing,
        Err(error) => return Told::Unreadable(format!("reading {}: {error}", path.display())),
    };
    match Report::parse(&text) {
        Ok(report) if report.boot_id == boot_id => Told::Report(Box::new(report)),
        Ok(_) => Told::Nothing,
        Err(error) => Told::Unreadable(format!("reading {}: {error:#}", path.display())),
    }
}

/// The reason for the screen: what the boot said itself, if it came to that, else what can be said about it from outside.
fn reason(told: &Told, unit: Option<&str>, failed: &[String]) -> Failure {
    let led = unit.map(|unit| format!(" ({unit} was started)")).unwrap_or_default();
    let names: Vec<&str> = failed.iter().take(LISTED).map(String::as_str).collect();
    let failed = match failed.len() {
        0 => String::new(),
        1..=LISTED => format!("; failed units: {}", names.join(", ")),
        more => format!("; failed units: {} and {} more", names.join(", "), more - LISTED),
    };
    let report = match told {
        Told::Report(report) => Some(report),
        Told::Nothing | Told::Unreadable(_) => None,
    };
    match (report.map(|report| (report.outcome, &report.error, &report.system)), told, unit) {
        (Some((Outcome::Failed, Some(failure), _)), _, _) => failure.clone(),
        (Some((Outcome::Booted, _, system)), _, _) => Failure::new(
            format!(
                "freshroot mounted {}, and then something else in stage 1 failed{led}{failed}",
                system.as_ref().map_or("a system", |system| system.toplevel.as_str())
            ),
            "look at what the units that failed have said (onFailure.action = shell, then journalctl)",
        ),
        (_, Told::Unreadable(why), _) => Failure::new(
            format!("stage 1 failed{led}, and the report of the boot is of no use: {why}{failed}"),
            "look at what the units that failed have said (onFailure.action = shell, then journalctl)",
        ),
        (_, Told::Nothing | Told::Report(_), Some(_)) => Failure::new(
            format!(
                "stage 1 failed{led}, and freshroot's boot has said nothing: it was not started, or it was killed or is missing{failed}"
            ),
            "look at the messages above: a disk or a unit before the boot's own, or too little memory",
        ),
        (_, Told::Nothing | Told::Report(_), None) => Failure::new(
            format!("the unit of freshroot's boot failed without a word: its program was killed, is missing, or cannot run here{failed}"),
            "check the memory of the machine, and that the initrd holds the program for this kind of processor",
        ),
    }
}

/// The names of the units that failed, as far as systemd says it in time; none otherwise.
fn failed_units() -> Vec<String> {
    match list_failed_units() {
        Ok(text) => parse_units(&text),
        Err(error) => {
            log::debug!("the units that failed are not listed: {error:#}");
            Vec::new()
        }
    }
}

fn list_failed_units() -> Result<String> {
    let mut child = Command::new("systemctl")
        .args(["list-units", "--failed", "--plain", "--no-legend", "--no-pager"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("starting systemctl")?;
    let until = Instant::now() + LIST_LIMIT;
    // What it writes fits into a pipe, or it is ended.
    while child.try_wait().context("waiting for systemctl")?.is_none() {
        if Instant::now() >= until {
            child.kill().context("ending systemctl")?;
            child.wait().context("ending systemctl")?;
            bail!("systemctl took longer than {} s", LIST_LIMIT.as_secs());
        }
        std::thread::park_timeout(LIST_LOOK);
    }
    let output = child.wait_with_output().context("reading from systemctl")?;
    ensure!(output.status.success(), "systemctl failed: {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The first word of each line; a mark may stand before it.
fn parse_units(text: &str) -> Vec<String> {
    let units = text
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.contains('.')));
    units.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn report(outcome: Outcome, error: Option<Failure>) -> Told {
        let mut report = Report::new("this-boot");
        (report.outcome, report.error) = (outcome, error);
        Told::Report(Box::new(report))
    }

    #[test]
    fn the_screen_says_what_the_boot_said_or_that_it_said_nothing_and_who_led_here() {
        let said = || Some(Failure::new("no answer", "start the server"));
        let emergency = Some("emergency.service");
        let two = ["freshroot.service".to_owned(), "sysroot-data.mount".to_owned()];
        let many: Vec<String> = (0..10).map(|number| format!("unit-{number}.service")).collect();
        for (told, unit, failed, words) in [
            (report(Outcome::Failed, said()), None, &[][..], &["no answer"][..]),
            (report(Outcome::Failed, said()), emergency, &two, &["no answer"]),
            (report(Outcome::Failed, None), None, &[], &["without a word"]),
            (Told::Nothing, None, &[], &["without a word", "killed, is missing"]),
            (
                Told::Nothing,
                emergency,
                &two,
                &[
                    "emergency.service was started",
                    "has said nothing",
                    "freshroot.service, sysroot-data.mount",
                ],
            ),
            (
                report(Outcome::Booted, None),
                emergency,
                &many,
                &["freshroot mounted a system", "something else", "unit-7.service and 2 more"],
            ),
            (Told::Unreadable("the report has version 2".to_owned()), None, &[], &["version 2"]),
        ] {
            let what = reason(&told, unit, failed).what;
            assert!(words.iter().all(|word| what.contains(word)), "{what}");
        }
    }

    #[test]
    fn a_report_of_another_boot_says_nothing_about_this_one() {
        let root = tempfile::tempdir().unwrap();
        assert!(matches!(told(root.path(), "this-boot"), Told::Nothing));
        fs::create_dir_all(root.path().join("run/freshroot")).unwrap();
        let path = root.path().join(report::PATH);
        fs::write(&path, Report::new("this-boot").to_json().unwrap()).unwrap();
        assert!(matches!(told(root.path(), "this-boot"), Told::Report(_)));
        assert!(matches!(told(root.path(), "the-next-boot"), Told::Nothing));
        fs::write(&path, "{\"version\": 2}").unwrap();
        assert!(matches!(told(root.path(), "this-boot"), Told::Unreadable(why) if why.contains("version 2")));
    }

    #[test]
    fn of_two_at_once_the_second_is_told_so() {
        let root = tempfile::tempdir().unwrap();
        let first = lock(root.path()).unwrap();
        assert!(first.is_some());
        assert!(lock(root.path()).unwrap().is_none());
        drop(first);
        assert!(lock(root.path()).unwrap().is_some(), "the first one was killed");
    }

    #[test]
    fn outside_an_initrd_the_machine_is_not_ended() {
        let root = tempfile::tempdir().unwrap();
        let error = fail(root.path(), None).unwrap_err().to_string();
        assert!(error.contains("is for an initrd"), "{error}");
    }

    #[test]
    fn the_names_of_failed_units_are_read_with_and_without_a_mark() {
        let text =
            "  sysroot.mount        loaded failed failed /sysroot\n● freshroot.service loaded failed failed Verified Nix store image\n\n";
        assert_eq!(parse_units(text), ["sysroot.mount", "freshroot.service"]);
    }
}
