//! Keys before a long download, on real pseudo-terminals.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use freshroot::keyboard::{Keys, listen};
use freshroot::long_download::{Key, key};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

/// Longer than any of this takes; a test that gets there has hung.
const LONG: Duration = Duration::from_secs(20);

/// A machine with consoles that are pseudo-terminals.
struct Machine {
    root: tempfile::TempDir,
    /// Where a person sits, console by console, and the other end, which stays open as the kernel's own does.
    people: Vec<(File, PathBuf, File)>,
}

impl Machine {
    fn new(consoles: &[&str]) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc")).unwrap();
        fs::create_dir_all(root.path().join("dev")).unwrap();
        let mut people = Vec::new();
        let mut listed = String::new();
        for name in consoles {
            let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
            grantpt(&person).unwrap();
            unlockpt(&person).unwrap();
            let terminal = PathBuf::from(ptsname(&person, Vec::new()).unwrap().into_string().unwrap());
            symlink(&terminal, root.path().join("dev").join(name)).unwrap();
            listed += &format!("{name}                -WU (EC  p  )    4:1\n");
            let kept = rustix::fs::open(&terminal, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
            people.push((File::from(person), terminal, File::from(kept)));
        }
        fs::write(root.path().join("proc/consoles"), listed).unwrap();
        Self { root, people }
    }

    /// Listens, and types on a console as soon as keys are listened for.
    fn listen_while(&self, keys: Keys, limit: Duration, console: usize, typed: &[u8]) -> (Option<Key>, Duration) {
        let (tell, told) = channel();
        let mut person = self.people[console].0.try_clone().unwrap();
        let started = Instant::now();
        let pressed = std::thread::scope(move |scope| {
            scope.spawn(move || {
                if told.recv_timeout(LONG).is_ok() {
                    person.write_all(typed).unwrap();
                }
            });
            let tell = move |left| tell.send(left).unwrap_or_default();
            listen(self.root.path(), keys, limit, key, tell)
        });
        (pressed, started.elapsed())
    }

    fn is_as_before(&self) -> bool {
        self.people.iter().all(|(_, _, terminal)| {
            tcgetattr(terminal)
                .unwrap()
                .local_modes
                .contains(LocalModes::ICANON | LocalModes::ECHO)
        })
    }
}

#[test]
fn a_key_on_any_console_chooses_at_once_and_the_terminals_are_as_before() {
    let machine = Machine::new(&["tty0", "ttyS0"]);
    for (console, typed, expected) in [(0, &b"c"[..], Key::Cached), (1, b"d", Key::Download), (1, b"CCC", Key::Cached)] {
        let (pressed, after) = machine.listen_while(Keys::Everywhere, LONG, console, typed);
        assert_eq!(pressed, Some(expected));
        assert!(after < LONG / 2, "{after:?}");
        assert!(machine.is_as_before());
    }
    // Nothing is echoed.
    let mut person = &machine.people[0].0;
    rustix::fs::fcntl_setfl(person, OFlags::NONBLOCK).unwrap();
    assert!(person.read(&mut [0; 64]).is_err(), "nothing came back");
}

#[test]
fn without_a_key_that_means_something_the_time_runs_out() {
    let machine = Machine::new(&["tty0"]);
    let limit = Duration::from_millis(1200);
    for typed in [&b""[..], b"\x1b[C", b"q\r", b"press c for the cached system\r\n"] {
        let (pressed, after) = machine.listen_while(Keys::Everywhere, limit, 0, typed);
        assert_eq!(pressed, None);
        assert!(after >= limit && after < LONG, "{after:?}");
        assert!(machine.is_as_before());
    }
}

#[test]
fn what_was_typed_before_the_question_does_not_answer_it() {
    let machine = Machine::new(&["tty0"]);
    (&machine.people[0].0).write_all(b"c\n").unwrap();
    let (pressed, _) = machine.listen_while(Keys::Everywhere, Duration::from_millis(500), 0, b"");
    assert_eq!(pressed, None);
}

#[test]
fn in_systemds_stage_1_only_the_first_console_counts_and_only_while_nobody_asks_there() {
    let machine = Machine::new(&["ttyS0", "tty0"]);
    let short = Duration::from_millis(700);
    assert_eq!(machine.listen_while(Keys::First, short, 1, b"c").0, None);
    assert_eq!(machine.listen_while(Keys::First, LONG, 0, b"c").0, Some(Key::Cached));
    assert_eq!(machine.listen_while(Keys::Nowhere, LONG, 0, b"c").0, None);
    let questions = machine.root.path().join("run/systemd/ask-password");
    fs::create_dir_all(&questions).unwrap();
    assert_eq!(machine.listen_while(Keys::First, LONG, 0, b"c").0, Some(Key::Cached));
    fs::write(questions.join("ask.x1"), "").unwrap();
    let (pressed, after) = machine.listen_while(Keys::First, LONG, 0, b"c");
    assert_eq!(pressed, None);
    assert!(after < LONG / 2, "{after:?}");
}

#[test]
fn no_terminal_and_one_that_hangs_up_are_no_key_and_cost_no_time() {
    let mut machine = Machine::new(&["tty0"]);
    // A console that is a file.
    fs::write(machine.root.path().join("dev/ttyS0"), "c").unwrap();
    fs::write(machine.root.path().join("proc/consoles"), "ttyS0 -W- (E p a) 4:64\n").unwrap();
    let started = Instant::now();
    assert_eq!(listen(machine.root.path(), Keys::Everywhere, LONG, key, |_| {}), None);
    fs::write(machine.root.path().join("proc/consoles"), "tty0 -WU (EC p ) 4:1\n").unwrap();
    // The person goes away while keys are listened for.
    let person = std::sync::Mutex::new(machine.people.pop());
    let pressed = listen(machine.root.path(), Keys::Everywhere, LONG, key, |_| {
        drop(person.lock().unwrap().take())
    });
    assert_eq!(pressed, None);
    assert!(started.elapsed() < LONG / 2, "{:?}", started.elapsed());
}
