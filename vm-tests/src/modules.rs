//! Which files a list of kernel modules needs: the closure over `modules.dep`, soft dependencies included.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Lists that depmod wrote for one kernel.
#[derive(Debug, Default)]
pub struct Lists {
    /// Module name → (file, files that it needs), relative to the module folder.
    dep: BTreeMap<String, (String, Vec<String>)>,
    builtin: BTreeSet<String>,
    /// Module name → names that should be there too.
    soft: BTreeMap<String, Vec<String>>,
}

impl Lists {
    /// Reads the lists in `folder`, such as `/lib/modules/6.1.0`.
    pub fn read(folder: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        Ok(Self::parse(
            &read("modules.dep")?,
            &read("modules.builtin")?,
            &read("modules.softdep")?,
        ))
    }

    fn parse(dep: &str, builtin: &str, soft: &str) -> Self {
        let mut lists = Self::default();
        for line in dep.lines() {
            if let Some((file, needs)) = line.split_once(':') {
                let needs = needs.split_whitespace().map(str::to_owned).collect();
                lists.dep.insert(name_of(file), (file.to_owned(), needs));
            }
        }
        lists.builtin = builtin.lines().map(name_of).collect();
        for line in soft.lines() {
            let mut words = line.split_whitespace();
            if words.next() == Some("softdep")
                && let Some(name) = words.next()
            {
                let names = words.filter(|word| !word.ends_with(':')).map(name_of).collect();
                lists.soft.insert(name_of(name), names);
            }
        }
        lists
    }

    /// The files that `names` need, sorted; built-in modules need none. A name that this kernel does not have is an error.
    pub fn closure(&self, names: &[&str]) -> Result<Vec<String>> {
        let mut files = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut open: Vec<(String, bool)> = names.iter().map(|name| (name_of(name), true)).collect();
        while let Some((name, wanted)) = open.pop() {
            if !seen.insert(name.clone()) {
                continue;
            }
            if let Some((file, needs)) = self.dep.get(&name) {
                files.insert(file.clone());
                open.extend(needs.iter().map(|file| (name_of(file), true)));
                // A soft dependency may name what this kernel was built without, or an alias: it is a wish.
                open.extend(self.soft.get(&name).into_iter().flatten().map(|name| (name.clone(), false)));
            } else if wanted && !self.builtin.contains(&name) {
                bail!("this kernel has no module «{name}»");
            }
        }
        Ok(files.into_iter().collect())
    }
}

/// `kernel/fs/fat/vfat.ko.xz` → `vfat`; the kernel takes `-` for `_`.
fn name_of(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    base.split(".ko").next().unwrap_or(base).replace('-', "_")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn lists() -> Lists {
        Lists::parse(
            "kernel/fs/fat/vfat.ko.xz: kernel/fs/fat/fat.ko.xz\nkernel/fs/fat/fat.ko.xz:\nkernel/net/virtio-net.ko: kernel/net/failover.ko\nkernel/net/failover.ko:\nkernel/lib/crc.ko:\n",
            "kernel/fs/ext4/ext4.ko\n",
            "# comment\nsoftdep fat pre: crc nowhere\n",
        )
    }

    #[test]
    fn hard_and_soft_dependencies_come_along() {
        assert_eq!(
            lists().closure(&["vfat", "ext4", "virtio_net"]).unwrap(),
            [
                "kernel/fs/fat/fat.ko.xz",
                "kernel/fs/fat/vfat.ko.xz",
                "kernel/lib/crc.ko",
                "kernel/net/failover.ko",
                "kernel/net/virtio-net.ko"
            ]
        );
    }

    #[test]
    fn a_name_that_the_kernel_does_not_have_is_refused() {
        assert!(lists().closure(&["zfs"]).unwrap_err().to_string().contains("«zfs»"));
    }
}
