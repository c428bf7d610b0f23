//! What the program says about itself.

/// What is said about a command.
#[derive(Debug, PartialEq, Eq)]
pub struct CommandHelp {
    /// Its name.
    pub name: &'static str,
    /// What stands behind the name.
    pub arguments: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Options: spelling, placeholder of the value (empty: none) and meaning.
    pub options: &'static [(&'static str, &'static str, &'static str)],
    /// More, with examples.
    pub text: &'static str,
}

const ROOT: (&str, &str, &str) = ("--root", "DIR", "read everything below DIR (default /)");
const MODE: (&str, &str, &str) = (
    "--mode",
    "MODE",
    "standalone (PID 1, the default) or systemd (a unit of its stage 1)",
);
const JSON: (&str, &str, &str) = ("--json", "", "print JSON instead of text");

/// The commands that people use, in the order of the help.
pub static COMMANDS: &[CommandHelp] = &[
    CommandHelp {
        name: "boot",
        arguments: "[--mode standalone|systemd] [--sysroot DIR]",
        summary: "boot the wanted system; what the agent does in the initrd",
        options: &[
            MODE,
            ("--sysroot", "DIR", "the new root (default /sysroot)"),
        ],
        text: "As PID 1 under a name that ends in «init» the program boots whatever its arguments are: the kernel passes words of its command line that it
does not know. In systemd mode it is one unit of systemd's stage 1: it leaves a store, a symlink to the system and a report below the sysroot, which systemd has
mounted, and ends; it fails where nothing can be booted. Settings come from /etc/freshroot/config.json and from freshroot.* words on the kernel command line.",
    },
    CommandHelp {
        name: "plan",
        arguments: "[--mode standalone|systemd] [--root DIR] [--cmdline TEXT] [--config FILE] [--json]",
        summary: "print what boot would do, and why, without doing it",
        options: &[
            MODE,
            ROOT,
            ("--cmdline", "TEXT", "use TEXT as the kernel command line"),
            ("--config", "FILE", "use FILE as the configuration"),
            JSON,
        ],
        text: "Examples:
  freshroot plan
  freshroot plan --json | jq .decision
  freshroot plan --mode systemd    where systemd has stage 1
  freshroot plan --cmdline 'freshroot.policy.mode=offline' --config ./config.json",
    },
    CommandHelp {
        name: "prepare",
        arguments: "[--dry-run] [--root DIR] [--config FILE] | --stage-1",
        summary: "partition declared disks that are blank, and make their file systems",
        options: &[
            ("--dry-run", "", "print what would be written, to the byte, and write nothing"),
            ROOT,
            ("--config", "FILE", "use FILE as the configuration"),
            (
                "--stage-1",
                "",
                "as a unit of systemd's stage 1: wait for the disks, and leave what came of it to boot",
            ),
        ],
        text: "Only disks are looked at that the configuration file declares with prepare or grow, by a name that stays with the disk, and of a size within the declared
range. With grow, the last partition of a disk that has become larger grows, where what lies behind it is zero; its file system grows when a boot mounts it.
With prepare, a disk that holds anything at all is refused, with what was found and where, and not written to. Boots do this by themselves, before
anything is mounted. It fails if a disk is refused; with --stage-1 it does not.

Examples:
  freshroot prepare --dry-run
  freshroot prepare --dry-run --config ./config.json",
    },
    CommandHelp {
        name: "status",
        arguments: "[--root DIR] [--json]",
        summary: "show how the running system was booted: decision, source, bytes, times",
        options: &[ROOT, JSON],
        text: "Examples:
  freshroot status
  freshroot status --json | jq .warnings",
    },
    CommandHelp {
        name: "fetch",
        arguments: "[--reset-floor CHANNEL]",
        summary: "refresh the cache from the running system, for the boots to come",
        options: &[(
            "--reset-floor",
            "CHANNEL",
            "accept its newest release although a newer one was accepted before: after a mistaken serial or date",
        )],
        text: "Asks the servers for the newest release of the channel, over the network of the running system, and fetches what is missing of its image. It is verified
as at a boot. What runs and what was blessed last is never removed for it. A fetch that was interrupted is gone on with. Without a channel, what this boot
has selected is completed. policy.mode is for boots: this asks in any case. After --reset-floor, what is cached of the channel with a higher serial or a later
date still boots, as the last choice.

Example:
  freshroot fetch && reboot",
    },
    CommandHelp {
        name: "bless",
        arguments: "",
        summary: "mark the running boot as good: its generation has all its tries again",
        options: &[],
        text: "With policy.tries each boot uses up a try. A generation that has none left gives way to another one: a system that came up well says so with this
command, once. Its generation is then not evicted from the cache as long as it is the last one that was blessed.

Example:
  freshroot bless",
    },
    CommandHelp {
        name: "fail",
        arguments: "[--unit NAME]",
        summary: "say why the boot failed, and carry out the failure policy; units of the initrd call it",
        options: &[("--unit", "NAME", "the unit that led here, if it is not that of the boot")],
        text: "It ends the machine as onFailure.action says, after a pause that grows from failure to failure. It works in an initrd whose PID 1 is systemd, and
nowhere else. Of two at once the second has nothing to do.

Example:
  ExecStart=/bin/freshroot fail --unit emergency.service",
    },
    CommandHelp {
        name: "check-mount",
        arguments: "PATH",
        summary: "succeed if a persistent mount is its disk, not the stand-in for a missing one",
        options: &[],
        text: "Where the disk of a degraded or optional mount is missing at boot, an empty read-only tmpfs named freshroot-missing stands at its mount point. Services
that need the disk are ordered after a unit that runs this command.

Example:
  freshroot check-mount /var/lib/data && systemctl start data.service",
    },
    CommandHelp {
        name: "persist-retry",
        arguments: "PATH [UNIT…]",
        summary: "wait for the disk of a persistent mount that was missing at boot, and mount it",
        options: &[],
        text: "If the stand-in freshroot-missing is at PATH, this waits for the disk, checks it, and mounts it over the stand-in, with what lies on it in fileSystems. Then
systemd is told to start the units. If nothing is missing it ends at once. It waits as long as it is let; a unit of the NixOS module runs it.

Example:
  freshroot persist-retry /var/lib/data data.service",
    },
    CommandHelp {
        name: "help",
        arguments: "[COMMAND]",
        summary: "show this help, or that of a command",
        options: &[],
        text: "Example:
  freshroot help plan",
    },
];

/// The help of the program, or of one command.
pub fn help_text(about: Option<&CommandHelp>) -> String {
    let Some(about) = about else {
        let mut text =
            "freshroot boots a system whose Nix store is one verified image, kept on a local disk.\n\nUsage: freshroot COMMAND\n\n"
                .to_owned();
        for command in COMMANDS {
            text += &format!("  {:<13} {}\n", command.name, command.summary);
        }
        text += "\n  -h, --help      show this help; behind a command, its own\n  -V, --version   show the version\n";
        text += "\nExamples:\n  freshroot plan      what would a boot do now?\n  freshroot status    what did the last one do?\n";
        text += "\nExit codes: 0 done, 1 failed, 2 arguments not understood.\n";
        return text;
    };
    let mut text = format!(
        "freshroot {}: {}\n\nUsage: freshroot {} {}",
        about.name, about.summary, about.name, about.arguments
    )
    .trim_end()
    .to_owned();
    text += "\n";
    if !about.options.is_empty() {
        text += "\n";
        for (option, placeholder, meaning) in about.options {
            let option = format!("{option} {placeholder}");
            text += &format!("  {option:<15} {meaning}\n");
        }
    }
    text + "\n" + about.text + "\n"
}
