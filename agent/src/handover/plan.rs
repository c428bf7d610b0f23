//! The steps of a hand-over, as a list: printed before it is done, and the same for every machine.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::formats::manifest::InitKind;
use crate::handover::toplevel::Toplevel;

/// How long `prepare-root` may take. Activation of a large system takes seconds, on a slow disk a minute.
pub const PREPARE_ROOT_LIMIT: Duration = Duration::from_secs(300);

/// Folders whose mounts the new root gets.
pub const API_FOLDERS: [&str; 4] = ["dev", "proc", "sys", "run"];

/// What is handed over, to what.
#[derive(Debug, Clone)]
pub struct HandOver {
    /// Where the new root is mounted, normally `/sysroot`.
    pub sysroot: PathBuf,
    /// The system that is started.
    pub toplevel: Toplevel,
    /// Arguments for `init`, without its own name.
    pub args: Vec<OsString>,
    /// The whole environment for `init`.
    pub env: Vec<(OsString, OsString)>,
    /// How long `prepare-root` may take.
    pub prepare_root_limit: Duration,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Copy the mounts at and below a folder into the new root.
    ShareMounts {
        /// `/dev`
        from: PathBuf,
        /// `/sysroot/dev`
        to: PathBuf,
    },
    /// Run the activation in the new root.
    RunPrepareRoot {
        /// The program, as a path in the system.
        program: PathBuf,
        /// The time it has.
        limit: Duration,
    },
    /// Look once more that `init` can be started: activation may have changed the root.
    CheckInit {
        /// The program, as a path in the system.
        program: PathBuf,
    },
    /// Make the new root `/`. From here there is no way back.
    MoveRoot {
        /// Where it is until then.
        sysroot: PathBuf,
    },
    /// Detach what is mounted in the old root, so that no disk is held by it.
    DetachOldMounts,
    /// Free the memory of the initramfs.
    EmptyInitramfs,
    /// Standard input, output and error on `/dev/console`.
    OpenConsole,
    /// Become `init`.
    Exec {
        /// The program, as a path in the system.
        program: PathBuf,
        /// Its arguments.
        args: Vec<OsString>,
    },
}

impl Step {
    /// Whether a failure of this step leaves everything as it was before.
    pub const fn can_be_undone(&self) -> bool {
        match self {
            Self::ShareMounts { .. } | Self::RunPrepareRoot { .. } | Self::CheckInit { .. } => true,
            Self::MoveRoot { .. } | Self::DetachOldMounts | Self::EmptyInitramfs | Self::OpenConsole | Self::Exec { .. } => false,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ShareMounts { from, to } => write!(f, "share the mounts at {} with {}", from.display(), to.display()),
            Self::RunPrepareRoot { program, limit } => {
                write!(f, "run {} in the new root, for at most {} s", program.display(), limit.as_secs())
            }
            Self::CheckInit { program } => write!(f, "check that {} can be started", program.display()),
            Self::MoveRoot { sysroot } => write!(f, "make {} the root", sysroot.display()),
            Self::DetachOldMounts => f.write_str("detach what is mounted in the old root"),
            Self::EmptyInitramfs => f.write_str("free the memory of the initramfs"),
            Self::OpenConsole => f.write_str("open /dev/console"),
            Self::Exec { program, args } => {
                write!(f, "start {}", program.display())?;
                args.iter().try_for_each(|arg| write!(f, " {}", arg.display()))
            }
        }
    }
}

/// The steps of a hand-over, in order.
pub fn plan(handover: &HandOver) -> Vec<Step> {
    let toplevel = &handover.toplevel;
    let expected = Expected {
        sysroot: &handover.sysroot,
        toplevel: toplevel.path(),
        kind: toplevel.kind(),
    };
    steps(&expected, &handover.args, handover.prepare_root_limit)
}

/// What is known of a hand-over before anything is mounted: `freshroot plan` has the kind from the manifest.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// Where the new root will be mounted.
    pub sysroot: &'a Path,
    /// The store path of the system.
    pub toplevel: &'a Path,
    /// How it is started.
    pub kind: InitKind,
}

/// The steps of a hand-over that is only expected. The kind `NixosInit` has those of a system without activation; it is refused before.
pub fn steps(expected: &Expected<'_>, args: &[OsString], prepare_root_limit: Duration) -> Vec<Step> {
    let share = |folder: &&str| Step::ShareMounts {
        from: PathBuf::from("/").join(folder),
        to: expected.sysroot.join(folder),
    };
    let mut steps: Vec<Step> = API_FOLDERS.iter().map(share).collect();
    match expected.kind {
        InitKind::PrepareRoot => steps.push(Step::RunPrepareRoot {
            program: expected.toplevel.join("prepare-root"),
            limit: prepare_root_limit,
        }),
        InitKind::Scripted | InitKind::NixosInit => {}
    }
    let program = expected.toplevel.join("init");
    steps.extend([
        Step::CheckInit { program: program.clone() },
        Step::MoveRoot {
            sysroot: expected.sysroot.to_owned(),
        },
        Step::DetachOldMounts,
        Step::EmptyInitramfs,
        Step::OpenConsole,
        Step::Exec {
            program,
            args: args.to_vec(),
        },
    ]);
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kind_with_an_activation_runs_one() {
        for (kind, runs) in [
            (InitKind::Scripted, false),
            (InitKind::PrepareRoot, true),
            (InitKind::NixosInit, false),
        ] {
            let expected = Expected {
                sysroot: Path::new("/sysroot"),
                toplevel: Path::new("/nix/store/a"),
                kind,
            };
            let steps = steps(&expected, &[], PREPARE_ROOT_LIMIT);
            assert_eq!(steps.iter().any(|step| matches!(step, Step::RunPrepareRoot { .. })), runs, "{kind}");
            assert!(matches!(steps.last(), Some(Step::Exec { .. })));
        }
    }
}
