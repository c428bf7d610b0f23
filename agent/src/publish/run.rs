//! Carrying a command out.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::cli::{Command, Options};
use super::closure::{Closure, make_image};
use super::folder::Folder;
use super::generation::{Publication, Published, publish};
use super::inspect::Contents;
use super::rotate::Rotation;
use super::{hosts, inspect, keys, rotate, serve, sign};
use crate::formats::key::SecretKey;

/// Below the served folder while a closure's image is made; a leading dot is never served.
const WORK: &str = ".closure";

/// Carries `command` out. `now` is the time in seconds since 1970, `program` this program's file.
pub fn run(command: Command, program: &Path, now: u64) -> Result<()> {
    match command {
        Command::Print(text) => say(&text),
        Command::Keygen { name, out } => say(&format!("{}\n", keys::generate(&name, &out)?)),
        Command::Image { file, options } => {
            let keys = read_keys(&options.keys)?;
            let contents = inspect::inspect(program, &file)?;
            let folder = Folder::lock(&options.out)?;
            report(&publish_image(&folder, &file, &contents, &options, &keys, now)?, &options)
        }
        Command::Closure {
            paths,
            registration,
            store,
            level,
            options,
        } => {
            let keys = read_keys(&options.keys)?;
            let folder = Folder::lock(&options.out)?;
            let closure = Closure {
                paths: &paths,
                registration: registration.as_deref(),
                store: &store,
                level,
            };
            let work = folder.root().join(WORK);
            empty(&work)?;
            fs::create_dir(&work).with_context(|| format!("making {}", work.display()))?;
            let published = publish_closure(&folder, &closure, &work, &options, &keys, program, now);
            // What went wrong before is more interesting than a leftover, which the next run removes.
            match empty(&work) {
                Err(error) if published.is_err() => log::warn!("{error:#}"),
                outcome => outcome?,
            }
            report(&published?, &options)
        }
        Command::Sign { folder, keys } => {
            let keys = read_keys(&keys)?;
            // Folder::lock makes what is not there.
            ensure!(folder.is_dir(), "{} is not a folder", folder.display());
            let signed = sign::sign(&Folder::lock(&folder)?, &keys, &mut |_, _| Ok(()))?;
            say(&signed.iter().map(|path| format!("signed {path}\n")).collect::<String>())
        }
        Command::Rotate {
            folder,
            keys,
            old,
            drop_old,
            dry_run,
        } => {
            let new = read_keys(&keys)?;
            let old = old.iter().map(|word| keys::public(word)).collect::<Result<Vec<_>>>()?;
            let rotation = Rotation {
                new: &new,
                old: &old,
                drop_old,
            };
            ensure!(folder.is_dir(), "{} is not a folder", folder.display());
            let rotated = if dry_run {
                rotate::plan(&folder, &rotation)?
            } else {
                rotate::rotate(&Folder::lock(&folder)?, &rotation, &mut |_, _| Ok(()))?
            };
            say(&rotate::report(&rotated, &rotation, dry_run))
        }
        Command::Hosts { folder, changes } => {
            ensure!(folder.is_dir(), "{} is not a folder", folder.display());
            say(&hosts::keep(&Folder::lock(&folder)?, &changes, &mut |_, _| Ok(()))?)
        }
        Command::Serve { folder, options } => serve::serve(&folder, &options),
        Command::Inspect(image) => inspect::child(&image),
    }
}

fn publish_closure(
    folder: &Folder,
    closure: &Closure<'_>,
    work: &Path,
    options: &Options,
    keys: &[SecretKey],
    program: &Path,
    now: u64,
) -> Result<Published> {
    let image = work.join("image.squashfs");
    make_image(closure, work, &image)?;
    // Nobody writes to it any more: it may be linked into place instead of being copied.
    fs::set_permissions(&image, fs::Permissions::from_mode(0o444)).context("setting the image's mode")?;
    let contents = inspect::inspect(program, &image)?;
    publish_image(folder, &image, &contents, options, keys, now)
}

fn publish_image(folder: &Folder, image: &Path, contents: &Contents, options: &Options, keys: &[SecretKey], now: u64) -> Result<Published> {
    if !contents.registration {
        log::warn!(
            "{} has no nix-path-registration: Nix on the booted system will not know its store paths",
            image.display()
        );
    }
    let publication = Publication {
        image,
        contents,
        boot: options.boot.clone(),
        channel: options.channel.clone(),
        serial: options.serial.map(std::num::NonZeroU64::get),
        not_after: options.not_after,
        systems: options.systems.clone(),
        kernel_params: options.kernel_params.clone(),
        url: options.url.clone(),
        channel_mode: options.channel_mode,
        now,
    };
    publish(folder, &publication, keys, &mut |_, _| Ok(()))
}

fn report(published: &Published, options: &Options) -> Result<()> {
    let manifest = &published.content;
    let word = if published.unchanged { "unchanged" } else { "published" };
    let mut text = format!(
        "{word} channel {} serial {}\nmanifest {}\n",
        options.channel, published.serial, published.manifest
    );
    text += &format!("image {} {} bytes\n", manifest.image.sha256, manifest.image.size);
    text += &format!("kernel {} {}\n", manifest.kernel.store_name, manifest.kernel.release);
    for system in &manifest.systems {
        text += &format!("system {} {}\n", system.name, system.toplevel);
    }
    if options.boot.is_none() {
        log::warn!("no --kernel and --initrd: boot scripts were not written");
    }
    if options.keys.is_empty() {
        log::warn!("not signed: «freshroot-publish sign» does that; machines refuse it until then, unless allowUnsigned is set");
    }
    say(&text)
}

fn say(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("writing to stdout")
}

fn read_keys(paths: &[PathBuf]) -> Result<Vec<SecretKey>> {
    paths.iter().map(|path| keys::read(path)).collect()
}

/// Removes a folder with what is in it.
fn empty(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        outcome => outcome.with_context(|| format!("removing {}", folder.display())),
    }
}
