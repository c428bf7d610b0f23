//! The system that is booted: Debian with systemd, laid out as NixOS lays a store out.
//!
//! A toplevel names store paths as NixOS's does (`init`, `prepare-root`, `kernel`, `kernel-modules`, `etc`, `sw`, …). `init` is systemd itself, and
//! `prepare-root` does the activation (kind b); a scripted flavour has both in one `init` (kind a).

pub mod store;
pub mod userland;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command::Tool;
use crate::packages;
use crate::packages::kernel::Kernel;
use store::{Staging, StorePath};
use userland::Userland;

const ACTIVATE: &str = include_str!("../../guest/activate.sh");
/// What a server's activation does first, as sops-nix and agenix do it.
const SECRETS: &str = include_str!("../../guest/activate-secrets.sh");
const REPORT: &str = include_str!("../../guest/demo-report.sh");
const REPORT_UNIT: &str = include_str!("../../guest/demo-report.service");
/// Units that have nothing to do in a machine that lives for a minute.
const MASKED: &[&str] = &[
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty-static.service",
    "proc-sys-fs-binfmt_misc.automount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-networkd.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
];
/// Debian packages that a generation brings as store paths of their own; the second has one more.
const EXTRAS: [&[&str]; 2] = [&["hello"], &["hello", "tree"]];
/// What the padded flavour adds, in MiB: nothing compresses it.
const PADDING: u64 = 560;
const COPY_LIMIT: Duration = Duration::from_secs(300);

/// Who does the activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `prepare-root` does, `init` is systemd.
    PrepareRoot,
    /// `init` is a script that does both.
    Scripted,
}

/// What is to be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spec {
    /// 1 or 2.
    pub generation: u32,
    /// Who does the activation.
    pub kind: Kind,
    /// Whether a large store path is added.
    pub padded: bool,
}

impl Spec {
    /// A plain generation of kind (b).
    pub fn generation(generation: u32) -> Self {
        Self {
            generation,
            kind: Kind::PrepareRoot,
            padded: false,
        }
    }
}

/// What a server has besides: the agent as a store path of its own, as the module has it, and files.
#[derive(Debug, Clone, Copy)]
pub struct Server<'a> {
    /// The agent.
    pub agent: &'a Path,
    /// Path below `/` → text, in which [`Server::AGENT`] stands for the agent's path.
    pub files: &'a BTreeMap<String, String>,
}

impl Server<'_> {
    /// Stands for the agent's path in files.
    pub const AGENT: &'static str = "@agent@";
}

/// A system with its image.
#[derive(Debug, Clone)]
pub struct System {
    /// The squashfs.
    pub image: PathBuf,
    /// The toplevel.
    pub toplevel: StorePath,
    /// `<hash>-linux-<version>`.
    pub kernel_store_name: String,
}

/// Builds systems and keeps what can be used again.
#[derive(Debug)]
pub struct Builder<'a> {
    vm: &'a Path,
    kernel: &'a Kernel,
    level: u32,
    staging: Staging,
}

impl<'a> Builder<'a> {
    /// Builds below `vm`, for `kernel`, with zstd `level`.
    pub fn new(vm: &'a Path, kernel: &'a Kernel, level: u32) -> Result<Self> {
        let staging = Staging::new(&vm.join("store"))?;
        Ok(Self {
            vm,
            kernel,
            level,
            staging,
        })
    }

    /// The system of `spec`, made unless it is there.
    pub fn build(&self, spec: Spec) -> Result<System> {
        self.build_with(spec, None)
    }

    /// The same with a server's programs and files.
    pub fn build_with(&self, spec: Spec, server: Option<Server<'_>>) -> Result<System> {
        let busybox = self.busybox()?;
        let userland = self.userland(server.is_some())?;
        let (linux, modules) = self.kernel_paths()?;
        let mut extras = self.extras(spec.generation)?;
        let report = self.report()?;
        let files = match server {
            Some(server) => {
                let agent = self.agent(server.agent)?;
                let program = format!("{}/bin/freshroot", agent.in_guest());
                extras.push(agent);
                let texts = server.files.iter();
                texts
                    .map(|(path, text)| (path.clone(), text.replace(Server::AGENT, &program)))
                    .collect()
            }
            None => BTreeMap::new(),
        };
        let etc = self.etc(spec.generation, &report, &files)?;
        let toplevel = self.toplevel(
            spec,
            &Parts {
                busybox: &busybox,
                userland: &userland,
                linux: &linux,
                modules: &modules,
                extras: &extras,
                etc: &etc,
                activate: &format!("{}{ACTIVATE}", if server.is_some() { SECRETS } else { "" }),
            },
        )?;
        let mut paths = vec![busybox, userland, linux.clone(), modules, report, etc, toplevel.clone()];
        paths.extend(extras);
        if spec.padded {
            paths.push(self.padding()?);
        }
        let image = self.vm.join(format!("{}-{}.squashfs", toplevel.hash(), self.level));
        if !image.exists() {
            eprintln!("system: packing generation {} with zstd level {}", spec.generation, self.level);
            self.staging.pack(&paths, self.level, &image)?;
        }
        Ok(System {
            image,
            toplevel,
            kernel_store_name: linux.base,
        })
    }

