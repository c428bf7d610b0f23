//! An initrd with a real systemd as stage 1: systemd and its tools from Debian, NixOS's units around ours (in our own words, `guest/stage-1/`), and ours as
//! the NixOS module generates them.

mod base;
mod contents;
mod generated;
pub mod workshop;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

pub use base::{Flavour, hardware_modules, packed, packed_for_hardware};
pub use generated::{install, running};

use crate::command::Tool;
use crate::initrd::Initrd;
use crate::lab::Lab;

const FIND_CLOSURE: &str = include_str!("../../guest/stage-1/find-closure.sh");
const ACTIVATE: &str = include_str!("../../guest/stage-1/activate-closure.sh");
const NIXOS: &[(&str, &str)] = &[
    ("sysroot-run.mount", include_str!("../../guest/stage-1/sysroot-run.mount")),
    (
        "initrd-find-nixos-closure.service",
        include_str!("../../guest/stage-1/initrd-find-nixos-closure.service"),
    ),
    (
        "initrd-find-etc.service",
        include_str!("../../guest/stage-1/initrd-find-etc.service"),
    ),
    ("demo-running.service", include_str!("../../guest/stage-1/demo-running.service")),
    (
        "initrd-nixos-activation.service",
        include_str!("../../guest/stage-1/initrd-nixos-activation.service"),
    ),
];
/// With the state of stage 1 handed over where `NEW_INIT` is empty, as on NixOS.
const SWITCH_ROOT: &str =
    "[Service]\nEnvironmentFile=-/etc/switch-root.conf\nExecStart=\nExecStart=systemctl --no-block switch-root /sysroot \"${NEW_INIT}\"\n";
/// Where the initrd's fstab lies; on NixOS it is a store path.
const FSTAB: &str = "/etc/initrd-fstab";
/// networkd on every Ethernet card, as NixOS has it with `networking.useDHCP`.
const NETWORK: &str = "[Match]\nType=ether\n[Network]\nDHCP=yes\nIPv6AcceptRA=yes\n";
/// NixOS loads these for the module: see `boot.initrd.kernelModules` in systemd.nix.
const LOADED_AT_ONCE: &str = "loop\noverlay\n";

const UNITS: &str = "/etc/systemd/system";
/// What NixOS enables with `boot.initrd.systemd.network.enable`: (folder, unit of systemd).
const ENABLED: &[(&str, &str)] = &[
    ("initrd.target.wants", "systemd-networkd.service"),
    ("sysinit.target.wants", "systemd-network-generator.service"),
    ("network-online.target.wants", "systemd-networkd-wait-online.service"),
    ("sockets.target.wants", "systemd-networkd.socket"),
];

/// Words that NixOS puts on the command line for this.
const UNPACK_LIMIT: Duration = Duration::from_secs(120);

/// 252 knows nothing of it, and would look for a device of that name.
const ROOT_FSTAB: &str = "root=fstab";

/// Fills the ramfs that a shutdown goes back to.
pub const GENERATE_SHUTDOWN_RAMFS: &str = include_str!("../../guest/stage-2/generate-shutdown-ramfs.sh");

/// The running system's part of what NixOS has: files below its /run. The demo system has no store path for them.
const RUNNING: &[(&str, &str, u32)] = &[
    ("demo/generate-shutdown-ramfs", GENERATE_SHUTDOWN_RAMFS, 0o755),
    (
        "systemd/system/generate-shutdown-ramfs.service",
        include_str!("../../guest/stage-2/generate-shutdown-ramfs.service"),
        0o644,
    ),
    (
        "systemd/system/run-initramfs.mount",
        include_str!("../../guest/stage-2/run-initramfs.mount"),
        0o644,
    ),
];

/// What one boot's initrd holds besides the base.
#[derive(Debug, Clone)]
pub struct Stage1 {
    flavour: Flavour,
    arguments: Value,
    units: Vec<(String, String)>,
    texts: Vec<(String, String, u32)>,
    files: Vec<(String, PathBuf)>,
    agent: bool,
}

impl Stage1 {
    /// One with the agent, its units and networkd.
    pub fn new(flavour: Flavour) -> Self {
        Self {
            flavour,
            arguments: json!({}),
            units: Vec::new(),
            texts: Vec::new(),
            files: Vec::new(),
            agent: true,
        }
    }

    /// Settings that the module makes by itself here, and a limit for the disk that suits a machine whose code is translated.
    pub fn config() -> Value {
        json!({ "cache": { "wait": "60s" }, "network": { "by": "system" } })
    }

    /// Sets an argument of `initrd-module/stage-1.nix`: `entries`, `persist`, `luks`, `deadline`.
    pub fn argument(mut self, name: &str, value: Value) -> Self {
        if let Some(all) = self.arguments.as_object_mut() {
            all.insert(name.to_owned(), value);
        }
        self
    }

    /// Adds a unit, enabled as its `[Install]` section says; or a drop-in, as `name.d/x.conf`. It wins over one that is generated.
    pub fn unit(mut self, name: &str, text: &str) -> Self {
        self.units.push((name.to_owned(), text.to_owned()));
        self
    }

