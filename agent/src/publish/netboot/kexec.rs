//! `kexec-boot`: a shell script for any running Linux.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use anyhow::Result;

use super::{Wanted, command_line};
use crate::formats::manifest::Boot;
use crate::publish::params::{for_shell, join};

/// The script, with `@name@` where what is published comes in.
const TEMPLATE: &str = include_str!("kexec-boot.sh");

/// The script. `machine` is what the kernel is for, as `uname -m` says it, if that is known.
///
/// # Errors
/// A command line that is too long.
pub fn kexec_boot(boot: &Boot, machine: Option<&str>, wanted: &Wanted, params: &[String], url: Option<&str>) -> Result<String> {
    let size = boot.kernel.size.saturating_add(boot.initrd.size);
    let values = [
        ("base", for_shell(url.unwrap_or(""))),
        ("kernel", boot.kernel.sha256.to_string()),
        ("initrd", boot.initrd.sha256.to_string()),
        ("size", size.to_string()),
        ("machine", machine.unwrap_or("").to_owned()),
        // Last: it may hold anything.
        ("line", for_shell(&join(&command_line(wanted, params))?)),
    ];
    let mut script = TEMPLATE.to_owned();
    for (name, value) in values {
        script = script.replacen(&format!("@{name}@"), &value, 1);
    }
    Ok(script)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::disallowed_types)]
    use super::*;
    use crate::digest::Digest;
    use crate::publish::netboot::testing::{boot, system};
    use std::fs;
    use std::path::Path;

    const SYSTEM: &str = "init=/nix/.freshroot/init freshroot.system=/nix/store/00000000000000000000000000000000-nixos-system-x";
    /// Shows what it is called with.
    const SHOW: &str = "for word; do printf '[%s]' \"$word\"; done; echo";

    struct Ran {
        ok: bool,
        out: String,
        err: String,
    }

    /// A machine of our own making: a folder with `kernels`, `initrds` and the tools in `bin`.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new(tools: &[(&str, &str)]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            for (kind, bytes) in [("kernels", b"kernel"), ("initrds", b"initrd")] {
                fs::create_dir(folder.path().join(kind)).unwrap();
                fs::write(folder.path().join(kind).join(Digest::of(bytes).to_string()), bytes).unwrap();
            }
            let bin = folder.path().join("bin");
            fs::create_dir(&bin).unwrap();
            for (name, body) in tools {
                crate::publish::testing::script(&bin.join(name), body);
            }
            for tool in [
                "sh",
                "cat",
                "dirname",
                "id",
                "mkdir",
                "mktemp",
                "mv",
                "rm",
                "cp",
                "sed",
                "sha256sum",
                "sleep",
                "sync",
                "uname",
            ] {
                let real = ["/usr/bin", "/bin"]
                    .iter()
                    .map(|dir| Path::new(dir).join(tool))
                    .find(|path| path.exists())
                    .unwrap();
                if !bin.join(tool).exists() {
                    std::os::unix::fs::symlink(real, bin.join(tool)).unwrap();
                }
            }
            for (path, text) in [("loaded", "0\n"), ("disabled", "0\n"), ("meminfo", "MemAvailable:  100000 kB\n")] {
                fs::write(folder.path().join(path), text).unwrap();
            }
            Self(folder)
        }

        /// A machine that can kexec, by the system call that `body` stands for.
        fn able(body: &str) -> Self {
            Self::new(&[("kexec", body), ("id", "echo 0"), ("uname", "echo x86_64")])
        }

        fn run(&self, script: &str, arguments: &[&str]) -> Ran {
            let folder = self.0.path();
            let mut script = script.to_owned();
            // Of this machine, nothing shows through.
            for (of_all, of_ours) in [
                ("/sys/kernel/kexec_loaded", "loaded"),
                ("/proc/sys/kernel/kexec_load_disabled", "disabled"),
                ("/proc/meminfo", "meminfo"),
                ("/run/systemd/system", "systemd"),
                (":/usr/sbin:/sbin", ""),
            ] {
                assert!(script.contains(of_all), "{of_all}");
                let of_ours = if of_ours.is_empty() {
                    String::new()
                } else {
                    folder.join(of_ours).display().to_string()
                };
                script = script.replace(of_all, &of_ours);
            }
            fs::write(folder.join("kexec-boot"), script).unwrap();
            let output = std::process::Command::new("/bin/sh")
                .arg(folder.join("kexec-boot"))
                .args(arguments)
                .env("PATH", folder.join("bin"))
                .output()
                .unwrap();
            let text = |bytes| String::from_utf8(bytes).unwrap();
            Ran {
                ok: output.status.success(),
                out: text(output.stdout),
                err: text(output.stderr),
            }
        }
    }

    fn script(params: &[&str]) -> String {
        let params: Vec<String> = params.iter().map(|param| (*param).to_owned()).collect();
        kexec_boot(&boot(), Some("x86_64"), &system(), &params, None).unwrap()
    }

    #[test]
    fn the_command_line_arrives_in_one_piece_and_says_that_it_was_kexeced() {
        let ran = Machine::able(SHOW).run(&script(&["a=\"b 'c' $d @line@\""]), &["--append", "x=1", "--append", "y=2"]);
        assert!(ran.ok, "{}", ran.err);
        let expected = format!("[--command-line={SYSTEM} a=\"b 'c' $d @line@\" x=1 y=2 freshroot.kexec=1]");
        let (load, start) = ran.out.trim_end().split_once('\n').unwrap();
        assert!(load.starts_with("[-s][-l]") && load.ends_with(&expected), "{load}");
        assert_eq!(start, "[-e]");
    }

    #[test]
    fn services_are_shut_down_first_where_systemd_runs_unless_it_is_to_be_now() {
        for (arguments, systemd, last) in [
            (&[][..], true, "systemctl kexec"),
            (&[], false, "[-e]"),
            (&["--now"], true, "[-e]"),
            (&["--load"], true, "--initrd"),
        ] {
            let machine = Machine::new(&[
                ("kexec", SHOW),
                ("id", "echo 0"),
                ("uname", "echo x86_64"),
                ("systemctl", "echo systemctl $1"),
            ]);
            if systemd {
                fs::create_dir(machine.0.path().join("systemd")).unwrap();
            }
            let ran = machine.run(&script(&[]), arguments);
            assert!(ran.ok, "{}", ran.err);
            assert!(
                ran.out.lines().last().unwrap().contains(last),
                "{arguments:?} {systemd}: {}",
                ran.out
            );
        }
    }

    #[test]
    fn a_kernel_that_the_new_system_call_refuses_is_loaded_by_the_old_one() {
        let ran = Machine::able("[ \"$1\" != -s ] || exit 1; echo \"$1\"").run(&script(&[]), &[]);
        assert!(ran.ok && ran.out == "-l\n-e\n", "{} {}", ran.out, ran.err);
        let ran = Machine::able("case $* in *-l*) echo \"no $1\" >&2; exit 1 ;; esac; echo started").run(&script(&[]), &[]);
        assert!(!ran.ok && !ran.out.contains("started"), "{}", ran.out);
        assert!(
            ran.err.contains("no -s") && ran.err.contains("no -l") && ran.err.contains("Secure Boot"),
            "{}",
            ran.err
        );
    }

    #[test]
    fn what_is_missing_or_wrong_is_named_and_nothing_is_started() {
        const STARTED: &str = "echo started";
        type Spoil = fn(&Machine);
        let cases: [(&str, Spoil); 8] = [
            ("kexec-tools", |machine| {
                fs::remove_file(machine.0.path().join("bin/kexec")).unwrap()
            }),
            ("only root", |machine| {
                fs::remove_file(machine.0.path().join("bin/id")).unwrap();
                crate::publish::testing::script(&machine.0.path().join("bin/id"), "echo 1000");
            }),
            ("this machine is riscv64", |machine| {
                fs::remove_file(machine.0.path().join("bin/uname")).unwrap();
                crate::publish::testing::script(&machine.0.path().join("bin/uname"), "echo riscv64");
            }),
            ("without kexec", |machine| fs::remove_file(machine.0.path().join("loaded")).unwrap()),
            ("protectKernelImage", |machine| {
                fs::write(machine.0.path().join("disabled"), "1\n").unwrap();
            }),
            ("0 MiB are free", |machine| {
                fs::write(machine.0.path().join("meminfo"), "MemAvailable: 0 kB\n").unwrap();
            }),
            ("kernel from", |machine| {
                let kernel = machine.0.path().join("kernels").join(Digest::of(b"kernel").to_string());
                fs::write(kernel, "other").unwrap();
            }),
            ("fetching", |machine| {
                fs::remove_dir_all(machine.0.path().join("initrds")).unwrap();
            }),
        ];
        let big = {
            let mut big = boot();
            big.kernel.size = 1 << 20;
            kexec_boot(&big, Some("x86_64"), &system(), &[], None).unwrap()
        };
        for (words, spoil) in cases {
            let machine = Machine::able(STARTED);
            spoil(&machine);
            let ran = machine.run(&big, &[]);
            assert!(
                !ran.ok && ran.err.contains(words) && !ran.out.contains("started"),
                "{words}: {} {}",
                ran.out,
                ran.err
            );
        }
        let ran = Machine::able(STARTED).run(&script(&[]), &["http://192.0.2.1"]);
        assert!(!ran.ok && ran.err.contains("neither curl nor wget"), "{}", ran.err);
        let ran = Machine::able(STARTED).run(&script(&[]), &["--lod"]);
        assert!(!ran.ok && ran.err.contains("unknown option --lod; usage"), "{}", ran.err);
    }

    #[test]
    fn a_fetch_is_tried_three_times_with_the_tool_that_is_there() {
        for tool in ["curl", "wget"] {
            let fails = "echo once >>\"${0%/*}/tries\"; [ $(wc -l <\"${0%/*}/tries\") -ge 5 ]";
            let body = format!(
                "{fails} || exit 1; while [ $# -gt 2 ]; do shift; done; case $2 in *kernels*) printf kernel ;; *) printf initrd ;; esac >\"$1\""
            );
            let machine = Machine::new(&[
                (tool, &body),
                ("kexec", "echo kexec"),
                ("id", "echo 0"),
                ("uname", "echo x86_64"),
                ("sleep", ":"),
                ("wc", "exec /usr/bin/wc \"$@\""),
            ]);
            // The first four calls fail: three in the first run, which gives up, and one in the second.
            let ran = machine.run(&script(&[]), &["http://192.0.2.1/"]);
            assert!(!ran.ok && ran.err.contains("fetching http://192.0.2.1/kernels/"), "{}", ran.err);
            let ran = machine.run(&script(&[]), &["http://192.0.2.1/"]);
            assert!(ran.ok && ran.out == "kexec\nkexec\n", "{tool}: {} {}", ran.out, ran.err);
        }
    }

    #[test]
    fn what_is_saved_for_a_boot_loader_is_complete_and_replaces_what_was_saved_before() {
        let machine = Machine::new(&[]);
        let save = machine.0.path().join("boot/freshroot");
        fs::create_dir_all(&save).unwrap();
        for (name, text) in [("a".repeat(64).as_str(), "old kernel"), ("grub.cfg", "old"), ("mine", "stays")] {
            fs::write(save.join(name), text).unwrap();
        }
        let ran = machine.run(&script(&["quiet", "a=\"b c\""]), &["--save", save.to_str().unwrap()]);
        assert!(ran.ok, "{}", ran.err);
        let mut names: Vec<String> = fs::read_dir(&save)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let (kernel, initrd) = (Digest::of(b"kernel").to_string(), Digest::of(b"initrd").to_string());
        let mut expected = vec![
            "cmdline".to_owned(),
            "grub.cfg".to_owned(),
            "mine".to_owned(),
            kernel.clone(),
            initrd.clone(),
        ];
        expected.sort();
        assert_eq!(names, expected);
        let read = |name: &str| fs::read_to_string(save.join(name)).unwrap();
        assert_eq!(read("cmdline"), format!("{SYSTEM} quiet a=\"b c\"\n"));
        assert!(read("grub.cfg").contains(&format!(
            "\n  linux $freshroot/{kernel} {SYSTEM} quiet a=\"b c\"\n  initrd $freshroot/{initrd}\n"
        )));
        assert_eq!((read(&kernel), read(&initrd)), ("kernel".to_owned(), "initrd".to_owned()));
        let ran = machine.run(&script(&["a=$b"]), &["--save", save.to_str().unwrap()]);
        assert!(!ran.ok && ran.err.contains("GRUB would change"), "{}", ran.err);
    }
}
