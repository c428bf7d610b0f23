//! What the running system does for the boots to come: it blesses, and it fetches. And what becomes of a generation that nobody blesses.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::Scenario;
use crate::disk::{Disk, FsType};
use crate::qemu::Nic;
use crate::trial::{Trial, cache_content, closed_port};

/// The tests of this file.
pub const ALL: &[Scenario] = &[
    Scenario::new(
        "tries",
        "a generation that is never blessed gives way to the one that was, and a blessing gives tries back",
        tries,
    ),
    Scenario::new(
        "fetch",
        "a refresh from the running system is what boots next, without a server",
        fetch,
    ),
];

/// The program and its configuration, as a NixOS system has them; here they come on a disk.
const INSTALL: &str = "set -e; mkdir -p /etc/freshroot; cp /persist/config.json /etc/freshroot/";

/// A disk with the program and the configuration of the running system.
fn tools(trial: &Trial<'_>, config: &Value) -> Result<Disk> {
    let content = trial.dir.join("tools");
    fs::create_dir_all(&content).with_context(|| format!("making {}", content.display()))?;
    fs::copy(trial.lab.agent()?, content.join("freshroot")).context("copying the agent")?;
    let text = serde_json::to_string(&trial.lab.config(config)?).context("writing the configuration")?;
    fs::write(content.join("config.json"), text).context("writing the configuration")?;
    Disk::make_with(&trial.dir.join("tools.img"), 64, FsType::Ext4, "TOOLS", Some(Path::new(&content)))
}

/// `changes` with a data disk that holds the tools, and one that is missing.
fn with_tools(mut changes: Value) -> Value {
    changes["fileSystems"] = json!({
        "/persist": { "device": "LABEL=TOOLS", "fsType": "ext4" },
        "/gone": { "device": "LABEL=GONE", "fsType": "ext4", "need": "degraded", "timeout": 1 },
    });
    changes
}

fn tries(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.filled_cache()?;
    let config = json!({ "policy": { "wait": "3s", "tries": 1 } });
    let tools = tools(trial, &config)?;
    let boot = |port: u16| {
        trial
            .boot()
            .config(with_tools(config.clone()))
            .disk(&disk)
            .disk(&tools)
            .server(port)
    };
    let off = || closed_port().map(|address| address.port());
    // One try, which the blessing gives back.
    let bless = format!(
        "{INSTALL}; /persist/freshroot check-mount /persist; ! /persist/freshroot check-mount /gone; /persist/freshroot bless; /persist/freshroot bless"
    );
    let booted = boot(off()?).script(&bless).once("blessed")?;
    ensure!(booted.generation()? == 1, "generation {} booted", booted.generation()?);
    ensure!(disk.list("/freshroot/tries")?.is_empty(), "the blessing has left a try");
    ensure!(disk.list("/freshroot/blessed")?.len() == 1, "there is not one blessing");
    // The new one is booted once, and not blessed.
    let server = trial.serve(&trial.lab.served(2)?)?;
    let booted = boot(server.address().port()).once("new")?;
    ensure!(booted.generation()? == 2, "generation {} booted", booted.generation()?);
    ensure!(disk.list("/freshroot/tries")?.len() == 1, "the boot was not counted");
    // The server still names it: the old one boots.
    let booted = boot(server.address().port()).once("old")?;
    ensure!(
        booted.generation()? == 1 && booted.text("/decision/rule") == "tries-used-up" && booted.text("/source") == "cache",
        "report: {}",
        booted.report
    );
    drop(server);
    // With both tried and none blessed since, nothing is worse than without counting.
    let booted = boot(off()?).once("all-used-up")?;
    ensure!(booted.generation()? == 2, "generation {} booted", booted.generation()?);
    ensure!(
        booted.report["warnings"].to_string().contains("without being blessed"),
        "report: {}",
        booted.report
    );
    Ok(())
}

fn fetch(trial: &Trial<'_>) -> Result<()> {
    let disk = trial.filled_cache()?;
    // Generations are accepted anew when another server names them: the images are what counts.
    let images = || -> Result<Vec<_>> {
        let content = cache_content(&disk)?.into_iter();
        Ok(content.filter(|(path, _)| path.contains("/images/")).collect())
    };
    let before = images()?;
    // The boot asks a server that has nothing newer, so that the network is up; the running system is told of another one.
    let (old, new) = (trial.serve(&trial.lab.served(1)?)?, trial.serve(&trial.lab.served(2)?)?);
    let url = |port: u16| format!("http://10.0.2.2:{port}");
    let tools = tools(trial, &json!({ "url": url(new.address().port()) }))?;
    let script = format!("{INSTALL}; /persist/freshroot fetch | grep 'it boots next'; /persist/freshroot fetch | grep 'nothing to do'");
    let booted = trial
        .boot()
        .config(with_tools(json!({ "url": url(old.address().port()), "network": { "keep": true } })))
        .disk(&disk)
        .disk(&tools)
        .nic(Nic::plain())
        .script(&script)
        .once("refresh")?;
    ensure!(booted.generation()? == 1, "generation {} booted", booted.generation()?);
    drop((old, new));
    ensure!(disk.is_clean()?, "the cache disk needs a journal replay after a power-off");
    let after = images()?;
    ensure!(
        before.iter().all(|one| after.contains(one)) && after.len() > before.len(),
        "the cache holds {after:?}"
    );
    let booted = trial
        .boot()
        .config(json!({ "policy": { "wait": "3s" } }))
        .disk(&disk)
        .server(closed_port()?.port())
        .once("again")?;
    ensure!(
        booted.generation()? == 2 && booted.text("/source") == "cache",
        "report: {}",
        booted.report
    );
    Ok(())
}
