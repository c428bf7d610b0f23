//! What kind of system a toplevel is, and whether all that its start needs is there.
//!
//! Everything is looked up inside the new root, as the system itself will see it: symlinks in a toplevel are absolute.

use std::fmt;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::fs::{FileType, OFlags, fstat};
use rustix::io::Errno;

use crate::formats::manifest::InitKind;
use crate::mode::Mode;
use crate::mount::below::Below;

/// The kernel reads this much of a file to know its interpreter (`BINPRM_BUF_SIZE`, Linux 5.1).
const HEAD: usize = 256;

/// A toplevel that can be started. Only [`check`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toplevel {
    path: PathBuf,
    kind: InitKind,
}

impl Toplevel {
    /// Its store path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How it is started.
    pub const fn kind(&self) -> InitKind {
        self.kind
    }

    /// `init`, as a path in the system.
    pub fn init(&self) -> PathBuf {
        self.path.join("init")
    }
}

/// Why a toplevel cannot be started: the path, what is wrong, what to do.
#[derive(Debug)]
pub enum ToplevelError {
    /// Something is not there, or is not what it must be.
    Broken {
        /// The path in the system.
        path: PathBuf,
        /// What is wrong, and the remedy.
        problem: String,
    },
    /// It is started by nixos-init, which the agent does not have yet.
    NixosInit {
        /// The toplevel.
        path: PathBuf,
    },
    /// Looking failed.
    Io(anyhow::Error),
}

impl fmt::Display for ToplevelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken { path, problem } => write!(f, "{}: {problem}", path.display()),
            Self::NixosInit { path } => write!(
                f,
                "{} has no «prepare-root» and its «init» is systemd: it is made for nixos-init, which the agent cannot replace yet; \
                 build it with system.nixos-init.enable = false, or use freshroot in systemd stage 1",
                path.display()
            ),
            Self::Io(err) => write!(f, "{err:#}"),
        }
    }
}

impl std::error::Error for ToplevelError {}

/// Looks into the toplevel `toplevel` (a path in the system) of the root that is mounted at `sysroot`. In systemd mode others start it: the
/// units of NixOS's initrd, or its nixos-init.
pub fn check(sysroot: &Path, toplevel: &Path, mode: Mode) -> Result<Toplevel, ToplevelError> {
    let below = Below::open(sysroot).map_err(ToplevelError::Io)?;
    if !toplevel.is_absolute() || toplevel.components().any(|part| matches!(part, std::path::Component::ParentDir)) {
        return Err(broken(
            toplevel,
            "a toplevel is an absolute path without «..», normally /nix/store/<hash>-nixos-system-…",
        ));
    }
    if below.find(toplevel).map_err(ToplevelError::Io)?.is_none() {
        return Err(broken(
            toplevel,
            "the image does not hold this toplevel; publish the image that does, or correct «init=» or «freshroot.system=»",
        ));
    }
    let init = executable(&below, &toplevel.join("init"))?;
    let prepare_root = toplevel.join("prepare-root");
    let has_prepare_root = below.find(&prepare_root).map_err(ToplevelError::Io)?.is_some();
    let kind = if has_prepare_root {
        executable(&below, &prepare_root)?;
        InitKind::PrepareRoot
    } else if init.is_script || !is_systemd(&below, toplevel, &init)? {
        InitKind::Scripted
    } else {
        match mode {
            Mode::Standalone => return Err(ToplevelError::NixosInit { path: toplevel.to_owned() }),
            Mode::Systemd => InitKind::NixosInit,
        }
    };
    if let (Mode::Systemd, InitKind::PrepareRoot | InitKind::NixosInit) = (mode, kind) {
        found_by_its_init(&below, toplevel, &init)?;
    }
    Ok(Toplevel {
        path: toplevel.to_owned(),
        kind,
    })
}

/// NixOS's initrd resolves the path of `init` and takes the folder that it is in for the system: a link that leads elsewhere would have another
/// folder activated, or none.
fn found_by_its_init(below: &Below, toplevel: &Path, init: &Program) -> Result<(), ToplevelError> {
    let folder = below.find(toplevel).map_err(ToplevelError::Io)?;
    let resolved = match &folder {
        Some(folder) => below.inside_path(folder.as_fd()).map_err(ToplevelError::Io)?,
        None => toplevel.to_owned(),
    };
    if init.resolved.parent() == Some(resolved.as_path()) {
        return Ok(());
    }
    Err(broken(
        &toplevel.join("init"),
        format!(
            "is a link to {}, so that NixOS's initrd would take {} for the system; build a toplevel whose «init» is a copy, as NixOS makes it for systemd stage 1",
            init.resolved.display(),
            init.resolved.parent().unwrap_or(&init.resolved).display()
        ),
    ))
}

struct Program {
    resolved: PathBuf,
    is_script: bool,
}

