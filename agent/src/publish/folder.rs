//! Putting files into a served folder, so that a client never sees a part of one: a temporary name, fsync, verify, rename, fsync of the folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock, ioctl_ficlone};

use super::progress::Progress;
use crate::digest::{Digest, Hasher};
use crate::formats::manifest::FileRef;

/// Read at once.
const PIECE: usize = 1 << 20;

/// The longest text that is kept here: `hosts.json` of ten thousand machines.
pub const TEXT_LIMIT: u64 = 1 << 20;

/// End of a temporary name, which begins with a dot.
const TEMPORARY: &str = ".new";

/// A file that is to stand in the folder.
#[derive(Debug)]
pub struct Put {
    /// Below the folder, without a leading slash.
    pub path: String,
    /// What it holds.
    pub content: Content,
}

/// Where a file's bytes come from.
#[derive(Debug)]
pub enum Content {
    /// From memory; replaces what is there, if that differs.
    Bytes(Vec<u8>),
    /// As [`Content::Bytes`], and executable.
    Script(Vec<u8>),
    /// From memory; another file of this name is an error.
    Fixed(Vec<u8>),
    /// From a file, which stays as it is.
    Source {
        /// The file.
        path: PathBuf,
        /// What its bytes are.
        file: FileRef,
    },
}

/// Where in its work a publication is: before each step, a caller may stop it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// The temporary file is complete, the rename comes next.
    BeforeRename,
    /// The file has its name.
    AfterRename,
}

/// Called at each point with the file's path. An error ends the publication there.
pub type Hook<'a> = dyn FnMut(Point, &str) -> Result<()> + 'a;

/// A served folder that nobody else writes to.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    lock: File,
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Said, and not left to the descriptor's end: a child that is just being started may hold a second one for a moment, until it execs.
        if let Err(error) = flock(&self.lock, FlockOperation::Unlock) {
            log::warn!("unlocking {}: {error}", self.root.display());
        }
    }
}

impl Folder {
    /// Opens the folder for writing, and makes it if it is not there.
    ///
    /// # Errors
    /// If another publication is under way.
    pub fn lock(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("making the folder {}", root.display()))?;
        // The folder itself is locked: a file in it would be published too, and `cp -al` would share it with copies of the folder.
        let lock = File::open(root).with_context(|| format!("opening {}", root.display()))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => bail!("another freshroot-publish writes to {} right now: wait for it", root.display()),
            // NFS takes an exclusive lock only through a descriptor that may write, and a folder has none.
            Err(rustix::io::Errno::BADF | rustix::io::Errno::NOLCK | rustix::io::Errno::OPNOTSUPP) => {
                log::warn!(
                    "{} cannot be locked on its file system: see to it that nobody else publishes there",
                    root.display()
                );
            }
            Err(error) => return Err(error).with_context(|| format!("locking {}", root.display())),
        }
        sweep(root)?;
        Ok(Self {
            root: root.to_owned(),
            lock,
        })
    }

    /// The folder's path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The text of one file, if it is there.
    ///
    /// # Errors
    /// If it cannot be read, or is longer than any text of ours.
    pub fn read_text(&self, path: &str) -> Result<Option<String>> {
        let path = self.root.join(path);
        let reading = || format!("reading {}", path.display());
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(reading),
        };
        let mut text = String::new();
        let length = file.take(TEXT_LIMIT + 1).read_to_string(&mut text).with_context(reading)?;
        ensure!(length as u64 <= TEXT_LIMIT, "{} is longer than {TEXT_LIMIT} bytes", path.display());
        Ok(Some(text))
    }

    /// Removes one file.
    ///
    /// # Errors
    /// If it stays.
    pub fn remove(&self, path: &str) -> Result<()> {
        let path = self.root.join(path);
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        sync_folder(path.parent().context("a file at the root of everything")?)
    }

    /// Puts files in place, in their order. What is there already is left alone.
    pub fn put(&self, puts: &[Put], hook: &mut Hook<'_>) -> Result<()> {
        for put in puts {
            self.put_one(put, hook)
                .with_context(|| format!("writing {}", self.root.join(&put.path).display()))?;
        }
        Ok(())
    }

    fn put_one(&self, put: &Put, hook: &mut Hook<'_>) -> Result<()> {
        let target = self.root.join(&put.path);
        if is_there(&target, &put.content)? {
            return Ok(());
        }
        let parent = target.parent().context("a file at the root of everything")?;
        make_folders(&self.root, parent)?;
        let name = target.file_name().context("a file without a name")?;
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(name);
        temporary.push(TEMPORARY);
        let temporary = parent.join(temporary);
        let made = match &put.content {
            Content::Bytes(bytes) | Content::Fixed(bytes) => create(&temporary, bytes, 0o644),
            Content::Script(bytes) => create(&temporary, bytes, 0o755),
            Content::Source { path, file } => bring(path, &temporary, file),
        };
        if let Err(error) = made.and_then(|file| file.sync_all().context("fsync")) {
            // Room that a failed copy takes is given back at once; the next publication would do it, too.
            if let Err(again) = fs::remove_file(&temporary) {
                log::debug!("removing {}: {again}", temporary.display());
            }
            return Err(error);
        }
        hook(Point::BeforeRename, &put.path)?;
        fs::rename(&temporary, &target).context("renaming")?;
        sync_folder(parent)?;
        hook(Point::AfterRename, &put.path)
    }
}

