//! One publication: from an image that was looked into to the files of a served folder.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::bzimage;
use super::folder::{Content, Folder, Hook, Put, digest};
use super::inspect::Contents;
use super::netboot::ipxe::{default_of, entry, ipxe};
use super::netboot::kexec::kexec_boot;
use super::netboot::pixiecore;
use super::netboot::{ENTRY, PIXIECORE, Wanted, script_path};
use super::progress::Progress;
use super::systems::select;
use crate::digest::{Digest, Hasher};
use crate::formats::ANSWER_LIMIT;
use crate::formats::answer::{Answer, Question};
use crate::formats::chunk_index::ChunkIndex;
use crate::formats::envelope::Envelope;
use crate::formats::key::SecretKey;
use crate::formats::manifest::{Boot, FileRef, Image, Manifest};
use crate::formats::release::{ChannelName, Release};
use crate::store_path::StorePath;

/// Length of a chunk, except the last: a resume costs at most one, and the index of a 600 MB image is 21 KB.
const CHUNK: u32 = 1 << 20;

/// What is to be published.
#[derive(Debug)]
pub struct Publication<'a> {
    /// The squashfs image.
    pub image: &'a Path,
    /// What was found in it.
    pub contents: &'a Contents,
    /// Kernel and initrd.
    pub boot: Option<(PathBuf, PathBuf)>,
    /// Under which name.
    pub channel: ChannelName,
    /// The channel's serial; none: one more than the last.
    pub serial: Option<u64>,
    /// Seconds since 1970.
    pub not_after: Option<u64>,
    /// Systems by name, if not all are meant.
    pub systems: Vec<(String, StorePath)>,
    /// For generated command lines.
    pub kernel_params: Vec<String>,
    /// Base URL of the served folder, for boot scripts.
    pub url: Option<String>,
    /// Whether the channel's boot script asks for the channel instead of its default system.
    pub channel_mode: bool,
    /// The time, in seconds since 1970.
    pub now: u64,
}

/// What came of a publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The manifest's digest.
    pub manifest: Digest,
    /// The manifest.
    pub content: Manifest,
    /// The channel's serial.
    pub serial: u64,
    /// Whether the channel held exactly this before.
    pub unchanged: bool,
}

/// Publishes, in an order in which whoever can read an answer can read all that it names.
///
/// # Errors
/// Nothing that is published already is touched by a publication that fails.
pub fn publish(folder: &Folder, publication: &Publication<'_>, keys: &[SecretKey], hook: &mut Hook<'_>) -> Result<Published> {
    let (systems, kernel) = select(publication.contents, &publication.systems)?;
    if let Some((kernel_file, _)) = &publication.boot {
        fits(kernel_file, &kernel.release)?;
    }
    let (image, index) = index_image(publication.image)?;
    let index = index.to_bytes();
    let boot = match &publication.boot {
        None => None,
        Some((kernel, initrd)) => Some(Boot {
            kernel: file_ref(kernel)?,
            initrd: file_ref(initrd)?,
        }),
    };
    let manifest = Manifest {
        version: 1,
        critical: Vec::new(),
        systems,
        kernel,
        kernel_params: publication.kernel_params.clone(),
        image: Image {
            sha256: image.sha256,
            size: image.size,
            chunk_index: FileRef {
                sha256: Digest::of(&index),
                size: index.len() as u64,
            },
            verity: None,
            zstd: None,
        },
        boot,
        deltas: Vec::new(),
    };
    let text = serde_json::to_string(&manifest).context("writing the manifest")?;
    Manifest::parse(&text).context("reading the manifest that was made")?;
    let manifest_digest = Digest::of(text.as_bytes());

    let question = Question::Channel(publication.channel.clone());
    let previous = previous(&folder.root().join(question.path()))?;
    let (release, unchanged) = release(publication, manifest_digest, previous.as_ref().map(|(_, release)| release))?;
    let mut answer = match previous {
        Some((answer, _)) if unchanged => answer,
        Some(_) | None => {
            let payload = serde_json::to_vec(&release).context("writing the release")?;
            Answer::new(Envelope::unsigned(&payload), text.clone())
        }
    };
    for key in keys {
        answer.release_mut().sign(key).context("signing the release")?;
    }
    let bytes = answer_bytes(&answer)?;

    let mut puts = vec![
        Put {
            path: format!("images/{}.squashfs", image.sha256),
            content: Content::Source {
                path: publication.image.to_owned(),
                file: image.clone(),
            },
        },
        Put {
            path: format!("images/{}.chunks", image.sha256),
            content: Content::Fixed(index),
        },
    ];
    if let (Some(boot), Some((kernel, initrd))) = (&manifest.boot, &publication.boot) {
        for (kind, path, file) in [("kernels", kernel, &boot.kernel), ("initrds", initrd, &boot.initrd)] {
            puts.push(Put {
                path: format!("{kind}/{}", file.sha256),
                content: Content::Source {
                    path: path.clone(),
                    file: file.clone(),
                },
            });
        }
    }
    puts.push(Put {
        path: format!("manifests/{manifest_digest}.json"),
        content: Content::Bytes(text.into_bytes()),
    });
    for system in &manifest.systems {
        puts.push(Put {
            path: Question::System(system.toplevel.clone()).path(),
            content: Content::Bytes(bytes.clone()),
        });
    }
    let default = default_channel(folder, &publication.channel)?;
    puts.extend(boot_scripts(publication, &manifest, default.as_ref())?);
    puts.push(Put {
        path: question.path(),
        content: Content::Bytes(bytes),
    });
    folder.put(&puts, hook)?;
    Ok(Published {
        manifest: manifest_digest,
        content: manifest,
        serial: release.serial,
        unchanged,
    })
}

