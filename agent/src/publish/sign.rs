//! Signing what was published without a signature: in the Nix sandbox there are no keys.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::folder::{Content, Folder, Hook, Put};
use super::generation::{answer_bytes, read_answer};
use crate::digest::Digest;
use crate::formats::key::SecretKey;
use crate::formats::manifest::Manifest;

/// Adds signatures to every answer of a served folder; one by a key of the same name is replaced. Returns the paths of the answers.
///
/// # Errors
/// An answer that is not whole, or that names what is not there, is not signed, and neither is any other.
pub fn sign(folder: &Folder, keys: &[SecretKey], hook: &mut Hook<'_>) -> Result<Vec<String>> {
    let mut puts = Vec::new();
    for path in answers(folder.root())? {
        let (mut answer, _) = check(folder.root(), &path)?;
        for key in keys {
            answer.release_mut().sign(key).with_context(|| format!("signing {path}"))?;
        }
        puts.push(Put {
            content: Content::Bytes(answer_bytes(&answer)?),
            path,
        });
    }
    ensure!(
        !puts.is_empty(),
        "there is nothing to sign in {}: neither channels/*.json nor by-system/*.json",
        folder.root().display()
    );
    folder.put(&puts, hook)?;
    Ok(puts.into_iter().map(|put| put.path).collect())
}

/// The answers of a served folder, channels last.
pub fn answers(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for kind in ["by-system", "channels"] {
        let folder = root.join(kind);
        if !folder.is_dir() {
            continue;
        }
        let mut names = Vec::new();
        for entry in folder.read_dir().with_context(|| format!("reading {}", folder.display()))? {
            let name = entry.with_context(|| format!("reading {}", folder.display()))?.file_name();
            names.extend(
                name.to_str()
                    .filter(|name| name.ends_with(".json") && !name.starts_with('.'))
                    .map(|name| format!("{kind}/{name}")),
            );
        }
        names.sort_unstable();
        found.extend(names);
    }
    Ok(found)
}

/// Reads an answer and checks that what it names is in the folder, by size; the chunk index, which is small, by digest.
///
/// # Errors
/// Names the first thing that is missing or differs.
pub fn check(root: &Path, path: &str) -> Result<(crate::formats::answer::Answer, Manifest)> {
    let (answer, release) = read_answer(&root.join(path))?;
    let digest = Digest::of(answer.manifest().as_bytes());
    ensure!(
        digest == release.manifest,
        "{path}: the manifest is not the one that the release names"
    );
    let manifest = Manifest::parse(answer.manifest()).with_context(|| format!("reading the manifest in {path}"))?;
    let image = &manifest.image;
    let mut named: Vec<(String, u64)> = vec![
        (format!("images/{}.squashfs", image.sha256), image.size),
        (format!("images/{}.chunks", image.sha256), image.chunk_index.size),
        (format!("manifests/{digest}.json"), answer.manifest().len() as u64),
    ];
    if let Some(boot) = &manifest.boot {
        named.push((format!("kernels/{}", boot.kernel.sha256), boot.kernel.size));
        named.push((format!("initrds/{}", boot.initrd.sha256), boot.initrd.size));
    }
    for (name, size) in named {
        let file: PathBuf = root.join(&name);
        let found = file.metadata().with_context(|| format!("{path} names {name}"))?.len();
        ensure!(found == size, "{path} names {name} with {size} bytes, it has {found}");
    }
    let index = std::fs::read(root.join(format!("images/{}.chunks", image.sha256))).context("reading the chunk index")?;
    ensure!(
        Digest::of(&index) == image.chunk_index.sha256,
        "{path}: the chunk index in the folder is another one"
    );
    Ok((answer, manifest))
}
