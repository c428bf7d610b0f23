//! Programs that are devices of a machine: a TPM, and a folder of the host. They listen on a socket that is there before they are started.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// Where Debian 12 and 13 have it; in Debian 13 it is in a package of its own, `virtiofsd`.
const VIRTIOFSD: [&str; 2] = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];

/// What stands beside a machine.
#[derive(Debug, Clone)]
pub enum Device {
    /// A TPM 2.0 that keeps its state in this folder: the same folder is the same TPM.
    Tpm(PathBuf),
    /// A folder of the host, by the tag that the guest mounts.
    Share {
        /// The tag.
        tag: String,
        /// The folder.
        folder: PathBuf,
    },
}

/// One that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Beside(Child);

impl Device {
    fn name(&self) -> &str {
        match self {
            Self::Tpm(_) => "tpm",
            Self::Share { tag, .. } => tag,
        }
    }

    /// QEMU's arguments for it; `memory` is that of the machine in MiB.
    pub fn arguments(&self, sockets: &Path, memory: u32) -> Vec<String> {
        let name = self.name();
        let mut all = vec![
            "-chardev".to_owned(),
            format!("socket,id={name},path={}", sockets.join(name).display()),
        ];
        let more = match self {
            Self::Tpm(_) => vec![
                "-tpmdev".to_owned(),
                "emulator,id=tpm0,chardev=tpm".to_owned(),
                "-device".to_owned(),
                "tpm-tis,tpmdev=tpm0".to_owned(),
            ],
            // The program reads and writes the guest's memory.
            Self::Share { tag, .. } => vec![
                "-object".to_owned(),
                format!("memory-backend-memfd,id=ram,size={memory}M,share=on"),
                "-machine".to_owned(),
                "memory-backend=ram".to_owned(),
                "-device".to_owned(),
                format!("vhost-user-fs-pci,chardev={tag},tag={tag}"),
            ],
        };
        all.extend(more);
        all
    }

    /// Starts its program, which dies with the thread that calls this; what it says goes to `log`.
    pub fn start(&self, sockets: &Path, log: &Path) -> Result<Beside> {
        let socket = sockets.join(self.name());
        let listener = UnixListener::bind(&socket).with_context(|| format!("listening on {}", socket.display()))?;
        let mut command = match self {
            Self::Tpm(state) => {
                fs::create_dir_all(state).with_context(|| format!("making {}", state.display()))?;
                let mut command = crate::lan::command(None, Path::new("swtpm"));
                command.args(["socket", "--tpm2", "--ctrl", "type=unixio,fd=0", "--tpmstate"]);
                command.arg(format!("dir={}", state.display()));
                command
            }
            Self::Share { folder, .. } => {
                let program = VIRTIOFSD.iter().map(Path::new).find(|path| path.is_file());
                let program =
                    program.context("there is no virtiofsd: install the package virtiofsd (Debian 13) or qemu-system-common (12)")?;
                let mut command = crate::lan::command(None, program);
                sharing(&mut command, program, folder);
                command
            }
        };
        let log = File::create(log).with_context(|| format!("making {}", log.display()))?;
        let errors = log.try_clone().context("copying a descriptor")?;
        let child = command
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(log)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("starting the program for {} (through setpriv)", self.name()))?;
        Ok(Beside(child))
    }
}

/// The two programs of that name take different words.
fn sharing(command: &mut Command, program: &Path, folder: &Path) {
    command.arg("--fd=0");
    if program.starts_with("/usr/lib/qemu") {
        command
            .args(["-o", "sandbox=chroot", "-o"])
            .arg(format!("source={}", folder.display()));
    } else {
        command.args(["--sandbox", "chroot", "--shared-dir"]).arg(folder);
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // It ends with its machine; one that does not is killed, by its own process id.
        let ended = self.0.kill().and_then(|()| self.0.wait());
        if let Err(error) = ended {
            eprintln!("qemu: ending a program beside a machine: {error}");
        }
    }
}
