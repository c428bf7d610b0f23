//! `freshroot boot --mode systemd` as a process, as root, in a mount name space that looks like systemd's stage 1: everything shared, a root mounted at the
//! sysroot, `/run` bound into it. What is left there is what switch-root would take over.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod server;
    #[allow(dead_code, reason = "shared with the tests of transfers")]
    pub mod world;
}

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use freshroot::formats::answer::Answer;
use freshroot::mount::loop_device::{LoopDevice, LoopOptions};
use freshroot::report::Report;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::OFlags;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount};
use serde_json::{Value, json};
use support::server::{Reply, Server};
use support::world::{World, key, open};

const TOPLEVEL: &str = "/nix/store/0c5f2ghhl3xkk1zjyk0pb9a5r4v2mhc1-nixos-system-demo";
/// Longer than any of these boots takes.
const LIFE: Duration = Duration::from_secs(60);

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn run(program: &str, args: &[&str]) -> String {
    match Command::new(program).args(args).output() {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout).unwrap(),
        Ok(output) => panic!("{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr)),
        Err(err) => panic!("this test needs {program} (squashfs-tools, e2fsprogs, iproute2): {err}"),
    }
}

/// Stage 1 as systemd has it when the agent's unit starts.
struct Stage1 {
    dir: tempfile::TempDir,
    disk: LoopDevice,
    _alone: MutexGuard<'static, ()>,
}

/// How a boot ended.
struct Ended {
    status: ExitStatus,
    lines: Vec<String>,
    screen: String,
    report: Report,
}

