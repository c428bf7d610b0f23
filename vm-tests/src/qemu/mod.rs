//! Virtual machines: what one is made of, and one that runs.

pub mod accel;
pub mod beside;
pub mod console;
pub mod qmp;

use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use accel::Accelerator;
use beside::{Beside, Device};
use console::{Console, Listener};
use qmp::Qmp;

use crate::disk::Disk;
use crate::lan::{CABLE, Lan};

/// Between the start of QEMU and its control socket.
const START_LIMIT: Duration = Duration::from_secs(20);

/// What a disk is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// A PCI function of its own.
    Virtio,
    /// A port of an AHCI controller, which is in slot [`AHCI_SLOT`].
    Sata,
    /// A port of an xHCI controller.
    Usb,
}

/// The PCI function of the AHCI controller, as `/dev/disk/by-path` names it: `pci-0000:00:1e.0`.
const AHCI_SLOT: &str = "1e.0";
/// What the names of QEMU's devices for disks begin with, before the serial number.
const PLUGGED: &str = "plugged-";
/// What the names of disks with an unreadable sector begin with, before their number.
const FAULTY: &str = "faulty";

/// A disk of a machine.
#[derive(Debug, Clone)]
struct Attached {
    disk: Disk,
    serial: String,
    bus: Bus,
    /// Its place in the firmware's boot order.
    order: Option<u32>,
}

/// What a machine starts from.
#[derive(Debug)]
enum Start {
    /// A kernel that QEMU itself loads.
    Kernel { kernel: PathBuf, initrd: PathBuf, append: String },
    /// What its firmware finds.
    Firmware(Firmware),
}

/// The firmware of a machine that starts from a network card, a disk or a disc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS, which also shows what boot programs say on the first serial port.
    Bios,
    /// OVMF (Debian package `ovmf`).
    Uefi,
}

/// Debian's build of OVMF; with no memory of its own, it tries what the boot order says at each start.
const OVMF: &str = "/usr/share/ovmf/OVMF.fd";

/// A network card on QEMU's user network: the host is 10.0.2.2 and `fec0::2`, DHCP and router advertisements are QEMU's.
#[derive(Debug, Clone)]
pub struct Nic {
    /// Its address.
    pub mac: String,
    /// Whether it has a carrier at power-on.
    pub carrier: bool,
    /// Whether the network has IPv4.
    pub ipv4: bool,
    /// Whether nobody else is on the network, not even a DHCP server.
    pub mute: bool,
    /// Its own boot program (iPXE), which asks DHCP for the URL of a script; place in the boot order, and URL.
    pub boots: Option<(u32, String)>,
    /// The namespace of a network of the test's own ([`crate::lan::Lan`]), which it is plugged into instead.
    pub lan: Option<PathBuf>,
}

impl Nic {
    /// The card that most tests have.
    pub fn plain() -> Self {
        Self {
            mac: "52:54:00:12:34:56".to_owned(),
            carrier: true,
            ipv4: true,
            mute: false,
            boots: None,
            lan: None,
        }
    }

    /// A card in a network of the test's own.
    pub fn on(lan: &Lan) -> Self {
        Self {
            lan: Some(lan.namespace()),
            ..Self::plain()
        }
    }

    /// Makes it boot the script at `url`, at this place of the boot order.
    pub fn booting(mut self, order: u32, url: &str) -> Self {
        self.boots = Some((order, url.to_owned()));
        self
    }
}

/// What a machine is made of.
pub struct Machine {
    start: Start,
    memory: u32,
    cpus: u32,
    disks: Vec<Attached>,
    disc: Option<(PathBuf, u32)>,
    nics: Vec<Nic>,
    clock: Option<String>,
    devices: Vec<Device>,
    listener: Option<Listener>,
}

impl Machine {
    /// A machine with 1 GiB, two processors, no disk and no network.
    pub fn new(kernel: &Path, initrd: &Path, append: &str) -> Self {
        Self::starting(Start::Kernel {
            kernel: kernel.to_owned(),
            initrd: initrd.to_owned(),
            append: append.to_owned(),
        })
    }

    /// The same machine, started by its firmware: something in it must have a place in the boot order.
    pub fn firmware(firmware: Firmware) -> Self {
        Self::starting(Start::Firmware(firmware))
    }