fn create(path: &Path, bytes: &[u8], mode: u32) -> Result<File> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .context("making a temporary file")?;
    file.write_all(bytes).context("writing the temporary file")?;
    // Whatever the umask: a web server under another user is to read it.
    file.set_permissions(fs::Permissions::from_mode(mode)).context("setting its mode")?;
    Ok(file)
}

/// Whether the file is there as it should be.
fn is_there(target: &Path, content: &Content) -> Result<bool> {
    let metadata = match fs::metadata(target) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).context("looking for it"),
    };
    ensure!(metadata.is_file(), "something that is no file stands there");
    let same =
        |bytes: &[u8]| -> Result<bool> { Ok(metadata.len() == bytes.len() as u64 && fs::read(target).context("reading it")? == bytes) };
    match content {
        Content::Bytes(bytes) => same(bytes),
        Content::Script(bytes) => Ok(metadata.permissions().mode() & 0o111 == 0o111 && same(bytes)?),
        Content::Fixed(bytes) if same(bytes)? => Ok(true),
        Content::Fixed(_) => {
            bail!("another file of this name is there, and what is published may need it: publish to another folder, or remove it by hand")
        }
        Content::Source { file, .. } if metadata.len() != file.size => Ok(false),
        Content::Source { file, .. } => {
            let found = digest(
                &File::open(target).context("opening it")?,
                file.size,
                "checking what is there already",
            )?;
            if found != file.sha256 {
                log::warn!("{} does not hold what its name says: it is replaced", target.display());
            }
            Ok(found == file.sha256)
        }
    }
}

/// Gives `source` a second life at `temporary`: a reflink where the file system can, a hard link if nobody may write to the source (as in the Nix store),
/// else a copy. A source that is writable may be changed in place later, and what is published must not.
fn bring(source: &Path, temporary: &Path, expected: &FileRef) -> Result<File> {
    let from = File::open(source).with_context(|| format!("opening {}", source.display()))?;
    let metadata = from
        .metadata()
        .with_context(|| format!("reading the size of {}", source.display()))?;
    let read_only = metadata.permissions().mode() & 0o222 == 0;
    let file = if read_only && fs::hard_link(source, temporary).is_ok() {
        File::open(temporary).context("opening the hard link")?
    } else {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(temporary)
            .context("making a temporary file")?;
        if ioctl_ficlone(&file, &from).is_err() {
            io::copy(&mut &from, &mut &file).with_context(|| format!("copying {}", source.display()))?;
        }
        file.set_permissions(fs::Permissions::from_mode(0o644))
            .context("setting its mode")?;
        file
    };
    let again = File::open(temporary).context("reading back")?;
    let found = digest(&again, expected.size, &format!("verifying the copy of {}", source.display()))?;
    ensure!(
        found == expected.sha256,
        "{} was changed while it was published: try again",
        source.display()
    );
    Ok(file)
}

/// The digest of a file that is expected to be `size` bytes long.
pub fn digest(mut file: &File, size: u64, what: &str) -> Result<Digest> {
    let progress = Progress::new(what, size);
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; PIECE];
    loop {
        let count = file.read(&mut buffer).context("reading")?;
        if count == 0 {
            return Ok(hasher.finish());
        }
        hasher.update(&buffer[..count]);
        progress.advance(count as u64);
    }
}