/// Whether an `init` that is no script is systemd: the link leads to a systemd, or the toplevel carries one of which `init` may be a copy.
fn is_systemd(below: &Below, toplevel: &Path, init: &Program) -> Result<bool, ToplevelError> {
    if init.resolved.file_name() == Some("systemd".as_ref()) {
        return Ok(true);
    }
    let carried = below
        .find(&toplevel.join("systemd/lib/systemd/systemd"))
        .map_err(ToplevelError::Io)?;
    Ok(carried.is_some())
}

/// Checks that a program can be executed, with its interpreter if it is a script.
fn executable(below: &Below, path: &Path) -> Result<Program, ToplevelError> {
    let (program, head) = executable_file(below, path)?;
    let Some(interpreter) = interpreter(&head).map_err(|problem| broken(path, problem))? else {
        return Ok(program);
    };
    executable_file(below, &interpreter).map_err(|err| match err {
        ToplevelError::Broken {
            path: interpreter,
            problem,
        } => broken(path, format!("its interpreter {} cannot be used: {problem}", interpreter.display())),
        err @ (ToplevelError::NixosInit { .. } | ToplevelError::Io(_)) => err,
    })?;
    Ok(Program {
        is_script: true,
        ..program
    })
}

fn executable_file(below: &Below, path: &Path) -> Result<(Program, Vec<u8>), ToplevelError> {
    const INCOMPLETE: &str = "the image is incomplete; publish it with its whole closure";
    // Without blocking: a FIFO in its place must not stop the boot.
    let fd = match below.open_with(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Err(broken(path, format!("does not exist, or is a link to nothing: {INCOMPLETE}"))),
        Err(Errno::LOOP) => return Err(broken(path, format!("is a link that leads back to itself: {INCOMPLETE}"))),
        Err(errno) => return Err(broken(path, format!("cannot be opened ({errno}): {INCOMPLETE}"))),
    };
    let io = |err: anyhow::Error| ToplevelError::Io(err.context(format!("looking at {}", below.shown(path).display())));
    let stat = fstat(&fd).map_err(|errno| io(errno.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(broken(path, format!("is not a file: {INCOMPLETE}")));
    }
    if stat.st_mode & 0o111 == 0 {
        return Err(broken(
            path,
            format!(
                "is not executable (mode {:04o}); publish an image made by mksquashfs as NixOS does",
                stat.st_mode & 0o7777
            ),
        ));
    }
    let resolved = below.inside_path(fd.as_fd()).map_err(io)?;
    let mut head = Vec::with_capacity(HEAD);
    std::fs::File::from(fd)
        .take(HEAD as u64)
        .read_to_end(&mut head)
        .context("reading its first bytes")
        .map_err(io)?;
    if head.is_empty() {
        return Err(broken(path, format!("is empty: {INCOMPLETE}")));
    }
    Ok((
        Program {
            resolved,
            is_script: false,
        },
        head,
    ))
}

/// The interpreter of a script, from its first bytes; nothing if it is no script. As the kernel reads it (`fs/binfmt_script.c`): up to the first
/// blank after the path.
fn interpreter(head: &[u8]) -> Result<Option<PathBuf>, &'static str> {
    use std::os::unix::ffi::OsStrExt as _;
    let Some(line) = head.strip_prefix(b"#!") else {
        return Ok(None);
    };
    let line = line.split(|&byte| byte == b'\n').next().unwrap_or(line).trim_ascii_start();
    let name = line
        .split(|&byte| byte == b' ' || byte == b'\t' || byte == 0)
        .next()
        .unwrap_or(line);
    if name.is_empty() {
        return Err("its first line names no interpreter after «#!»");
    }
    if name.len() == line.len() && head.len() == HEAD && !head.contains(&b'\n') {
        return Err("its first line is longer than the kernel reads (256 bytes)");
    }
    if name[0] != b'/' {
        return Err("its interpreter is not an absolute path, and the kernel would look for it in the current folder");
    }
    Ok(Some(PathBuf::from(std::ffi::OsStr::from_bytes(name))))
}

