//! The layout of machines that stake at home: chain data and keys on XFS on striped LVM, keys read from it before activation, and SSH whatever happens to it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Scenario;
use crate::command::Tool;
use crate::disk::Disk;
use crate::lab::CHANNEL;
use crate::publisher::Served;
use crate::stage_1::{running, workshop};
use crate::system::{Server, System};
use crate::trial::{Boot, Booted, Trial, must_power_off};

/// The tests of this file.
pub const ALL: &[Scenario] = &[Scenario::new(
    "stack-homestaker",
    "keys are read from XFS on striped LVM before activation, and a disk that was pulled comes back, with the agent alone",
    standalone,
)
.nightly()];

/// The same under systemd.
pub const SYSTEMD: &[Scenario] = &[Scenario::new(
    "systemd-homestaker",
    "under systemd keys are read from XFS on striped LVM before activation, and a disk that was pulled comes back",
    systemd,
)];

/// Who is stage 1.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Agent,
    Systemd,
}

const VOLUME: &str = "/dev/mapper/vg0-data";
const AGE_KEY: &str = "AGE-SECRET-KEY-OF-NO-USE\n";
/// mkfs and a few modules.
const LIFE: Duration = Duration::from_secs(60);
const OPENSSL: Duration = Duration::from_secs(60);

fn standalone(trial: &Trial<'_>) -> Result<()> {
    story(trial, By::Agent)
}

fn systemd(trial: &Trial<'_>) -> Result<()> {
    story(trial, By::Systemd)
}

/// boot.freshroot.persist of such a machine; a limit that suits the boot.
fn persist(timeout: u32) -> Value {
    json!({
        "/data": {
            "device": VOLUME, "fsType": "xfs", "options": ["noatime"], "need": "degraded", "timeout": timeout,
            "services": ["validator.service"],
        },
        "/var/lib/app": { "source": "/data/app", "need": "degraded", "services": ["app.service"] },
    })
}

/// A service that leaves a line where it works.
fn service(line: &str, bound: &str) -> String {
    format!("[Unit]\n{bound}[Service]\nExecStart=/bin/sh -c 'echo started >>{line} && exec sleep infinity'\n[Install]\n")
}

/// The running system: what the module makes for `persist`, services on the data, and sshd with a key on the data and one of its own.
fn files(trial: &Trial<'_>) -> Result<BTreeMap<String, String>> {
    let arguments = json!({ "agent": Server::AGENT, "persist": persist(20) });
    let mut files = running(trial.lab.workspace.root(), &arguments)?;
    let units = "/etc/systemd/system";
    let bound = "Requires=freshroot-persist-ok.target\nAfter=freshroot-persist-ok.target\n";
    let more = [
        (
            format!("{units}/validator.service"),
            service("/data/validator", "") + "WantedBy=multi-user.target\n",
        ),
        (
            format!("{units}/app.service"),
            service("/var/lib/app/app", "") + "WantedBy=multi-user.target\n",
        ),
        (
            format!("{units}/chain.service"),
            service("/data/chain/log", bound) + "WantedBy=freshroot-persist-ok.target\n",
        ),
        (
            "/etc/ssh/sshd_config.d/keys.conf".to_owned(),
            "HostKey /data/ssh/ssh_host_ecdsa_key\nHostKey /etc/ssh/ssh_host_ed25519_key\n".to_owned(),
        ),
        (
            format!("{units}/ssh.service.d/keys.conf"),
            "[Service]\nExecStartPre=\nExecStartPre=/bin/sh -c '[ -e /etc/ssh/ssh_host_ed25519_key ] || ssh-keygen -q -t ed25519 -N \"\" -f /etc/ssh/ssh_host_ed25519_key'\n"
                .to_owned(),
        ),
    ];
    files.extend(more);
    Ok(files)
}

/// The machine's parts.
struct Machine<'a> {
    trial: &'a Trial<'a>,
    by: By,
    system: System,
    cache: Disk,
    halves: [Disk; 2],
}

