//! A store's registration, as `nix-store --dump-db` and nixpkgs' `closureInfo` write it and `nix-store --load-db` reads it.
//!
//! Per path, one value a line: path, NAR hash, NAR size, deriver (may be empty), number of references, the references
//! (`decodeValidPathInfo` in Nix's `libstore/store-api.cc`).

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};

use crate::store_path::StorePath;

/// The paths that a registration lists.
///
/// # Errors
/// A line that is not what it should be, by number; a reference to a path that is not listed: the closure would not be complete.
pub fn paths(text: &str) -> Result<BTreeSet<StorePath>> {
    let mut lines = text.lines().zip(1_usize..);
    let mut listed = BTreeSet::new();
    let mut references = Vec::new();
    while let Some((line, number)) = lines.next() {
        let path: StorePath = line.parse().with_context(|| format!("line {number} of the registration"))?;
        let mut field = |what: &str| {
            lines
                .next()
                .with_context(|| format!("the registration ends before the {what} of {path}"))
        };
        field("hash")?;
        let (size, number) = field("size")?;
        size.parse::<u64>()
            .with_context(|| format!("line {number} of the registration is not the size of {path}"))?;
        field("deriver")?;
        let (count, number) = field("number of references")?;
        let count: usize = count
            .parse()
            .with_context(|| format!("line {number} of the registration is not the number of references of {path}"))?;
        for _ in 0..count {
            let (reference, number) = field("references")?;
            let reference: StorePath = reference.parse().with_context(|| format!("line {number} of the registration"))?;
            references.push((path.clone(), reference));
        }
        listed.insert(path);
    }
    ensure!(!listed.is_empty(), "the registration lists no path");
    for (path, reference) in references {
        ensure!(
            listed.contains(&reference),
            "the registration is not of a whole closure: {path} refers to {reference}, which it does not list"
        );
    }
    Ok(listed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn entry(letter: &str, references: &[&str]) -> String {
        let path = |letter: &str| format!("/nix/store/{}-x\n", letter.repeat(32));
        let listed: String = references.iter().map(|letter| path(letter)).collect();
        format!("{}abc\n12\n\n{}\n{listed}", path(letter), references.len())
    }

    #[test]
    fn a_whole_closure_is_taken() {
        let text = entry("a", &["a", "b"]) + &entry("b", &[]);
        assert_eq!(paths(&text).unwrap().len(), 2);
    }

    #[test]
    fn what_is_not_whole_is_refused_with_the_place() {
        for (text, words) in [
            (String::new(), "no path"),
            (entry("a", &["b"]), "refers to /nix/store/bbbb"),
            (entry("a", &[]).replace("12", "x"), "line 3"),
            (entry("a", &["b"]).replace("bbb-x", "bbb"), "line 6"),
            (
                entry("a", &["b"]).lines().take(5).collect::<Vec<_>>().join("\n"),
                "ends before the references",
            ),
            ("hello".to_owned(), "line 1"),
        ] {
            let error = format!("{:#}", paths(&text).unwrap_err());
            assert!(error.contains(words), "{error}");
        }
    }
}
