//! Arguments of `vm-tests/run`: syntax here, meaning in the commands.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use lexopt::prelude::*;

use crate::bench::Part;
use crate::layer::Layer;

/// What `vm-tests/run help` prints.
pub const HELP: &str = "\
Boots freshroot in QEMU.

  vm-tests/run demo [--level N]     two generations of a real system: cold, warm, updated, and after a power cut
  vm-tests/run test [options]       all tests, from unit tables to boots
      --layer NAME                  only this layer: lint, unit, properties, golden, http, kills, links, mounts, module, fuzz, boots; may be repeated
      --filter TEXT                 only tests whose name contains TEXT
      --nightly                     also what takes long
      --seed N                      seed of the property tests, the kills, the fuzzers and the lossy links
      --jobs N                      virtual machines or fuzzers at a time (1 or 2; else as many as memory allows)
  vm-tests/run bench [--pairs N]    figures: paired runs, medians; docs/performance.md says what they mean
      --only PART                   only these: size, transfer, links, boot, mounts, late
  vm-tests/run help                 this text

Logs and disks of each boot are in target/vm/logs. --level is zstd's for the images (3; NixOS has 19).
";

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Print [`HELP`].
    Help,
    /// The main job.
    Demo {
        /// zstd level of the images.
        level: u32,
    },
    /// The tests.
    Test(TestOptions),
    /// The figures.
    Bench {
        /// How often each pair is run.
        pairs: u32,
        /// None: all figures.
        only: Option<Part>,
    },
    /// One test of links, in the namespaces that were made for it: called by the program itself.
    Inside {
        /// Its name.
        test: String,
        /// What it stands on.
        ground: PathBuf,
    },
}

/// Which tests, and how.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct TestOptions {
    /// None: all.
    pub layers: Vec<Layer>,
    /// Part of a test's name.
    pub filter: Option<String>,
    /// Whether long ones run too.
    pub nightly: bool,
    /// Seed of the property tests, the kills, the fuzzers and the lossy links.
    pub seed: Option<u64>,
    /// Machines, or fuzzers, at a time.
    pub jobs: Option<usize>,
}

/// zstd level where none is given: a tenth of the time of NixOS's 19, and a fifth more bytes.
pub const DEFAULT_LEVEL: u32 = 3;
const DEFAULT_PAIRS: u32 = 5;

/// Reads the arguments.
pub fn parse(mut parser: lexopt::Parser) -> Result<Command> {
    let name = match parser.next()? {
        None | Some(Short('h') | Long("help")) => return Ok(Command::Help),
        Some(Value(name)) => name.string()?,
        Some(other) => return Err(other.unexpected().into()),
    };
    match name.as_str() {
        "help" => Ok(Command::Help),
        "demo" => {
            let mut level = DEFAULT_LEVEL;
            while let Some(argument) = parser.next()? {
                match argument {
                    Long("level") => level = parser.value()?.parse()?,
                    Short(_) | Long(_) | Value(_) => return Err(argument.unexpected().into()),
                }
            }
            if !(1..=22).contains(&level) {
                bail!("zstd has no level {level}: 1 to 22 are there");
            }
            Ok(Command::Demo { level })
        }
        "inside" => {
            let (test, ground) = (parser.value()?.string()?, parser.value()?);
            Ok(Command::Inside {
                test,
                ground: ground.into(),
            })
        }
        "test" => parse_test(&mut parser).map(Command::Test),
        "bench" => {
            let (mut pairs, mut only) = (DEFAULT_PAIRS, None);
            while let Some(argument) = parser.next()? {
                match argument {
                    Long("pairs") => pairs = parser.value()?.parse()?,
                    Long("only") => {
                        let name = parser.value()?.string()?;
                        only = Some(
                            Part::by_name(&name)
                                .with_context(|| format!("there is no part «{name}»: size, transfer, links, boot, mounts, late"))?,
                        );
                    }
                    Short(_) | Long(_) | Value(_) => return Err(argument.unexpected().into()),
                }
            }
            if pairs == 0 {
                bail!("at least one pair is needed");
            }
            Ok(Command::Bench { pairs, only })
        }
        other => bail!("there is no command «{other}»; see vm-tests/run help"),
    }
}

fn parse_test(parser: &mut lexopt::Parser) -> Result<TestOptions> {
    let mut options = TestOptions::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("layer") => {
                let name = parser.value()?.string()?;
                let layer = Layer::by_name(&name).with_context(|| format!("there is no layer «{name}»; see vm-tests/run help"))?;
                options.layers.push(layer);
            }
            Long("filter") => options.filter = Some(parser.value()?.string()?),
            Long("nightly") => options.nightly = true,
            Long("seed") => options.seed = Some(parser.value()?.parse()?),
            Long("jobs") => {
                let jobs = parser.value()?.parse()?;
                if !(1..=2).contains(&jobs) {
                    bail!("--jobs takes 1 or 2");
                }
                options.jobs = Some(jobs);
            }
            Short(_) | Long(_) | Value(_) => return Err(argument.unexpected().into()),
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn of(line: &str) -> Result<Command> {
        parse(lexopt::Parser::from_args(line.split_whitespace()))
    }

    #[test]
    fn commands_and_options_are_read() {
        assert_eq!(of("").unwrap(), Command::Help);
        assert_eq!(of("demo --level 19").unwrap(), Command::Demo { level: 19 });
        let expected = TestOptions {
            layers: vec![Layer::Unit, Layer::Boots],
            filter: Some("warm".to_owned()),
            nightly: true,
            seed: Some(7),
            jobs: Some(1),
        };
        assert_eq!(
            of("test --layer unit --layer boots --filter warm --nightly --seed 7 --jobs 1").unwrap(),
            Command::Test(expected)
        );
    }

    #[test]
    fn what_does_not_exist_is_refused_by_name() {
        for (line, word) in [
            ("tset", "«tset»"),
            ("test --layer unti", "«unti»"),
            ("test --fast", "--fast"),
            ("demo --level 99", "99"),
            ("bench --pairs 0", "one pair"),
            ("bench --only speed", "«speed»"),
            ("test --jobs 9", "1 or 2"),
        ] {
            let error = format!("{:#}", of(line).unwrap_err());
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