impl Machine<'_> {
    /// A boot with the first `disks` halves of the data.
    fn boot(&self, disks: usize, timeout: u32) -> Result<Boot<'_>> {
        let trial = self.trial;
        let boot = match self.by {
            By::Systemd => trial.boot().systemd(trial.stage_1().argument("persist", persist(timeout))),
            By::Agent => trial.boot().with_tools(),
        };
        let plugged = self.halves.iter().take(disks);
        Ok(plugged.fold(boot.disk(&self.cache), Boot::disk).system(&self.system).patience(2))
    }

    /// Settings: the agent alone has those entries that NixOS would give it.
    fn config(&self, timeout: u32, more: Value) -> Result<Value> {
        let mut config = more;
        if self.by == By::Agent {
            let arguments = json!({ "agent": "", "persist": persist(timeout) });
            let files = running(self.trial.lab.workspace.root(), &arguments)?;
            let text = files
                .get("/etc/freshroot/config.json")
                .context("the module makes no configuration")?;
            let made: Value = serde_json::from_str(text).context("reading the module's configuration")?;
            crate::lab::merge(
                &mut config,
                &json!({ "fileSystems": made["fileSystems"], "cache": { "wait": "60s" } }),
            );
        }
        Ok(config)
    }
}

fn story(trial: &Trial<'_>, by: By) -> Result<()> {
    let blank = |name: &str| Disk::blank(&trial.dir.join(format!("{name}.img")), 200);
    let halves = [blank("pv-1")?, blank("pv-2")?];
    let host_key = Tool::new("openssl", OPENSSL)
        .args(["ecparam", "-name", "prime256v1", "-genkey", "-noout"])
        .text()?;
    workshop::run(
        trial,
        &halves,
        &format!(
            "modprobe dm_mod; modprobe xfs; lvm pvcreate -q /dev/vda /dev/vdb; lvm vgcreate -q vg0 /dev/vda /dev/vdb; lvm lvcreate -q -i 2 -n data -l 100%FREE vg0
             mkfs.xfs -q {VOLUME}; mount -t xfs {VOLUME} /to; mkdir /to/ssh /to/age /to/chain; umask 077
             printf '%s' '{host_key}' >/to/ssh/ssh_host_ecdsa_key; printf '%s' '{AGE_KEY}' >/to/age/key.txt
             umount /to; lvm vgchange -an vg0"
        ),
        LIFE,
    )?;
    let system = trial.lab.server_system(&files(trial)?)?;
    let machine = Machine {
        trial,
        by,
        system,
        cache: trial.empty_cache()?,
        halves,
    };
    whole(&machine, &host_key)?;
    pulled(&machine)
}

/// The first boot: from the network, with all disks.
fn whole(machine: &Machine<'_>, host_key: &str) -> Result<()> {
    let (trial, lab) = (machine.trial, machine.trial.lab);
    let served = Served::at(&trial.dir.join("served"));
    lab.publisher()?.image(&machine.system.image, served.dir(), CHANNEL, &lab.key()?)?;
    let mut server = trial.serve(&served)?;
    let script = "set -e; findmnt -nr -o SOURCE,FSTYPE /data; lvs --noheadings -o lv_name,stripes
                  systemctl is-active validator.service chain.service app.service freshroot-persist-ok.target ssh.service
                  ssh-keyscan -T 60 -t ecdsa 127.0.0.1 2>/dev/null; ssh-keygen -y -f /data/ssh/ssh_host_ecdsa_key
                  echo 1000 >/data/chain/blocks; echo kept >/var/lib/app/file";
    let mut vm = machine
        .boot(2, 90)?
        .config(machine.config(90, json!({}))?)
        .server(server.address().port())
        .script(script)
        .words("demo.then=poweroff")
        .start("whole")?;
    let mut booted = Booted::read(&mut vm)?;
    booted.read_script(&mut vm)?;
    must_power_off(&mut vm)?;
    server.stop()?;
    let said = vm.said();
    for (file, text) in [("/data/ssh/ssh_host_ecdsa_key", host_key), ("/data/age/key.txt", AGE_KEY)] {
        let word = format!("demo: activation reads {file}: {}", digest(text));
        ensure!(said.contains(&word), "the console does not say «{word}»:\n{said}");
    }
    let wrote = &booted.script;
    let striped = wrote.lines().any(|line| line.split_whitespace().eq(["data", "2"]));
    // The agent names the device as the kernel does (dm-0), systemd as fstab does.
    ensure!(striped && wrote.contains(" xfs\n"), "/data is:\n{wrote}");
    ensure!(wrote.matches("\nactive").count() == 5, "a unit is not active:\n{wrote}");
    // What sshd offers is the key of the data.
    let keys: Vec<&str> = wrote.split_whitespace().filter(|word| word.starts_with("AAAA")).collect();
    ensure!(
        matches!(keys.as_slice(), [offered, own] if offered == own),
        "sshd offers another key:\n{wrote}"
    );
    Ok(())
}

