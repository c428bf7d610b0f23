//! Boots freshroot in QEMU: the demo, the tests and the benchmark. Started by the script `run`, which installs what is missing.

mod bench;
mod boot_loader;
mod build;
mod cli;
mod command;
mod demo;
mod disk;
mod docs;
mod evaluation;
mod faults;
mod fuzz;
mod initrd;
mod lab;
mod lan;
mod layer;
mod line;
mod links;
mod modules;
mod packages;
mod publisher;
mod qemu;
mod runner;
mod scenario;
mod server;
mod stage_1;
mod system;
mod trial;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("vm-tests: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether all tests passed, where tests were asked for.
fn run() -> Result<bool> {
    match cli::parse(lexopt::Parser::from_env())? {
        cli::Command::Help => print!("{}", cli::HELP),
        cli::Command::Demo { level } => demo::run(workspace::Workspace::find()?, level)?,
        cli::Command::Test(options) => return runner::run(&workspace::Workspace::find()?, &options),
        cli::Command::Inside { test, ground } => links::inside(&test, &ground)?,
        cli::Command::Bench { pairs, only } => bench::run(workspace::Workspace::find()?, pairs, only)?,
    }
    Ok(true)
}