    fn starting(start: Start) -> Self {
        Self {
            start,
            memory: 1024,
            cpus: 2,
            disks: Vec::new(),
            disc: None,
            nics: Vec::new(),
            clock: None,
            devices: Vec::new(),
            listener: None,
        }
    }

    /// Adds a device that is a program of its own.
    pub fn device(mut self, device: &Device) -> Self {
        self.devices.push(device.clone());
        self
    }

    /// RAM in MiB.
    pub fn memory(mut self, mebibytes: u32) -> Self {
        self.memory = mebibytes;
        self
    }

    /// Adds a virtio disk.
    pub fn disk(self, disk: &Disk, serial: &str) -> Self {
        self.attach(disk, serial, Bus::Virtio)
    }

    /// Adds a disk on this bus.
    pub fn attach(mut self, disk: &Disk, serial: &str, bus: Bus) -> Self {
        self.disks.push(Attached {
            disk: disk.clone(),
            serial: serial.to_owned(),
            bus,
            order: None,
        });
        self
    }

    /// Adds a virtio disk with a place in the boot order.
    pub fn boot_disk(mut self, disk: &Disk, serial: &str, order: u32) -> Self {
        self = self.disk(disk, serial);
        if let Some(added) = self.disks.last_mut() {
            added.order = Some(order);
        }
        self
    }

    /// Puts a disc into an IDE drive with a place in the boot order.
    pub fn disc(mut self, iso: &Path, order: u32) -> Self {
        self.disc = Some((iso.to_owned(), order));
        self
    }

    /// Adds the disk with a script that the demo system runs.
    pub fn script(self, disk: &Disk) -> Self {
        self.disk(&disk.read_only(), "script")
    }

    /// Adds a network card.
    pub fn nic(mut self, nic: Nic) -> Self {
        self.nics.push(nic);
        self
    }

    /// What its clock says at power-on, as `2026-11-21T00:00:00`.
    pub fn clock(mut self, time: &str) -> Self {
        self.clock = Some(time.to_owned());
        self
    }

    /// Passes each line of the console on.
    pub fn listener(mut self, listener: Listener) -> Self {
        self.listener = Some(listener);
        self
    }

    /// Powers it on. `dir` gets `console.log` and `serial1.log`, each with `name` in front; the machine is killed at the end of `life`.
    pub fn start(mut self, accelerator: Accelerator, dir: &Path, name: &str, life: Duration) -> Result<Vm> {
        let sockets = tempfile::Builder::new()
            .prefix("vm-")
            .tempdir()
            .context("making a folder for the control socket")?;
        let socket = sockets.path().join("qmp");
        let listener = UnixListener::bind(&socket).with_context(|| format!("listening on {}", socket.display()))?;
        let serial1 = dir.join(format!("{name}-serial1.log"));
        let mut arguments = self.arguments(accelerator, &socket, &serial1);
        let mut beside = Vec::new();
        for (number, device) in self.devices.iter().enumerate() {
            arguments.extend(device.arguments(sockets.path(), self.memory));
            beside.push(device.start(sockets.path(), &dir.join(format!("{name}-device{number}.log")))?);
        }
        let namespace = self.nics.iter().find_map(|nic| nic.lan.as_deref());
        let mut child = spawn(namespace, &arguments, &dir.join(format!("{name}-qemu.log")))?;
        let started = Instant::now();
        let console = Console::follow(&mut child, &dir.join(format!("{name}-console.log")), self.listener.take());
        let mut vm = Vm {
            child,
            console: console?,
            qmp: None,
            serial1,
            deadline: started + life,
            _beside: beside,
            _sockets: sockets,
        };
        vm.qmp = Some(Qmp::accept(&listener, START_LIMIT).with_context(|| {
            let log = dir.join(format!("{name}-qemu.log"));
            format!(
                "starting QEMU, which says: {}",
                std::fs::read_to_string(&log).unwrap_or_default().trim()
            )
        })?);
        // Paused until here, so that a cable is out before the guest looks.
        for (number, _) in self.nics.iter().enumerate().filter(|(_, nic)| !nic.carrier) {
            vm.set_link(number, false)?;
        }
        vm.qmp()?.execute("cont", &json!({}))?;
        Ok(vm)
    }

