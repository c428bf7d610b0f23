//! The hand-over, as root, in mount name spaces of its own: programs in another root, and a whole switch from a tmpfs as an initramfs would be.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use freshroot::formats::manifest::InitKind;
use freshroot::handover::empty::remove_contents;
use freshroot::handover::plan::{HandOver, Step, plan};
use freshroot::handover::prepare::prepare;
use freshroot::handover::run_in_root::run_in_root;
use freshroot::handover::switch_root::switch_root;
use freshroot::handover::toplevel;
use freshroot::mode::Mode;
use freshroot::mount::api_fs::mount_api_file_systems;
use freshroot::mount::fs_context::DetachedMount;
use freshroot::mount::mount_log::MountLog;
use freshroot::mount::options::Attributes;
use freshroot::mount::system;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};

const TOPLEVEL: &str = "/nix/store/aaaa-nixos-system-demo";

/// One test at a time: a child that another thread is just starting holds a copy of every descriptor until its exec, and keeps mounts busy.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn private_mounts() -> MutexGuard<'static, ()> {
    let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(errno) = unshare(CloneFlags::CLONE_NEWNS) {
        panic!("this test needs root, to mount in a name space of its own: {errno}");
    }
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    guard
}

/// Binds a folder. Read-only where it belongs to the machine: these tests remove things.
fn bind(from: &Path, to: &Path, read_only: bool) {
    fs::create_dir_all(to).unwrap();
    let mount = DetachedMount::clone_of(File::open(from).unwrap().as_fd(), false, "a folder").unwrap();
    if read_only {
        mount
            .set_attributes(
                Attributes {
                    read_only: true,
                    ..Attributes::default()
                },
                false,
            )
            .unwrap();
    }
    mount.attach(to).unwrap();
}

/// Gives a root the programs of this machine.
fn with_programs(root: &Path) {
    bind(Path::new("/usr"), &root.join("usr"), true);
    for name in ["bin", "lib", "lib64"] {
        symlink(format!("usr/{name}"), root.join(name)).unwrap();
    }
    assert!(root.join("bin/sh").exists(), "this test needs a machine with /bin merged into /usr");
}

fn script(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A root on a tmpfs with programs and a script `/script`.
fn root_with(dir: &Path, text: &str) -> std::path::PathBuf {
    let root = dir.join("root");
    system::mount_root(&root, &"16M".parse().unwrap(), &mut MountLog::new()).unwrap();
    with_programs(&root);
    script(&root.join("script"), text);
    root
}

fn run_script(text: &str, limit: Duration) -> (anyhow::Result<()>, tempfile::TempDir, std::path::PathBuf) {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let root = root_with(dir.path(), text);
    // A shell opens /dev/null for what it starts in the background.
    bind(Path::new("/dev"), &root.join("dev"), true);
    let env = [(OsString::from("WORD"), OsString::from("a b"))];
    let result = run_in_root(&root, Path::new("/script"), &env, limit);
    (result, dir, root)
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_program_runs_in_the_other_root_with_the_environment_given_and_no_more() {
    let (result, _dir, root) = run_script("pwd > /out; echo \"$WORD$CARGO\" >> /out; ls -d /script >> /out", LONG);
    result.unwrap();
    assert_eq!(fs::read_to_string(root.join("out")).unwrap(), "/\na b\n/script\n");
    assert!(!Path::new("/script").exists(), "the root of the test itself was changed");
}

#[test]
fn a_program_that_fails_is_named_with_its_status_and_last_words() {
    let (result, _dir, _root) = run_script("echo begin; echo of no use >&2; exit 7", LONG);
    let text = format!("{:#}", result.unwrap_err());
    assert!(
        text.contains("/script") && text.contains("exit status 7") && text.contains("of no use"),
        "{text}"
    );
}

#[test]
fn a_program_that_does_not_end_is_killed_with_its_children() {
    let before = Instant::now();
    let (result, _dir, root) = run_script("(sleep 1000; echo late > /out) & echo $! > /pid; wait", Duration::from_millis(500));
    let text = format!("{:#}", result.unwrap_err());
    assert!(text.contains("did not end within"), "{text}");
    assert!(before.elapsed() < LONG);
    assert!(!root.join("out").exists());
    let pid = fs::read_to_string(root.join("pid")).unwrap();
    // It has its signal, and dies as soon as it gets a processor.
    let gone = || {
        let state = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        state.is_empty() || state.contains(" Z ") || state.contains(" X ")
    };
    while !gone() {
        assert!(before.elapsed() < LONG, "a child is left: {pid}");
        std::thread::yield_now();
    }
}

#[test]
fn a_daemon_left_behind_does_not_hold_the_boot() {
    let (result, _dir, root) = run_script("sleep 1000 & echo $! > /pid; echo done", LONG);
    result.unwrap();
    let pid = fs::read_to_string(root.join("pid")).unwrap();
    assert!(Command::new("kill").args(["-9", pid.trim()]).status().unwrap().success());
}

#[test]
fn a_program_that_is_not_there_is_an_error_with_its_path() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let root = root_with(dir.path(), "true");
    let text = format!("{:#}", run_in_root(&root, Path::new("/gone"), &[], LONG).unwrap_err());
    assert!(text.contains("/gone"), "{text}");
}

fn demo_system(sysroot: &Path, prepare_root: &str, init: &str) {
    let toplevel = sysroot.join(&TOPLEVEL[1..]);
    script(&toplevel.join("prepare-root"), prepare_root);
    script(&toplevel.join("init"), init);
}

fn handover(sysroot: &Path) -> HandOver {
    let toplevel = toplevel::check(sysroot, Path::new(TOPLEVEL), Mode::Standalone).unwrap();
    assert_eq!(toplevel.kind(), InitKind::PrepareRoot);
    HandOver {
        sysroot: sysroot.to_owned(),
        toplevel,
        args: vec!["--first".into(), "second word".into()],
        env: vec![("TERM".into(), "linux".into())],
        prepare_root_limit: LONG,
    }
}

#[test]
fn the_plan_says_every_step_in_order() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let root = root_with(dir.path(), "true");
    demo_system(&root, "true", "true");
    let steps = plan(&HandOver {
        sysroot: root.clone(),
        ..handover(&root)
    });
    let text: Vec<String> = steps
        .iter()
        .map(|step| step.to_string().replace(root.to_str().unwrap(), "/sysroot"))
        .collect();
    assert_eq!(
        text,
        [
            "share the mounts at /dev with /sysroot/dev",
            "share the mounts at /proc with /sysroot/proc",
            "share the mounts at /sys with /sysroot/sys",
            "share the mounts at /run with /sysroot/run",
            "run /nix/store/aaaa-nixos-system-demo/prepare-root in the new root, for at most 60 s",
            "check that /nix/store/aaaa-nixos-system-demo/init can be started",
            "make /sysroot the root",
            "detach what is mounted in the old root",
            "free the memory of the initramfs",
            "open /dev/console",
            "start /nix/store/aaaa-nixos-system-demo/init --first second word",
        ]
    );
    let undoable = steps.iter().take_while(|step| step.can_be_undone()).count();
    assert!(matches!(steps[undoable], Step::MoveRoot { .. }) && steps[undoable..].iter().all(|step| !step.can_be_undone()));
}

