//! The kernel's new mount API (`fsopen`, `fsconfig`, `fsmount`, `open_tree`, `move_mount`; Linux 5.2) through rustix.
//!
//! A mount is made detached, as a descriptor, and attached when everything about it is right. The messages that the kernel leaves in
//! the context are part of the error: «EINVAL» alone tells nobody which option was wrong.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen, move_mount, open_tree,
};

use crate::mount::kernel_log::KernelLog;
use crate::mount::options::{Attributes, FsOption};
use crate::sys;

/// A context's log is a ring of eight messages in the kernel (`fs/fsopen.c`); more than a few times that is a kernel that never ends.
const MAX_MESSAGES: usize = 32;

/// What the mount API refused: the step, the kernel's error, and what the file system itself said about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsError {
    /// What was tried, «mounting ext4 from /dev/vda1».
    pub action: String,
    /// The kernel's error.
    pub errno: Errno,
    /// The file system's own messages, oldest first, without their severity letter.
    pub messages: Vec<String>,
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.action, self.errno)?;
        if !self.messages.is_empty() {
            write!(f, " (the kernel says: {})", self.messages.join("; "))?;
        }
        if self.errno == Errno::NODEV {
            write!(
                f,
                " (the kernel does not know this file system: is its module in the initrd and loaded?)"
            )?;
        }
        Ok(())
    }
}

impl std::error::Error for FsError {}

/// A file system in the making.
#[derive(Debug)]
pub struct FsContext {
    fd: OwnedFd,
    what: String,
    kernel_log: KernelLog,
    /// What a line of the kernel log about it holds: the file system's name, or the device's.
    words: [String; 2],
}

impl FsContext {
    /// Starts with the file system type and its source: a device's path, or the name that `/proc/self/mountinfo` is to show.
    pub fn open(fs_type: &str, source: &str) -> Result<Self, FsError> {
        let what = format!("{fs_type} from {source}");
        let fd = fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| FsError {
            action: format!("preparing {what}"),
            errno,
            messages: Vec::new(),
        })?;
        let device = source.rsplit('/').next().unwrap_or(source).to_owned();
        let context = Self {
            fd,
            what,
            kernel_log: KernelLog::from_now(),
            words: [fs_type.to_owned(), device],
        };
        context.set_string("source", source)?;
        Ok(context)
    }

    /// Sets an option without a value.
    pub fn set_flag(&self, key: &str) -> Result<(), FsError> {
        fsconfig_set_flag(self.fd.as_fd(), key).map_err(|errno| self.error(format!("setting option «{key}» of {}", self.what), errno))
    }

    /// Sets an option with a value. The kernel takes values below 256 bytes.
    pub fn set_string(&self, key: &str, value: &str) -> Result<(), FsError> {
        fsconfig_set_string(self.fd.as_fd(), key, value)
            .map_err(|errno| self.error(format!("setting option «{key}={value}» of {}", self.what), errno))
    }

    /// Sets the options of an fstab line.
    pub fn set_options(&self, options: &[FsOption]) -> Result<(), FsError> {
        for option in options {
            match &option.value {
                Some(value) => self.set_string(&option.key, value)?,
                None => self.set_flag(&option.key)?,
            }
        }
        Ok(())
    }

    /// Makes the superblock and a detached mount of it with `attributes`.
    pub fn mount(self, attributes: Attributes) -> Result<DetachedMount, FsError> {
        fsconfig_create(self.fd.as_fd()).map_err(|errno| self.error(format!("mounting {}", self.what), errno))?;
        let mount = fsmount(self.fd.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes.for_new_mount())
            .map_err(|errno| self.error(format!("mounting {}", self.what), errno))?;
        for message in read_messages(self.fd.as_fd()) {
            log::info!("{}: {message}", self.what);
        }
        Ok(DetachedMount {
            fd: mount,
            what: self.what,
        })
    }

    /// Takes the messages that the context holds: after a refusal that is no error.
    pub fn take_messages(&self) -> Vec<String> {
        read_messages(self.fd.as_fd())
    }

    fn error(&self, action: String, errno: Errno) -> FsError {
        let mut messages = self.take_messages();
        if messages.is_empty() {
            let [fs_type, device] = &self.words;
            messages = self.kernel_log.said_about(&[fs_type, device]);
        }
        FsError { action, errno, messages }
    }
}

/// Each read gives one message, «e overlay: …» for an error, `w` for a warning, `i` for information; ENODATA ends it.
fn read_messages(context: BorrowedFd<'_>) -> Vec<String> {
    let mut messages = Vec::new();
    let mut buffer = [0; 1024];
    while messages.len() < MAX_MESSAGES {
        match rustix::io::read(context, &mut buffer) {
            Ok(0) => break,
            Ok(length) => messages.push(message_text(&buffer[..length])),
            Err(Errno::NODATA) => break,
            Err(errno) => {
                log::debug!("reading the messages of a mount context: {errno}");
                break;
            }
        }
    }
    messages
}