/// What boots what is published, by the channel's name and by that of each system: a script for iPXE and an answer for Pixiecore; and a script for
/// kexec. Without a name stand those of the folder's default channel.
fn boot_scripts(publication: &Publication<'_>, manifest: &Manifest, default: Option<&ChannelName>) -> Result<Vec<Put>> {
    let (Some(boot), Some((kernel, _)), Some(system)) = (&manifest.boot, &publication.boot, manifest.default_system()) else {
        return Ok(Vec::new());
    };
    let (params, url) = (&manifest.kernel_params, publication.url.as_deref());
    let by_channel = if publication.channel_mode {
        Wanted::Channel(publication.channel.clone())
    } else {
        Wanted::System(system.toplevel.clone())
    };
    let channel = &publication.channel;
    let systems = manifest.systems.iter().filter(|system| system.name != channel.as_str());
    let named = systems
        .map(|system| (system.name.as_str(), Wanted::System(system.toplevel.clone())))
        .chain([(channel.as_str(), by_channel.clone())]);
    let mut scripts = Vec::new();
    let mut put = |path: String, content: Content| scripts.push(Put { path, content });
    for (name, wanted) in named {
        let script = ipxe(boot, &wanted, params, url)?;
        put(script_path(name, "ipxe"), Content::Bytes(script.into_bytes()));
        let answer = pixiecore::Answer::new(boot, &wanted, params, url)?.to_bytes()?;
        put(script_path(name, "pixiecore.json"), Content::Bytes(answer));
    }
    let script = kexec_boot(boot, bzimage::machine(&head(kernel)?), &by_channel, params, url)?.into_bytes();
    put(script_path(channel.as_str(), "kexec-boot"), Content::Script(script.clone()));
    // Whoever wrote a netboot.ipxe by hand keeps it.
    if default.is_some_and(|default| default == channel) {
        put("kexec-boot".to_owned(), Content::Script(script));
        let answer = pixiecore::Answer::new(boot, &by_channel, params, url)?.to_bytes()?;
        put(PIXIECORE.to_owned(), Content::Bytes(answer));
        put(ENTRY.to_owned(), Content::Bytes(entry(channel, url).into_bytes()));
    }
    Ok(scripts)
}

/// The channel of machines that nothing else is said of: the one that `netboot.ipxe` names, and `channel` where there is no such script yet.
fn default_channel(folder: &Folder, channel: &ChannelName) -> Result<Option<ChannelName>> {
    match folder.read_text(ENTRY)? {
        Some(script) => Ok(default_of(&script)),
        None => Ok(Some(channel.clone())),
    }
}

/// The release to be published, and whether it is the one that the channel holds: same manifest, same `notAfter` if one was given, same serial if one was given.
fn release(publication: &Publication<'_>, manifest: Digest, previous: Option<&Release>) -> Result<(Release, bool)> {
    let channel = &publication.channel;
    if let Some(previous) = previous {
        let same_end = publication.not_after.is_none_or(|end| previous.not_after == Some(end));
        let same_serial = publication.serial.is_none_or(|serial| previous.serial == serial);
        if previous.manifest == manifest && same_end && same_serial {
            return Ok((previous.clone(), true));
        }
    }
    let last = previous.map_or(0, |previous| previous.serial);
    let next = last
        .checked_add(1)
        .with_context(|| format!("the serial of the channel {channel} cannot grow beyond {last}"))?;
    let serial = publication.serial.unwrap_or(next);
    ensure!(
        serial > last,
        "the serial must grow: the channel {channel} is at {last}, {serial} would be refused by every machine that has seen it"
    );
    let past = |end: &u64| *end <= publication.now;
    ensure!(!publication.not_after.as_ref().is_some_and(past), "--not-after lies in the past");
    Ok((
        Release {
            version: 1,
            critical: Vec::new(),
            channel: channel.clone(),
            serial,
            created: publication.now,
            not_after: publication.not_after,
            manifest,
        },
        false,
    ))
}

