//! From a command to its effects.

use std::ffi::OsStr;
use std::fs;
use std::io::{Write as _, stdout};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use log::LevelFilter;

use crate::boot::cache_disk::cache_folder;
use crate::boot::fail::INITRD_RELEASE;
use crate::boot::prepare::{dry_run, prepare, prepare_in_systemd};
use crate::boot::system::{entries, file_systems};
use crate::boot::ticker::Teller;
use crate::boot::{CACHE, Stage};
use crate::candidates::RunningKernel;
use crate::cli::{Command, help_text};
use crate::clock::Clock;
use crate::mode::Mode;
use crate::plan::plan;
use crate::report::{self, Report};
use crate::settings::Settings;
use crate::stage_2::bless::bless;
use crate::stage_2::check_mount::check_mount;
use crate::stage_2::fetch::fetch;
use crate::stage_2::persist_retry::{persist_retry, sentences, start};
use crate::stage_2::report_text;
use crate::uevent::Socket;

/// Runs a command; gives the exit code of the process.
///
/// # Errors
/// What went wrong, for `main` to print once.
pub fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Help(about) => print(&help_text(about)),
        Command::Version => print(concat!("freshroot ", env!("CARGO_PKG_VERSION"), "\n")),
        Command::Boot { mode, sysroot } => boot(mode, sysroot),
        Command::Plan {
            root,
            cmdline,
            config,
            json,
            mode,
        } => show_plan(&root, mode, cmdline.as_deref(), config.as_deref(), json),
        Command::Prepare { root, config, dry_run } => prepare_disks(&root, config.as_deref(), dry_run),
        Command::PrepareInStage1 => {
            must_be_initrd("prepare --stage-1")?;
            prepare_in_systemd()?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Status { root, json } => show_status(&root, json),
        Command::Fail { unit } => {
            if std::process::id() == 1 {
                bail!(
                    "fail asks systemd, which is PID 1, to end the machine; as PID 1 the program boots, and has the failure policy built in"
                );
            }
            crate::boot::fail::fail(Path::new("/"), unit.as_deref())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Fetch { reset_floor } => {
            let teller = Teller::of_stderr();
            // Beside a line that is written over there is room for what is odd, not for each step.
            let level = if teller == Teller::Nobody {
                LevelFilter::Info
            } else {
                LevelFilter::Warn
            };
            crate::console::init_stderr(level);
            print(&(fetch(Path::new("/"), teller, reset_floor)? + "\n"))
        }
        Command::Bless => print(&(bless(Path::new("/"))? + "\n")),
        Command::CheckMount { path } => {
            check_mount(Path::new("/"), &path)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::PersistRetry { path, units } => {
            crate::console::init_stderr(LevelFilter::Info);
            retry(&path, &units)
        }
        Command::TtyExec { tty, program } => match crate::failure::tty_exec(&tty, &program)? {},
    }
}

fn retry(path: &Path, units: &[String]) -> Result<ExitCode> {
    let root = Path::new("/");
    // Before the first look, so that no event falls in between.
    let mut events = Socket::open_with_udev().context("following the kernel's events")?;
    let outcomes = persist_retry(root, &file_systems(&Settings::read(root)?)?, path, &mut events)?;
    if outcomes.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    print(&(sentences(&outcomes).join("\n") + "\n"))?;
    start(root, units)?;
    Ok(ExitCode::SUCCESS)
}

fn boot(mode: Mode, sysroot: PathBuf) -> Result<ExitCode> {
    match (mode, std::process::id()) {
        (Mode::Standalone, 1) => crate::boot::standalone::boot(&Stage::new(mode, sysroot)),
        (Mode::Standalone, _) => bail!(
            "boot is the job of PID 1 in an initrd; a unit in systemd's stage 1 calls it with --mode systemd, and «freshroot plan» shows what it would do"
        ),
        (Mode::Systemd, 1) => bail!("PID 1 has all of stage 1 to do: leave --mode systemd out, or let systemd start this as a unit"),
        (Mode::Systemd, _) => {
            must_be_initrd("boot --mode systemd")?;
            Ok(crate::boot::in_systemd::boot(sysroot))
        }
    }
}

/// What units of stage 1 do is not for a system that runs: they write on all consoles, and over the report.
fn must_be_initrd(what: &str) -> Result<()> {
    if Path::new("/").join(INITRD_RELEASE).exists() {
        return Ok(());
    }
    bail!(
        "{what} is the job of a unit in an initrd, and here is none (there is no /{INITRD_RELEASE}); «freshroot plan --mode systemd» and «freshroot prepare --dry-run» show what would be done"
    )
}

fn print(text: &str) -> Result<ExitCode> {
    stdout().write_all(text.as_bytes()).context("writing to standard output")?;
    Ok(ExitCode::SUCCESS)
}

fn show_plan(root: &Path, mode: Mode, cmdline: Option<&OsStr>, config: Option<&Path>, json: bool) -> Result<ExitCode> {
    let settings = Settings::read_with(root, config, cmdline.map(OsStr::as_bytes))?;
    let release = root.join("proc/sys/kernel/osrelease");
    let release = fs::read_to_string(&release).with_context(|| format!("reading {}", release.display()))?;
    let kernel = RunningKernel {
        release: release.trim().to_owned(),
        store_name: settings.kernel.store_name.clone(),
    };
    let mounted = root.join(CACHE.trim_start_matches('/'));
    let cache = cache_folder(&mounted, &settings);
    let plan = plan(
        &settings,
        mode,
        cache.exists().then_some(cache.as_path()),
        &kernel,
        &entries(&settings, mode)?,
        Clock::default().machine,
    )?;
    if json {
        print(&(serde_json::to_string_pretty(&plan)? + "\n"))
    } else {
        print(&plan.to_string())
    }
}

fn prepare_disks(root: &Path, config: Option<&Path>, dry: bool) -> Result<ExitCode> {
    crate::console::init_stderr(LevelFilter::Info);
    // What is written to disks is never for a command line to say.
    let settings = Settings::read_with(root, config, Some(b""))?;
    let mut refused = Vec::new();
    let mut text = String::new();
    for disk in settings.disks.iter().filter(|disk| disk.prepare || disk.grow) {
        let outcome = if dry {
            dry_run(root, disk)
        } else {
            prepare(root, disk).map(|outcome| format!("disks.{}: {outcome}\n", disk.name))
        };
        match outcome {
            Ok(said) => text += &said,
            Err(error) => refused.push(format!("{error:#}")),
        }
    }
    if text.is_empty() && refused.is_empty() {
        text = "no disk is declared with prepare or grow: there is nothing to do\n".to_owned();
    }
    print(&text)?;
    if refused.is_empty() {
        Ok(ExitCode::SUCCESS)
    } else {
        bail!("{}", refused.join("\n"))
    }
}

fn show_status(root: &Path, json: bool) -> Result<ExitCode> {
    let path = root.join(report::PATH);
    let text = report_text(root)?;
    let report = Report::parse(&text).with_context(|| format!("reading {}", path.display()))?;
    if json { print(&text) } else { print(&report.to_string()) }
}