impl Stage1 {
    /// With a cache disk that holds one generation, and nothing at the sysroot yet.
    fn new(settings: Value) -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(errno) = unshare(CloneFlags::CLONE_NEWNS) {
            panic!("this test needs root, to mount in a name space of its own: {errno}");
        }
        // Not the machine's, and then shared among ourselves, as systemd has it.
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let disk = disk(dir.path());
        let stage_1 = Self { dir, disk, _alone: alone };
        for folder in ["sysroot", "etc/freshroot"] {
            fs::create_dir_all(stage_1.path(folder)).unwrap();
        }
        let mut config = json!({
            "version": 1, "channel": "stable", "policy": {"mode": "offline"}, "trustedPublicKeys": [key().public().to_string()],
            "cache": {"device": stage_1.disk.path()}, "onFailure": {"delay": "10s"},
        });
        for (name, value) in settings.as_object().unwrap() {
            config[name] = value.clone();
        }
        fs::write(stage_1.path("etc/freshroot/config.json"), config.to_string()).unwrap();
        fs::write(stage_1.path("etc/initrd-release"), "").unwrap();
        fs::write(stage_1.path("cmdline"), "root=fstab init=/nix/.freshroot/init\n").unwrap();
        fs::write(stage_1.path("console"), "").unwrap();
        fs::write(stage_1.path("consoles"), "").unwrap();
        mount("tmpfs", "/run", "tmpfs", MountFlags::empty(), c"mode=0755").unwrap();
        for (ours, theirs) in [
            ("etc", "/etc"),
            ("cmdline", "/proc/cmdline"),
            ("consoles", "/proc/consoles"),
            ("console", "/dev/console"),
        ] {
            mount_bind(stage_1.path(ours), theirs).unwrap();
        }
        stage_1
    }

    /// As [`Stage1::new`], with `sysroot.mount` and `sysroot-run.mount` done.
    fn with_sysroot(settings: Value) -> Self {
        let stage_1 = Self::new(settings);
        stage_1.mount_root();
        fs::create_dir(stage_1.path("sysroot/run")).unwrap();
        mount_bind("/run", stage_1.path("sysroot/run")).unwrap();
        stage_1
    }

    fn mount_root(&self) {
        mount("tmpfs", self.path("sysroot"), "tmpfs", MountFlags::empty(), c"mode=0755").unwrap();
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_freshroot"));
        command.args(["boot", "--mode", "systemd", "--sysroot"]).arg(self.path("sysroot"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    fn boot(&self) -> Ended {
        let output = self.command().output().unwrap();
        let lines = String::from_utf8(output.stderr).unwrap().lines().map(str::to_owned).collect();
        let report = fs::read_to_string("/run/freshroot/boot.json").unwrap();
        Ended {
            status: output.status,
            lines,
            screen: fs::read_to_string("/dev/console").unwrap(),
            report: Report::parse(&report).unwrap(),
        }
    }

    /// Mounts by what is mounted: (source, mount point without the folder of this test).
    fn mounts(&self) -> Vec<(String, String)> {
        let text = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let own = self.dir.path().to_str().unwrap();
        text.lines()
            .map(|line| {
                let point = line.split(' ').nth(4).unwrap();
                let source = line.split(" - ").nth(1).unwrap().split(' ').nth(1).unwrap();
                (source.to_owned(), point.strip_prefix(own).unwrap_or(point).to_owned())
            })
            .collect()
    }

    fn places_of(&self, source: &str) -> Vec<String> {
        let mounts = self.mounts().into_iter().filter(|(from, _)| from == source);
        mounts.map(|(_, point)| point).collect()
    }

    fn below_sysroot(&self) -> Vec<String> {
        let mut points: Vec<String> = self.mounts().into_iter().map(|(_, point)| point).collect();
        points.retain(|point| point.starts_with("/sysroot"));
        points
    }

    fn disk_name(&self) -> &str {
        self.disk.path().to_str().unwrap()
    }

    /// Nothing has the disk mounted any more, in any name space and detached or not: only then the kernel gives it exclusively.
    fn is_disk_free(&self) -> bool {
        File::options()
            .read(true)
            .custom_flags(OFlags::EXCL.bits().cast_signed())
            .open(self.disk.path())
            .is_ok()
    }
}

/// A generation for this machine's kernel.
fn world(dir: &Path) -> World {
    let (tree, image) = (dir.join("tree"), dir.join("store.squashfs"));
    let toplevel = tree.join(Path::new(TOPLEVEL).file_name().unwrap());
    fs::create_dir_all(&toplevel).unwrap();
    for program in ["init", "prepare-root"] {
        fs::write(toplevel.join(program), "\x7fELF").unwrap();
        fs::set_permissions(toplevel.join(program), fs::Permissions::from_mode(0o555)).unwrap();
    }
    run(
        "mksquashfs",
        &[
            tree.to_str().unwrap(),
            image.to_str().unwrap(),
            "-all-root",
            "-quiet",
            "-no-progress",
        ],
    );
    let release = rustix::system::uname().release().to_str().unwrap().to_owned();
    World::of(fs::read(&image).unwrap(), 1, TOPLEVEL, &release)
}

/// A disk with a cache that holds it.
fn disk(dir: &Path) -> LoopDevice {
    let (disk, files) = (dir.join("disk"), dir.join("files"));
    let cache = files.join("freshroot");
    fs::create_dir_all(&cache).unwrap();
    world(dir).install(&open(&cache), 1);
    File::create(&disk).unwrap().set_len(32 << 20).unwrap();
    run("mkfs.ext4", &["-q", "-d", files.to_str().unwrap(), disk.to_str().unwrap()]);
    let file = File::options().read(true).write(true).open(&disk).unwrap();
    let options = LoopOptions {
        autoclear: true,
        ..LoopOptions::default()
    };
    LoopDevice::attach(Path::new("/dev"), file.as_fd(), options).unwrap()
}

#[test]
fn a_warm_boot_leaves_a_store_and_one_cache_where_stage_2_has_them() {
    let stage_1 = Stage1::with_sysroot(json!({}));
    let ended = stage_1.boot();
    assert!(ended.status.success(), "{:#?}", ended.lines);
    let sysroot = stage_1.path("sysroot");
    assert_eq!(fs::read_link(sysroot.join("nix/.freshroot")).unwrap(), Path::new(TOPLEVEL));
    assert!(sysroot.join(&TOPLEVEL[1..]).join("init").exists());
    fs::write(sysroot.join("nix/store/written"), "").unwrap();
    // The same file by both ways: stage 2 reads it at /run/freshroot/boot.json.
    assert_eq!(ended.report.outcome, freshroot::report::Outcome::Booted);
    assert!(sysroot.join("run/freshroot/boot.json").exists());
    assert!(
        ended.lines.iter().all(|line| line.starts_with('<') && line.as_bytes()[2] == b'>'),
        "{:#?}",
        ended.lines
    );
    assert_eq!(
        stage_1.places_of(stage_1.disk_name()),
        ["/sysroot/run/freshroot/cache"],
        "once, and not in stage 1's own /run"
    );
    assert_eq!(ended.screen, "", "nothing is said beside the journal");

    // What switch-root does with stage 1's own mounts.
    unmount("/run", UnmountFlags::DETACH).unwrap();
    assert!(sysroot.join("run/freshroot/cache/freshroot/generations").is_dir());
    for point in ["nix/store", "nix/.rw-store", "nix/.ro-store", "run/freshroot/cache"] {
        unmount(sysroot.join(point), UnmountFlags::empty()).unwrap_or_else(|errno| panic!("{point} is busy: {errno}"));
    }
    let deadline = Instant::now() + LIFE;
    while !stage_1.is_disk_free() && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert!(stage_1.is_disk_free(), "something still holds the cache disk");
}

#[test]
fn an_image_in_ram_is_where_stage_2_has_it_and_the_network_of_the_system_is_used_and_left_alone() {
    // A network of its own, which somebody has configured.
    if let Err(errno) = unshare(CloneFlags::CLONE_NEWNET) {
        panic!("this test needs root, for a network of its own: {errno}");
    }
    for words in [
        "link set lo up",
        "link add card type veth peer name port",
        "link set port up",
        "link set card up",
        "addr add 192.0.2.7/24 dev card",
        "route add default via 192.0.2.1",
    ] {
        run("ip", &words.split(' ').collect::<Vec<_>>());
    }
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let answer = Answer::new(world.release.clone(), world.manifest.clone());
    let files: BTreeMap<String, Vec<u8>> = [
        ("/channels/stable.json".to_owned(), serde_json::to_vec(&answer).unwrap()),
        (format!("/images/{}.squashfs", world.image.sha256), world.bytes.clone()),
        (format!("/images/{}.chunks", world.image.sha256), world.index.to_bytes()),
    ]
    .into();
    let server = Server::new(move |ask| Reply::honest(&files, ask));
    let stage_1 = Stage1::with_sysroot(json!({
        "url": server.url(), "policy": {"mode": "wait"}, "cache": {}, "network": {"by": "system"}
    }));
    let ended = stage_1.boot();
    assert!(ended.status.success(), "{:#?}", ended.lines);
    assert_eq!(ended.report.source, Some(freshroot::report::Source::Ram));
    let network = ended.report.network.unwrap();
    assert_eq!(
        (network.interface.as_str(), network.addresses),
        ("card", vec!["192.0.2.7/24".to_owned()])
    );
    assert!(
        run("ip", &["addr", "show", "card"]).contains("192.0.2.7/24"),
        "the network was touched"
    );
    assert_eq!(stage_1.places_of("freshroot-ram"), ["/sysroot/run/freshroot/ram"]);
    unmount("/run", UnmountFlags::DETACH).unwrap();
    assert_eq!(
        fs::read(stage_1.path("sysroot").join(&TOPLEVEL[1..]).join("init")).unwrap(),
        b"\x7fELF"
    );
}

#[test]
fn a_sysroot_that_nobody_mounted_is_named_with_the_remedy() {
    let stage_1 = Stage1::new(json!({}));
    let ended = stage_1.boot();
    assert_eq!(ended.status.code(), Some(1));
    let failure = ended.report.error.unwrap();
    assert!(
        failure.what.contains("nothing is mounted at") && failure.remedy.contains("root=fstab"),
        "{failure:?}"
    );
    assert!(
        ended.screen.contains("THE BOOT FAILED") && ended.screen.contains("root=fstab"),
        "{}",
        ended.screen
    );
}

#[test]
fn on_a_system_that_runs_nothing_is_touched() {
    let stage_1 = Stage1::with_sysroot(json!({}));
    fs::remove_file("/etc/initrd-release").unwrap();
    let output = stage_1.command().output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("initrd-release"), "{said}");
    assert!(!Path::new("/run/freshroot").exists());
    assert_eq!(fs::read("/dev/console").unwrap(), b"");
}

#[test]
fn without_the_bind_of_run_it_is_made_and_said() {
    let stage_1 = Stage1::new(json!({}));
    stage_1.mount_root();
    let ended = stage_1.boot();
    assert!(ended.status.success(), "{:#?}", ended.lines);
    assert!(
        ended.lines.iter().any(|line| line.starts_with("<4>/run is not bound")),
        "{:#?}",
        ended.lines
    );
    assert!(stage_1.path("sysroot/run/freshroot/boot.json").exists());
    assert_eq!(stage_1.places_of(stage_1.disk_name()), ["/sysroot/run/freshroot/cache"]);
}

#[test]
fn another_run_in_the_sysroot_is_refused() {
    let stage_1 = Stage1::new(json!({}));
    stage_1.mount_root();
    fs::create_dir(stage_1.path("sysroot/run")).unwrap();
    mount("tmpfs", stage_1.path("sysroot/run"), "tmpfs", MountFlags::empty(), c"").unwrap();
    let failure = stage_1.boot().report.error.unwrap();
    assert!(failure.what.contains("something else than /run"), "{failure:?}");
}

#[test]
fn a_failure_leaves_the_reason_and_no_mount() {
    let stage_1 = Stage1::with_sysroot(
        json!({"channel": "other", "onFailure": {"delay": "1s", "maxDelay": "1s", "retries": 1}, "fileSystems": {
            "/data": {"device": "LABEL=data", "fsType": "ext4", "options": []}
        }}),
    );
    let ended = stage_1.boot();
    assert_eq!(ended.status.code(), Some(1), "{:#?}", ended.lines);
    let failure = ended.report.error.unwrap();
    assert!(
        failure.what.contains("systemd mounted nothing at") && failure.what.contains("/data"),
        "{failure:?}"
    );
    assert_eq!(
        ended.lines.iter().filter(|line| line.starts_with("<3>the boot failed")).count(),
        2,
        "{:#?}",
        ended.lines
    );
    assert_eq!(
        ended.report.failures_before, 1,
        "the process that makes the pause has no cache to count in"
    );
    assert!(ended.screen.contains("freshroot-failure.service"), "{}", ended.screen);
    assert_eq!(stage_1.below_sysroot(), ["/sysroot", "/sysroot/run"]);
    assert!(stage_1.is_disk_free(), "the cache stays mounted");
}

#[test]
fn what_systemd_mounted_is_taken_what_it_did_not_gets_a_stand_in_and_binds_are_made() {
    let stage_1 = Stage1::with_sysroot(json!({"fileSystems": {
        "/data": {"device": "LABEL=data", "fsType": "zfs", "options": ["zfsutil"]},
        "/etc/ssh": {"device": "/data/ssh", "fsType": "none", "options": ["bind"], "create": {"mode": "0700"}},
        "/gone": {"device": "server:/x", "fsType": "nfs", "need": "degraded"},
        "/gone/below": {"device": "/gone/x", "fsType": "none", "options": ["bind", "nofail"]},
    }}));
    let data = stage_1.path("sysroot/data");
    fs::create_dir(&data).unwrap();
    mount("data", &data, "tmpfs", MountFlags::empty(), c"").unwrap();
    let ended = stage_1.boot();
    assert!(ended.status.success(), "{:#?}", ended.lines);
    assert_eq!(stage_1.places_of("data"), ["/sysroot/data", "/sysroot/etc/ssh"]);
    assert_eq!(stage_1.places_of("freshroot-missing"), ["/sysroot/gone"]);
    assert_eq!(fs::metadata(data.join("ssh")).unwrap().permissions().mode() & 0o7777, 0o700);
    let warned = ended
        .report
        .warnings
        .iter()
        .filter(|warning| warning.contains("is missing"))
        .count();
    assert_eq!(warned, 2, "{:?}", ended.report.warnings);
}

#[test]
fn sigterm_ends_a_wait_at_once() {
    let stage_1 = Stage1::with_sysroot(json!({"cache": {"device": "LABEL=never-there", "wait": "10min"}}));
    let mut child = stage_1.command().spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(
        lines.any(|line| line.unwrap().contains("waiting for LABEL=never-there")),
        "it ended before it waited"
    );
    let asked = Instant::now();
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGTERM as i32));
    assert!(asked.elapsed() < LIFE);
}
