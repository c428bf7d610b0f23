//! One test or one demonstration: its folder, its servers, its boots, and what a boot said.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::disk::Disk;
use crate::lab::{self, Generic, Lab};
use crate::lan::{Lan, ROUTER};
use crate::publisher::Served;
use crate::qemu::beside::Device;
use crate::qemu::console::Listener;
use crate::qemu::{Bus, Machine, Nic, Vm};
use crate::server::Server;
use crate::stage_1::{Flavour, Stage1};
use crate::system::System;

/// How long one boot may take with KVM, download, shutdown and all.
const BOOT_LIFE: Duration = Duration::from_secs(60);

/// A test's own things, below `target/vm/logs/<name>`.
#[derive(Debug)]
pub struct Trial<'a> {
    /// What it shares with others.
    pub lab: &'a Lab,
    /// Its folder.
    pub dir: PathBuf,
    flavour: Flavour,
}

impl<'a> Trial<'a> {
    /// Begins the trial `name` with an empty folder.
    pub fn new(lab: &'a Lab, name: &str) -> Result<Self> {
        Self::with(lab, name, Flavour::Debian12)
    }

    /// The same with another systemd, where one is stage 1.
    pub fn with(lab: &'a Lab, name: &str, flavour: Flavour) -> Result<Self> {
        let dir = lab.workspace.log_dir(name)?;
        Ok(Self { lab, dir, flavour })
    }

    /// systemd's stage 1 of this trial.
    pub fn stage_1(&self) -> Stage1 {
        Stage1::new(self.flavour)
    }

    /// Serves `served` on loopback.
    pub fn serve(&self, served: &Served) -> Result<Server> {
        self.serve_at(served, "127.0.0.1:0")
    }

    /// Serves `served` at `address`.
    pub fn serve_at(&self, served: &Served, address: &str) -> Result<Server> {
        let program = self.lab.publisher()?.program;
        Server::start(&program, served.dir(), address, &self.dir.join("server.log"))
    }

    /// Serves `served` in a network of the test's own, at its router.
    pub fn serve_in(&self, lan: &Lan, served: &Served) -> Result<Server> {
        let program = self.lab.publisher()?.program;
        let (namespace, address) = (lan.namespace(), format!("{ROUTER}:0"));
        Server::start_in(Some(&namespace), &program, served.dir(), &address, &self.dir.join("server.log"))
    }

    /// A copy of the folder that offers `generation`, to be tampered with.
    pub fn own_served(&self, generation: u32) -> Result<Served> {
        self.lab.served(generation)?.copy(&self.dir.join("served"))
    }

    /// An empty cache disk.
    pub fn empty_cache(&self) -> Result<Disk> {
        self.lab.empty_cache(&self.dir.join("cache.img"))
    }

    /// A cache disk with generation 1, put there by a cold boot that all tests share.
    pub fn filled_cache(&self) -> Result<Disk> {
        self.filled_cache_as("cache.img")
    }

    /// The same, as the file `name`.
    pub fn filled_cache_as(&self, name: &str) -> Result<Disk> {
        self.lab
            .filled_cache(&self.dir.join(name), || Trial::new(self.lab, "fill-the-cache")?.fill())
    }

    fn fill(&self) -> Result<Disk> {
        let server = self.serve(&self.lab.served(1)?)?;
        let disk = self.empty_cache()?;
        self.boot().disk(&disk).server(server.address().port()).once("boot")?;
        Ok(disk)
    }

