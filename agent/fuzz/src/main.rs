//! The fuzzer, where the compiler was asked for coverage; else a program that checks single inputs, and that makes the seeds.

#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
mod fuzzer {
    use std::sync::LazyLock;

    use freshroot_fuzz::{PLANTED, TARGETS, Target};

    /// One program for all targets: they share what takes long to build. It is named in the environment, as the arguments are libFuzzer's.
    static TARGET: LazyLock<Target> = LazyLock::new(|| {
        let name = std::env::var("FRESHROOT_FUZZ_TARGET").unwrap_or_default();
        if name == "list" {
            // The bug that must be found comes first: without it the others say nothing.
            [&PLANTED]
                .into_iter()
                .chain(TARGETS)
                .for_each(|target| println!("{} {}", target.name, target.longest));
            std::process::exit(0);
        }
        Target::by_name(&name).unwrap_or_else(|| {
            eprintln!("FRESHROOT_FUZZ_TARGET={name} names no target; «list» lists them");
            std::process::exit(2);
        })
    });

    libfuzzer_sys::fuzz_target!(init: LazyLock::force(&TARGET), |input: &[u8]| TARGET.run(input));
}

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    match run(&arguments) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("freshroot-fuzz: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(not(fuzzing))]
const HELP: &str = "freshroot-fuzz list                    the targets, with the longest input that each tries
freshroot-fuzz <target> <file> …       checks inputs, without libFuzzer
freshroot-fuzz seeds <folder>          makes the seeds anew, of real samples, in a folder for each target
";

#[cfg(not(fuzzing))]
fn run(arguments: &[std::ffi::OsString]) -> anyhow::Result<()> {
    use anyhow::{Context as _, bail};
    use freshroot_fuzz::{TARGETS, Target, seeds};

    let words: Vec<&str> = arguments.iter().filter_map(|argument| argument.to_str()).collect();
    match words[..] {
        [] | ["help" | "--help" | "-h"] => print!("{HELP}"),
        ["list"] => TARGETS.iter().for_each(|target| println!("{} {}", target.name, target.longest)),
        ["seeds", folder] => seeds::make(folder.as_ref())?,
        ["seeds"] => bail!("where are the seeds to go?"),
        [name, ..] => {
            let target = Target::by_name(name).with_context(|| format!("there is no target «{name}»; see freshroot-fuzz list"))?;
            for file in &arguments[1..] {
                let input = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
                target.run(&input);
                println!("{}: passes", file.display());
            }
        }
    }
    Ok(())
}
