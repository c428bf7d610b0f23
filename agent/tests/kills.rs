//! The way of an image into the cache, killed before each system call that changes the disk, and with each of them refused once. What is found
//! afterwards is the old state or the new one, or a partial image that a resume completes.
//!
//! A kill is not a power cut: what was handed to the kernel stays. That the disk is told in the right order is a test of its own, on the trace.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod boots;
    pub mod disturb;
    pub mod strace;
    pub mod world;
}

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use freshroot::cache::part::Part;
use freshroot::cache::{Cache, Held, atomic, reports};
use freshroot::verify::verify_image;
use support::boots::old_or_new;
use support::disturb::{Fault, Point, descriptor, trace};
use support::world::{CHUNK, CHUNKS, World, kept, open, present, trust};

/// The chunk that is bad in the corrupt image.
const BAD: u32 = 5;

/// The old generation, sixteen reports, and what a job starts from.
fn prepare(job: &str, folder: &Path) {
    let cache = open(folder);
    World::new(1).install(&cache, 1);
    for number in 0..16 {
        reports::keep(folder, &format!("old-{number}"), b"{}").unwrap();
    }
    let new = World::new(2);
    match job {
        "a_download" => {}
        "a_resume" => {
            new.begin(&cache, &[0, 2, 5]);
            let map = folder.join(format!("partial/{}.map", new.image.sha256));
            let mut torn = fs::read(&map).unwrap();
            torn.extend_from_slice(&[7, 7]);
            fs::write(&map, torn).unwrap();
        }
        "a_repair" => {
            new.install(&cache, 2);
            let path = cache.image_path(new.image.sha256);
            let mut bytes = fs::read(&path).unwrap();
            bytes[BAD as usize * CHUNK] ^= 1;
            fs::write(&path, bytes).unwrap();
        }
        other => panic!("job {other}"),
    }
}

/// What every boot does with an image that is not there, partial or corrupt. Says how many chunks had to be fetched.
fn complete(cache: &Cache, new: &World, sequence: u64) -> Result<usize> {
    let folder = cache.folder();
    if cache.chunk_index(&new.image).is_none() {
        cache.commit_chunk_index(new.image.sha256, &new.index.to_bytes())?;
    }
    let mut fetched = 0;
    let damage = match cache.held(&new.image) {
        Held::Whole => verify_image(cache.open_image(new.image.sha256)?, &new.index, &|_| {}).err(),
        Held::Part | Held::Nothing => None,
    };
    if let Some(damage) = &damage {
        Part::from_corrupt(cache, &new.image, &new.index, &damage.chunks)?;
    }
    if cache.held(&new.image) != Held::Whole {
        let part = Part::open(cache, &new.image, &new.index, &|_| {})?;
        for number in (0..CHUNKS).filter(|number| !part.present()[*number]) {
            part.write((number * CHUNK) as u64, new.chunk(number))?;
            part.record(&[number as u32])?;
            fetched += 1;
        }
        let proof = verify_image(part.reopen()?, &new.index, &|_| {}).map_err(|damage| anyhow::anyhow!("{damage:?}"))?;
        part.commit(cache, &proof)?;
    }
    cache.commit_generation(&new.generation(sequence))?;
    reports::keep(folder, &format!("boot-{sequence}"), b"{}")?;
    Ok(fetched)
}

