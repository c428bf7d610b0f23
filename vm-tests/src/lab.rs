//! What boots share: kernel, accelerator, systems, keys, served folders and a disk with a filled cache. Each is made when it is first asked for.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::build;
use crate::command::Tool;
use crate::disk::{Disk, FsType};
use crate::initrd::{self, Initrd};
use crate::packages::kernel::{self, Flavour, Kernel};
use crate::publisher::{Key, Publisher, Served};
use crate::qemu::accel::{self, Accelerator};
use crate::stage_1;
use crate::system::{Builder, Server, Spec, System, busybox_static};
use crate::workspace::Workspace;

/// The channel of all published generations.
pub const CHANNEL: &str = "demo";
/// Label of the cache disk.
pub const CACHE_LABEL: &str = "CACHE";
/// The key of LUKS containers in the tests, which is no secret.
pub const STACK_KEY: &str = "a key that is no secret\n";
/// Room for two images of the demo system and a partial one.
const CACHE_MEBIBYTES: u64 = 1024;
const COPY_LIMIT: Duration = Duration::from_secs(120);

/// A value that is made once, also when two threads ask.
#[derive(Debug)]
struct Once<T>(Mutex<Option<T>>);

impl<T: Clone> Once<T> {
    const fn new() -> Self {
        Self(Mutex::new(None))
    }

    fn get(&self, make: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut value = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = value.as_ref() {
            return Ok(value.clone());
        }
        Ok(value.insert(make()?).clone())
    }
}

/// What boots on a kernel for any hardware.
#[derive(Debug, Clone)]
pub struct Generic {
    /// Debian's generic build, with the modules that the tests need.
    pub kernel: Kernel,
    /// Generation 1, with this kernel.
    pub system: System,
    /// What its initrds have in common.
    base: PathBuf,
    /// The folder that offers it.
    pub served: Served,
}

impl Generic {
    /// What its initrds have in common: systemd and udev, programs and drivers for disks.
    pub fn base(&self) -> &Path {
        &self.base
    }
}

/// The shared things.
#[derive(Debug)]
pub struct Lab {
    /// Where everything lies.
    pub workspace: Workspace,
    /// The guest's kernel.
    pub kernel: Kernel,
    /// How guest code is run.
    pub accelerator: Accelerator,
    level: u32,
    agent: Once<PathBuf>,
    publisher: Once<Publisher>,
    key: Once<Key>,
    systems: Mutex<()>,
    served: [Once<Served>; 2],
    cached: Once<Disk>,
    stage_1: [Once<PathBuf>; 2],
    generic: Once<Generic>,
}

impl Lab {
    /// A lab whose images are packed with zstd `level`.
    pub fn new(workspace: Workspace, level: u32) -> Result<Self> {
        let kernel = kernel::newest(&workspace.vm(), Flavour::Cloud)?;
        let dir = workspace.log_dir("accelerator")?;
        let accelerator = accel::choose(&kernel.image, &dir)?;
        Ok(Self {
            workspace,
            kernel,
            accelerator,
            level,
            agent: Once::new(),
            publisher: Once::new(),
            key: Once::new(),
            systems: Mutex::default(),
            served: [Once::new(), Once::new()],
            cached: Once::new(),
            stage_1: [Once::new(), Once::new()],
            generic: Once::new(),
        })
    }

    /// The static agent.
    pub fn agent(&self) -> Result<PathBuf> {
        self.agent.get(|| build::agent(&self.workspace))
    }

    /// The publishing side.
    pub fn publisher(&self) -> Result<Publisher> {
        self.publisher.get(|| build::publisher(&self.workspace))
    }

    /// The key that the agent trusts.
    pub fn key(&self) -> Result<Key> {
        self.key.get(|| self.publisher()?.key(&self.workspace.vm().join("keys"), "demo-1"))
    }

    /// The system of `spec`.
    pub fn system(&self, spec: Spec) -> Result<System> {
        // One build at a time: generations share store paths.
        let _building = self.systems.lock().unwrap_or_else(PoisonError::into_inner);
        Builder::new(&self.workspace.vm(), &self.kernel, self.level)?.build(spec)
    }

    /// Generation 1 as a server, with `files`.
    pub fn server_system(&self, files: &BTreeMap<String, String>) -> Result<System> {
        let agent = self.agent()?;
        let _building = self.systems.lock().unwrap_or_else(PoisonError::into_inner);
        let server = Server { agent: &agent, files };
        Builder::new(&self.workspace.vm(), &self.kernel, self.level)?.build_with(Spec::generation(1), Some(server))
    }

    /// A served folder in which the channel offers `generation` (1 or 2), earlier ones included. To be copied, never changed.
    pub fn served(&self, generation: u32) -> Result<Served> {
        let place = self.served.get(usize::from(generation != 1)).context("there are two generations")?;
        place.get(|| {
            let dir = self.workspace.vm().join(format!("served-{generation}"));
            remove(&dir)?;
            if generation == 1 {
                fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
            } else {
                self.served(1)?.copy(&dir)?;
            }
            let system = self.system(Spec::generation(generation))?;
            eprintln!("publish: generation {generation}");
            self.publisher()?.image(&system.image, &dir, CHANNEL, &self.key()?)?;
            Ok(Served::at(&dir))
        })
    }

