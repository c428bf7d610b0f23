//! Which part of stage 1 the agent is.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::str::FromStr;

/// Who owns stage 1, and with it drivers, disks and the hand-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The agent is PID 1, and all of stage 1.
    #[default]
    Standalone,
    /// systemd is PID 1: it owns devices, `/` and disks, and switches root. The agent is one unit, and leaves a store below the sysroot.
    Systemd,
}

/// Their names on the command line of the program.
pub const MODES: [(&str, Mode); 2] = [("standalone", Mode::Standalone), ("systemd", Mode::Systemd)];

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Standalone => "standalone",
            Self::Systemd => "systemd",
        })
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        MODES
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, mode)| *mode)
            .ok_or_else(|| format!("«{text}» is no mode: standalone or systemd"))
    }
}
