//! The ways in which machines come to the agent: iPXE, kexec, Pixiecore, an ISO, a local boot loader. What boots them is what is generated.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::Scenario;
use crate::boot_loader;
use crate::command::Tool;
use crate::disk::Disk;
use crate::lab::{CACHE_LABEL, CHANNEL};
use crate::line::Line;
use crate::packages;
use crate::publisher::{Bootable, Served};
use crate::qemu::{Firmware, Machine, Nic};
use crate::server::Server;
use crate::system::Spec;
use crate::trial::{Booted, Trial, must_power_off};

/// The tests of this file.
pub const ALL: &[Scenario] = &[
    Scenario::new(
        "ipxe",
        "a network card's iPXE boots a machine that has nothing, from netboot.ipxe alone",
        ipxe,
    ),
    Scenario::new(
        "ipxe-by-mac",
        "of all machines that boot netboot.ipxe, a listed one boots its own channel, also where a medium is missing",
        ipxe_by_mac,
    ),
    Scenario::new(
        "ipxe-server-gone",
        "a server that dies while a machine loads its kernel leaves it to the next boot entry, GRUB on the cache disk, which boots what is cached",
        server_gone,
    ),
    Scenario::new(
        "pixiecore",
        "a machine boots with what the server answers to Pixiecore, and one that is not listed gets no answer",
        pixiecore,
    ),
    Scenario::new(
        "kexec",
        "a running system restarts into a newer one by kexec-boot, without curl or bash, and leaves its disk clean",
        kexec,
    ),
];

/// Another channel than the usual one.
const OTHER: &str = "other";
/// Words of generated command lines. A machine that was booted by another program than the harness has no others.
pub const WORDS: &str = "console=ttyS0 loglevel=4 panic=-1 demo.then=poweroff";
/// Where a local boot loader finds kernel and initrd on the cache disk.
const SAVED: &str = "/boot/freshroot";
/// Firmware, boot program and two downloads come before the kernel.
const PATIENCE: u32 = 2;
const TOOL_LIMIT: Duration = Duration::from_secs(120);

/// A server whose folder holds all that a machine boots from.
pub struct Ways<'a> {
    trial: &'a Trial<'a>,
    /// The folder.
    pub served: Served,
    /// The server.
    pub server: Server,
    initrd: PathBuf,
}

impl<'a> Ways<'a> {
    /// Serves a folder in which `generation` is published with a kernel and an initrd, whose configuration names the server; `changes` are put over it.
    pub fn new(trial: &'a Trial<'a>, generation: u32, changes: &Value) -> Result<Self> {
        let served = trial.own_served(generation)?;
        // Before anything boots from it is published: the port is known only now.
        let server = trial.serve(&served)?;
        let initrd = trial.dir.join("initrd");
        let mut config = json!({ "url": guest_url(&server) });
        for (name, value) in changes.as_object().into_iter().flatten() {
            config[name] = value.clone();
        }
        trial.lab.initrd(&trial.lab.config(&config)?, &initrd)?;
        let ways = Self {
            trial,
            served,
            server,
            initrd,
        };
        ways.publish(CHANNEL, generation, &[])?;
        Ok(ways)
    }

    /// Publishes `generation` in `channel`, with kernel, initrd and more options.
    pub fn publish(&self, channel: &str, generation: u32, more: &[&str]) -> Result<()> {
        let lab = self.trial.lab;
        let system = lab.system(Spec::generation(generation))?;
        let boot = Bootable {
            kernel: &lab.kernel.image,
            initrd: &self.initrd,
            words: WORDS,
            more,
        };
        lab.publisher()?
            .bootable(&system.image, self.served.dir(), channel, &lab.key()?, &boot)
    }

    /// A machine whose network card boots `netboot.ipxe` from the server.
    pub fn netbooting(&self) -> Machine {
        netbooting(self.server.address().port())
    }

    fn asked_for(&self, folder: &str) -> usize {
        let requests = self.server.requests();
        requests
            .iter()
            .filter(|one| one.path.starts_with(folder) && one.status == 200)
            .count()
    }
}

/// A machine whose network card boots `netboot.ipxe` from this port of the host.
fn netbooting(port: u16) -> Machine {
    let url = format!("http://10.0.2.2:{port}/netboot.ipxe");
    Machine::firmware(Firmware::Bios).nic(Nic::plain().booting(0, &url))
}

