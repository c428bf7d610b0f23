//! What `depmod` wrote about the modules of a kernel: `modules.dep`, `.alias`, `.softdep` and `.builtin` (their formats: `modules.dep(5)`,
//! `modprobe.d(5)`).

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::pattern::{matches, normalise};

/// More than any kernel's `modules.alias` (1.5 MB in a full distribution kernel).
const LARGEST: u64 = 32 * 1024 * 1024;

/// A module that can be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its file, below the folder of the kernel's release.
    pub file: PathBuf,
    /// Names of the modules it needs, the one to be loaded first at the end.
    pub needs: Vec<String>,
}

/// What should be loaded before and after a module; it works without.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SoftDependency {
    /// Names or aliases.
    pub before: Vec<String>,
    /// Names or aliases.
    pub after: Vec<String>,
}

/// The modules of one kernel. Names are normalised: with `_` for `-`.
#[derive(Debug, Clone, Default)]
pub struct Index {
    modules: HashMap<String, Module>,
    /// By the text before the first colon or wildcard: a device is compared with the patterns of its bus only.
    aliases: HashMap<String, Vec<(String, String)>>,
    soft: HashMap<String, SoftDependency>,
    builtin: HashSet<String>,
}

impl Index {
    /// Reads the files in `folder`. One that is not there says nothing, as in a kernel without modules.
    ///
    /// # Errors
    /// A file that cannot be read, is not text, or is too large.
    pub fn read(folder: &Path) -> Result<Self> {
        let file = |name: &str| read(&folder.join(name));
        Ok(Self::parse(
            &file("modules.dep")?,
            &file("modules.alias")?,
            &file("modules.softdep")?,
            &file("modules.builtin")?,
        ))
    }

    /// The index from the text of the four files. Lines that do not follow their format are passed over.
    pub fn parse(dep: &str, alias: &str, softdep: &str, builtin: &str) -> Self {
        let mut aliases: HashMap<String, Vec<(String, String)>> = HashMap::new();
        for (pattern, module) in alias.lines().filter_map(parse_alias) {
            aliases.entry(bus(&pattern).to_owned()).or_default().push((pattern, module));
        }
        let mut soft: HashMap<String, SoftDependency> = HashMap::new();
        for (module, mut dependency) in softdep.lines().filter_map(parse_softdep) {
            let all = soft.entry(module).or_default();
            all.before.append(&mut dependency.before);
            all.after.append(&mut dependency.after);
        }
        Self {
            modules: dep.lines().filter_map(parse_dependencies).collect(),
            aliases,
            soft,
            builtin: builtin
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty())
                .map(name_of)
                .collect(),
        }
    }

    /// The module of this normalised name.
    pub fn module(&self, name: &str) -> Option<&Module> {
        self.modules.get(name)
    }

    /// Whether the module of this normalised name is a part of the kernel.
    pub fn is_builtin(&self, name: &str) -> bool {
        self.builtin.contains(name)
    }

    /// The modules whose alias matches, each once, in the order of `modules.alias`.
    pub fn matching(&self, alias: &str) -> Vec<&str> {
        let alias = normalise(alias);
        let mut found: Vec<&str> = Vec::new();
        // Patterns that begin with a wildcard are under the empty text.
        for key in [bus(&alias), ""] {
            for (pattern, module) in self.aliases.get(key).into_iter().flatten() {
                if !found.contains(&module.as_str()) && matches(pattern, &alias) {
                    found.push(module);
                }
            }
            if bus(&alias).is_empty() {
                break;
            }
        }
        found
    }

    /// What should be loaded with the module of this normalised name.
    pub fn soft(&self, name: &str) -> SoftDependency {
        self.soft.get(name).cloned().unwrap_or_default()
    }
}

/// The reader beside the parser: see [`Index::read`].
#[allow(clippy::disallowed_types, reason = "a reader; all else here is given its text")]
fn read(path: &Path) -> Result<String> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error).with_context(|| format!("opening {}", path.display())),
    };
    let mut text = String::new();
    file.take(LARGEST + 1)
        .read_to_string(&mut text)
        .with_context(|| format!("reading {}", path.display()))?;
    ensure!(
        text.len() as u64 <= LARGEST,
        "{} is larger than {} MiB: was it made by depmod?",
        path.display(),
        LARGEST >> 20
    );
    Ok(text)
}

/// `pci:…` → `pci`; nothing where a wildcard comes first, so that a pattern and what it matches always agree.
fn bus(alias: &str) -> &str {
    match alias.find([':', '*', '?', '[', '\\']) {
        Some(end) if alias[end..].starts_with(':') => &alias[..end],
        Some(_) => "",
        None => alias,
    }
}

/// The normalised name of the module in a file such as `kernel/fs/ext4/ext4.ko.xz`.
fn name_of(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    normalise(base.split(".ko").next().unwrap_or(base))
}

fn parse_dependencies(line: &str) -> Option<(String, Module)> {
    let (file, needs) = line.split_once(':')?;
    let module = Module {
        file: PathBuf::from(file),
        needs: needs.split_whitespace().map(name_of).collect(),
    };
    Some((name_of(file), module))
}

