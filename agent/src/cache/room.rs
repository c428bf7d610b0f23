//! Room for another image: measured before a download, made by evicting what may go.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use rustix::fs::statvfs;

use super::evict::{Room, Tenant, evict};
use super::{Cache, Known, atomic};
use crate::digest::Digest;
use crate::formats::generation::Generation;
use crate::formats::manifest::{Image, Manifest};

/// For generation, index, map and the file system's own needs.
const SLACK: u64 = 4 << 20;
/// For image, index, map, generation, state, report and try, each with a temporary name while it is replaced, and some to spare.
const INODES: u64 = 16;

/// Makes room for what is missing of `image`. `protected` are manifests of generations that have to stay, `keep` is how many stay at least
/// besides the new one.
///
/// # Errors
/// If it cannot be made; says both figures.
pub fn make_room(cache: &Cache, known: &[&Known], image: &Image, protected: &[Digest], keep: usize) -> Result<()> {
    let folder = cache.folder();
    let status = statvfs(folder).with_context(|| format!("measuring {}", folder.display()))?;
    let (free, size) = (
        status.f_bavail.saturating_mul(status.f_frsize),
        status.f_blocks.saturating_mul(status.f_frsize),
    );
    // A damaged image becomes a partial one where it stands.
    let there = [
        folder.join("partial").join(format!("{}.part", image.sha256)),
        cache.image_path(image.sha256),
    ]
    .map(|path| allocated(&path));
    let needed = image.size.saturating_sub(there[0].max(there[1])).saturating_add(SLACK);
    if size < image.size.saturating_mul(2).saturating_add(SLACK) {
        log::warn!(
            "the cache has {} MB in all: too small for two images of {} MB, so that an update cannot be kept beside what runs",
            size / 1_000_000,
            image.size / 1_000_000
        );
    }
    let tenants = tenants(folder, known, image, protected)?;
    let gone = evict(&tenants, needed, free, keep).map_err(|room| {
        anyhow::anyhow!(
            "the cache has room for {} MB, {} MB are needed, and nothing more may be removed (cache.keep, and what boots today): use a larger cache",
            room / 1_000_000,
            needed / 1_000_000
        )
    })?;
    for tenant in gone {
        match tenant {
            Tenant::Generation { manifest, image, .. } => {
                log::info!("removing the generation {} from the cache to make room", manifest.short());
                cache.remove_generation(manifest, image)?;
            }
            Tenant::Orphan(path) => {
                log::info!("removing {} from the cache to make room", path.display());
                atomic::remove(&path)?;
            }
        }
    }
    // Measured again: what was removed has given its inodes back.
    let status = statvfs(folder).with_context(|| format!("measuring {}", folder.display()))?;
    if status.f_files > 0 && status.f_favail < INODES {
        bail!(
            "the cache's file system has {} inodes left, {INODES} are needed: remove files from it, or make it anew with more",
            status.f_favail
        );
    }
    Ok(())
}

/// The image that a generation in the cache names, whoever signed it.
fn image_of(folder: &Path, manifest: Digest) -> Option<Digest> {
    let path = folder.join("generations").join(format!("{manifest}.json"));
    let bytes = super::read_bounded(&path, super::GENERATION_LIMIT).ok()??;
    let generation = Generation::parse(std::str::from_utf8(&bytes).ok()?, manifest).ok()?;
    Some(Manifest::parse(&generation.manifest).ok()?.image.sha256)
}

/// Bytes that a file takes on the disk, which for a sparse one are less than its length.
fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    path.metadata().map_or(0, |metadata| metadata.blocks().saturating_mul(512))
}

fn tenants(folder: &Path, known: &[&Known], wanted: &Image, protected: &[Digest]) -> Result<Vec<Room>> {
    let mut tenants = Vec::new();
    let mut owned = BTreeSet::from([wanted.sha256]);
    // What has to stay may be of a key that is not trusted today, and the running system has its image mounted all the same.
    owned.extend(
        protected
            .iter()
            .filter(|manifest| !known.iter().any(|one| one.authorised.digest() == **manifest))
            .filter_map(|manifest| image_of(folder, *manifest)),
    );
    // The newest owner of an image keeps it; `known` has the newest first.
    for one in known {
        let (manifest, image) = (one.authorised.digest(), one.authorised.manifest().image.sha256);
        let own = owned.insert(image).then_some(image);
        let bytes = own.map_or(0, |image| allocated(&folder.join("images").join(format!("{image}.squashfs"))));
        tenants.push((
            Tenant::Generation {
                manifest,
                image: own,
                sequence: one.generation.sequence,
                protected: protected.contains(&manifest),
            },
            bytes,
        ));
    }
    for name in ["images", "partial", "quarantine"] {
        let place = folder.join(name);
        for file in atomic::names(&place)? {
            let digest = file.split('.').next().and_then(|stem| stem.parse::<Digest>().ok());
            if !digest.is_some_and(|digest| owned.contains(&digest)) {
                let path = place.join(file);
                let bytes = allocated(&path);
                tenants.push((Tenant::Orphan(path), bytes));
            }
        }
    }
    Ok(tenants)
}
