//! Entry point of the publishing side.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use freshroot::publish::cli::{self, Command};
use freshroot::publish::run::run;

fn main() -> ExitCode {
    env_logger::Builder::new()
        .filter_level(log::LevelFilter::Warn)
        .format(|out, record| {
            use std::io::Write as _;
            writeln!(out, "{}: {}", record.level().as_str().to_lowercase(), record.args())
        })
        .init();
    let outcome = now().and_then(|now| match cli::parse(std::env::args_os(), now) {
        Ok(command) => {
            // The child that looks into images speaks for its parent, which adds the rest.
            let child = matches!(command, Command::Inspect(_));
            let program = std::env::current_exe().context("finding this program's file")?;
            Ok(run(command, &program, now).map_or_else(|error| failed(&error, child), |()| ExitCode::SUCCESS))
        }
        Err(usage) => {
            eprintln!("freshroot-publish: {usage}\nTry «freshroot-publish --help».");
            Ok(ExitCode::from(2))
        }
    });
    outcome.unwrap_or_else(|error| failed(&error, false))
}

fn failed(error: &anyhow::Error, child: bool) -> ExitCode {
    if child {
        eprintln!("{error:#}");
    } else {
        eprintln!("freshroot-publish: {error:#}");
    }
    ExitCode::FAILURE
}

/// The time in seconds since 1970; `SOURCE_DATE_EPOCH` where a build is to be repeatable (<https://reproducible-builds.org/specs/source-date-epoch/>).
fn now() -> Result<u64> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text
            .parse()
            .with_context(|| format!("reading SOURCE_DATE_EPOCH, which is «{text}»")),
        Err(std::env::VarError::NotPresent) => Ok(SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .context("the clock stands before 1970: set it")?
            .as_secs()),
        Err(error @ std::env::VarError::NotUnicode(_)) => Err(error).context("reading SOURCE_DATE_EPOCH"),
    }
}