    fn arguments(&self, accelerator: Accelerator, socket: &Path, serial1: &Path) -> Vec<String> {
        let mut all: Vec<String> = accelerator.arguments().map(str::to_owned).into();
        let mut add = |name: &str, value: String| all.extend([name.to_owned(), value]);
        add("-m", self.memory.to_string());
        add("-smp", self.cpus.to_string());
        if let Some(time) = &self.clock {
            add("-rtc", format!("base={time}"));
        }
        match &self.start {
            Start::Kernel { kernel, initrd, append } => {
                add("-kernel", kernel.display().to_string());
                add("-initrd", initrd.display().to_string());
                add("-append", format!("{append}{}", accelerator.words()));
            }
            // Without a screen, SeaBIOS takes the serial port for its console.
            Start::Firmware(Firmware::Bios) => add("-machine", "graphics=off".to_owned()),
            Start::Firmware(Firmware::Uefi) => add("-bios", OVMF.to_owned()),
        }
        add("-chardev", format!("file,id=serial1,path={}", serial1.display()));
        add("-serial", "chardev:serial1".to_owned());
        // For tests that look at what a screen shows.
        add("-device", "VGA,romfile=".to_owned());
        if self.disks.iter().any(|disk| disk.bus == Bus::Sata) {
            add("-device", format!("ich9-ahci,id=sata,addr={AHCI_SLOT}"));
        }
        if self.disks.iter().any(|disk| disk.bus == Bus::Usb) {
            add("-device", "qemu-xhci,id=usb".to_owned());
        }
        let mut sata_ports = 0..;
        for (number, disk) in self.disks.iter().enumerate() {
            let Attached { disk, serial, bus, order } = disk;
            let access = if disk.is_read_only() { ",readonly=on" } else { "" };
            let order = place(*order);
            let file = disk.path().display();
            let file = match disk.unreadable_sector() {
                // Both the faulty way to the file and the sound one that takes its place are open at once.
                Some(sector) => format!(
                    "node-name={FAULTY}{number},file.driver=blkdebug,file.image.driver=file,file.image.filename={file},file.image.locking=off,\
                     file.inject-error.0.event=none,file.inject-error.0.iotype=read,file.inject-error.0.errno=5,file.inject-error.0.sector={sector}"
                ),
                None => format!("file={file}"),
            };
            // writeback: a killed machine has lost what its own kernel held back, and nothing that it was told is on disk.
            add(
                "-drive",
                format!("if=none,id=disk{number},format=raw,cache=writeback,{file}{access}"),
            );
            let device = match bus {
                Bus::Virtio => "virtio-blk-pci".to_owned(),
                Bus::Sata => format!("ide-hd,bus=sata.{}", sata_ports.next().unwrap_or_default()),
                Bus::Usb => "usb-storage,bus=usb.0".to_owned(),
            };
            let sector = disk.sector_bytes();
            add(
                "-device",
                format!(
                    "{device},id={PLUGGED}{serial},drive=disk{number},serial={serial},logical_block_size={sector},physical_block_size={sector}{order}"
                ),
            );
        }
        if let Some((iso, order)) = &self.disc {
            add(
                "-drive",
                format!("if=none,id=disc,media=cdrom,format=raw,readonly=on,file={}", iso.display()),
            );
            add("-device", format!("ide-cd,drive=disc,bootindex={order}"));
        }
        for (number, nic) in self.nics.iter().enumerate() {
            let Nic {
                mac,
                ipv4,
                mute,
                boots,
                lan,
                ..
            } = nic;
            // With QEMU's own ROM for this card (Debian package ipxe-qemu), or with none.
            let (rom, file) = match boots {
                Some((order, url)) => (place(Some(*order)), format!(",bootfile={url}")),
                None => (",romfile=".to_owned(), String::new()),
            };
            let network = match (mute, ipv4) {
                _ if lan.is_some() => format!("tap,id=net{number},ifname={CABLE},script=no,downscript=no"),
                // A hub with nothing else on it.
                (true, _) => format!("hubport,hubid={number},id=net{number}"),
                (false, true) => format!("user,id=net{number}{file}"),
                (false, false) => format!("user,id=net{number},ipv4=off,ipv6=on{file}"),
            };
            add("-netdev", network);
            add(
                "-device",
                format!("virtio-net-pci,id=nic{number},netdev=net{number},mac={mac}{rom}"),
            );
        }
        add("-qmp", format!("unix:{},server=off", socket.display()));
        all.push("-S".to_owned());
        all
    }
}