    /// Adds a file with `text`; it wins over one that is generated.
    pub fn text(mut self, path: &str, text: &str, mode: u32) -> Self {
        self.texts.push((path.to_owned(), text.to_owned(), mode));
        self
    }

    /// Adds a copy of the program `file`.
    pub fn program(mut self, path: &str, file: &Path) -> Self {
        self.files.push((path.to_owned(), file.to_owned()));
        self
    }

    /// What NixOS puts on the command line for it.
    pub fn words(&self) -> &'static str {
        match self.flavour {
            Flavour::Debian12 => "",
            Flavour::Newest => ROOT_FSTAB,
        }
    }

    /// Leaves the agent's binary away; its units are there.
    pub fn without_agent(mut self) -> Self {
        self.agent = false;
        self
    }

    /// Writes the initrd to `out`, with the configuration `settings`.
    pub fn build(&self, lab: &Lab, settings: &Value, out: &Path) -> Result<()> {
        self.own(lab, settings)?.build_onto(&lab.stage_1(self.flavour)?, out)
    }

    /// Lays it out in the folder `root`, for a look at it.
    pub fn lay_out(&self, lab: &Lab, settings: &Value, root: &Path) -> Result<()> {
        Tool::new("sh", UNPACK_LIMIT)
            .args(["-c", "zstd -dcq <\"$1\" | cpio --quiet -idm", "sh"])
            .arg(lab.stage_1(self.flavour)?)
            .current_dir(root)
            .run()?;
        self.own(lab, settings)?.lay_out(root)
    }

    /// What comes over the base.
    fn own(&self, lab: &Lab, settings: &Value) -> Result<Initrd> {
        let mut arguments = self.arguments.clone();
        arguments
            .as_object_mut()
            .context("the arguments of Nix are no object")?
            .insert("settings".to_owned(), settings.clone());
        let mut texts: BTreeMap<String, (String, u32)> = generated::files(lab.workspace.root(), &arguments)?
            .into_iter()
            .map(|(path, text)| (path, (text, 0o644)))
            .collect();
        let fstab = format!("[Service]\nEnvironment=SYSTEMD_SYSROOT_FSTAB={FSTAB}\n");
        let own = [
            ("initrd-parse-etc.service.d/fstab.conf", fstab.as_str()),
            ("initrd-switch-root.service.d/nixos.conf", SWITCH_ROOT),
        ];
        let asked = self.units.iter().map(|(name, text)| (name.as_str(), text.as_str()));
        for (name, text) in NIXOS.iter().copied().chain(own).chain(asked) {
            texts.insert(format!("{UNITS}/{name}"), (text.to_owned(), 0o644));
        }
        let environment = format!("PATH=/bin:/sbin SYSTEMD_SYSROOT_FSTAB={FSTAB}");
        let system_conf = format!("[Manager]\nDefaultEnvironment=PATH=/bin:/sbin\nManagerEnvironment={environment}\n");
        for (path, text, mode) in [
            ("/etc/systemd/system.conf", system_conf.as_str(), 0o644),
            ("/etc/systemd/network/90-ethernet.network", NETWORK, 0o644),
            ("/etc/modules-load.d/nixos.conf", LOADED_AT_ONCE, 0o644),
            ("/usr/bin/find-closure", FIND_CLOSURE, 0o755),
            ("/usr/bin/activate-closure", ACTIVATE, 0o755),
        ] {
            texts.insert(path.to_owned(), (text.to_owned(), mode));
        }
        for (path, text, mode) in RUNNING {
            texts.insert(format!("/running/{path}"), ((*text).to_owned(), *mode));
        }
        for (path, text, mode) in &self.texts {
            texts.insert(path.clone(), (text.clone(), *mode));
        }
        // NixOS has the configuration in both.
        if let Some(config) = texts.get("/etc/freshroot/config.json").cloned() {
            texts.insert("/running/demo/config.json".to_owned(), config);
        }
        Ok(self.assemble(&texts, &lab.agent()?))
    }

    fn assemble(&self, texts: &BTreeMap<String, (String, u32)>, agent: &Path) -> Initrd {
        let mut initrd = Initrd::new();
        for (path, (text, mode)) in texts {
            initrd = initrd.text(path, text, *mode);
            if let Some((folder, name)) = path.split_once("/systemd/system/") {
                for (link, target) in generated::install(name, text) {
                    initrd = initrd.link(&format!("{folder}/systemd/system/{link}"), &target);
                }
            }
        }
        for (folder, unit) in ENABLED {
            initrd = initrd.link(&format!("{UNITS}/{folder}/{unit}"), &format!("/usr/lib/systemd/system/{unit}"));
        }
        // Below /usr: a folder /bin in this archive would take the place of the link in the base.
        if self.agent {
            initrd = initrd.file("/usr/bin/freshroot", agent, 0o755);
        }
        for (path, file) in &self.files {
            initrd = initrd.file(path, file, 0o755);
        }
        initrd
    }
}