    /// Static, so that it runs before there is a /lib64: the interpreter of the activation.
    fn busybox(&self) -> Result<StorePath> {
        let program = busybox_static(self.vm)?;
        let version = packages::candidate("busybox-static")?;
        let path = StorePath::of("busybox-static", &[version.as_bytes()]);
        self.staging.add(&path, |dir| {
            let bin = dir.join("bin");
            fs::create_dir(&bin).context("making bin")?;
            copy(&program, &bin.join("busybox"))?;
            let applets = Tool::new(&program.to_string_lossy(), COPY_LIMIT).arg("--list").text()?;
            for applet in applets.lines().filter(|name| *name != "busybox") {
                symlink("busybox", bin.join(applet)).with_context(|| format!("linking {applet}"))?;
            }
            Ok(())
        })?;
        Ok(path)
    }

    fn agent(&self, program: &Path) -> Result<StorePath> {
        let bytes = fs::read(program).with_context(|| format!("reading {}", program.display()))?;
        let path = StorePath::of("freshroot", &[&bytes]);
        self.staging.add(&path, |dir| {
            let bin = dir.join("bin");
            fs::create_dir(&bin).context("making bin")?;
            copy(program, &bin.join("freshroot"))
        })?;
        Ok(path)
    }

    fn userland(&self, server: bool) -> Result<StorePath> {
        let userland = Userland::prepare(self.vm, server)?;
        let path = StorePath::of("debian-userland", &[userland.key().as_bytes()]);
        self.staging.add(&path, |dir| userland.unpack(dir))?;
        Ok(path)
    }

    fn kernel_paths(&self) -> Result<(StorePath, StorePath)> {
        let Kernel {
            release,
            image,
            modules,
            selection,
        } = self.kernel;
        let version = release.split('-').next().unwrap_or(release);
        let linux = StorePath::of(&format!("linux-{version}"), &[release.as_bytes()]);
        self.staging.add(&linux, |dir| copy(image, &dir.join("bzImage")))?;
        let recipe: Vec<&[u8]> = [Some(release), selection.as_ref()]
            .into_iter()
            .flatten()
            .map(String::as_bytes)
            .collect();
        let path = StorePath::of(&format!("linux-{version}-modules"), &recipe);
        self.staging.add(&path, |dir| {
            let folder = dir.join("lib/modules");
            fs::create_dir_all(&folder).context("making lib/modules")?;
            Tool::new("cp", COPY_LIMIT).arg("-a").arg(modules).arg(&folder).run()
        })?;
        Ok((linux, path))
    }

    fn extras(&self, generation: u32) -> Result<Vec<StorePath>> {
        let names = if generation == 1 { EXTRAS[0] } else { EXTRAS[1] };
        let mut paths = Vec::new();
        for name in names {
            let unpacked = packages::unpacked(self.vm, name)?;
            let path = StorePath::of(name, &[packages::candidate(name)?.as_bytes()]);
            self.staging.add(&path, |dir| {
                let bin = dir.join("bin");
                fs::create_dir(&bin).context("making bin")?;
                copy(&unpacked.join("usr/bin").join(name), &bin.join(name))
            })?;
            paths.push(path);
        }
        Ok(paths)
    }

    fn report(&self) -> Result<StorePath> {
        let path = StorePath::of("demo-report", &[REPORT.as_bytes()]);
        self.staging.add(&path, |dir| script(&dir.join("bin/demo-report"), REPORT))?;
        Ok(path)
    }

    fn etc(&self, generation: u32, report: &StorePath, files: &BTreeMap<String, String>) -> Result<StorePath> {
        let unit = REPORT_UNIT.replace("@report@", &report.in_guest());
        let mut recipe = vec![
            unit.clone().into_bytes(),
            generation.to_le_bytes().to_vec(),
            MASKED.join(" ").into_bytes(),
        ];
        recipe.extend(files.iter().map(|(path, text)| format!("{path}\n{text}").into_bytes()));
        let recipe: Vec<&[u8]> = recipe.iter().map(Vec::as_slice).collect();
        let path = StorePath::of("etc", &recipe);
        self.staging.add(&path, |dir| {
            let units = dir.join("etc/systemd/system");
            fs::create_dir_all(units.join("multi-user.target.wants")).context("making the unit folders")?;
            write(&units.join("demo-report.service"), &unit)?;
            symlink("../demo-report.service", units.join("multi-user.target.wants/demo-report.service")).context("enabling the report")?;
            for name in MASKED {
                symlink("/dev/null", units.join(name)).with_context(|| format!("masking {name}"))?;
            }
            write(&dir.join("etc/hostname"), "demo\n")?;
            write(&dir.join("etc/fstab"), "# The mounts of this machine are those of the boot.\n")?;
            write(&dir.join("etc/issue"), &format!("freshroot demo, generation {generation} \\l\n"))?;
            write(&dir.join("etc/demo-generation"), &format!("{generation}\n"))?;
            files.iter().try_for_each(|(path, text)| add(dir, path, text))
        })?;
        Ok(path)
    }

