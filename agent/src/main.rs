//! Entry point of the agent.

use std::io::{Write as _, stderr};
use std::process::ExitCode;

use freshroot::cli::{USAGE_EXIT, parse};
use freshroot::sys::take_no_backtraces;

fn main() -> ExitCode {
    take_no_backtraces();
    let (problem, code) = match parse(std::env::args_os(), std::process::id()) {
        Ok(command) => match freshroot::run(command) {
            Ok(code) => return code,
            Err(error) => (error, ExitCode::FAILURE),
        },
        Err(usage) => (usage.into(), ExitCode::from(USAGE_EXIT)),
    };
    match writeln!(stderr(), "freshroot: {problem:#}") {
        // Without a console there is nobody to tell, and eprintln! would panic: the exit code still says it.
        Ok(()) | Err(_) => code,
    }
}
