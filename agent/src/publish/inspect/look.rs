//! The child's side: looks into an image with libsquashfs, which aborts on some corrupt images. See [`super::inspect`].

use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use squashfs_ng::read::{Archive, Data};

use super::resolve::{Entry, Resolved, resolve};
use super::{Contents, Found, Specialisation};
use crate::formats::manifest::InitKind;
use crate::store_path::StorePath;

/// Store paths at the root of an image; a large closure has a few thousand.
const ROOT_LIMIT: usize = 1 << 20;

/// Finds the systems in an image.
///
/// # Errors
/// Names what is missing: a toplevel, or its `init`, `kernel` or modules.
pub fn look(image: &Path) -> Result<Contents> {
    let archive = Archive::open(image).context("opening the image")?;
    let names = list(&archive, "/")?;
    let mut systems = Vec::new();
    for name in &names {
        let Ok(toplevel) = StorePath::from_store_name(name) else {
            continue;
        };
        if toplevel.name().starts_with("nixos-system-") && matches!(follow(&archive, &format!("/{name}"))?, Some((_, Entry::Folder))) {
            systems.push(system(&archive, toplevel)?);
        }
    }
    if systems.is_empty() {
        let misplaced = names.iter().any(|name| name == "nix");
        bail!(
            "there is no toplevel in the image: a folder <hash>-nixos-system-<name> is expected at its root{}",
            if misplaced {
                "; it holds «nix» instead: make it of the store paths themselves, as nixpkgs' make-squashfs.nix does, not of a whole root file system"
            } else {
                ""
            }
        );
    }
    Ok(Contents {
        systems,
        registration: names.iter().any(|name| name == "nix-path-registration"),
    })
}

fn system(archive: &Archive, toplevel: StorePath) -> Result<Found> {
    let root = format!("/{}", toplevel.store_name());
    let init = program(archive, &toplevel, "init")?.with_context(|| format!("{toplevel} has no init: it is not a toplevel that boots"))?;
    let init_kind = if program(archive, &toplevel, "prepare-root")?.is_some() {
        InitKind::PrepareRoot
    } else if begins_with(archive, &init, b"#!")? {
        InitKind::Scripted
    } else {
        InitKind::NixosInit
    };
    let kernel = match follow(archive, &format!("{root}/kernel"))? {
        Some((path, Entry::File { .. })) => path,
        Some((path, _)) => bail!("{toplevel}/kernel leads to {path}, which is not a file"),
        None => bail!("{toplevel} has no kernel, or its kernel is a link to what is not in the image"),
    };
    let kernel_store_name = kernel.trim_start_matches('/').split('/').next().unwrap_or_default().to_owned();
    StorePath::from_store_name(&kernel_store_name).with_context(|| format!("looking where {toplevel}/kernel leads to"))?;
    Ok(Found {
        kernel_release: release(archive, &toplevel)?,
        specialisations: specialisations(archive, &root)?,
        toplevel,
        init_kind,
        kernel_store_name,
    })
}

/// The path of an executable file of a toplevel, links followed.
fn program(archive: &Archive, toplevel: &StorePath, name: &str) -> Result<Option<String>> {
    match follow(archive, &format!("/{}/{name}", toplevel.store_name()))? {
        None => Ok(None),
        Some((path, Entry::File { executable: true })) => Ok(Some(path)),
        Some((_, Entry::File { executable: false })) => bail!("{toplevel}/{name} is not executable"),
        Some((path, Entry::Folder | Entry::Special | Entry::Link(_))) => bail!("{toplevel}/{name} leads to {path}, which is not a file"),
    }
}

fn release(archive: &Archive, toplevel: &StorePath) -> Result<String> {
    let modules = format!("/{}/kernel-modules/lib/modules", toplevel.store_name());
    let Some((path, Entry::Folder)) = follow(archive, &modules)? else {
        bail!("{toplevel} has no kernel-modules/lib/modules: the kernel's release cannot be told");
    };
    let releases = list(archive, &path)?;
    match releases.as_slice() {
        [release] => Ok(release.clone()),
        [] => bail!("{toplevel}/kernel-modules/lib/modules is empty: the kernel's release cannot be told"),
        several => bail!("{toplevel} has modules of several kernels: {}", several.join(", ")),
    }
}

fn specialisations(archive: &Archive, root: &str) -> Result<Vec<Specialisation>> {
    let Some((path, Entry::Folder)) = follow(archive, &format!("{root}/specialisation"))? else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for name in list(archive, &path)? {
        if let Some((target, Entry::Folder)) = follow(archive, &format!("{path}/{name}"))?
            && let Ok(toplevel) = StorePath::from_store_name(target.trim_start_matches('/'))
        {
            found.push(Specialisation { name, toplevel });
        }
    }
    Ok(found)
}

fn follow(archive: &Archive, path: &str) -> Result<Option<(String, Entry)>> {
    let found = resolve(path, |at| entry(archive, at)).with_context(|| format!("following {path}"))?;
    Ok(found.map(|Resolved { path, entry }| (path, entry)))
}

fn entry(archive: &Archive, path: &str) -> Result<Option<Entry>> {
    let Some(node) = archive.get(path).with_context(|| format!("looking up {path}"))? else {
        return Ok(None);
    };
    let data = node.data().with_context(|| format!("reading {path}"))?;
    Ok(Some(match data {
        Data::Dir(_) => Entry::Folder,
        Data::File(_) => Entry::File {
            executable: node.mode() & 0o111 != 0,
        },
        Data::Symlink(target) => Entry::Link(target.to_str().context("a link's target is not UTF-8")?.to_owned()),
        Data::BlockDev(..) | Data::CharDev(..) | Data::Fifo | Data::Socket => Entry::Special,
    }))
}

/// The names in a folder of the image, sorted.
fn list(archive: &Archive, path: &str) -> Result<Vec<String>> {
    let node = archive.get_exists(path).with_context(|| format!("reading {path}"))?;
    let mut names = Vec::new();
    for child in node.as_dir().with_context(|| format!("reading {path}"))? {
        let child = child.with_context(|| format!("listing {path}"))?;
        names.push(child.name().with_context(|| format!("an entry of {path} has no name"))?);
        ensure!(names.len() <= ROOT_LIMIT, "{path} has more than {ROOT_LIMIT} entries");
    }
    names.sort_unstable();
    Ok(names)
}

fn begins_with(archive: &Archive, path: &str, magic: &[u8]) -> Result<bool> {
    let node = archive.get_exists(path).with_context(|| format!("reading {path}"))?;
    let mut start = Vec::new();
    let file = node.as_file().with_context(|| format!("reading {path}"))?;
    file.take(magic.len() as u64)
        .read_to_end(&mut start)
        .with_context(|| format!("reading {path}"))?;
    Ok(start == magic)
}
