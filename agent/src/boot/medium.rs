//! A served folder on a local medium, such as the disc that a machine was started from: read as a server is read, never written, never copied. Its
//! images have the names that they have in a cache, so that one is read like the other.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::mount::{UnmountFlags, unmount};

use super::disks::{Disks, file_system_of};
use crate::cache::{Cache, Known};
use crate::device::observe::BlockDevice;
use crate::formats::ANSWER_LIMIT;
use crate::formats::answer::{Question, Received};
use crate::formats::generation::Generation;
use crate::mount::entry::DeviceFs;
use crate::mount::{options, system};
use crate::report::Report;
use crate::select::Wanted;
use crate::settings::Settings;

/// Nothing is written to a medium, and nothing on it is executed.
const OPTIONS: [&str; 4] = ["ro", "nosuid", "nodev", "noexec"];

/// A medium that is mounted. Dropped, it is taken down, unless what it holds is in use.
#[derive(Debug)]
pub struct Medium {
    /// Its images.
    pub images: Cache,
    place: Option<PathBuf>,
}

impl Medium {
    /// The served folder of a medium that somebody else has mounted.
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            images: Cache::for_reading(folder),
            place: None,
        }
    }

    /// Mounts the medium of the settings at `at`, waiting for it as long as `wait`. None: there is none, and if there should be one, that
    /// was warned of.
    pub fn find(at: &Path, settings: &Settings, wait: Duration, disks: &mut Disks<'_>, report: &mut Report) -> Option<Self> {
        let name = settings.media.device.as_ref()?;
        let found = report.step("medium", |_| {
            let device = disks.find(name, wait)?;
            mount(&device, at, disks)?;
            log::info!("medium: {device} at {}", at.display());
            let mut medium = Self::in_folder(&at.join(&settings.media.path));
            medium.place = Some(at.to_owned());
            let folder = medium.images.folder();
            ensure!(
                folder.is_dir(),
                "there is no folder «{}» on {device}: copy a served folder there, or name another one (media.path)",
                settings.media.path.display()
            );
            Ok(medium)
        });
        found
            .map_err(|error: anyhow::Error| report.warn(format!("there is no medium: {error:#}")))
            .ok()
    }

    /// What it says to what a server would be asked, authorised as a server's answer would be.
    ///
    /// # Errors
    /// Why there is no valid answer on it.
    pub fn answer(&self, wanted: &Wanted) -> Result<Known> {
        let question = wanted
            .question()
            .context("nothing names what is wanted from it: give freshroot.channel= or freshroot.system=")?;
        answer(self.images.folder(), &question, wanted)
    }

    /// It stays mounted: an image on it is in use.
    pub fn keep(mut self) {
        self.place = None;
    }
}

impl Drop for Medium {
    fn drop(&mut self) {
        let Some(place) = &self.place else { return };
        // Lazily: an image that was looked at may still be open.
        if let Err(error) = unmount(place, UnmountFlags::DETACH) {
            log::warn!("{} stays mounted: {error}", place.display());
        }
    }
}

/// Mounts the file system on `device` at `at`, for reading alone.
///
/// # Errors
/// If it is none that is mounted here, or the kernel refuses.
fn mount(device: &BlockDevice, at: &Path, disks: &mut Disks<'_>) -> Result<()> {
    let fs_type = file_system_of(device)?;
    disks.load_file_system(&fs_type);
    mount_medium(&device.path, &fs_type, at)
}

/// As the above, for a file system of a type that is known and loaded.
///
/// # Errors
/// If it is none that is mounted here, or the kernel refuses.
pub fn mount_medium(device: &Path, fs_type: &str, at: &Path) -> Result<()> {
    let fs = DeviceFs::of_medium(fs_type).with_context(|| format!("{} holds {fs_type}, which is not mounted here", device.display()))?;
    let options = options::split(&OPTIONS.map(str::to_owned))?;
    std::fs::create_dir_all(at).with_context(|| format!("making {}", at.display()))?;
    Ok(system::mount_device(device, fs, &options)?.attach(at)?)
}

/// The answer to `question` in a served folder.
fn answer(folder: &Path, question: &Question, wanted: &Wanted) -> Result<Known> {
    let path = folder.join(question.path());
    let mut bytes = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(ANSWER_LIMIT + 1).read_to_end(&mut bytes))
        .with_context(|| format!("reading {}", path.display()))?;
    let received = Received::parse(question, &bytes).with_context(|| format!("reading {}", path.display()))?;
    let authorised = received
        .authorise(question, &wanted.trust)
        .with_context(|| path.display().to_string())?;
    let generation = Generation {
        version: 1,
        release: received.release,
        manifest: received.manifest,
        // Whatever this machine has accepted itself is newer.
        sequence: 0,
        accepted: 0,
        source: path.display().to_string(),
        etag: None,
    };
    Ok(Known { generation, authorised })
}
