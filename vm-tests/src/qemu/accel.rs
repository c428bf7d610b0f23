//! The accelerator, chosen by trying: `/dev/kvm` may exist and not work.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::console::Console;
use super::spawn;

/// A kernel without a root file system panics in about a second; an accelerator that does not work dies or hangs before.
const PROBE_LIMIT: Duration = Duration::from_secs(5);
const PROBE_MARK: &str = "Unable to mount root fs";

/// How guest code is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor's virtualisation.
    Kvm,
    /// Translation.
    Tcg,
}

impl Accelerator {
    /// Its name, for figures.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "KVM",
            Self::Tcg => "TCG",
        }
    }

    /// The arguments for QEMU.
    pub fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max"],
        }
    }

    /// What the kernel is told of it, behind its other words. At its start the kernel looks whether the timer ticks, and panics, or waits for ever, where the
    /// host of a translated guest is too busy for that. With KVM it knows that it need not look.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Kvm => "",
            Self::Tcg => " no_timer_check",
        }
    }

    /// How much longer than with KVM a boot may take.
    pub fn patience(self) -> u32 {
        match self {
            Self::Kvm => 1,
            Self::Tcg => 3,
        }
    }
}

/// Boots `kernel` without anything with KVM, and falls back to translation if it does not get to its end.
pub fn choose(kernel: &Path, dir: &Path) -> Result<Accelerator> {
    if !Path::new("/dev/kvm").exists() {
        eprintln!("qemu: there is no /dev/kvm: translating (slow, but works)");
        return Ok(Accelerator::Tcg);
    }
    let mut arguments: Vec<String> = Accelerator::Kvm.arguments().map(str::to_owned).into();
    arguments.extend(["-m", "256", "-append", "console=ttyS0 panic=-1", "-kernel"].map(str::to_owned));
    arguments.push(kernel.display().to_string());
    let mut child = spawn(None, &arguments, &dir.join("probe-qemu.log"))?;
    let console = Console::follow(&mut child, &dir.join("probe-console.log"), None);
    let found = console.and_then(|mut console| {
        let found = console.wait_for(&[PROBE_MARK], PROBE_LIMIT);
        super::end(&mut child)?;
        console.join();
        Ok(found.is_ok())
    })?;
    if found {
        eprintln!("qemu: KVM works");
        return Ok(Accelerator::Kvm);
    }
    eprintln!("qemu: /dev/kvm is there but a kernel does not boot with it: translating (slow, but works)");
    Ok(Accelerator::Tcg)
}