fn message_text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim();
    match text.split_once(' ') {
        Some(("e" | "w" | "i", rest)) => rest.to_owned(),
        Some(_) | None => text.to_owned(),
    }
}

/// A mount that nobody sees yet. Dropped, it is gone again.
#[derive(Debug)]
pub struct DetachedMount {
    fd: OwnedFd,
    what: String,
}

impl DetachedMount {
    /// A copy of the mount at `root` (a descriptor of a folder or file): what `mount --bind` makes, with everything below it if `recursive`.
    pub fn clone_of(root: BorrowedFd<'_>, recursive: bool, what: &str) -> Result<Self, FsError> {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        if recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let fd = open_tree(root, c"", flags).map_err(|errno| FsError {
            action: format!("copying the mount of {what}"),
            errno,
            messages: Vec::new(),
        })?;
        Ok(Self { fd, what: what.to_owned() })
    }

    /// Gives a copied mount attributes of its own, before anyone sees it.
    pub fn set_attributes(&self, attributes: Attributes, recursive: bool) -> Result<(), FsError> {
        let (set, clear) = attributes.as_change();
        sys::mount_set_attributes(self.fd.as_fd(), recursive, set, clear).map_err(|err| FsError {
            action: format!("setting {attributes:?} on the mount of {}", self.what),
            errno: Errno::from_io_error(&err).unwrap_or(Errno::IO),
            messages: Vec::new(),
        })
    }

    /// Attaches at a path.
    pub fn attach(&self, at: &Path) -> Result<(), FsError> {
        move_mount(self.fd.as_fd(), c"", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(|errno| self.attach_error(at, errno))
    }

    /// Attaches at the folder or file that `at` is open on; `path` names it in errors.
    pub fn attach_to(&self, at: BorrowedFd<'_>, path: &Path) -> Result<(), FsError> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(self.fd.as_fd(), c"", at, c"", flags).map_err(|errno| self.attach_error(path, errno))
    }

    fn attach_error(&self, at: &Path, errno: Errno) -> FsError {
        FsError {
            action: format!("attaching {} at {}", self.what, at.display()),
            errno,
            messages: Vec::new(),
        }
    }
}

impl AsFd for DetachedMount {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Attributes {
    /// As `fsmount` takes them.
    pub fn for_new_mount(self) -> MountAttrFlags {
        let mut flags = MountAttrFlags::empty();
        for (on, flag) in self.switches() {
            if on {
                flags |= flag;
            }
        }
        // Without any of these `fsmount` means relatime, which is also what mount(8) gives.
        flags | self.access_time_flag()
    }

    /// As `mount_setattr` takes them for a copied mount: only what was asked for changes, the rest stays as it is at the source.
    fn as_change(self) -> (u64, u64) {
        let mut set = MountAttrFlags::empty();
        for (on, flag) in self.switches() {
            if on {
                set |= flag;
            }
        }
        let mut clear = MountAttrFlags::empty();
        if self.access_time.is_some() {
            // The kernel wants the whole access-time field cleared whenever a part of it is set.
            clear |= MountAttrFlags::MOUNT_ATTR__ATIME;
            set |= self.access_time_flag();
        }
        (u64::from(set.bits()), u64::from(clear.bits()))
    }

    fn switches(self) -> [(bool, MountAttrFlags); 6] {
        [
            (self.read_only, MountAttrFlags::MOUNT_ATTR_RDONLY),
            (self.no_suid, MountAttrFlags::MOUNT_ATTR_NOSUID),
            (self.no_dev, MountAttrFlags::MOUNT_ATTR_NODEV),
            (self.no_exec, MountAttrFlags::MOUNT_ATTR_NOEXEC),
            (self.no_dir_atime, MountAttrFlags::MOUNT_ATTR_NODIRATIME),
            (self.no_symfollow, MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW),
        ]
    }

    fn access_time_flag(self) -> MountAttrFlags {
        use crate::mount::options::AccessTime;
        match self.access_time {
            Some(AccessTime::Never) => MountAttrFlags::MOUNT_ATTR_NOATIME,
            Some(AccessTime::Always) => MountAttrFlags::MOUNT_ATTR_STRICTATIME,
            Some(AccessTime::Relative) | None => MountAttrFlags::empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_loses_its_severity_letter_only() {
        for (message, text) in [
            (&b"e overlay: No changes allowed\n"[..], "overlay: No changes allowed"),
            (b"w a b", "a b"),
            (b"something else", "something else"),
            (b"", ""),
        ] {
            assert_eq!(message_text(message), text);
        }
    }

    #[test]
    fn an_error_carries_the_words_of_the_kernel() {
        let error = FsError {
            action: "mounting ext4 from /dev/vda1".to_owned(),
            errno: Errno::INVAL,
            messages: vec!["ext4: Unknown parameter 'x'".to_owned()],
        };
        let text = error.to_string();
        assert!(text.contains("/dev/vda1") && text.contains("Unknown parameter 'x'"), "{text}");
    }
}