#[test]
fn a_failed_activation_leaves_the_old_root_as_it_was() {
    for (prepare_root, named) in [
        ("echo no passwd; exit 3", "no passwd"),
        (&format!("rm {TOPLEVEL}/init"), "init: does not exist"),
    ] {
        let _alone = private_mounts();
        mount_api_file_systems(Path::new("/"), &mut MountLog::new()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let root = root_with(dir.path(), "true");
        demo_system(&root, prepare_root, "true");
        let text = format!("{:#}", prepare(handover(&root)).unwrap_err());
        assert!(text.contains(named), "{text}");
        let info = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        for folder in ["dev", "proc", "sys", "run"] {
            assert!(
                !info.contains(&format!(" {}/{folder} ", root.display())),
                "{folder} is still in the new root"
            );
            assert!(Path::new("/").join(folder).exists());
        }
    }
}

#[test]
fn emptying_stops_at_every_mount_and_symlink() {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let (root, other) = (dir.path().join("root"), dir.path().join("other"));
    fs::create_dir(&other).unwrap();
    fs::write(other.join("kept"), "").unwrap();
    system::mount_root(&root, &"16M".parse().unwrap(), &mut MountLog::new()).unwrap();
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    fs::write(root.join("a/b/c/file"), "").unwrap();
    symlink(&other, root.join("a/link")).unwrap();
    bind(&other, &root.join("a/other"), false);
    // Another tmpfs, and a bind of the same file system, which has the same device number.
    system::mount_root(&root.join("tmpfs"), &"1M".parse().unwrap(), &mut MountLog::new()).unwrap();
    fs::write(root.join("tmpfs/kept"), "").unwrap();
    fs::create_dir(root.join("same")).unwrap();
    bind(&root.join("same"), &root.join("z/same"), false);
    fs::write(root.join("z/same/gone-by-its-own-name"), "").unwrap();

    let counts = remove_contents(File::open(&root).unwrap().as_fd()).unwrap();
    assert!(other.join("kept").exists() && root.join("tmpfs/kept").exists());
    let left = |folder: &str| {
        let mut names: Vec<_> = fs::read_dir(root.join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    // «same» is what is mounted at z/same: removed itself, or kept where the kernel holds it for the mount.
    assert_eq!((left("a"), left("z")), (vec!["other".into()], vec!["same".into()]));
    assert!(counts.kept >= 5 && counts.removed >= 4, "{counts:?}");
}

#[test]
fn emptying_refuses_what_is_no_initramfs() {
    let err = remove_contents(File::open("/proc").unwrap().as_fd()).unwrap_err();
    assert!(err.to_string().contains("no initramfs"), "{err}");
}

/// Ends in another program, so that it needs a process of its own: the test runs itself again.
#[test]
fn the_root_is_switched_and_the_initramfs_emptied() {
    const OUT: &str = "FRESHROOT_TEST_OUT";
    if let Some(out) = std::env::var_os(OUT) {
        switch_from_a_tmpfs(Path::new(&out));
    }
    let out = tempfile::tempdir().unwrap();
    fs::write(out.path().join("kept"), "kept").unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["the_root_is_switched_and_the_initramfs_emptied", "--exact", "--nocapture"])
        .env(OUT, out.path())
        .output()
        .unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&child.stdout),
        String::from_utf8_lossy(&child.stderr)
    );
    assert_eq!(child.status.code(), Some(42), "the init of the test ends with 42: {said}");

    let read = |name: &str| fs::read_to_string(out.path().join(name)).unwrap_or_else(|err| panic!("{name}: {err}: {said}"));
    assert_eq!(read("prepared"), "true linux\n");
    assert_eq!(read("args"), "--first\nsecond word\n");
    assert_eq!(read("pwd"), "/\n");
    assert!(
        read("root").contains("made-by-prepare-root") && !read("root").contains("initramfs-file"),
        "{}",
        read("root")
    );
    assert_eq!(read("old"), "", "the initramfs is not empty");
    assert_eq!(read("kept"), "kept", "a file on another file system was removed");
    assert_eq!(read("env"), "TERM=linux\n");
    // The test harness ignores SIGPIPE as every Rust program does, and the test blocked SIGUSR1 before the switch.
    let mask = |name: &str| {
        let signals = read("signals");
        let line = signals.lines().find(|line| line.starts_with(name)).unwrap();
        u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
    };
    assert_eq!(mask("SigBlk"), 0);
    assert_eq!(mask("SigIgn") & (1 << (13 - 1)), 0, "SIGPIPE is ignored");
    let mounts = read("mountinfo");
    for place in ["/dev", "/proc", "/sys", "/run", "/run/out"] {
        let count = mounts.lines().filter(|line| line.split(' ').nth(4) == Some(place)).count();
        assert_eq!(count, 1, "{place}: {mounts}");
    }
}

