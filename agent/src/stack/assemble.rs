//! Volume groups and arrays, put together as their members appear: what udev's rules do where there is udev.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use crate::device::observe::BlockDevice;
use crate::device::probe::Kind;
use crate::tool::{Input, Tool};

/// Reading the headers of all disks takes `lvm` a second or two, a disk that answers slowly some more.
const LIMIT: Duration = Duration::from_secs(60);
/// Levels of arrays; the kernel has no program to load them by.
const LEVELS: [&str; 5] = ["raid1", "raid0", "raid10", "raid456", "linear"];

/// The programs, and what was given to them.
#[derive(Debug)]
pub struct Assembler {
    lvm: Option<Tool>,
    mdadm: Option<Tool>,
    known: BTreeSet<(String, Option<u64>)>,
    forced: bool,
    warnings: Vec<String>,
}

impl Assembler {
    /// With the programs below `root` (`/`). What is missing is not put together.
    pub fn new(root: &Path) -> Self {
        Self {
            lvm: Tool::find(root, "lvm"),
            mdadm: Tool::find(root, "mdadm"),
            known: BTreeSet::new(),
            forced: false,
            warnings: Vec::new(),
        }
    }

    /// Whether an array may have to be started without all its members.
    pub const fn has_arrays(&self) -> bool {
        self.mdadm.is_some()
    }

    /// What was odd, once.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// Puts together what `seen` has new members of. What comes of it is told by the kernel's events. `load` loads a module.
    pub fn look(&mut self, seen: &[BlockDevice], load: &mut dyn FnMut(&str)) {
        let mut volumes = false;
        for device in seen {
            let kind = device.content.signature().map(|signature| signature.kind);
            let wanted = match kind {
                Some(Kind::LvmMember) => self.lvm.is_some(),
                Some(Kind::MdMember) => self.mdadm.is_some(),
                Some(_) | None => false,
            };
            if !wanted || device.partitioned || !self.known.insert((device.name.clone(), device.sequence)) {
                continue;
            }
            match kind {
                Some(Kind::MdMember) => {
                    LEVELS.iter().for_each(|level| load(level));
                    self.mdadm_says(&["--incremental", "--homehost=<ignore>", &device.path.to_string_lossy()]);
                }
                Some(_) | None => volumes = true,
            }
        }
        if let (true, Some(lvm)) = (volumes, &self.lvm) {
            load("dm_mod");
            // Volumes whose group is not whole yet are left out, and tried again with its next member.
            let arguments = ["vgchange", "--activate", "y", "--sysinit", "--noudevsync"];
            say("lvm", lvm.run(&arguments, Input::Nothing, LIMIT));
        }
    }

    /// Starts arrays that lack members, once, where some of `seen` belong to an array that does not run. False where there is nothing to start.
    pub fn start_degraded(&mut self, seen: &[BlockDevice]) -> bool {
        let runs = |name: &String| seen.iter().any(|device| device.name == *name);
        let waiting: Vec<String> = seen
            .iter()
            .filter(|device| {
                let member = device.content.signature().is_some_and(|signature| signature.kind == Kind::MdMember);
                member && !device.partitioned && !device.holders.iter().any(runs)
            })
            .map(|device| device.path.display().to_string())
            .collect();
        if self.forced || self.mdadm.is_none() || waiting.is_empty() {
            return false;
        }
        self.forced = true;
        self.warnings.push(format!(
            "an array is not whole, of which there is {}: it is started without the rest, if its level allows that",
            waiting.join(", ")
        ));
        self.mdadm_says(&["--incremental", "--run", "--scan"]);
        true
    }

    fn mdadm_says(&self, arguments: &[&str]) {
        if let Some(mdadm) = &self.mdadm {
            say("mdadm", mdadm.run(arguments, Input::Nothing, LIMIT));
        }
    }
}

/// What a program made or not shows in the devices that there are afterwards; its own words are in the log.
fn say(name: &str, ended: anyhow::Result<crate::tool::Ended>) {
    match ended {
        Ok(ended) if ended.status.success() => {}
        Ok(ended) => log::info!("{name} {ended}"),
        Err(error) => log::warn!("{error:#}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::device::probe::{Content, Signature};

    fn device(name: &str, kind: Option<Kind>, holders: &[&str]) -> BlockDevice {
        BlockDevice {
            holders: holders.iter().map(|&name| name.to_owned()).collect(),
            content: kind.map_or(Content::Unknown, |kind| Content::Known(Signature::new(kind, None, None))),
            ..BlockDevice::blank(name)
        }
    }

    /// Programs that write down what they are told.
    fn programs(root: &Path, names: &[&str]) {
        fs::create_dir_all(root.join("bin")).unwrap();
        for name in names {
            let path = root.join("bin").join(name);
            fs::write(&path, format!("#!/bin/sh\necho {name} \"$@\" >>{}/told\n", root.display())).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    fn told(root: &Path) -> Vec<String> {
        let text = fs::read_to_string(root.join("told")).unwrap_or_default();
        fs::write(root.join("told"), "").unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn members_are_given_to_their_program_once_as_they_appear() {
        let root = tempfile::tempdir().unwrap();
        programs(root.path(), &["lvm", "mdadm"]);
        let mut assembler = Assembler::new(root.path());
        let mut loaded = Vec::new();
        let vgchange = "lvm vgchange --activate y --sysinit --noudevsync";
        let mut seen = vec![device("sda", Some(Kind::Ext4), &[]), device("sdb", Some(Kind::LvmMember), &[])];
        assembler.look(&seen, &mut |name| loaded.push(name.to_owned()));
        assert_eq!(told(root.path()), [vgchange]);
        assert_eq!(loaded, ["dm_mod"]);
        seen.push(device("sdc", Some(Kind::MdMember), &[]));
        assembler.look(&seen, &mut |_| {});
        assert_eq!(told(root.path()), ["mdadm --incremental --homehost=<ignore> /dev/sdc"]);
        assembler.look(&seen, &mut |_| {});
        assert_eq!(told(root.path()), Vec::<String>::new());
        seen.push(device("sdd", Some(Kind::LvmMember), &[]));
        assembler.look(&seen, &mut |_| {});
        assert_eq!(told(root.path()), [vgchange], "a group may be whole by the second disk alone");
    }

    #[test]
    fn an_array_that_is_not_whole_is_started_once_and_that_is_reported() {
        let root = tempfile::tempdir().unwrap();
        programs(root.path(), &["mdadm"]);
        let mut assembler = Assembler::new(root.path());
        // A running array is among the devices, one that waits has no size and is not.
        let running = [device("sda", Some(Kind::MdMember), &["md0"]), device("md0", Some(Kind::Ext4), &[])];
        assert!(!assembler.start_degraded(&running));
        let waiting = [device("sda", Some(Kind::MdMember), &["md0"])];
        assert!(assembler.start_degraded(&waiting));
        assert_eq!(told(root.path()), ["mdadm --incremental --run --scan"]);
        assert!(!assembler.start_degraded(&waiting), "only once");
        let warnings = assembler.take_warnings();
        assert!(warnings.len() == 1 && warnings[0].contains("/dev/sda"), "{warnings:?}");
    }

    #[test]
    fn without_the_programs_nothing_is_done() {
        let root = tempfile::tempdir().unwrap();
        let mut assembler = Assembler::new(root.path());
        let seen = [device("sda", Some(Kind::MdMember), &[]), device("sdb", Some(Kind::LvmMember), &[])];
        assembler.look(&seen, &mut |_| {});
        assert!(!assembler.start_degraded(&seen) && assembler.take_warnings().is_empty());
    }
}