    /// Removes all but the logs: disks and folders of a test that passed tell nothing more.
    pub fn tidy(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir).with_context(|| format!("listing {}", self.dir.display()))? {
            let path = entry.with_context(|| format!("listing {}", self.dir.display()))?.path();
            if path.is_dir() {
                fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
            } else if path.extension().is_none_or(|extension| extension != "log") {
                fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// Powers `machine` on, for boots that QEMU's own loader has no part in; its life is `times` the usual one.
    pub fn power_on(&self, machine: Machine, name: &str, times: u32) -> Result<Vm> {
        let accelerator = self.lab.accelerator;
        machine.start(accelerator, &self.dir, name, BOOT_LIFE * times * accelerator.patience())
    }

    /// A boot with the usual configuration.
    pub fn boot(&self) -> Boot<'_> {
        Boot {
            trial: self,
            config: json!({}),
            words: Vec::new(),
            consoles: "console=ttyS0".to_owned(),
            memory: 1024,
            disks: Vec::new(),
            nics: Vec::new(),
            clock: None,
            script: None,
            listener: None,
            files: Vec::new(),
            life: BOOT_LIFE,
            stage_1: None,
            tools: false,
            generic: None,
            devices: Vec::new(),
        }
    }
}

/// A boot in preparation.
pub struct Boot<'a> {
    trial: &'a Trial<'a>,
    config: Value,
    words: Vec<String>,
    consoles: String,
    memory: u32,
    disks: Vec<(Disk, String, Bus)>,
    nics: Vec<Nic>,
    clock: Option<String>,
    script: Option<String>,
    listener: Option<Listener>,
    files: Vec<(String, PathBuf)>,
    life: Duration,
    stage_1: Option<Stage1>,
    tools: bool,
    generic: Option<Generic>,
    devices: Vec<Device>,
}

impl<'a> Boot<'a> {
    /// Adds a TPM, or a folder of the host.
    pub fn device(mut self, device: &Device) -> Self {
        self.devices.push(device.clone());
        self
    }

    /// Changes settings; see [`Lab::config`].
    pub fn config(mut self, changes: Value) -> Self {
        self.config = changes;
        self
    }

    /// Adds words to the kernel command line.
    pub fn words(mut self, words: &str) -> Self {
        self.words.push(words.to_owned());
        self
    }

    /// Replaces the consoles.
    pub fn consoles(mut self, consoles: &str) -> Self {
        consoles.clone_into(&mut self.consoles);
        self
    }

    /// Puts the programs for disks beside the agent, and nothing else of systemd's stage 1 is started.
    pub fn with_tools(mut self) -> Self {
        self.tools = true;
        self
    }

    /// Boots the kernel for any hardware, with all that it has for disks; its system has to be on one of them.
    pub fn on(mut self, generic: &Generic) -> Self {
        self.generic = Some(generic.clone());
        self.system(&generic.system)
    }

    /// Has systemd be stage 1, with the agent as a unit in it.
    pub fn systemd(mut self, stage_1: Stage1) -> Self {
        let words = stage_1.words();
        // Two systemds start, where the agent alone needs a second.
        self.life = BOOT_LIFE * 2;
        self.stage_1 = Some(stage_1);
        self.words(words)
    }

    /// Plugs in a network card and names the server, by its port on the host.
    pub fn server(self, port: u16) -> Self {
        self.nic(Nic::plain()).words(&format!("freshroot.url=http://10.0.2.2:{port}"))
    }

    /// Plugs in a network card.
    pub fn nic(mut self, nic: Nic) -> Self {
        self.nics.push(nic);
        self
    }

    /// What the machine's clock says at power-on, as `2026-11-21T00:00:00`.
    pub fn clock(mut self, time: &str) -> Self {
        self.clock = Some(time.to_owned());
        self
    }

    /// Wants `system` by name, as generated command lines do.
    pub fn system(self, system: &System) -> Self {
        self.words(&format!(
            "freshroot.system={} init=/nix/.freshroot/init",
            system.toplevel.in_guest()
        ))
    }

    /// RAM in MiB.
    pub fn memory(mut self, mebibytes: u32) -> Self {
        self.memory = mebibytes;
        self
    }

    /// Adds a disk.
    pub fn disk(self, disk: &Disk) -> Self {
        let serial = format!("disk{}", self.disks.len());
        self.attach(disk, &serial, Bus::Virtio)
    }

