//! QEMU's control socket, as far as the tests need it. Protocol: QEMU's `docs/interop/qmp-spec`: one JSON object a line, a greeting first,
//! then a reply for each command, with events in between.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

const REPLY_LIMIT: Duration = Duration::from_secs(20);
/// What QEMU tells of by itself waits for the guest; each message has the limit of a reply besides.
const EVENT_LIMIT: Duration = Duration::from_secs(60);
/// No reply of the commands in use is longer.
const LINE_LIMIT: u64 = 1 << 20;

/// A connection to one machine.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    /// Events that came while something else was waited for.
    events: Vec<Value>,
}

impl Qmp {
    /// Takes the connection that QEMU makes to `listener` when it starts.
    pub fn accept(listener: &UnixListener, limit: Duration) -> Result<Self> {
        let wait = Timespec::try_from(limit).context("the limit is too long")?;
        let mut waited = [PollFd::new(listener, PollFlags::IN)];
        if poll(&mut waited, Some(&wait)).context("waiting for QEMU")? == 0 {
            bail!("QEMU did not connect to its control socket within {} s", limit.as_secs());
        }
        let (stream, _) = listener.accept().context("taking QEMU's connection")?;
        stream.set_read_timeout(Some(REPLY_LIMIT)).context("limiting the wait for QEMU")?;
        let mut qmp = Self {
            stream: BufReader::new(stream),
            events: Vec::new(),
        };
        qmp.line().context("waiting for QEMU's greeting")?;
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Runs one command and returns what it returns.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        self.stream
            .get_mut()
            .write_all(request.as_bytes())
            .with_context(|| format!("sending {command} to QEMU"))?;
        loop {
            let mut reply = self.line().with_context(|| format!("waiting for QEMU's answer to {command}"))?;
            if let Some(error) = reply.get("error") {
                bail!("QEMU refuses {command}: {error}");
            }
            if let Some(value) = reply.get_mut("return") {
                return Ok(value.take());
            }
            self.events.push(reply);
        }
    }

    /// Waits for an event `name` whose data are `wanted`, also if it has come already.
    pub fn wait_event(&mut self, name: &str, wanted: &dyn Fn(&Value) -> bool) -> Result<()> {
        let is_it = |event: &Value| event["event"] == name && wanted(&event["data"]);
        if self.events.iter().any(is_it) {
            return Ok(());
        }
        let deadline = Instant::now() + EVENT_LIMIT;
        while Instant::now() < deadline {
            let event = self.line().with_context(|| format!("waiting for {name}"))?;
            if is_it(&event) {
                return Ok(());
            }
            self.events.push(event);
        }
        bail!("QEMU did not tell of {name} within {} s", EVENT_LIMIT.as_secs())
    }

    /// Why the machine ended, from the events that are left when QEMU is gone. Meaning: `ShutdownCause` of QEMU's `qapi/run-state.json`.
    pub fn shutdown_reason(&mut self) -> Result<String> {
        let mut earlier = std::mem::take(&mut self.events).into_iter();
        loop {
            let event = match earlier.next() {
                Some(event) => event,
                None => self.line().context("looking for the reason why the machine ended")?,
            };
            if event.get("event").and_then(Value::as_str) == Some("SHUTDOWN") {
                let reason = event.pointer("/data/reason").and_then(Value::as_str);
                return Ok(reason.unwrap_or_default().to_owned());
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        let count = self
            .stream
            .by_ref()
            .take(LINE_LIMIT)
            .read_line(&mut line)
            .context("reading from QEMU")?;
        if count == 0 {
            bail!("QEMU has closed its control socket");
        }
        serde_json::from_str(&line).context("reading JSON from QEMU")
    }
}