fn broken(path: &Path, problem: impl Into<String>) -> ToplevelError {
    ToplevelError::Broken {
        path: path.to_owned(),
        problem: problem.into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    const TOP: &str = "/nix/store/aaa-nixos-system-demo";

    /// A root in a folder: (path, content, mode); a content of `-> x` is a symlink.
    fn root(files: &[(&str, &str, u32)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(&TOP[1..])).unwrap();
        for (path, content, mode) in files {
            let path = path.replace("TOP", TOP);
            let path = dir.path().join(path.strip_prefix('/').unwrap());
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match content.strip_prefix("-> ") {
                Some(target) => symlink(target, &path).unwrap(),
                None => {
                    fs::write(&path, content).unwrap();
                    fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
                }
            }
        }
        dir
    }

    fn kind(files: &[(&str, &str, u32)]) -> Result<InitKind, ToplevelError> {
        check(root(files).path(), Path::new(TOP), Mode::Standalone).map(|toplevel| toplevel.kind())
    }

    const ELF: &str = "\x7fELF";
    const SH: (&str, &str, u32) = ("/nix/store/bash/bin/sh", ELF, 0o555);
    const SYSTEMD: (&str, &str, u32) = ("/nix/store/systemd/lib/systemd/systemd", ELF, 0o555);
    const SCRIPT: &str = "#! /nix/store/bash/bin/sh -e\ntrue\n";

    #[test]
    fn the_three_kinds_are_told_apart() {
        assert_eq!(kind(&[SH, ("TOP/init", SCRIPT, 0o555)]).unwrap(), InitKind::Scripted);
        assert_eq!(kind(&[("TOP/init", ELF, 0o555)]).unwrap(), InitKind::Scripted);
        let link = "-> /nix/store/systemd/lib/systemd/systemd";
        assert_eq!(
            kind(&[SH, SYSTEMD, ("TOP/init", link, 0), ("TOP/prepare-root", SCRIPT, 0o555)]).unwrap(),
            InitKind::PrepareRoot
        );
        assert_eq!(
            kind(&[SH, ("TOP/init", ELF, 0o555), ("TOP/prepare-root", SCRIPT, 0o555)]).unwrap(),
            InitKind::PrepareRoot
        );
        // nixos-init: as a link to systemd, and as a copy of it
        assert!(matches!(
            kind(&[SYSTEMD, ("TOP/init", link, 0)]),
            Err(ToplevelError::NixosInit { .. })
        ));
        let carried = ("TOP/systemd", "-> /nix/store/systemd", 0);
        assert!(matches!(
            kind(&[SYSTEMD, carried, ("TOP/init", ELF, 0o555)]),
            Err(ToplevelError::NixosInit { .. })
        ));
    }

    #[test]
    fn in_systemd_mode_init_leads_to_its_own_toplevel_where_there_is_an_activation() {
        let seen = |files: &[(&str, &str, u32)]| check(root(files).path(), Path::new(TOP), Mode::Systemd).map(|toplevel| toplevel.kind());
        let link = ("TOP/init", "-> /nix/store/systemd/lib/systemd/systemd", 0);
        let (copy, prepare, carried) = (
            ("TOP/init", ELF, 0o555),
            ("TOP/prepare-root", ELF, 0o555),
            ("TOP/systemd", "-> /nix/store/systemd", 0),
        );
        for (files, expected) in [
            (vec![SH, ("TOP/init", SCRIPT, 0o555)], Ok(InitKind::Scripted)),
            (vec![SYSTEMD, copy, prepare], Ok(InitKind::PrepareRoot)),
            (vec![SYSTEMD, copy, carried], Ok(InitKind::NixosInit)),
            (
                vec![SYSTEMD, link, prepare],
                Err("take /nix/store/systemd/lib/systemd for the system"),
            ),
            (vec![SYSTEMD, link], Err("take /nix/store/systemd/lib/systemd for the system")),
        ] {
            match (seen(&files), expected) {
                (Ok(kind), Ok(expected)) => assert_eq!(kind, expected),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                (seen, expected) => panic!("{seen:?}, not {expected:?}"),
            }
        }
    }

    #[test]
    fn what_is_not_there_or_cannot_be_executed_is_named() {
        let prepare = ("TOP/prepare-root", SCRIPT, 0o555);
        for (files, named) in [
            (vec![], "demo/init: does not exist"),
            (vec![("TOP/init", "-> /nix/store/gone/init", 0)], "link to nothing"),
            (vec![("TOP/init", "-> init", 0)], "leads back to itself"),
            (vec![("TOP/init", SCRIPT, 0o444), SH], "init: is not executable"),
            (vec![("TOP/init/x", "", 0o444)], "init: is not a file"),
            (vec![("TOP/init", "", 0o555)], "init: is empty"),
            (
                vec![("TOP/init", SCRIPT, 0o555)],
                "its interpreter /nix/store/bash/bin/sh cannot be used: does not exist",
            ),
            (vec![("TOP/init", "#!sh\n", 0o555)], "not an absolute path"),
            (vec![("TOP/init", "#!\n", 0o555)], "names no interpreter"),
            (vec![("TOP/init", ELF, 0o555), prepare], "prepare-root: its interpreter"),
            (
                vec![("TOP/init", ELF, 0o555), SH, ("TOP/prepare-root", SCRIPT, 0o644)],
                "prepare-root: is not executable",
            ),
        ] {
            let err = kind(&files).unwrap_err().to_string();
            assert!(err.contains(named), "{named}: {err}");
        }
    }

    #[test]
    fn links_out_of_the_root_do_not_lead_out() {
        let files = [("TOP/init", "-> ../../../../../../../../bin/sh", 0)];
        assert!(Path::new("/bin/sh").exists(), "this test needs a /bin/sh outside");
        assert!(kind(&files).is_err());
    }

    #[test]
    fn a_toplevel_is_a_clean_path_that_exists() {
        let dir = root(&[]);
        for bad in ["nix/store/aaa", "/nix/store/../../etc", "/nix/store/bbb"] {
            assert!(check(dir.path(), Path::new(bad), Mode::Standalone).is_err(), "{bad}");
        }
    }
}