    /// Adds a disk with this serial number.
    pub fn disk_as(self, disk: &Disk, serial: &str) -> Self {
        self.attach(disk, serial, Bus::Virtio)
    }

    /// Adds a disk with this serial number on this bus.
    pub fn attach(mut self, disk: &Disk, serial: &str, bus: Bus) -> Self {
        self.disks.push((disk.clone(), serial.to_owned(), bus));
        self
    }

    /// Has the demo system run `script` as root; see [`Booted::script`].
    pub fn script(mut self, script: &str) -> Self {
        self.script = Some(script.to_owned());
        self
    }

    /// Puts a file into the agent's initrd (not into systemd's, nor into one with tools).
    pub fn file(mut self, place: &str, file: &Path) -> Self {
        self.files.push((place.to_owned(), file.to_owned()));
        self
    }

    /// Passes the console's lines on.
    pub fn listener(mut self, listener: Listener) -> Self {
        self.listener = Some(listener);
        self
    }

    /// Gives the boot `times` the usual time.
    pub fn patience(mut self, times: u32) -> Self {
        self.life *= times;
        self
    }

    /// Powers on with the agent's initrd; `name` begins the names of its logs.
    pub fn start(mut self, name: &str) -> Result<Vm> {
        if self.stage_1.is_some() && !self.words.iter().any(|words| words.contains("init=")) {
            // As generated command lines have it in channel mode.
            self = self.words("init=/nix/.freshroot/init");
        }
        let initrd = self.trial.dir.join(format!("{name}-initrd"));
        let lab = self.trial.lab;
        match &self.stage_1 {
            None if let Some(generic) = &self.generic => {
                let mut changes = self.config.clone();
                lab::merge(
                    &mut changes,
                    &json!({ "kernel": { "storeName": generic.system.kernel_store_name } }),
                );
                lab.generic_initrd(generic, &lab.config(&changes)?, &initrd)?;
            }
            None if self.tools => lab.initrd_with_tools(&lab.config(&self.config)?, &initrd)?,
            None => lab.initrd_with(&lab.config(&self.config)?, &self.files, &[], &initrd)?,
            Some(stage_1) => {
                let mut changes = Stage1::config();
                lab::merge(&mut changes, &self.config);
                let config = lab.config(&changes)?;
                stage_1.build(lab, &config, &initrd)?;
            }
        }
        self.start_with(name, &initrd)
    }

    /// Powers on with `initrd`.
    pub fn start_with(self, name: &str, initrd: &Path) -> Result<Vm> {
        let lab = self.trial.lab;
        let append = format!("{} loglevel=4 panic=-1 {}", self.consoles, self.words.join(" "));
        let kernel = self.generic.as_ref().map_or(&lab.kernel, |generic| &generic.kernel);
        let mut machine = Machine::new(&kernel.image, initrd, &append).memory(self.memory);
        for (disk, serial, bus) in &self.disks {
            machine = machine.attach(disk, serial, *bus);
        }
        for nic in self.nics {
            machine = machine.nic(nic);
        }
        for device in &self.devices {
            machine = machine.device(device);
        }
        if let Some(time) = &self.clock {
            machine = machine.clock(time);
        }
        if let Some(script) = &self.script {
            machine = machine.script(&Disk::script(&self.trial.dir.join(format!("{name}-script.img")), script)?);
        }
        if let Some(listener) = self.listener {
            machine = machine.listener(listener);
        }
        machine.start(lab.accelerator, &self.trial.dir, name, self.life * lab.accelerator.patience())
    }

    /// Boots to the demo system's report, has it power off, and waits for that.
    pub fn once(self, name: &str) -> Result<Booted> {
        let scripted = self.script.is_some();
        let mut vm = self.words("demo.then=poweroff").start(name)?;
        let mut booted = Booted::read(&mut vm)?;
        if scripted {
            booted.read_script(&mut vm)?;
        }
        must_power_off(&mut vm)?;
        Ok(booted)
    }
}