/// What must hold after a fault, whatever it was; and a resume.
fn check(job: &str, point: &Point, folder: &Path, before: &BTreeMap<String, Vec<u8>>) {
    let (old, new) = (World::new(1), World::new(2));
    let at = format!("{job}: {:?} at {} {}", point.fault, point.call, point.index);
    let old_files = || {
        before
            .iter()
            .filter(|(name, _)| !name.contains(&new.image.sha256.to_string()) && !name.contains(&new.generation(2).digest().to_string()))
    };
    let unchanged = || {
        let kept = kept(folder);
        for (name, bytes) in old_files() {
            assert!(kept.get(name) == Some(bytes), "{at}: {name} is changed or gone");
        }
    };
    unchanged();
    let map = fs::read(folder.join(format!("partial/{}.map", new.image.sha256))).unwrap_or_default();
    let named = map.len().saturating_sub(56) / 4;
    let part_is_there = folder.join(format!("partial/{}.part", new.image.sha256)).exists();

    // Who was not killed cleans up behind itself, lest what it left keeps a full disk full; the last resort is the next start.
    if point.fault != Fault::Kill && !(point.call.starts_with("unlink") || point.call == "openat") {
        for name in ["generations", "images", "partial", "reports"] {
            let names = atomic::names(&folder.join(name)).unwrap();
            assert!(names.iter().all(|name| !name.ends_with(atomic::NEW)), "{at}: {names:?}");
        }
        assert!(
            !(part_is_there && map.is_empty()),
            "{at}: a file that nobody can go on with takes room"
        );
    }
    let booted = old_or_new(folder, &old, &new).unwrap_or_else(|why| panic!("{at}: {why}"));
    assert!(
        job != "a_repair" || booted == "old" || whole_before(folder, &new),
        "{at}: a corrupt image boots"
    );
    unchanged();
    let cache = open(folder);
    for name in ["generations", "images", "partial", "reports"] {
        let names = atomic::names(&folder.join(name)).unwrap();
        assert!(names.iter().all(|name| !name.ends_with(atomic::NEW)), "{at}: {names:?}");
    }
    let (known, left_out) = cache.generations(&trust()).unwrap();
    assert!(left_out.is_empty(), "{at}: {left_out:?}");
    assert!(
        known.iter().any(|known| known.generation.digest() == old.generation(1).digest()),
        "{at}: the old generation is not there"
    );
    for known in &known {
        let image = &known.authorised.manifest().image;
        let world = if image.sha256 == old.image.sha256 { &old } else { &new };
        match cache.held(image) {
            Held::Whole => match verify_image(cache.open_image(image.sha256).unwrap(), &world.index, &|_| {}) {
                Ok(_) => {}
                Err(damage) => assert!(job == "a_repair" && damage.chunks == [BAD], "{at}: {damage:?}"),
            },
            Held::Part | Held::Nothing => assert!(job == "a_repair", "{at}: a generation was written before its image"),
        }
    }
    if let (Ok(file), false) = (cache.open_image(new.image.sha256), job == "a_repair") {
        assert!(
            verify_image(file, &new.index, &|_| {}).is_ok(),
            "{at}: what was not verified is among the images"
        );
    }
    let part_after = if part_is_there && cache.held(&new.image) == Held::Part {
        present(&cache, &new)
    } else {
        0
    };
    if part_is_there {
        assert_eq!(part_after, named, "{at}: what was recorded is there");
    }
    if point.call == "pwrite64" {
        let earlier = match job {
            "a_download" => 0,
            "a_resume" => 3,
            _ => CHUNKS - 1,
        };
        assert_eq!(
            part_after,
            earlier + point.index - 1,
            "{at}: each chunk before this one is recorded"
        );
    }
    let whole = cache.held(&new.image) == Held::Whole;
    let fetched = complete(&cache, &new, 4).unwrap_or_else(|error| panic!("{at}: the resume fails: {error:#}"));
    match (whole, part_is_there, job) {
        (true, _, "a_repair") => assert!(fetched <= 1, "{at}: {fetched} chunks of a repaired image were fetched"),
        (true, _, _) => assert_eq!(fetched, 0, "{at}"),
        (false, true, _) => assert_eq!(fetched, CHUNKS - named, "{at}: only what was not recorded is fetched"),
        // A map that cannot be read is as good as none.
        (false, false, _) => assert!(job == "a_download" || point.call == "openat", "{at}: the partial image is gone"),
    }
    unchanged();
    assert!(fs::read(cache.image_path(new.image.sha256)).unwrap() == new.bytes, "{at}");
    let (known, left_out) = cache.generations(&trust()).unwrap();
    assert_eq!((known.len(), left_out.len(), known[0].generation.sequence), (2, 0, 4), "{at}");
    assert!(
        atomic::names(&folder.join("partial")).unwrap().is_empty(),
        "{at}: something is left in partial/"
    );
    let reports = atomic::names(&folder.join("reports")).unwrap();
    assert!(
        reports.len() == 16 && reports.contains(&"boot-4.json".to_owned()),
        "{at}: {reports:?}"
    );
}

/// Whether the image is there, every byte of it.
fn whole_before(folder: &Path, world: &World) -> bool {
    fs::read(folder.join(format!("images/{}.squashfs", world.image.sha256))).is_ok_and(|bytes| bytes == world.bytes)
}