/// What a channel holds now.
fn previous(path: &Path) -> Result<Option<(Answer, Release)>> {
    match path.try_exists() {
        Ok(false) => Ok(None),
        Ok(true) => read_answer(path).map(Some),
        Err(error) => Err(error).with_context(|| format!("looking for {}", path.display())),
    }
}

/// Reads an answer and the release in it, whoever signed it.
pub fn read_answer(path: &Path) -> Result<(Answer, Release)> {
    let read = || -> Result<_> {
        let mut bytes = Vec::new();
        File::open(path)?.take(ANSWER_LIMIT + 1).read_to_end(&mut bytes)?;
        let answer = Answer::parse(&bytes)?;
        let release = Release::parse(&answer.release().payload()?)?;
        Ok((answer, release))
    };
    read().with_context(|| format!("reading {}", path.display()))
}

/// An answer as it is published.
pub fn answer_bytes(answer: &Answer) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(answer).context("writing the answer")?;
    bytes.push(b'\n');
    Answer::parse(&bytes).context("reading the answer that was made")?;
    Ok(bytes)
}

/// Refuses a kernel that says that it is another one than the image's modules are for: no machine could boot with the two.
fn fits(kernel: &Path, release: &str) -> Result<()> {
    let head = head(kernel)?;
    let found = bzimage::release(&head).unwrap_or(release);
    ensure!(
        found == release,
        "{} is Linux {found}, the modules in the image are for {release}: give the kernel that belongs to the image",
        kernel.display()
    );
    Ok(())
}

/// The first bytes of a kernel, which say what it is.
fn head(kernel: &Path) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    let opened = File::open(kernel).and_then(|file| file.take(bzimage::HEAD).read_to_end(&mut head));
    opened.with_context(|| format!("reading {}", kernel.display()))?;
    Ok(head)
}

fn file_ref(path: &Path) -> Result<FileRef> {
    let open = || -> Result<FileRef> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        ensure!(metadata.is_file(), "it is not a regular file");
        let size = metadata.len();
        let sha256 = digest(&file, size, &format!("hashing {}", path.display()))?;
        Ok(FileRef { sha256, size })
    };
    open().with_context(|| format!("reading {}", path.display()))
}

/// Digest and chunk index of an image, in one pass.
fn index_image(path: &Path) -> Result<(FileRef, ChunkIndex)> {
    let read = || -> Result<_> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        let progress = Progress::new(&format!("hashing {}", path.display()), size);
        let mut whole = Hasher::new();
        let mut chunks = Vec::new();
        let mut buffer = Vec::with_capacity(CHUNK as usize);
        loop {
            buffer.clear();
            (&mut file).take(u64::from(CHUNK)).read_to_end(&mut buffer)?;
            if buffer.is_empty() {
                break;
            }
            whole.update(&buffer);
            chunks.push((u32::try_from(buffer.len())?, Digest::of(&buffer)));
            progress.advance(buffer.len() as u64);
        }
        let index = ChunkIndex::new(chunks)?;
        let sha256 = whole.finish();
        let size = index.image_size();
        Ok((FileRef { sha256, size }, index))
    };
    read().with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_serial_grows_unless_nothing_changed() {
        let contents = Contents {
            systems: Vec::new(),
            registration: false,
        };
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let held = Release {
            version: 1,
            critical: Vec::new(),
            channel: "c".parse().unwrap(),
            serial: 7,
            created: 50,
            not_after: Some(500),
            manifest: a,
        };
        // previous, manifest, --serial, --not-after → serial and «unchanged», or a refusal
        for (previous, manifest, serial, not_after, expected) in [
            (None, a, None, None, Some((1, false))),
            (None, a, Some(9), None, Some((9, false))),
            (Some(&held), a, None, None, Some((7, true))),
            (Some(&held), a, Some(7), Some(500), Some((7, true))),
            (Some(&held), a, None, Some(600), Some((8, false))),
            (Some(&held), a, Some(8), None, Some((8, false))),
            (Some(&held), a, Some(6), None, None),
            (Some(&held), b, None, None, Some((8, false))),
            (Some(&held), b, Some(20), None, Some((20, false))),
            (Some(&held), b, Some(7), None, None),
            (Some(&held), b, None, Some(100), None),
        ] {
            let publication = Publication {
                image: Path::new("x"),
                contents: &contents,
                boot: None,
                channel: "c".parse().unwrap(),
                serial,
                not_after,
                systems: Vec::new(),
                kernel_params: Vec::new(),
                url: None,
                channel_mode: false,
                now: 100,
            };
            let made = release(&publication, manifest, previous)
                .ok()
                .map(|(release, unchanged)| (release.serial, unchanged));
            assert_eq!(made, expected, "{previous:?} {manifest} {serial:?} {not_after:?}");
        }
    }
}