    /// What boots on a kernel for any hardware.
    pub fn generic(&self) -> Result<Generic> {
        self.generic.get(|| {
            let vm = self.workspace.vm();
            let whole = kernel::newest(&vm, Flavour::Generic)?;
            let base = stage_1::packed_for_hardware(&vm, &whole)?;
            let kernel = kernel::with_modules(&vm, &whole, &stage_1::hardware_modules())?;
            let system = {
                let _building = self.systems.lock().unwrap_or_else(PoisonError::into_inner);
                Builder::new(&vm, &kernel, self.level)?.build(Spec::generation(1))?
            };
            let dir = vm.join("served-generic");
            remove(&dir)?;
            fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
            self.publisher()?.image(&system.image, &dir, CHANNEL, &self.key()?)?;
            Ok(Generic {
                kernel,
                system,
                base,
                served: Served::at(&dir),
            })
        })
    }

    /// The initrd with the agent, `config`, and all programs and drivers for disks, at `out`.
    pub fn generic_initrd(&self, generic: &Generic, config: &Value, out: &Path) -> Result<()> {
        self.initrd_onto(&generic.base, config, out)
    }

    /// What all initrds with the systemd of `flavour` have in common.
    pub fn stage_1(&self, flavour: stage_1::Flavour) -> Result<PathBuf> {
        let [debian_12, newest] = &self.stage_1;
        let place = match flavour {
            stage_1::Flavour::Debian12 => debian_12,
            stage_1::Flavour::Newest => newest,
        };
        place.get(|| stage_1::packed(&self.workspace.vm(), &self.kernel, flavour))
    }

    /// The configuration that most boots have; `changes` are put over it, setting by setting.
    pub fn config(&self, changes: &Value) -> Result<Value> {
        let system = self.system(Spec::generation(1))?;
        let mut config = json!({
            "version": 1,
            "channel": CHANNEL,
            "trustedPublicKeys": [self.key()?.public],
            "cache": { "device": format!("LABEL={CACHE_LABEL}") },
            "kernel": { "storeName": system.kernel_store_name },
            "onFailure": { "action": "poweroff", "delay": "1s" },
        });
        merge(&mut config, changes);
        Ok(config)
    }

    /// The initrd with the agent and `config`, at `out`.
    pub fn initrd(&self, config: &Value, out: &Path) -> Result<()> {
        self.initrd_with(config, &[], &[], out)
    }

    /// The same with more files, by their places, and `more` kernel modules.
    pub fn initrd_with(&self, config: &Value, files: &[(String, PathBuf)], more: &[&str], out: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(config).context("writing the configuration")?;
        let mut initrd = Initrd::new()
            .file("/init", &self.agent()?, 0o755)
            .text("/etc/freshroot/config.json", &text, 0o644)
            .file("/bin/sh", &busybox_static(&self.workspace.vm())?, 0o755);
        for (place, file) in files {
            initrd = initrd.file(place, file, 0o755);
        }
        initrd.build(&self.kernel, &[initrd::MODULES, more].concat(), out)
    }

    /// An initrd of the agent with the programs and modules for LUKS, LVM, MD and checks that systemd's stage 1 has here.
    pub fn initrd_with_tools(&self, config: &Value, out: &Path) -> Result<()> {
        self.initrd_onto(&self.stage_1(stage_1::Flavour::Debian12)?, config, out)
    }

    fn initrd_onto(&self, base: &Path, config: &Value, out: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(config).context("writing the configuration")?;
        Initrd::new()
            .file("/init", &self.agent()?, 0o755)
            .text("/etc/freshroot/config.json", &text, 0o644)
            .text("/etc/keys/disks", STACK_KEY, 0o400)
            .build_onto(base, out)
    }

    /// An empty cache disk at `path`.
    pub fn empty_cache(&self, path: &Path) -> Result<Disk> {
        Disk::make(path, CACHE_MEBIBYTES, FsType::Ext4, CACHE_LABEL)
    }

    /// A copy at `path` of the disk that `fill` makes once for all.
    pub fn filled_cache(&self, path: &Path, fill: impl FnOnce() -> Result<Disk>) -> Result<Disk> {
        let filled = self.cached.get(fill)?;
        Tool::new("cp", COPY_LIMIT)
            .args(["--sparse=always"])
            .arg(filled.path())
            .arg(path)
            .run()?;
        Ok(Disk::at(path))
    }
}

/// Puts `changes` over `config`: objects are merged, everything else is replaced, null removes.
pub fn merge(config: &mut Value, changes: &Value) {
    let (Some(fields), Some(changes)) = (config.as_object_mut(), changes.as_object()) else {
        *config = changes.clone();
        return;
    };
    for (name, change) in changes {
        if change.is_null() {
            fields.remove(name);
        } else {
            let field = fields.entry(name.clone()).or_insert(Value::Null);
            if field.is_object() {
                merge(field, change);
            } else {
                *field = change.clone();
            }
        }
    }
}

/// Removes a folder that may not be there.
pub fn remove(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn changes_are_put_over_a_configuration() {
        let mut config = json!({ "a": { "b": 1, "c": 2 }, "d": [1], "e": 5 });
        merge(&mut config, &json!({ "a": { "b": 7 }, "d": [2], "e": null, "f": { "g": 1 } }));
        assert_eq!(config, json!({ "a": { "b": 7, "c": 2 }, "d": [2], "f": { "g": 1 } }));
    }
}
