//! The failure policy under a PID 1 that is not the agent: as root, in name spaces of their own, with a shell in the place of systemd.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use freshroot::report::{Outcome, Report};

const BOOT_ID: &str = "0b5e3c56-0000-4000-8000-000000000000";
/// What systemd understands, counted as glibc counts (systemd(1)): `SIGRTMIN+15` and `SIGRTMIN+14`.
const TRAPS: &str = "trap 'echo reboot >/asked; exit 0' 49; trap 'echo poweroff >/asked; exit 0' 48";

/// An initrd whose PID 1 ends as it does; see [`run`].
fn boot_to(status: i32, config: &str, init: &str) -> tempfile::TempDir {
    let (root, output) = run(config, init);
    assert_eq!(
        output.status.code(),
        Some(status),
        "this test needs root, for name spaces: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    root
}

/// An initrd with nothing in it but what the policy reads; `init` is the script of PID 1, where the program is `/freshroot`.
fn run(config: &str, init: &str) -> (tempfile::TempDir, Output) {
    let root = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("etc/initrd-release", "");
    write("etc/freshroot/config.json", config);
    write("cmdline", "quiet\n");
    write("init", init);
    for file in ["dev/console", "dev/kmsg", "dev/null", "freshroot"] {
        write(file, "");
    }
    for folder in ["usr", "proc", "cache-disk/freshroot/reports", "sysroot/run/freshroot/cache"] {
        fs::create_dir_all(root.path().join(folder)).unwrap();
    }
    for name in ["bin", "lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{name}"), root.path().join(name)).unwrap();
    }
    let outer = format!(
        "set -e; cd \"$1\"; mount --bind /usr usr; mount --bind \"$2\" freshroot; mount --bind cache-disk sysroot/run/freshroot/cache
         mount -t proc proc proc; mount --bind cmdline proc/cmdline; mount -t tmpfs tmpfs proc/sys
         mkdir -p proc/sys/kernel/random; echo {BOOT_ID} >proc/sys/kernel/random/boot_id
         exec chroot . /bin/sh /init"
    );
    let output = Command::new("timeout")
        .args([
            "60",
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--propagation",
            "private",
        ])
        .args(["sh", "-c", &outer, "sh"])
        .arg(root.path())
        .arg(env!("CARGO_BIN_EXE_freshroot"))
        .output()
        .expect("this test needs unshare, mount and timeout (util-linux, mount, coreutils)");
    (root, output)
}

fn read(root: &Path, path: &str) -> String {
    let path = root.join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn systemd_is_asked_to_end_the_machine_after_the_reason_is_shown_and_kept() {
    for (action, asked) in [("reboot", "reboot\n"), ("poweroff", "poweroff\n")] {
        let config = format!(r#"{{"version": 1, "onFailure": {{"action": "{action}", "delay": "1s"}}}}"#);
        let init = format!("{TRAPS}; /freshroot fail --unit emergency.service >/said 2>&1 & wait $!; echo $? >/status");
        let machine = boot_to(0, &config, &init);
        let root = machine.path();
        assert_eq!(read(root, "asked"), asked);
        assert!(!root.join("status").exists(), "it waits until it is ended: {}", read(root, "said"));
        // A file is no terminal: what is written later begins at the top again, and overwrites the first words.
        let screen = read(root, "dev/console");
        for words in ["what:   ", "emergency.service was started", "in 1 s"] {
            assert!(screen.contains(words), "{words}: {screen}");
        }
        for path in ["run/freshroot/boot.json", &format!("cache-disk/freshroot/reports/{BOOT_ID}.json")] {
            let report = Report::parse(&read(root, path)).unwrap();
            assert_eq!((report.outcome, report.boot_id.as_str()), (Outcome::Failed, BOOT_ID));
            assert!(report.error.unwrap().what.contains("has said nothing"));
        }
    }
}

#[test]
fn of_two_at_once_the_second_leaves_at_once() {
    let machine = boot_to(
        0,
        r#"{"version": 1, "onFailure": {"delay": "600s"}}"#,
        "/freshroot fail >/first 2>&1 &
         until test -s /run/freshroot/boot.json; do kill -0 $! || exit 1; sleep 0.05; done
         /freshroot fail --unit emergency.service >/second 2>&1; echo $? >/status
         kill -0 $! && echo waits >/first-status",
    );
    assert_eq!(read(machine.path(), "status"), "0\n");
    assert_eq!(read(machine.path(), "first-status"), "waits\n");
    let log = read(machine.path(), "dev/kmsg") + &read(machine.path(), "dev/console");
    assert!(log.contains("another process carries the failure policy out already"), "{log}");
}

#[test]
fn the_pause_doubles_with_the_failures_that_the_boot_itself_has_counted() {
    let mut report = Report::new(BOOT_ID);
    report.failures_before = 3;
    let report = String::from_utf8(report.to_json().unwrap()).unwrap();
    boot_to(
        0,
        r#"{"version": 1, "onFailure": {"delay": "60s", "maxDelay": "1h"}}"#,
        &format!(
            "mkdir -p /run/freshroot; cat >/run/freshroot/boot.json <<'END'\n{report}END
             /freshroot fail >/said 2>&1 &
             until grep -q 'reboot in 480 s' /dev/console; do kill -0 $! || exit 1; sleep 0.05; done"
        ),
    );
}

#[test]
fn as_pid_1_it_refuses() {
    let machine = boot_to(1, r#"{"version": 1}"#, "exec /freshroot fail 2>/said");
    assert!(read(machine.path(), "said").contains("as PID 1 the program boots"));
}
