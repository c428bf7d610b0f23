//! Which of the systems in an image are published, under which names, and in which order: a plain function of what was found.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeSet, HashSet};

use anyhow::{Context as _, Result, bail, ensure};

use super::inspect::{Contents, Found};
use crate::formats::manifest::{Kernel, System};
use crate::formats::release::ChannelName;
use crate::store_path::StorePath;

/// A name is a part of a file's name (`netboot/<name>.ipxe`) and follows the rules of a channel's.
const NAME_LIMIT: usize = 64;

/// The systems of a manifest, the default one first, and the kernel that they share.
///
/// `named` are those that were asked for, in that order; if there are none, all are listed: those that are no specialisation first, by name.
///
/// # Errors
/// A toplevel that is not in the image, a name twice, or systems with different kernels.
pub fn select(contents: &Contents, named: &[(String, StorePath)]) -> Result<(Vec<System>, Kernel)> {
    let chosen = if named.is_empty() {
        all(contents)
    } else {
        asked_for(contents, named)?
    };
    let (_, first) = chosen.first().context("the image holds no system")?;
    let kernel = Kernel {
        store_name: first.kernel_store_name.clone(),
        release: first.kernel_release.clone(),
    };
    for (_, system) in &chosen {
        if (&system.kernel_store_name, &system.kernel_release) != (&kernel.store_name, &kernel.release) {
            bail!(
                "{} has the kernel {}, {} has {}: one publication has one kernel; choose with --system, or make an image of each",
                first.toplevel,
                first.kernel_store_name,
                system.toplevel,
                system.kernel_store_name
            );
        }
    }
    let mut names = HashSet::new();
    let mut systems = Vec::new();
    for (name, found) in chosen {
        name.parse::<ChannelName>()
            .with_context(|| format!("naming the system {}", found.toplevel))?;
        ensure!(names.insert(name.clone()), "two systems are named «{name}»");
        systems.push(System {
            name,
            toplevel: found.toplevel.clone(),
            init_kind: found.init_kind,
        });
    }
    Ok((systems, kernel))
}

fn asked_for<'a>(contents: &'a Contents, named: &[(String, StorePath)]) -> Result<Vec<(String, &'a Found)>> {
    named
        .iter()
        .map(
            |(name, toplevel)| match contents.systems.iter().find(|found| found.toplevel == *toplevel) {
                Some(found) => Ok((name.clone(), found)),
                None => {
                    let there: Vec<_> = contents.systems.iter().map(|found| found.toplevel.as_str()).collect();
                    bail!("{toplevel} is not in the image; it holds {}", there.join(", "))
                }
            },
        )
        .collect()
}

fn all(contents: &Contents) -> Vec<(String, &Found)> {
    let special: BTreeSet<_> = contents
        .systems
        .iter()
        .flat_map(|system| &system.specialisations)
        .map(|special| &special.toplevel)
        .collect();
    let mut order: Vec<_> = contents.systems.iter().collect();
    order.sort_by_key(|found| (special.contains(&found.toplevel), found.toplevel.name(), found.toplevel.hash()));
    let mut taken = HashSet::new();
    order
        .into_iter()
        .map(|found| {
            let parent = contents.systems.iter().find_map(|parent| {
                let own = parent.specialisations.iter().find(|special| special.toplevel == found.toplevel)?;
                Some(format!("{}-{}", short(&parent.toplevel), own.name))
            });
            let mut name = fitting(&parent.unwrap_or_else(|| short(&found.toplevel)));
            if !taken.insert(name.clone()) {
                name = fitting(&format!("{}-{name}", &found.toplevel.hash()[..8]));
                taken.insert(name.clone());
            }
            (name, found)
        })
        .collect()
}

fn short(toplevel: &StorePath) -> String {
    toplevel.name().trim_start_matches("nixos-system-").to_owned()
}

fn fitting(name: &str) -> String {
    let mut name: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' })
        .collect();
    name.truncate(NAME_LIMIT);
    if name.starts_with('.') {
        name.replace_range(..1, "-");
    }
    name
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::formats::manifest::InitKind;
    use crate::publish::inspect::Specialisation;

    fn path(letter: &str, name: &str) -> StorePath {
        StorePath::from_store_name(&format!("{}-nixos-system-{name}", letter.repeat(32))).unwrap()
    }

    fn found(letter: &str, name: &str, kernel: &str, special: &[(&str, &StorePath)]) -> Found {
        Found {
            toplevel: path(letter, name),
            init_kind: InitKind::PrepareRoot,
            kernel_store_name: kernel.to_owned(),
            kernel_release: "6.1".to_owned(),
            specialisations: special
                .iter()
                .map(|(name, toplevel)| Specialisation {
                    name: (*name).to_owned(),
                    toplevel: (*toplevel).clone(),
                })
                .collect(),
        }
    }

    fn contents(systems: Vec<Found>) -> Contents {
        Contents {
            systems,
            registration: true,
        }
    }

    fn names(selected: &(Vec<System>, Kernel)) -> Vec<&str> {
        selected.0.iter().map(|system| system.name.as_str()).collect()
    }

    #[test]
    fn all_systems_are_listed_specialisations_last() {
        let special = path("a", "host-26");
        let contents = contents(vec![
            found("a", "host-26", "k", &[]),
            found("b", "host-26", "k", &[("debug", &special)]),
            found("c", "aux?1", "k", &[]),
            found("d", "aux?1", "k", &[]),
        ]);
        assert_eq!(
            names(&select(&contents, &[]).unwrap()),
            ["aux-1", "dddddddd-aux-1", "host-26", "host-26-debug"]
        );
    }

    #[test]
    fn those_asked_for_are_taken_in_their_order_and_only_they_must_share_a_kernel() {
        let contents = contents(vec![
            found("a", "x", "k", &[]),
            found("b", "y", "other", &[]),
            found("c", "z", "k", &[]),
        ]);
        let named = [("third".to_owned(), path("c", "z")), ("first".to_owned(), path("a", "x"))];
        assert_eq!(names(&select(&contents, &named).unwrap()), ["third", "first"]);
        let error = select(&contents, &[]).unwrap_err().to_string();
        assert!(error.contains("other") && error.contains("--system"), "{error}");
        let error = select(&contents, &[("a".to_owned(), path("d", "n"))]).unwrap_err().to_string();
        assert!(error.contains("is not in the image; it holds /nix/store/aaaa"), "{error}");
        let twice = [("a".to_owned(), path("a", "x")), ("a".to_owned(), path("c", "z"))];
        assert!(select(&contents, &twice).is_err());
        assert!(select(&contents, &[("a/b".to_owned(), path("a", "x"))]).is_err());
    }
}