/// The property that gives a device its place in the boot order.
fn place(order: Option<u32>) -> String {
    order.map_or_else(String::new, |order| format!(",bootindex={order}"))
}

/// Starts QEMU with `arguments` and the first serial port on its standard input and output.
///
/// It dies with the thread that calls this (`setpriv --pdeathsig`), so that no harness that was killed leaves machines behind.
fn spawn(namespace: Option<&Path>, arguments: &[String], log: &Path) -> Result<Child> {
    let errors = File::create(log).with_context(|| format!("making {}", log.display()))?;
    crate::lan::command(namespace, Path::new("qemu-system-x86_64"))
        .args(["-machine", "pc", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-chardev", "stdio,id=serial0,signal=off", "-serial", "chardev:serial0"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .context("starting qemu-system-x86_64 (through setpriv)")
}

/// Kills QEMU, by its own process id, and waits for it.
fn end(child: &mut Child) -> Result<()> {
    child.kill().context("killing QEMU")?;
    child.wait().map(drop).context("waiting for QEMU")
}

/// How a guest ended its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It powered off.
    PoweredOff,
    /// It rebooted.
    Rebooted,
}

/// A guest that has not said a byte, nor read one of a disk: nothing of it has run that could be tested. Under translation that happens once in very many
/// boots: QEMU 7.2, two processors, cause unknown. Holds where its processors stand.
#[derive(Debug)]
pub struct NeverBegan(String);

impl fmt::Display for NeverBegan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the guest never began ({})", self.0)
    }
}

/// A machine that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    console: Console,
    qmp: Option<Qmp>,
    serial1: PathBuf,
    deadline: Instant,
    _beside: Vec<Beside>,
    _sockets: tempfile::TempDir,
}

impl Vm {
    /// Waits until the console says one of `texts`, which must be before the end of the machine's life. An error holds [`NeverBegan`] where that is why.
    pub fn wait_for(&mut self, texts: &[&str]) -> Result<String> {
        let left = self.left();
        let found = self.console.wait_for(texts, left);
        found.map_err(|error| self.explain(error))
    }

