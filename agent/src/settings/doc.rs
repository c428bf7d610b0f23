//! `docs/settings.md`, written from the table of settings. A test compares; `UPDATE_DOCS=1 cargo test --test settings_page` writes it anew.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::merged::{KEXECED, PREFIX};
use super::row::{Guard, Row};
use super::table::TABLE;
use super::validated::Settings;

/// A configuration as the page shows it. A test reads it.
pub const EXAMPLE: &str = r#"{
  "version": 1,
  "url": ["http://images.lan/freshroot", "https://mirror.example/freshroot"],
  "channel": "stable",
  "trustedPublicKeys": ["lab-1:jVfuRsCOrnFIIQdQgwUVUEyB/PSpZ8ld6DIS5hxiKv4="],
  "cache": { "device": "PARTLABEL=freshroot-cache" },
  "policy": { "mode": "wait", "wait": "20s" },
  "fileSystems": {
    "/var/lib": { "device": "/dev/disk/by-partlabel/disk-main-state", "fsType": "ext4" }
  },
  "onFailure": { "action": "reboot", "maxDelay": "30min" },
  "commandLineMay": ["allowUnsigned"]
}"#;

const ABOUT: &str = "# Settings

<!-- Written from the table in agent/src/settings/table.rs: do not edit. UPDATE_DOCS=1 cargo test --test settings_page writes it anew. -->

freshroot reads `/etc/freshroot/config.json` in the initrd, then the kernel command line, which wins. A setting has one name in three spellings:
the NixOS option and the JSON field are in camelCase, one level of JSON objects for each dot (`policy.fetchWait` is `fetchWait` in the object `policy`); on
the command line it is `freshroot.` and the name in kebab-case (`freshroot.policy.fetch-wait=10min`). `freshroot plan` shows which value holds, and where it
comes from.

## The file

JSON with `\"version\": 1`. Another version, a field that is not in the table, a field that stands there twice and a value of the wrong form are refused, with line,
column, field and remedy. `null` is as if the field were absent.
";

const COMMAND_LINE: &str = "
## The command line

It is read as the kernel reads it. White space separates words, except between double quotes; quotes around a whole word or a whole value are removed
(`\"freshroot.url=http://a http://b\"` and `freshroot.url=\"http://a http://b\"` are the same). Of several words for one setting the last one counts, and the others are not
looked at. Bytes that are not UTF-8 are refused, with their position. What follows a lone `--` goes to the system's init.

Lists are separated by white space, and where their elements cannot hold commas, by commas. An empty value empties a list. A switch without a value is on.

What the command line may do stands in the last column of the [table](#table):

| may | the command line | a value that cannot be read |
|---|---|---|
| free | may set it | is named in a warning; the configured value stays |
| strict | may set it | refuses the boot, with the position |
| listed | may set it where the configuration lists it in `commandLineMay`; otherwise the attempt is named in a warning, and the configured value stays | refuses the boot, where listed |
| weaker: listed | may set it; where that weakens what is configured (`verify` from `full` to `size`, another `manifestSha256` than the configured one), only as «listed» | refuses the boot |
| file | may not set it: the attempt is named in a warning, and the configured value stays | |

The rule behind it: whatever weakens trust, decides which system boots or could touch disks must be exactly right, so there a mistake refuses the boot, and the
failure policy follows. Everything else must not: a slip on a command line should not cost a machine that nobody stands beside. For the same reason a name behind `freshroot.` that does not
exist is a warning, with the nearest name that does.
";

const FORMS: &str = "
## Forms

- A *duration* is `30s`, `5min`, `1h30min`, `500ms` or a number of seconds, with the units `ms`, `s` (`sec`), `m` (`min`), `h`, `d` (`day`, `days`), `w`, the larger one first. None is longer
  than 7 days: no wait here makes sense beyond that, and a typing error should not become one.
- A *size* is `512M`, `2GiB` or a number of bytes (`K`, `M`, `G`, `T`, with or without `iB`; powers of 1024; 1M to 64T), or `50%` of the RAM (1% to 100%). `MB` is refused, because it means two things.
- *Bytes*, in all or a second, are `512K`, `2GiB` or a number, with the units of a size, up to 1024T. `0` is no limit.
- A *switch* is `true` or `false` in the file, and also `1`, `yes`, `on`, `0`, `no`, `off` on the command line.
- A *list* has 512 elements at most: more are a mistake, and reading them costs memory.
- *Least values*: a wait for an answer is 1s at least, as DNS, TCP and TLS alone can take that long; so is the pause after a failure, or a machine would reboot at full speed; a shell waits 10s at least,
  or it is over before somebody has read the screen. Two generations are kept at least, so that a new one never displaces the only one that is known to boot.

## Table

| setting | on the command line | value | default | meaning | may |
|---|---|---|---|---|---|
";

/// Words of the command line that are not settings.
const WORDS: &[(&str, &str)] = &[
    (
        "init=",
        "The last one counts. `/nix/.freshroot/init`: the system that freshroot selects; `/nix/store/<hash>-<name>/init` selects that system.",
    ),
    (
        "ip=",
        "How to configure the network, in the kernel's grammar; may stand there several times.",
    ),
    ("nameserver=", "A DNS server; may stand there several times."),
    (
        "BOOTIF=",
        "The interface that the machine was booted from, by its hardware address, as PXE writes it.",
    ),
    ("--", "What follows goes to the system's init."),
];

/// The whole page, as Markdown.
pub fn page() -> String {
    let mut page = format!("{ABOUT}\n```json\n{EXAMPLE}\n```\n{COMMAND_LINE}{FORMS}");
    let defaults = Settings::defaults();
    for row in TABLE {
        page += &table_line(row, &defaults);
    }
    page += "\n## Other words on the command line\n\n| word | meaning |\n|---|---|\n";
    page += &format!(
        "| `{PREFIX}{KEXECED}=` | This kernel was kexeced into by freshroot, which sets it; no further kexec is done. A value that cannot be read counts as true. |\n"
    );
    for (word, about) in WORDS {
        page += &format!("| `{word}` | {about} |\n");
    }
    page
}

fn table_line(row: &Row, defaults: &Settings) -> String {
    let default = match (row.show)(defaults) {
        none if none.is_empty() => "none".to_owned(),
        value => format!("`{value}`"),
    };
    let (on_the_line, guard) = match row.guard {
        Guard::Free => (true, "free"),
        Guard::Strict => (true, "strict"),
        Guard::Listed => (true, "listed"),
        Guard::ListedIfWeaker(_) => (true, "weaker: listed"),
        Guard::Never => (false, "file"),
    };
    let on_the_line = if on_the_line {
        format!("`{PREFIX}{}=`", row.kebab())
    } else {
        "never".to_owned()
    };
    format!(
        "| `{}` | {on_the_line} | {} | {default} | {} | {guard} |\n",
        row.name,
        row.form(),
        row.about
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_example_of_the_page_is_valid_and_raises_no_warning() {
        let settings = Settings::from_sources(Some(("example", EXAMPLE.as_bytes())), b"quiet").unwrap();
        assert_eq!(settings.warnings, Vec::<String>::new());
        assert_eq!(settings.urls.len(), 2);
    }
}