    fn toplevel(&self, spec: Spec, parts: &Parts<'_>) -> Result<StorePath> {
        let version = format!("26.05.demo.{}", spec.generation);
        let flavour = format!("2 {:?} {}", spec.kind, spec.padded);
        let recipe: Vec<&[u8]> = [parts.activate, &flavour, &version]
            .iter()
            .map(|text| text.as_bytes())
            .chain(parts.all().map(|path| path.base.as_bytes()))
            .collect();
        let path = StorePath::of(&format!("nixos-system-demo-{version}"), &recipe);
        let systemd = format!("{}/usr/lib/systemd/systemd", parts.userland.in_guest());
        let activate = parts
            .activate
            .replace("@busybox@", &parts.busybox.in_guest())
            .replace("@userland@", &parts.userland.in_guest())
            .replace("@etc@", &parts.etc.in_guest())
            .replace("@toplevel@", &path.in_guest())
            .replace("@generation@", &spec.generation.to_string());
        let activate = format!("#!{}/bin/sh\n{activate}", parts.busybox.in_guest());
        self.staging.add(&path, |dir| {
            let link = |to: &str, name: &str| symlink(to, dir.join(name)).with_context(|| format!("linking {name}"));
            match spec.kind {
                Kind::PrepareRoot => {
                    script(&dir.join("prepare-root"), &activate)?;
                    // A copy, as NixOS makes it: find-closure follows links, and takes the folder of what it comes to.
                    let program = self.staging.host(parts.userland).join("usr/lib/systemd/systemd");
                    copy(&program, &dir.join("init"))?;
                }
                Kind::Scripted => script(&dir.join("init"), &format!("{activate}exec {systemd} \"$@\"\n"))?,
            }
            link(&format!("{}/bzImage", parts.linux.in_guest()), "kernel")?;
            link(&parts.modules.in_guest(), "kernel-modules")?;
            link(&format!("{}/etc", parts.etc.in_guest()), "etc")?;
            write(&dir.join("nixos-version"), &version)?;
            write(&dir.join("system"), "x86_64-linux")?;
            write(&dir.join("kernel-params"), "console=ttyS0 loglevel=4")?;
            let sw = dir.join("sw/bin");
            fs::create_dir_all(&sw).context("making sw/bin")?;
            for extra in parts.extras {
                let name = extra.base.split_once('-').map_or("", |(_, name)| name);
                symlink(format!("{}/bin/{name}", extra.in_guest()), sw.join(name)).with_context(|| format!("linking {name}"))?;
            }
            Ok(())
        })?;
        Ok(path)
    }

    fn padding(&self) -> Result<StorePath> {
        let path = StorePath::of("padding", &[&PADDING.to_le_bytes()]);
        self.staging.add(&path, |dir| {
            let file = dir.join("random");
            // Bytes that look random and are the same on every machine: zeros, encrypted with a fixed key.
            let recipe = format!(
                "head -c {} /dev/zero | openssl enc -aes-128-ctr -K 00 -iv 00 2>/dev/null >\"$1\"",
                PADDING << 20
            );
            Tool::new("sh", COPY_LIMIT).args(["-c", &recipe, "sh"]).arg(&file).run()
        })?;
        Ok(path)
    }
}

/// What a toplevel names.
struct Parts<'a> {
    busybox: &'a StorePath,
    userland: &'a StorePath,
    linux: &'a StorePath,
    modules: &'a StorePath,
    extras: &'a [StorePath],
    etc: &'a StorePath,
    activate: &'a str,
}

impl<'a> Parts<'a> {
    fn all(&self) -> impl Iterator<Item = &'a StorePath> {
        [self.busybox, self.userland, self.linux, self.modules, self.etc]
            .into_iter()
            .chain(self.extras)
    }
}

/// The static busybox on the host, from Debian's package.
pub fn busybox_static(vm: &Path) -> Result<PathBuf> {
    let dir = packages::unpacked(vm, "busybox-static")?;
    ["bin/busybox", "usr/bin/busybox"]
        .iter()
        .map(|name| dir.join(name))
        .find(|file| file.is_file())
        .context("busybox-static holds no busybox")
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// Writes `text` to `path` below `dir`; a unit is enabled as its `[Install]` section says.
fn add(dir: &Path, path: &str, text: &str) -> Result<()> {
    let file = dir.join(path.trim_start_matches('/'));
    let parent = file.parent().context("a file without a folder")?;
    fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    write(&file, text)?;
    let Some((units, name)) = path.split_once("/systemd/system/") else {
        return Ok(());
    };
    for (link, target) in crate::stage_1::install(name, text) {
        let link = dir.join(units.trim_start_matches('/')).join("systemd/system").join(link);
        let parent = link.parent().context("a link without a folder")?;
        fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        symlink(&target, &link).with_context(|| format!("linking {}", link.display()))?;
    }
    Ok(())
}

fn script(path: &Path, text: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    }
    write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).with_context(|| format!("making {} executable", path.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("copying {} to {}", from.display(), to.display()))
}