/// The job, in a child.
fn was_child() -> bool {
    support::disturb::was_child(|folder| {
        let cache = Cache::open(folder, Instant::now() + Duration::from_secs(5))?;
        complete(&cache, &World::new(2), 3).map(|_| ())
    })
}

/// Runs a job of the test `test` with these faults, and checks what is found. Says how many were met.
fn disturb(test: &str, job: &str, faults: &[Fault]) -> usize {
    let scratch = tempfile::tempdir().unwrap();
    let template = scratch.path().join(job);
    prepare(job, &template);
    let before = kept(&template);
    support::disturb::disturb(test, &template, faults, 10, &|point, folder| check(job, point, folder, &before))
}

#[test]
fn a_download_that_is_killed_is_completed() {
    if !was_child() {
        println!(
            "{} kill points",
            disturb("a_download_that_is_killed_is_completed", "a_download", &[Fault::Kill])
        );
    }
}

#[test]
fn a_resume_that_is_killed_is_completed() {
    if !was_child() {
        println!(
            "{} kill points",
            disturb("a_resume_that_is_killed_is_completed", "a_resume", &[Fault::Kill])
        );
    }
}

#[test]
fn a_repair_that_is_killed_is_completed() {
    if !was_child() {
        println!(
            "{} kill points",
            disturb("a_repair_that_is_killed_is_completed", "a_repair", &[Fault::Kill])
        );
    }
}

#[test]
fn a_disk_that_refuses_leaves_the_cache_good() {
    if !was_child() {
        let count: usize = ["a_download", "a_resume", "a_repair"]
            .into_iter()
            .map(|job| {
                disturb(
                    "a_disk_that_refuses_leaves_the_cache_good",
                    job,
                    &[Fault::Error("EIO"), Fault::AlwaysError("ENOSPC")],
                )
            })
            .sum();
        println!("{count} refusals");
    }
}

#[test]
fn a_write_that_is_cut_short_leaves_the_cache_good() {
    if !was_child() {
        let test = "a_write_that_is_cut_short_leaves_the_cache_good";
        let count: usize = ["a_download", "a_resume", "a_repair"]
            .into_iter()
            .map(|job| disturb(test, job, &[Fault::Short]))
            .sum();
        println!("{count} short writes");
    }
}

#[test]
fn the_disk_is_told_in_the_order_that_survives_a_power_cut() {
    for (job, test) in [
        ("a_download", "a_download_that_is_killed_is_completed"),
        ("a_resume", "a_resume_that_is_killed_is_completed"),
        ("a_repair", "a_repair_that_is_killed_is_completed"),
    ] {
        let scratch = tempfile::tempdir().unwrap();
        let template = scratch.path().join("template");
        prepare(job, &template);
        let (calls, begin) = trace(test, &template);
        // Files with bytes, and folders with names, that the disk was not yet told to keep.
        let (mut unsafe_files, mut unsafe_folders) = (BTreeSet::new(), BTreeSet::new());
        let (mut renames, mut records) = (0, 0);
        for call in &calls[begin..] {
            match call.name.as_str() {
                "write" | "pwrite64" => {
                    let path = descriptor(&call.line);
                    if path.ends_with(".map") {
                        assert!(
                            unsafe_files.iter().all(|path: &String| !path.ends_with(".part")),
                            "{job}: named before it is safe: {}",
                            call.line
                        );
                        records += 1;
                    }
                    unsafe_files.insert(path);
                }
                "fsync" | "fdatasync" => {
                    let path = descriptor(&call.line);
                    unsafe_files.remove(&path);
                    unsafe_folders.remove(&path);
                }
                "rename" | "renameat" | "renameat2" => {
                    let paths: Vec<&str> = call.line.split('"').skip(1).step_by(2).collect();
                    assert!(!unsafe_files.contains(paths[0]), "{job}: renamed before it is safe: {}", call.line);
                    assert!(unsafe_folders.is_empty(), "{job}: {unsafe_folders:?} before {}", call.line);
                    for path in paths {
                        unsafe_folders.insert(path.rsplit_once('/').unwrap().0.to_owned());
                    }
                    renames += 1;
                }
                _ => {}
            }
        }
        assert!(
            unsafe_files.is_empty() && unsafe_folders.is_empty(),
            "{job}: {unsafe_files:?} {unsafe_folders:?}"
        );
        assert!(
            renames >= 3 && records >= 1,
            "{job}: {renames} renames and {records} records are not all of it"
        );
    }
}