/// Builds an initramfs on a tmpfs, makes it the root of this process, mounts a system, and hands over to it.
fn switch_from_a_tmpfs(out: &Path) -> ! {
    let _alone = private_mounts();
    let dir = tempfile::tempdir().unwrap();
    let initramfs = dir.path().join("initramfs");
    system::mount_root(&initramfs, &"16M".parse().unwrap(), &mut MountLog::new()).unwrap();
    with_programs(&initramfs);
    fs::write(initramfs.join("initramfs-file"), "x").unwrap();
    fs::create_dir_all(initramfs.join("deep/er")).unwrap();
    fs::write(initramfs.join("deep/er/file"), "x").unwrap();
    symlink("/run/out", initramfs.join("deep/link")).unwrap();
    bind(out, &initramfs.join("deep/other"), false);
    bind(out, &initramfs.join("saved"), false);
    fs::create_dir(initramfs.join("old")).unwrap();
    rustix::process::chdir(&initramfs).unwrap();
    rustix::process::pivot_root(".", "old").unwrap();
    unmount("/old", UnmountFlags::DETACH).unwrap();
    mount_api_file_systems(Path::new("/"), &mut MountLog::new()).unwrap();
    bind(Path::new("/saved"), Path::new("/run/out"), false);

    let sysroot = Path::new("/sysroot");
    system::mount_root(sysroot, &"16M".parse().unwrap(), &mut MountLog::new()).unwrap();
    with_programs(sysroot);
    let old = File::open("/").unwrap();
    rustix::io::fcntl_setfd(&old, rustix::io::FdFlags::empty()).unwrap();
    demo_system(
        sysroot,
        "echo $IN_NIXOS_SYSTEMD_STAGE1 $TERM > /run/out/prepared; echo > /made-by-prepare-root",
        &format!(
            "cd /run/out; tr '\\0' '\\n' < /proc/$$/environ > env; printf '%s\\n' \"$@\" > args; readlink /proc/$$/cwd > cwd
            cat /proc/$$/mountinfo > mountinfo
            # Without a child: the shell blocks signals while it starts one.
            while read -r line; do case $line in Sig*) echo \"$line\";; esac; done < /proc/$$/status > signals
            ls -A / > root; ls -A /proc/$$/fd/{}/ > old; cd /; pwd > /run/out/pwd; exit 42",
            old.as_raw_fd()
        ),
    );
    let prepared = prepare(handover(sysroot)).unwrap();
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGUSR1);
    blocked.thread_block().unwrap();
    let Err(err) = switch_root(prepared);
    panic!("{err}");
}