/// The second boot: without a network, and without one of the two disks, which is plugged in later.
fn pulled(machine: &Machine<'_>) -> Result<()> {
    let script = "units='validator.service chain.service app.service freshroot-persist-ok.target'
        for place in /data /var/lib/app; do findmnt -nr -o SOURCE,FSTYPE,OPTIONS $place; done; ls -A /data | wc -l; echo x >/data/x && echo written
        for unit in $units; do echo \"$unit $(systemctl is-active $unit)\"; done
        systemctl is-active multi-user.target ssh.service; echo emergency $(systemctl is-active emergency.target)
        ssh-keyscan -T 60 -t ed25519 127.0.0.1 2>/dev/null
        echo PLUG-IT-IN >/dev/console
        i=0; until systemctl --quiet is-active $units || [ $i = 400 ]; do i=$((i+1)); sleep 0.3; done
        echo AFTERWARDS; for place in /data /var/lib/app; do findmnt -nr -o SOURCE,FSTYPE $place; done
        for unit in $units; do echo \"$unit is $(systemctl is-active $unit)\"; done
        cat /data/chain/blocks /var/lib/app/file; wc -l </data/validator
        systemctl show -P NRestarts freshroot-persist-retry-data.service; journalctl --no-pager -b -u freshroot-persist-retry-data.service -u freshroot-persist-data.service -o cat";
    let settings = json!({ "policy": { "mode": "offline" } });
    let mut vm = machine
        .boot(1, 20)?
        .config(machine.config(20, settings)?)
        .script(script)
        .words("demo.then=poweroff")
        .start("pulled")?;
    let mut booted = Booted::read(&mut vm)?;
    vm.wait_for(&["PLUG-IT-IN"])?;
    let [_, second] = &machine.halves;
    vm.plug(second, "late")?;
    booted.read_script(&mut vm)?;
    must_power_off(&mut vm)?;
    let said = vm.said();
    for word in ["demo: activation finds no /data/ssh/ssh_host_ecdsa_key", "/data is missing"] {
        ensure!(said.contains(word), "the console does not say «{word}»:\n{said}");
    }
    let warnings = booted.report["warnings"].to_string();
    ensure!(warnings.contains("/data is missing"), "the report does not warn: {}", booted.report);
    let (before, after) = booted.script.split_once("AFTERWARDS").context("the script did not end")?;
    for word in [
        "freshroot-missing tmpfs ro",
        "\n0\n",
        "validator.service inactive",
        "chain.service inactive",
        "app.service inactive",
        "freshroot-persist-ok.target inactive",
        "\nactive\nactive\n",
        "emergency inactive",
        "ssh-ed25519 AAAA",
    ] {
        ensure!(
            before.contains(word),
            "without the disk the script did not write «{word}»:\n{before}"
        );
    }
    ensure!(!before.contains("written"), "the stand-in takes writes:\n{before}");
    for word in [
        " xfs\n",
        "[/app] xfs\n",
        "validator.service is active",
        "chain.service is active",
        "app.service is active",
        "freshroot-persist-ok.target is active",
        // What the first boot wrote, and both starts of the service.
        "\n1000\nkept\n2\n",
    ] {
        ensure!(
            after.contains(word),
            "with the disk back the script did not write «{word}»:\n{after}"
        );
    }
    Ok(())
}

/// The first 16 digits of the SHA-256.
fn digest(text: &str) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(text.as_bytes())
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
