//! The main job: over the network once, from the cache ever after; and what the running system finds.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::super::Scenario;
use super::boot;
use crate::disk::{Disk, FsType};
use crate::lab::CHANNEL;
use crate::system::Spec;
use crate::trial::{Trial, cache_content, closed_port};

/// The tests of this file.
pub const ALL: &[Scenario] = &[
    Scenario::new(
        "systemd-cold",
        "under systemd a cold boot downloads the image once, and a warm one works with the server switched off",
        cold_and_warm,
    )
    .with_newest(),
    Scenario::new(
        "systemd-older",
        "when the wanted system is missing, find-closure follows the symlink to the older one",
        older,
    ),
    Scenario::new(
        "systemd-mounts",
        "under systemd the running system has the cache once, the image, the overlay, disks and binds",
        mounts,
    ),
];

fn cold_and_warm(trial: &Trial<'_>) -> Result<()> {
    let served = trial.lab.served(1)?;
    let (digest, size) = served.image(CHANNEL)?;
    let mut server = trial.serve(&served)?;
    let disk = trial.empty_cache()?;
    let boot = || trial.boot().systemd(trial.stage_1()).disk(&disk);
    let booted = boot().server(server.address().port()).once("cold")?;
    ensure!(
        booted.generation()? == 1 && booted.text("/source") == "network",
        "report: {}",
        booted.report
    );
    server.stop()?;
    let images: u64 = server
        .requests()
        .iter()
        .filter(|one| one.path.ends_with(".squashfs"))
        .map(|one| one.bytes)
        .sum();
    ensure!(images == size, "{images} bytes of an image of {size} were served");
    ensure!(disk.is_clean()?, "the cache disk needs a journal replay after the cold boot");
    let content = cache_content(&disk)?;
    ensure!(
        content.contains(&(format!("/freshroot/images/{digest}.squashfs"), digest)),
        "the cache holds {content:?}"
    );
    let booted = boot()
        .config(json!({ "policy": { "wait": "3s" } }))
        .server(closed_port()?.port())
        .once("warm")?;
    ensure!(
        booted.generation()? == 1 && booted.text("/source") == "cache",
        "report: {}",
        booted.report
    );
    ensure!(cache_content(&disk)? == content, "images or generations have changed");
    ensure!(disk.is_clean()?, "the cache disk needs a journal replay after the warm boot");
    Ok(())
}

/// The command line names generation 2, which is nowhere: the symlink is all that tells find-closure and systemd of generation 1.
fn older(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.filled_cache()?;
    let wanted = trial.lab.system(Spec::generation(2))?;
    let older = trial.lab.system(Spec::generation(1))?;
    let booted = boot(trial)
        .config(json!({ "policy": { "mode": "offline" } }))
        .disk(&disk)
        .system(&wanted)
        .script("set -e; readlink /nix/.freshroot /run/current-system; tr ' ' '\\n' </proc/cmdline | grep ^init=")
        .once("boot")?;
    ensure!(booted.generation()? == 1, "generation {} booted", booted.generation()?);
    let toplevel = older.toplevel.in_guest();
    ensure!(
        booted
            .script
            .starts_with(&format!("{toplevel}\n{toplevel}\ninit=/nix/.freshroot/init\n")),
        "the script wrote:\n{}",
        booted.script
    );
    Ok(())
}

/// A mount of the running system.
struct Mounted<'a> {
    all: &'a [Value],
}

impl Mounted<'_> {
    fn at(&self, target: &str) -> Vec<&Value> {
        self.all.iter().filter(|one| text(one, "target") == target).collect()
    }
}

fn text<'a>(mount: &'a Value, field: &str) -> &'a str {
    mount.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn mounts(trial: &Trial<'_>) -> Result<()> {
    let cache = trial.filled_cache()?;
    let data = Disk::make(&trial.dir.join("data.img"), 64, FsType::Ext4, "DATA")?;
    let system = trial.lab.system(Spec::generation(1))?;
    let persist = json!({
        "/data": { "device": "LABEL=DATA", "fsType": "ext4", "timeout": 90 },
        "/var/lib/app": { "source": "/data/app", "create": { "mode": "0750", "uid": 0, "gid": 0 } },
    });
    let booted = trial
        .boot()
        .systemd(trial.stage_1().argument("persist", persist))
        .disk(&cache)
        .disk(&data)
        .system(&system)
        .script("set -e; echo kept >/var/lib/app/kept; stat -c %a /data/app; findmnt --json --list --output TARGET,SOURCE,FSTYPE,OPTIONS,FSROOT")
        .once("boot")?;
    let (mode, found) = booted.script.split_once('\n').context("the script wrote no mode")?;
    ensure!(mode == "750", "the source of the bind has the mode {mode}");
    let end = found.find("SCRIPT-END").unwrap_or(found.len());
    let found: Value = serde_json::from_str(found.get(..end).unwrap_or_default()).context("reading findmnt's list")?;
    let all = found
        .pointer("/filesystems")
        .and_then(Value::as_array)
        .context("findmnt lists nothing")?;
    let mounted = Mounted { all };
    let one = |target: &str| -> Result<&Value> {
        match mounted.at(target).as_slice() {
            [one] => Ok(*one),
            more => anyhow::bail!("{target} is mounted {} times: {found:#}", more.len()),
        }
    };
    let root = one("/")?;
    ensure!(text(root, "fstype") == "tmpfs", "/ is {root}");
    let image = one("/nix/.ro-store")?;
    ensure!(text(image, "fstype") == "squashfs", "the image is {image}");
    let store = one("/nix/store")?;
    ensure!(
        text(store, "fstype") == "overlay" && text(store, "options").contains("lowerdir="),
        "the store is {store}"
    );
    let cache_mount = one("/run/freshroot/cache")?;
    let of_cache = all
        .iter()
        .filter(|one| text(one, "source").split('[').next() == text(cache_mount, "source").split('[').next())
        .count();
    ensure!(of_cache == 1, "the cache's file system is mounted {of_cache} times: {found:#}");
    let disk = one("/data")?;
    ensure!(text(disk, "fstype") == "ext4", "the disk is {disk}");
    let bind = one("/var/lib/app")?;
    ensure!(text(bind, "fsroot") == "/app", "the bind is {bind}");
    ensure!(
        data.read("/app/kept")? == b"kept\n",
        "what was written to the bind is not on the disk"
    );
    ensure!(
        data.is_clean()? && cache.is_clean()?,
        "a disk needs a journal replay after a power-off"
    );
    Ok(())
}
