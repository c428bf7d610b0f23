//! What the NixOS module generates, by evaluating it: nothing of it is written by hand here.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command::Tool;

/// An evaluation takes a second.
const LIMIT: Duration = Duration::from_secs(120);

/// Path in the initrd → text, from `initrd-module/stage-1.nix` of the checkout `root` with `arguments`.
pub fn files(root: &Path, arguments: &Value) -> Result<BTreeMap<String, String>> {
    let text = evaluate(&root.join("initrd-module/stage-1.nix"), arguments)?;
    serde_json::from_str(&text).with_context(|| format!("reading what Nix made of {arguments}"))
}

/// Path in the running system → text, from `initrd-module/running.nix`.
pub fn running(root: &Path, arguments: &Value) -> Result<BTreeMap<String, String>> {
    let text = evaluate(&root.join("initrd-module/running.nix"), arguments)?;
    serde_json::from_str(&text).with_context(|| format!("reading what Nix made of {arguments}"))
}

/// The JSON of what the function in `file` returns for `arguments`.
fn evaluate(file: &Path, arguments: &Value) -> Result<String> {
    let work = tempfile::tempdir().context("making a folder for Nix")?;
    let input = work.path().join("arguments.json");
    fs::write(&input, arguments.to_string()).with_context(|| format!("writing {}", input.display()))?;
    let expression = format!(
        "builtins.toJSON (import {} (builtins.fromJSON (builtins.readFile {})))",
        file.display(),
        input.display()
    );
    // Nothing of the machine's own Nix is touched: no daemon, no network, a store in a folder of its own.
    Tool::new("nix", LIMIT)
        .args(["eval", "--raw", "--impure", "--expr", &expression])
        .env("NIX_REMOTE", format!("local?root={}", work.path().join("store").display()))
        .env("NIX_CONF_DIR", work.path())
        .env("HOME", work.path())
        .env("NIX_PATH", "")
        .env(
            "NIX_CONFIG",
            "experimental-features = nix-command\nbuild-users-group =\nsandbox = false",
        )
        .text()
}

/// The links that `[Install]` of the unit `name` asks for: (path below the folder of units, target). Only what the module's units have is read: WantedBy and RequiredBy.
pub fn install(name: &str, text: &str) -> Vec<(String, String)> {
    let mut links = Vec::new();
    let mut section = "";
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        }
        let Some((key, units)) = line.split_once('=') else { continue };
        let folder = match (section, key) {
            ("[Install]", "WantedBy") => "wants",
            ("[Install]", "RequiredBy") => "requires",
            _ => continue,
        };
        for unit in units.split_whitespace() {
            links.push((format!("{unit}.{folder}/{name}"), format!("../{name}")));
        }
    }
    links
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_unit_is_enabled_as_its_install_section_says() {
        let text = "[Unit]\nWantedBy=no.target\n[Install]\nRequiredBy=a.target b.service\nWantedBy=c.target\n";
        assert_eq!(
            install("x.service", text),
            [
                ("a.target.requires/x.service", "../x.service"),
                ("b.service.requires/x.service", "../x.service"),
                ("c.target.wants/x.service", "../x.service"),
            ]
            .map(|(path, target)| (path.to_owned(), target.to_owned()))
        );
    }

    #[test]
    fn the_module_is_what_generates_the_units() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let arguments = serde_json::json!({
            "settings": { "cache": { "device": "LABEL=CACHE" } },
            "persist": { "/data": { "device": "LABEL=DATA" }, "/etc/ssh": { "source": "/data/ssh" } },
        });
        let files = files(root, &arguments).unwrap();
        let unit = &files["/etc/systemd/system/freshroot.service"];
        assert!(
            unit.contains("boot --mode systemd") && unit.contains("sysroot-data.mount"),
            "{unit}"
        );
        assert!(unit.contains("systemd-fsck@dev-disk-by\\x2dlabel-CACHE.service"), "{unit}");
        let fstab = &files["/etc/initrd-fstab"];
        assert!(fstab.contains("LABEL=DATA /data") && !fstab.contains("ssh"), "{fstab}");
        assert!(files["/etc/freshroot/config.json"].contains("/data/ssh"));
        assert!(files.contains_key("/etc/systemd/system/dev-disk-by\\x2dlabel-CACHE.device.d/overrides.conf"));
    }
}
