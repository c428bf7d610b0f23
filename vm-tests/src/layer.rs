//! Layers of tests, and which of cargo's tests belong to each.

use std::fs;

use anyhow::{Context, Result};

use crate::workspace::Workspace;

/// A layer of tests, from cheap to dear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// What needs no run: formatting, lints, shell syntax.
    Lint,
    /// Tables and small functions, in the crates.
    Unit,
    /// For all observations and inputs.
    Properties,
    /// Plans through the binary.
    Golden,
    /// Faults of a real server on loopback.
    Http,
    /// Kills at each write point.
    Kills,
    /// Slow and broken links, and servers that others wrote.
    Links,
    /// Real mounts in a private namespace.
    Mounts,
    /// The NixOS module: parsed and evaluated.
    Module,
    /// Fuzzers on every parser of bytes from outside.
    Fuzz,
    /// Virtual machines.
    Boots,
}

impl Layer {
    /// In the order in which they run.
    pub const ALL: [Self; 11] = [
        Self::Lint,
        Self::Unit,
        Self::Properties,
        Self::Golden,
        Self::Http,
        Self::Kills,
        Self::Links,
        Self::Mounts,
        Self::Module,
        Self::Fuzz,
        Self::Boots,
    ];

    /// The layer called `name`.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|layer| layer.name() == name)
    }

    /// As `--layer` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lint => "lint",
            Self::Unit => "unit",
            Self::Properties => "properties",
            Self::Golden => "golden",
            Self::Http => "http",
            Self::Kills => "kills",
            Self::Links => "links",
            Self::Mounts => "mounts",
            Self::Module => "module",
            Self::Fuzz => "fuzz",
            Self::Boots => "boots",
        }
    }

    /// The layer of the test program `agent/tests/<stem>.rs`: the one that its name begins with, as in `properties_settings`; else it is a unit test
    /// that needs a program.
    fn of_program(stem: &str) -> Self {
        let first = stem.split('_').next().unwrap_or(stem);
        match Self::by_name(first) {
            Some(layer) if !matches!(layer, Self::Boots | Self::Lint | Self::Module | Self::Fuzz) => layer,
            Some(_) | None => Self::Unit,
        }
    }

    /// Cargo's arguments for this layer, of the test programs called `programs`; none if it has nothing to run.
    pub fn cargo_arguments(self, programs: &[String]) -> Option<Vec<String>> {
        let mut arguments: Vec<String> = match self {
            Self::Unit => ["--workspace", "--lib", "--bins"].map(str::to_owned).into(),
            Self::Lint
            | Self::Properties
            | Self::Golden
            | Self::Http
            | Self::Kills
            | Self::Links
            | Self::Mounts
            | Self::Module
            | Self::Fuzz
            | Self::Boots => Vec::new(),
        };
        for program in programs.iter().filter(|stem| Self::of_program(stem) == self) {
            arguments.extend(["--test".to_owned(), program.clone()]);
        }
        (!arguments.is_empty()).then_some(arguments)
    }
}

/// The test programs of the agent, sorted.
pub fn programs(workspace: &Workspace) -> Result<Vec<String>> {
    let dir = workspace.root().join("agent/tests");
    let mut stems = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("listing {}", dir.display()))? {
        let path = entry.with_context(|| format!("listing {}", dir.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "rs")
            && let Some(stem) = path.file_stem().and_then(|stem| stem.to_str())
        {
            stems.push(stem.to_owned());
        }
    }
    stems.sort();
    Ok(stems)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn layers_have_names() {
        for layer in Layer::ALL {
            assert_eq!(Layer::by_name(layer.name()), Some(layer));
        }
    }

    #[test]
    fn every_test_program_belongs_to_one_layer() {
        let programs = ["arguments", "mounts", "properties_settings", "boots_of_horses"].map(str::to_owned);
        let of = |layer: Layer| layer.cargo_arguments(&programs).unwrap_or_default().join(" ");
        assert_eq!(of(Layer::Unit), "--workspace --lib --bins --test arguments --test boots_of_horses");
        assert_eq!(of(Layer::Properties), "--test properties_settings");
        assert_eq!(of(Layer::Mounts), "--test mounts");
        assert_eq!(Layer::Golden.cargo_arguments(&programs), None);
    }
}