    /// Types on the first serial port.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        let line = self.child.stdin.as_mut().context("QEMU has no standard input")?;
        line.write_all(keys.as_bytes())
            .and_then(|()| line.flush())
            .context("typing on the serial port")
    }

    /// Waits until the machine has powered off or rebooted (which ends it too).
    pub fn wait_end(&mut self) -> Result<End> {
        let ended = self.console.wait_end(self.left());
        ended.map_err(|error| self.explain(error))?;
        self.child.wait().context("waiting for QEMU")?;
        let reason = self.qmp()?.shutdown_reason()?;
        match reason.as_str() {
            "guest-shutdown" => Ok(End::PoweredOff),
            "guest-reset" => Ok(End::Rebooted),
            _ => bail!("the machine ended for the reason «{reason}»"),
        }
    }

    /// Stops its processors.
    pub fn pause(&mut self) -> Result<()> {
        self.qmp()?.execute("stop", &json!({})).map(drop)
    }

    /// Takes the power away: what the guest has not handed to its disk is lost.
    pub fn cut_power(&mut self) -> Result<()> {
        end(&mut self.child)?;
        self.console.wait_end(START_LIMIT)
    }

    /// Plugs a network cable in or out.
    pub fn set_link(&mut self, nic: usize, up: bool) -> Result<()> {
        self.qmp()?
            .execute("set_link", &json!({ "name": format!("nic{nic}"), "up": up }))
            .map(drop)
    }

    /// Plugs a disk in while the machine runs.
    pub fn plug(&mut self, disk: &Disk, serial: &str) -> Result<()> {
        let node = format!("late-{serial}");
        let qmp = self.qmp()?;
        qmp.execute(
            "blockdev-add",
            &json!({ "node-name": node, "driver": "raw", "read-only": disk.is_read_only(), "file": { "driver": "file", "filename": disk.path() } }),
        )?;
        let device = format!("{PLUGGED}{serial}");
        qmp.execute(
            "device_add",
            &json!({
                "driver": "virtio-blk-pci", "id": device, "drive": node, "serial": serial,
                "logical_block_size": disk.sector_bytes(), "physical_block_size": disk.sector_bytes(),
            }),
        )?;
        Ok(())
    }

    /// Pulls the disk with this serial number out, and waits until the guest has let it go.
    pub fn unplug(&mut self, serial: &str) -> Result<()> {
        let device = format!("{PLUGGED}{serial}");
        let qmp = self.qmp()?;
        qmp.execute("device_del", &json!({ "id": device }))?;
        qmp.wait_event("DEVICE_DELETED", &|data| data["device"] == device.as_str())
            .with_context(|| format!("waiting until the disk {serial} is gone"))
    }

    /// Makes the unreadable sector of disk `number` readable, as a drive does that has a spare one for it when it is written.
    pub fn remap(&mut self, number: usize, disk: &Disk) -> Result<()> {
        let (sound, faulty) = (format!("sound{number}"), format!("{FAULTY}{number}"));
        let qmp = self.qmp()?;
        qmp.execute(
            "blockdev-add",
            &json!({ "node-name": sound, "driver": "file", "filename": disk.path(), "locking": "off" }),
        )?;
        qmp.execute(
            "blockdev-reopen",
            &json!({ "options": [{ "node-name": faulty, "driver": "raw", "file": sound }] }),
        )
        .map(drop)
    }

    /// Bytes that the guest has written to its disk `number` so far.
    pub fn written(&mut self, number: usize) -> Result<u64> {
        let stats = self.qmp()?.execute("query-blockstats", &json!({}))?;
        let device = format!("disk{number}");
        stats
            .as_array()
            .into_iter()
            .flatten()
            .find(|one| one.get("device").and_then(serde_json::Value::as_str) == Some(&device))
            .and_then(|one| one.pointer("/stats/wr_bytes"))
            .and_then(serde_json::Value::as_u64)
            .with_context(|| format!("QEMU counts nothing for {device}"))
    }

    /// All that the console said so far.
    pub fn said(&self) -> String {
        self.console.text()
    }

    /// All that came out of the second serial port so far.
    pub fn second_port(&self) -> Result<String> {
        let bytes = std::fs::read(&self.serial1).with_context(|| format!("reading {}", self.serial1.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Adds [`NeverBegan`] to an error, where that is so.
    fn explain(&mut self, error: anyhow::Error) -> anyhow::Error {
        match self.never_began() {
            Ok(Some(never)) => error.context(never),
            // It has ended, or QEMU does not answer: then the error is what there is to say.
            Ok(None) | Err(_) => error,
        }
    }

    /// Where its processors stand, if it has not said a byte on any port, nor read one of any disk.
    fn never_began(&mut self) -> Result<Option<NeverBegan>> {
        let silent = self.console.text().is_empty() && self.second_port()?.is_empty();
        if !silent || self.child.try_wait().context("looking for QEMU")?.is_some() {
            return Ok(None);
        }
        let qmp = self.qmp()?;
        let stats = qmp.execute("query-blockstats", &json!({}))?;
        let idle = |one: &serde_json::Value| one.pointer("/stats/rd_bytes").and_then(serde_json::Value::as_u64) == Some(0);
        if !stats.as_array().is_some_and(|all| all.iter().all(idle)) {
            return Ok(None);
        }
        let status = qmp.execute("query-status", &json!({}))?;
        let registers = qmp.execute("human-monitor-command", &json!({ "command-line": "info registers -a" }))?;
        let registers = registers.as_str().unwrap_or_default();
        // By the width of what runs.
        let is_place = |word: &&str| word.starts_with("RIP=") || word.starts_with("EIP=");
        let places: Vec<&str> = registers.split_whitespace().filter(is_place).collect();
        Ok(Some(NeverBegan(format!(
            "{}, processors at {}",
            status["status"].as_str().unwrap_or_default(),
            places.join(" and ")
        ))))
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    fn qmp(&mut self) -> Result<&mut Qmp> {
        self.qmp.as_mut().context("the machine has no control socket yet")
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait()
            && let Err(error) = end(&mut self.child)
        {
            eprintln!("qemu: {error:#}");
        }
        self.console.join();
    }
}
