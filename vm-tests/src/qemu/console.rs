//! A machine's console: written to a file as it comes, and waited on without polling.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Child;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// After these, nothing that is waited for will come.
const FATAL: &[&str] = &["Kernel panic - not syncing"];
/// What ends a login prompt.
pub const PROMPT: &str = "login: ";
/// What cryptsetup asks for.
pub const PASSPHRASE: &str = "Enter passphrase for ";
/// What systemd asks for.
pub const SYSTEMD_PASSPHRASE: &str = "Please enter passphrase for disk ";
/// What is waited for and is no line.
const PROMPTS: [&str; 3] = [PROMPT, PASSPHRASE, SYSTEMD_PASSPHRASE];
/// How many of the last lines an error shows.
const TAIL_LINES: usize = 40;

#[derive(Debug, Default)]
struct Said {
    text: String,
    ended: bool,
}

#[derive(Debug, Default)]
struct Shared {
    said: Mutex<Said>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says to people what a machine says; gets each complete line.
pub type Listener = Box<dyn Fn(&str) + Send>;

/// What a machine has said so far, and a thread that listens on.
#[derive(Debug)]
pub struct Console {
    shared: Arc<Shared>,
    /// Where the next wait begins, in bytes: each line is found once.
    position: usize,
    reader: Option<JoinHandle<()>>,
}

impl Console {
    /// Follows the standard output of `child` and keeps it in `log`.
    pub fn follow(child: &mut Child, log: &Path, listener: Option<Listener>) -> Result<Self> {
        let mut output = child.stdout.take().context("the machine has no console")?;
        let mut file = File::create(log).with_context(|| format!("making {}", log.display()))?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            let mut told = 0;
            let mut pending = Vec::new();
            loop {
                let bytes = match output.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => buffer.get(..count).unwrap_or_default(),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    Err(error) => {
                        eprintln!("qemu: reading a console: {error}");
                        break;
                    }
                };
                if let Err(error) = file.write_all(bytes) {
                    eprintln!("qemu: writing a console log: {error}");
                }
                let mut said = theirs.lock();
                pending.extend_from_slice(bytes);
                decode(&mut pending, &mut said.text);
                if let Some(listener) = &listener {
                    told = tell(&said.text, told, listener);
                }
                theirs.changed.notify_all();
            }
            theirs.lock().ended = true;
            theirs.changed.notify_all();
        });
        Ok(Self {
            shared,
            position: 0,
            reader: Some(reader),
        })
    }

    /// Waits for the first of `texts` after what was found before, and returns the rest of its line from there on. Panics of the guest, the end of
    /// the machine and the limit are errors that show the console's tail.
    pub fn wait_for(&mut self, texts: &[&str], limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        let mut said = self.shared.lock();
        loop {
            let rest = said.text.get(self.position..).unwrap_or_default();
            if let Some((start, end)) = find_line(rest, texts, said.ended) {
                let line = rest.get(start..end).unwrap_or_default().trim_end().to_owned();
                self.position += end;
                return Ok(line);
            }
            if let Some(fatal) = FATAL.iter().find(|fatal| rest.contains(**fatal)) {
                bail!(
                    "the machine said «{fatal}» while {texts:?} was waited for; its last lines:\n{}",
                    last_lines(&said.text)
                );
            }
            if said.ended {
                bail!(
                    "the machine ended without saying {texts:?}; its last lines:\n{}",
                    last_lines(&said.text)
                );
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!(
                    "the machine did not say {texts:?} within {} s; its last lines:\n{}",
                    limit.as_secs(),
                    last_lines(&said.text)
                );
            }
            said = self
                .shared
                .changed
                .wait_timeout(said, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits until the machine has ended.
    pub fn wait_end(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut said = self.shared.lock();
        while !said.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!(
                    "the machine did not end within {} s; its last lines:\n{}",
                    limit.as_secs(),
                    last_lines(&said.text)
                );
            }
            said = self
                .shared
                .changed
                .wait_timeout(said, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Ok(())
    }

    /// All that was said so far.
    pub fn text(&self) -> String {
        self.shared.lock().text.clone()
    }

    /// Waits for the thread, after the machine's end.
    pub fn join(&mut self) {
        if let Some(reader) = self.reader.take()
            && reader.join().is_err()
        {
            eprintln!("qemu: the thread that follows a console panicked");
        }
    }
}

/// Passes the complete lines of `text` after `told` on; returns where the next one begins.
fn tell(text: &str, mut told: usize, listener: &Listener) -> usize {
    while let Some(line) = text.get(told..).and_then(|rest| rest.split_inclusive('\n').next())
        && line.ends_with('\n')
    {
        listener(line.trim_end());
        told += line.len();
    }
    told
}

/// Start of the earliest of `texts` and end of its line, once the line is complete.
fn find_line(rest: &str, texts: &[&str], ended: bool) -> Option<(usize, usize)> {
    let start = texts.iter().filter_map(|text| rest.find(text)).min()?;
    // A prompt ends in no line feed: there the match itself is enough.
    let line = rest.get(start..)?;
    match line.find('\n') {
        Some(length) => Some((start, start + length + 1)),
        None if ended || asks(line, texts) => Some((start, rest.len())),
        None => None,
    }
}

/// Whether `line` is a prompt that one of `texts` is, or begins with.
fn asks(line: &str, texts: &[&str]) -> bool {
    let mut all = PROMPTS.iter();
    all.any(|prompt| texts.iter().any(|text| text.starts_with(prompt) && line.starts_with(text)))
}

/// Moves what is complete text from the front of `bytes` to `text`; a character whose end has not come yet stays.
fn decode(bytes: &mut Vec<u8>, text: &mut String) {
    let whole = match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        Ok(_) | Err(_) => bytes.len(),
    };
    let rest = bytes.split_off(whole);
    text.push_str(&String::from_utf8_lossy(bytes));
    *bytes = rest;
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let start = lines.len().saturating_sub(TAIL_LINES);
    lines.get(start..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use std::process::{Command, Stdio};

    use super::*;

    fn console(script: &str) -> (Console, Child, tempfile::TempDir) {
        let temp = tempfile::tempdir().unwrap();
        let mut child = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let console = Console::follow(&mut child, &temp.path().join("log"), None).unwrap();
        (console, child, temp)
    }

    #[test]
    fn lines_are_found_in_order_and_kept_in_the_log() {
        let (mut console, mut child, temp) = console("echo one 1; echo two; echo one 2; printf 'login: '");
        let limit = Duration::from_secs(10);
        assert_eq!(console.wait_for(&["one"], limit).unwrap(), "one 1");
        assert_eq!(console.wait_for(&["one", "three"], limit).unwrap(), "one 2");
        assert_eq!(console.wait_for(&[PROMPT], limit).unwrap(), "login:");
        console.wait_end(limit).unwrap();
        console.join();
        child.wait().unwrap();
        assert_eq!(std::fs::read_to_string(temp.path().join("log")).unwrap(), console.text());
    }

    #[test]
    fn half_a_line_is_waited_for() {
        assert_eq!(find_line("one DEMO-READY gen", &["DEMO-READY "], false), None);
        assert_eq!(find_line("one DEMO-READY gen\n", &["DEMO-READY "], false), Some((4, 19)));
        assert_eq!(find_line("demo login: ", &[PROMPT], false), Some((5, 12)));
        let asked = format!("{SYSTEMD_PASSPHRASE}b");
        assert_eq!(find_line(&format!("{asked}:"), &[&asked], false), Some((0, asked.len() + 1)));
        assert_eq!(find_line(&format!("{SYSTEMD_PASSPHRASE}a:"), &[&asked], false), None);
    }

    #[test]
    fn a_character_that_comes_in_two_pieces_is_one() {
        let (mut bytes, mut text) = (b"a \xc2".to_vec(), String::new());
        decode(&mut bytes, &mut text);
        assert_eq!((text.as_str(), bytes.len()), ("a ", 1));
        bytes.extend_from_slice(b"\xab \xff.");
        decode(&mut bytes, &mut text);
        assert_eq!((text.as_str(), bytes.len()), ("a « \u{fffd}.", 0));
    }

    #[test]
    fn the_end_a_panic_and_the_limit_are_errors_with_the_last_lines() {
        let (mut ended, mut child, _temp) = console("echo bye");
        let error = ended.wait_for(&["hello"], Duration::from_secs(10)).unwrap_err().to_string();
        assert!(error.contains("ended") && error.contains("bye"), "{error}");
        child.wait().unwrap();

        let (mut panicked, mut child, _temp) = console("echo 'Kernel panic - not syncing: x'; exec sleep 30");
        let error = panicked.wait_for(&["hello"], Duration::from_secs(10)).unwrap_err().to_string();
        assert!(error.contains("Kernel panic"), "{error}");
        child.kill().unwrap();
        child.wait().unwrap();

        let (mut slow, mut child, _temp) = console("echo here; exec sleep 30");
        let error = slow.wait_for(&["hello"], Duration::from_millis(300)).unwrap_err().to_string();
        assert!(error.contains("within"), "{error}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