/// The server as machines see it.
pub fn guest_url(server: &Server) -> String {
    format!("http://10.0.2.2:{}", server.address().port())
}

fn ipxe(trial: &Trial<'_>) -> Result<()> {
    let ways = Ways::new(trial, 1, &json!({}))?;
    let disk = trial.empty_cache()?;
    let machine = ways.netbooting().disk(&disk, "disk0");
    let mut vm = trial.power_on(machine, "boot", PATIENCE)?;
    let booted = Booted::read(&mut vm)?;
    must_power_off(&mut vm)?;
    ensure!(
        booted.generation()? == 1 && booted.text("/source") == "network",
        "report: {}",
        booted.report
    );
    for folder in ["/netboot.ipxe", "/netboot/demo.ipxe", "/kernels/", "/initrds/"] {
        ensure!(
            ways.asked_for(folder) == 1,
            "{folder} was not asked for once: {:?}",
            ways.server.requests()
        );
    }
    Ok(())
}

fn ipxe_by_mac(trial: &Trial<'_>) -> Result<()> {
    let missing = json!({ "cache": { "device": null, "wait": "1s" }, "media": { "device": "LABEL=NOWHERE" } });
    let ways = Ways::new(trial, 1, &missing)?;
    ways.publish(OTHER, 2, &["--channel-mode"])?;
    let listed = format!("{}={OTHER}", Nic::plain().mac);
    trial.lab.publisher()?.keep("hosts", ways.served.dir(), &[&listed])?;
    let mut vm = trial.power_on(ways.netbooting(), "boot", PATIENCE)?;
    let booted = Booted::read(&mut vm)?;
    must_power_off(&mut vm)?;
    ensure!(
        booted.generation()? == 2 && booted.text("/system/channel") == OTHER,
        "report: {}",
        booted.report
    );
    ensure!(
        booted.report.to_string().contains("there is no medium: no device is LABEL=NOWHERE"),
        "the missing medium is not named: {}",
        booted.report
    );
    Ok(())
}

/// Debian has no Pixiecore: what it would be told is fetched, and a machine is started as it would start one.
fn pixiecore(trial: &Trial<'_>) -> Result<()> {
    let ways = Ways::new(trial, 1, &json!({ "cache": null }))?;
    let mac = Nic::plain().mac;
    let listed = format!("{mac}={CHANNEL}");
    trial.lab.publisher()?.keep("hosts", ways.served.dir(), &[&listed])?;
    let api = format!("http://{}/v1/boot", ways.server.address());
    let unknown = curl().arg(format!("{api}/52:54:00:12:34:57")).output()?;
    ensure!(
        !unknown.status.success() && String::from_utf8_lossy(&unknown.stderr).contains("404"),
        "a machine that is not listed got an answer: {unknown:?}"
    );
    let answer: Value = serde_json::from_str(&curl().arg(format!("{api}/{mac}")).text()?).context("reading Pixiecore's answer")?;
    let text = |pointer: &str| {
        let text = answer.pointer(pointer).and_then(Value::as_str);
        text.with_context(|| format!("the answer has no {pointer}: {answer}"))
    };
    let (kernel, initrd) = (trial.dir.join("kernel"), trial.dir.join("its-initrd"));
    for (url, file) in [(text("/kernel")?, &kernel), (text("/initrd/0")?, &initrd)] {
        curl().arg("--output").arg(file).arg(url).run()?;
    }
    let machine = Machine::new(&kernel, &initrd, text("/cmdline")?).nic(Nic::plain());
    let mut vm = trial.power_on(machine, "boot", 1)?;
    let booted = Booted::read(&mut vm)?;
    must_power_off(&mut vm)?;
    ensure!(
        booted.generation()? == 1 && booted.text("/source") == "ram",
        "report: {}",
        booted.report
    );
    Ok(())
}

fn curl() -> Tool {
    Tool::new("curl", TOOL_LIMIT).args(["--fail", "--silent", "--show-error"])
}

/// A disk with generation 1 in its cache, and with GRUB, which boots what `kexec-boot --save` took from the served folder.
fn local_boot(ways: &Ways<'_>) -> Result<Disk> {
    let trial = ways.trial;
    let cache = trial.filled_cache()?;
    let saved = trial.dir.join("saved");
    Tool::new("sh", TOOL_LIMIT)
        .arg(ways.served.dir().join("kexec-boot"))
        .arg("--save")
        .arg(&saved)
        .run()?;
    cache.put(&saved, SAVED)?;
    boot_loader::disk(&cache, CACHE_LABEL, SAVED, &trial.dir, &trial.dir.join("disk.img"))
}

