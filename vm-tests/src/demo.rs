//! The main job, to watch: a real system over the network once, from the cache ever after.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::cli::DEFAULT_LEVEL;
use crate::lab::{CHANNEL, Lab};
use crate::line::Line;
use crate::qemu::console::PROMPT;
use crate::server::Server;
use crate::trial::{Boot, Booted, Trial, closed_port};
use crate::workspace::Workspace;

/// In the middle of the image, which has 70–90 MB.
const CUT_AT: u64 = 40 << 20;
const CUT_LIMIT: Duration = Duration::from_secs(180);

/// A line of the table.
#[derive(Debug)]
struct Row {
    boot: &'static str,
    generation: String,
    rule: String,
    reason: String,
    network: u64,
    steps: Vec<(String, u64)>,
    login: Option<Duration>,
}

/// Runs the demonstration; images are packed with zstd `level`.
pub fn run(workspace: Workspace, level: u32) -> Result<()> {
    let started = Instant::now();
    let lab = Lab::new(workspace, level)?;
    let trial = Trial::new(&lab, "demo")?;
    say(&format!(
        "two generations of a Debian system, packed with zstd level {level}{}",
        if level == DEFAULT_LEVEL {
            " (NixOS has 19: --level 19)"
        } else {
            ""
        }
    ));
    let (first, second) = (lab.served(1)?, lab.served(2)?);
    let (_, size) = second.image(CHANNEL)?;
    let mut rows = Vec::new();

    let disk = trial.empty_cache()?;
    let mut server = trial.serve(&first)?;
    say("1. cold: nothing but a kernel, the small initrd and an empty disk");
    rows.push(boot(trial.boot().disk(&disk), "cold", Some(&server))?);
    server.stop()?;

    say("2. warm: the server is switched off");
    let offline = trial
        .boot()
        .config(json!({ "policy": { "wait": "5s" } }))
        .disk(&disk)
        .server(closed_port()?.port());
    rows.push(boot(offline, "warm", None)?);

    say("3. updated: the server is back, with a new generation");
    let server = trial.serve(&second)?;
    rows.push(boot(trial.boot().disk(&disk), "updated", Some(&server))?);

    say("4. power cut: another machine, whose power goes away in the middle of the download");
    let disk = lab.empty_cache(&trial.dir.join("other.img"))?;
    let line = Line::open(server.address())?;
    line.hold_at(CUT_AT.min(size / 2));
    let mut vm = trial.boot().disk(&disk).server(line.port()).listener(Box::new(echo)).start("cut")?;
    line.wait_held(CUT_LIMIT)?;
    vm.cut_power()?;
    say("   the power is gone");
    rows.push(Row {
        boot: "power cut",
        generation: "-".to_owned(),
        rule: "-".to_owned(),
        reason: "the machine was killed in the middle of the download".to_owned(),
        network: line.received(),
        steps: Vec::new(),
        login: None,
    });
    drop((vm, line));

    say("5. and on again");
    rows.push(boot(trial.boot().disk(&disk), "resumed", Some(&server))?);
    print!("\n{}", table(&rows));
    say(&format!(
        "done in {:.0} s; consoles are in target/vm/logs/demo",
        started.elapsed().as_secs_f64()
    ));
    Ok(())
}

fn boot(mut boot: Boot<'_>, name: &'static str, server: Option<&Server>) -> Result<Row> {
    let line = server.map(|server| Line::open(server.address())).transpose()?;
    if let Some(line) = &line {
        boot = boot.server(line.port());
    }
    let started = Instant::now();
    let mut vm = boot.words("demo.then=poweroff").listener(Box::new(echo)).start(name)?;
    vm.wait_for(&[PROMPT])?;
    let login = started.elapsed();
    let booted = Booted::read(&mut vm)?;
    vm.wait_end()?;
    ensure!(!booted.report.is_null(), "the agent left no report");
    row(name, &booted, line.map_or(0, |line| line.received()), login)
}

fn row(name: &'static str, booted: &Booted, network: u64, login: Duration) -> Result<Row> {
    let steps = booted.report.get("steps").and_then(Value::as_array).cloned().unwrap_or_default();
    let step = |step: &Value| {
        let name = step.get("step").and_then(Value::as_str)?;
        Some((name.to_owned(), step.get("milliseconds").and_then(Value::as_u64)?))
    };
    Ok(Row {
        boot: name,
        generation: booted.generation()?.to_string(),
        rule: booted.text("/decision/rule").to_owned(),
        reason: booted.text("/decision/reason").to_owned(),
        network,
        steps: steps.iter().filter_map(step).collect(),
        login: Some(login),
    })
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<10} {:>3}  {:>10}  {:>9}  {:>9}  decision\n",
        "boot", "gen", "network", "agent", "login"
    );
    for row in rows {
        let agent: u64 = row.steps.iter().map(|(_, milliseconds)| milliseconds).sum();
        let agent = if row.steps.is_empty() {
            "-".to_owned()
        } else {
            format!("{agent} ms")
        };
        let login = row.login.map_or("-".to_owned(), |login| format!("{:.1} s", login.as_secs_f64()));
        #[allow(clippy::cast_precision_loss, reason = "for people, one digit after the point")]
        let network = format!("{:.1} MB", row.network as f64 / 1e6);
        text += &format!(
            "{:<10} {:>3}  {network:>10}  {agent:>9}  {login:>9}  {}: {}\n",
            row.boot, row.generation, row.rule, row.reason
        );
        if !row.steps.is_empty() {
            let steps: Vec<String> = row
                .steps
                .iter()
                .map(|(name, milliseconds)| format!("{name} {milliseconds}"))
                .collect();
            text += &format!("{:<16}{} (ms)\n", "", steps.join(", "));
        }
    }
    text
}

fn say(text: &str) {
    println!("demo: {text}");
}

/// Of a console, what tells the story: the agent's lines, the activation, and the login prompt.
fn echo(line: &str) {
    let story = line.contains("freshroot") || line.contains("demo:") || line.contains("login:") || line.contains("Kernel panic");
    if story && !line.contains("BOOT-REPORT") && !line.contains("Command line:") {
        println!("      | {}", line.trim_start_matches('\u{1b}'));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn the_table_has_what_was_asked_for() {
        let rows = [Row {
            boot: "cold",
            generation: "1".to_owned(),
            rule: "absent".to_owned(),
            reason: "nothing is cached".to_owned(),
            network: 84_541_440,
            steps: vec![("fetch".to_owned(), 900), ("mount".to_owned(), 12)],
            login: Some(Duration::from_millis(12_340)),
        }];
        let text = table(&rows);
        for part in [
            "cold",
            "84.5 MB",
            "912 ms",
            "12.3 s",
            "absent: nothing is cached",
            "fetch 900, mount 12 (ms)",
        ] {
            assert!(text.contains(part), "«{part}» is missing in:\n{text}");
        }
    }
}