fn parse_alias(line: &str) -> Option<(String, String)> {
    let mut words = line.strip_prefix("alias ")?.split_whitespace();
    Some((normalise(words.next()?), normalise(words.next()?)))
}

fn parse_softdep(line: &str) -> Option<(String, SoftDependency)> {
    let mut words = line.strip_prefix("softdep ")?.split_whitespace();
    let module = normalise(words.next()?);
    let mut dependency = SoftDependency::default();
    let mut after = None;
    for word in words {
        match (word, after) {
            ("pre:", _) => after = Some(false),
            ("post:", _) => after = Some(true),
            (name, Some(true)) => dependency.after.push(normalise(name)),
            (name, Some(false)) => dependency.before.push(normalise(name)),
            (_, None) => {}
        }
    }
    Some((module, dependency))
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::disallowed_methods,
        clippy::disallowed_types
    )]
    use super::*;
    use proptest::prelude::*;

    fn index() -> Index {
        Index::parse(
            "kernel/fs/xfs/xfs.ko.xz: kernel/lib/libcrc32c.ko.xz kernel/crypto/crc32c-generic.ko.xz\n\
             kernel/lib/libcrc32c.ko.xz: kernel/crypto/crc32c-generic.ko.xz\n\
             kernel/crypto/crc32c-generic.ko.xz:\nkernel/drivers/block/virtio_blk.ko:\nnonsense\n",
            "# Aliases extracted from modules themselves.\nalias virtio:d00000002v* virtio_blk\nalias fs-xfs xfs\nalias *rtio:d00000002v* odd\n\
             alias of:N*T*Cacme,disk-ctl* virtio-blk\nalias symbol:x\n",
            "# Soft dependencies\nsoftdep libcrc32c pre: crc32c aes\nsoftdep drbd post: lru-cache pre: first\nsoftdep libcrc32c post: late\n",
            "kernel/drivers/virtio/virtio-pci.ko\n\nkernel/fs/ext4/ext4.ko\n",
        )
    }

    #[test]
    fn dependencies_are_read_by_name_and_the_file_keeps_its_ending() {
        let index = index();
        let xfs = index.module("xfs").unwrap();
        assert_eq!(
            (xfs.file.as_path(), xfs.needs.as_slice()),
            (
                Path::new("kernel/fs/xfs/xfs.ko.xz"),
                ["libcrc32c", "crc32c_generic"].map(str::to_owned).as_slice()
            )
        );
        assert_eq!(index.module("crc32c_generic").unwrap().needs, Vec::<String>::new());
        assert_eq!(index.module("nonsense"), None);
    }

    #[test]
    fn aliases_are_found_whatever_begins_them() {
        let index = index();
        assert_eq!(index.matching("virtio:d00000002v00001AF4"), ["virtio_blk", "odd"]);
        assert_eq!(index.matching("fs-xfs"), ["xfs"]);
        assert_eq!(index.matching("of:NmmcTdiskCacme,disk-ctl-v2"), ["virtio_blk"]);
        assert_eq!(index.matching("virtio:d00000001v00001AF4"), Vec::<&str>::new());
        assert_eq!(index.matching(""), Vec::<&str>::new());
    }

    #[test]
    fn builtin_modules_and_soft_dependencies_are_known_by_normalised_names() {
        let index = index();
        assert!(index.is_builtin("virtio_pci") && index.is_builtin("ext4") && !index.is_builtin("xfs"));
        let soft = SoftDependency {
            before: vec!["crc32c".into(), "aes".into()],
            after: vec!["late".into()],
        };
        assert_eq!(index.soft("libcrc32c"), soft);
        assert_eq!(
            index.soft("drbd"),
            SoftDependency {
                before: vec!["first".into()],
                after: vec!["lru_cache".into()]
            }
        );
        assert_eq!(index.soft("xfs"), SoftDependency::default());
    }

    #[test]
    fn a_kernel_without_modules_has_an_empty_index() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(
            Index::read(folder.path()).unwrap().matching("virtio:d00000002v00001AF4"),
            Vec::<&str>::new()
        );
        std::fs::create_dir(folder.path().join("modules.dep")).unwrap();
        assert!(format!("{:#}", Index::read(folder.path()).unwrap_err()).contains("modules.dep"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "(softdep |alias |kernel/a.ko:|[ -~\\n]){0,20}", alias in "[ -~]{0,20}") {
            let index = Index::parse(&text, &text, &text, &text);
            index.matching(&alias);
            index.soft(&alias);
        }

        #[test]
        fn an_alias_is_found_by_its_bus_exactly_if_its_pattern_matches(pattern in "[ab:*?\\[\\]]{1,6}", alias in "[ab:]{0,6}") {
            let index = Index::parse("", &format!("alias {pattern} m\n"), "", "");
            prop_assert_eq!(!index.matching(&alias).is_empty(), matches(&pattern, &alias));
        }
    }
}