fn server_gone(trial: &Trial<'_>) -> Result<()> {
    let mut ways = Ways::new(trial, 1, &json!({}))?;
    let disk = local_boot(&ways)?;
    let line = Line::open(ways.server.address())?;
    // The scripts have a few hundred bytes, the kernel many megabytes.
    line.hold_at(4_000_000);
    let machine = netbooting(line.port()).boot_disk(&disk, "disk0", 1);
    let mut vm = trial.power_on(machine, "boot", PATIENCE)?;
    vm.wait_for(&["loading kernel and initrd, try 1"])?;
    line.wait_held(TOOL_LIMIT)?;
    ways.server.stop()?;
    drop(line);
    vm.wait_for(&["giving up; the next boot entry of this machine follows"])?;
    let booted = Booted::read(&mut vm)?;
    must_power_off(&mut vm)?;
    ensure!(
        booted.generation()? == 1 && booted.text("/source") == "cache" && booted.number("/requests")? == 0,
        "report: {}",
        booted.report
    );
    Ok(())
}

/// In the guest: brings the network up, fetches what Debian's minimal system lacks, and restarts by the generated script.
const KEXEC: &str = "set -eu
[ \"$(cat /etc/demo-generation)\" = 1 ] || exit 0
trap 'status=$?; [ $status = 0 ] || echo KEXEC-FAILED $status >/dev/console' EXIT
modprobe virtio_net; udevadm settle
card=$(basename /sys/class/net/e*)
ip link set \"$card\" up; ip address add 10.0.2.15/24 dev \"$card\"
mkdir -p /run/tools; cd /run/tools
busybox=$(echo /nix/store/*-busybox-static/bin/busybox)
$busybox wget -q -O kexec-boot URL/kexec-boot
$busybox wget -q -O - URL/tools.tar | $busybox tar -x
export LD_LIBRARY_PATH=$PWD
for tool in sh cat cp dirname id mktemp rm sed sha256sum sleep sync uname wget; do ln -s $busybox $tool; done
ln -s /usr/bin/systemctl systemctl
PATH=/run/tools ./sh kexec-boot URL";

/// Debian's kexec with what it is linked to and a minimal system lacks, as an archive without folders.
fn pack_kexec(trial: &Trial<'_>, out: &Path) -> Result<()> {
    let mut pack = Tool::new("tar", TOOL_LIMIT).args(["--transform=s,.*/,,", "-cf"]).arg(out);
    for package in packages::unpacked_with(&trial.lab.workspace.vm(), "kexec-tools", "libxen")? {
        let found = Tool::new("find", TOOL_LIMIT)
            .arg(&package)
            .args(["(", "-name", "lib*.so.*", "-o", "-path", "*/sbin/kexec", ")"])
            .text()?;
        pack = pack.args(found.lines());
    }
    pack.run()
}

fn kexec(trial: &Trial<'_>) -> Result<()> {
    let ways = Ways::new(trial, 2, &json!({}))?;
    pack_kexec(trial, &ways.served.dir().join("tools.tar"))?;
    let disk = trial.filled_cache()?;
    let system = trial.lab.system(Spec::generation(1))?;
    let mut vm = trial
        .boot()
        .disk(&disk)
        .nic(Nic::plain())
        .system(&system)
        .patience(PATIENCE)
        .script(&KEXEC.replace("URL", &guest_url(&ways.server)))
        .start("boot")?;
    let first = Booted::read(&mut vm)?;
    ensure!(first.generation()? == 1, "report: {}", first.report);
    if vm.wait_for(&["KEXEC-FAILED", "freshroot: wanted"])?.contains("KEXEC-FAILED") {
        bail!("kexec-boot failed in the guest: {}", vm.second_port()?);
    }
    let second = Booted::read(&mut vm)?;
    ensure!(
        second.generation()? == 2 && second.text("/source") == "network",
        "report: {}",
        second.report
    );
    must_power_off(&mut vm)?;
    ensure!(
        ways.asked_for("/kernels/") == 1 && ways.asked_for("/initrds/") == 1,
        "kernel and initrd were not fetched once: {:?}",
        ways.server.requests()
    );
    ensure!(disk.is_clean()?, "the cache disk needs a journal replay");
    Ok(())
}