/// Removes what a publication that was cut left behind: temporary names. A leftover may be a second name of somebody's file, so it is never opened for writing.
fn sweep(root: &Path) -> Result<()> {
    for kind in [
        "",
        "images",
        "kernels",
        "initrds",
        "manifests",
        "by-system",
        "netboot",
        "netboot/by-mac",
        "channels",
    ] {
        let folder = root.join(kind);
        if !folder.is_dir() {
            continue;
        }
        for entry in folder.read_dir().with_context(|| format!("reading {}", folder.display()))? {
            let path = entry.with_context(|| format!("reading {}", folder.display()))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| name.starts_with('.') && name.ends_with(TEMPORARY)) {
                fs::remove_file(&path).with_context(|| format!("removing the leftover {}", path.display()))?;
            }
        }
    }
    Ok(())
}

/// Makes the folders between `root` and `folder`, each fsynced into its parent.
fn make_folders(root: &Path, folder: &Path) -> Result<()> {
    if folder == root || folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        make_folders(root, parent)?;
        fs::create_dir(folder).with_context(|| format!("making {}", folder.display()))?;
        sync_folder(parent)?;
    }
    Ok(())
}

fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .with_context(|| format!("fsync of {}", folder.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    fn file_ref(bytes: &[u8]) -> FileRef {
        FileRef {
            sha256: Digest::of(bytes),
            size: bytes.len() as u64,
        }
    }

    fn put(root: &Path, content: Content) -> Result<()> {
        let put = Put {
            path: "a/b".to_owned(),
            content,
        };
        Folder::lock(root)?.put(&[put], &mut |_, _| Ok(()))
    }

    #[test]
    fn a_writable_source_is_never_shared_and_a_read_only_one_is() {
        let folder = tempfile::tempdir().unwrap();
        for (mode, shared) in [(0o644, false), (0o444, true)] {
            let source = folder.path().join(format!("source-{mode:o}"));
            fs::write(&source, "bytes").unwrap();
            fs::set_permissions(&source, fs::Permissions::from_mode(mode)).unwrap();
            let root = folder.path().join(format!("root-{mode:o}"));
            let content = Content::Source {
                path: source.clone(),
                file: file_ref(b"bytes"),
            };
            put(&root, content).unwrap();
            let target = root.join("a/b");
            assert_eq!(fs::read(&target).unwrap(), b"bytes");
            assert_eq!(target.metadata().unwrap().ino() == source.metadata().unwrap().ino(), shared);
        }
    }

    #[test]
    fn a_leftover_is_removed_without_harm_to_a_source_that_it_is_a_second_name_of() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::write(&source, "bytes").unwrap();
        let root = folder.path().join("root");
        fs::create_dir_all(root.join("images")).unwrap();
        fs::hard_link(&source, root.join("images/.b.new")).unwrap();
        Folder::lock(&root).unwrap();
        assert_eq!(fs::read(&source).unwrap(), b"bytes");
        assert!(!root.join("images/.b.new").exists());
    }

    #[test]
    fn what_is_not_what_was_announced_gets_no_name() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        fs::write(&source, "other").unwrap();
        let root = folder.path().join("root");
        let content = Content::Source {
            path: source,
            file: file_ref(b"bytes"),
        };
        assert!(format!("{:#}", put(&root, content).unwrap_err()).contains("was changed"));
        assert_eq!(root.join("a").read_dir().unwrap().count(), 0);
    }

    #[test]
    fn a_fixed_file_is_not_replaced_and_a_damaged_one_named_by_digest_is() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        put(&root, Content::Bytes(b"wrong".to_vec())).unwrap();
        assert!(put(&root, Content::Fixed(b"bytes".to_vec())).is_err());
        let source = folder.path().join("source");
        fs::write(&source, "bytes").unwrap();
        let content = Content::Source {
            path: source,
            file: file_ref(b"bytes"),
        };
        put(&root, content).unwrap();
        assert_eq!(fs::read(root.join("a/b")).unwrap(), b"bytes");
    }

    #[test]
    fn two_publications_at_once_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = Folder::lock(folder.path()).unwrap();
        assert!(Folder::lock(folder.path()).unwrap_err().to_string().contains("another"));
        drop(first);
        Folder::lock(folder.path()).unwrap();
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }
}