/// Waits for the end of a machine that powers off.
pub fn must_power_off(vm: &mut Vm) -> Result<()> {
    let end = vm.wait_end()?;
    ensure!(end == crate::qemu::End::PoweredOff, "the machine did not power off but {end:?}");
    Ok(())
}

/// What the demo system said.
#[derive(Debug)]
pub struct Booted {
    facts: BTreeMap<String, String>,
    /// The agent's report, or null.
    pub report: Value,
    memory: BTreeMap<String, String>,
    /// What the script wrote.
    pub script: String,
}

impl Booted {
    /// Waits for the demo system and reads its lines.
    pub fn read(vm: &mut Vm) -> Result<Self> {
        let ready = vm.wait_for(&["DEMO-READY "])?;
        let report = vm.wait_for(&["BOOT-REPORT "])?;
        let memory = vm.wait_for(&["MEMINFO "])?;
        let report = match report.trim_start_matches("BOOT-REPORT ") {
            "none" => Value::Null,
            text => serde_json::from_str(text).with_context(|| format!("reading the agent's report: {text}"))?,
        };
        Ok(Self {
            facts: facts(&ready),
            report,
            memory: facts(&memory),
            script: String::new(),
        })
    }

    /// Waits for the script's end; a status other than 0 is an error with what it wrote.
    pub fn read_script(&mut self, vm: &mut Vm) -> Result<()> {
        let done = vm.wait_for(&["SCRIPT-DONE "])?;
        self.script = vm.second_port()?;
        if facts(&done).get("status").map(String::as_str) != Some("0") {
            bail!("the script in the guest failed ({done}):\n{}", self.script.trim());
        }
        Ok(())
    }

    /// Which generation runs.
    pub fn generation(&self) -> Result<u32> {
        let text = self.facts.get("generation").context("the demo system did not say its generation")?;
        text.parse().with_context(|| format!("reading the generation «{text}»"))
    }

    /// A line of `/proc/meminfo`, in KiB.
    pub fn memory(&self, name: &str) -> Result<u64> {
        let text = self
            .memory
            .get(name)
            .with_context(|| format!("the demo system did not say {name}"))?;
        text.parse().with_context(|| format!("reading {name}={text}"))
    }

    /// A text of the report, by JSON pointer; empty if it is not there.
    pub fn text(&self, pointer: &str) -> &str {
        self.report.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// A number of the report, by JSON pointer.
    pub fn number(&self, pointer: &str) -> Result<u64> {
        let value = self.report.pointer(pointer).and_then(Value::as_u64);
        value.with_context(|| format!("the agent's report has no number at {pointer}: {}", self.report))
    }
}

/// `WORD name=value name=value …`
fn facts(line: &str) -> BTreeMap<String, String> {
    line.split_whitespace()
        .filter_map(|word| word.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// A loopback port that refuses connections: it was free a moment ago.
pub fn closed_port() -> Result<SocketAddr> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("looking for a free port")?;
    listener.local_addr().context("reading a free port")
}

/// The cache's images and generations on `disk`, with their digests; to be compared before and after.
pub fn cache_content(disk: &Disk) -> Result<Vec<(String, String)>> {
    // On a copy: replaying the journal of a machine that was killed changes the disk.
    let copy = disk.path().with_extension("look");
    crate::command::Tool::new("cp", Duration::from_secs(120))
        .arg("--sparse=always")
        .arg(disk.path())
        .arg(&copy)
        .run()?;
    let looked = Disk::at(&copy);
    let found = looked
        .check()
        .and_then(|()| looked.digests(&["/freshroot/images", "/freshroot/generations"]));
    fs::remove_file(&copy).with_context(|| format!("removing {}", copy.display()))?;
    found
}
