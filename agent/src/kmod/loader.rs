//! Loading a module, and first what it needs.

use std::collections::HashMap;
use std::ffi::CString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::index::Index;
use super::insert::{Insert, Kernel};
use super::options::Options;
use super::pattern::normalise;

/// What came of loading a module that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is loaded now.
    Loaded,
    /// It was loaded before.
    AlreadyLoaded,
    /// It is a part of the kernel.
    Builtin,
    /// The command line says not to load it.
    Blacklisted,
}

/// Why a module could not be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadError {
    /// The module that was asked for.
    pub module: String,
    /// The file that the kernel refused: the module's own, or that of one it needs.
    pub file: Option<PathBuf>,
    /// The reason in words.
    pub reason: String,
    /// The kernel's error number, if it was the kernel that refused.
    pub errno: Option<i32>,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "loading the module {}", self.module)?;
        if let Some(file) = &self.file {
            write!(f, ", inserting {}", file.display())?;
        }
        write!(f, ": {}", self.reason)
    }
}

impl std::error::Error for LoadError {}

/// What came of loading several modules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Names of those that are loaded now and were not before, without those they need.
    pub loaded: Vec<String>,
    /// Those that failed. The others were loaded all the same.
    pub failures: Vec<LoadError>,
}

impl Report {
    /// Adds what came of more modules.
    pub fn add(&mut self, mut other: Self) {
        self.loaded.append(&mut other.loaded);
        self.failures.append(&mut other.failures);
    }

    fn note(&mut self, name: &str, result: Result<Outcome, LoadError>) {
        match result {
            Ok(Outcome::Loaded) => self.loaded.push(name.to_owned()),
            Ok(Outcome::AlreadyLoaded | Outcome::Builtin | Outcome::Blacklisted) => {}
            Err(error) => self.failures.push(error),
        }
    }
}

/// Loads the modules of one kernel.
#[derive(Debug)]
pub struct Loader<I: Insert = Kernel> {
    root: PathBuf,
    folder: PathBuf,
    index: Index,
    options: Options,
    kernel: I,
    /// What became of each module. A failure is not tried again: many devices match the same driver.
    done: HashMap<String, Result<(), LoadError>>,
}

impl Loader<Kernel> {
    /// A loader for the running kernel, with the modules in `<root>/lib/modules/<release>`; `release` is that of `uname` if it is not given.
    ///
    /// # Errors
    /// An index that is there and cannot be read. None at all is that of a kernel without modules.
    pub fn new(root: &Path, release: Option<&str>, options: Options) -> Result<Self> {
        let running = rustix::system::uname();
        let release = release.map_or_else(|| running.release().to_string_lossy().into_owned(), str::to_owned);
        Self::with(root, &release, options, Kernel::default())
    }
}

impl<I: Insert> Loader<I> {
    /// A loader that inserts into `kernel`.
    ///
    /// # Errors
    /// As of [`Loader::new`].
    pub fn with(root: &Path, release: &str, options: Options, kernel: I) -> Result<Self> {
        let folder = root.join("lib/modules").join(release);
        let index = Index::read(&folder)?;
        Ok(Self {
            root: root.to_owned(),
            folder,
            index,
            options,
            kernel,
            done: HashMap::new(),
        })
    }

    /// The root below which `/sys` is looked at.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Loads the module `name` (or those of which it is an alias) with `parameters`, which those of the command line follow, so that the latter win.
    ///
    /// # Errors
    /// [`LoadError`]; the same one again if it is asked for again.
    pub fn load(&mut self, name: &str, parameters: &str) -> Result<Outcome, LoadError> {
        let module = normalise(name);
        if self.options.is_blacklisted(&module) {
            return Ok(Outcome::Blacklisted);
        }
        if self.index.module(&module).is_some() || self.index.is_builtin(&module) {
            return self.need(&module, parameters, &mut Vec::new());
        }
        let behind: Vec<String> = self.index.matching(&module).into_iter().map(str::to_owned).collect();
        if behind.is_empty() {
            return Err(self.unknown(name));
        }
        let mut outcome = Outcome::Blacklisted;
        for module in behind
            .iter()
            .filter(|module| !self.options.is_blacklisted(module))
            .collect::<Vec<_>>()
        {
            let one = self.need(module, parameters, &mut Vec::new())?;
            outcome = if outcome == Outcome::Loaded { outcome } else { one };
        }
        Ok(outcome)
    }

    /// Loads all of `modules`, each a name with its parameters; a failure does not keep the others from being loaded.
    pub fn load_all<'a>(&mut self, modules: impl IntoIterator<Item = (&'a str, &'a str)>) -> Report {
        let mut report = Report::default();
        for (name, parameters) in modules {
            let result = self.load(name, parameters);
            report.note(name, result);
        }
        report
    }

    /// Loads every module whose alias matches that of a device. Failures that were reported before are not reported again, and a
    /// driver whose file is not there is passed over.
    pub fn load_matching(&mut self, modalias: &str) -> Report {
        let mut report = Report::default();
        let matching: Vec<String> = self.index.matching(modalias).into_iter().map(str::to_owned).collect();
        for module in matching {
            if self.options.is_blacklisted(&module) || self.done.contains_key(&module) {
                continue;
            }
            match self.need(&module, "", &mut Vec::new()) {
                // An initrd that has the index of all modules but not their files does not want those.
                Err(error) if error.file.as_ref().is_some_and(|file| !file.exists()) => {
                    log::debug!("passing over a driver that is not here: {error}")
                }
                result => report.note(&module, result),
            }
        }
        report
    }

    fn unknown(&self, name: &str) -> LoadError {
        let reason = format!(
            "there is no such module in {}; is it among those of the initrd, and is the initrd of this kernel?",
            self.folder.display()
        );
        LoadError {
            module: name.to_owned(),
            file: None,
            reason,
            errno: None,
        }
    }

    /// Loads a module by its normalised name. `under_way` are those whose loading waits for this one.
    fn need(&mut self, name: &str, parameters: &str, under_way: &mut Vec<String>) -> Result<Outcome, LoadError> {
        if let Some(done) = self.done.get(name) {
            return done.clone().map(|()| Outcome::AlreadyLoaded);
        }
        let Some(module) = self.index.module(name).cloned() else {
            return if self.index.is_builtin(name) {
                Ok(Outcome::Builtin)
            } else {
                Err(self.unknown(name))
            };
        };
        // Hard dependencies have no circles, soft ones may have.
        if under_way.iter().any(|waiting| waiting == name) {
            return Ok(Outcome::AlreadyLoaded);
        }
        under_way.push(name.to_owned());
        let soft = self.index.soft(name);
        let result = if self.is_live(name) {
            Ok(Outcome::AlreadyLoaded)
        } else {
            self.want(&soft.before, under_way);
            self.insert_with_needs(name, &module.file, &module.needs, parameters, under_way)
        };
        self.done.insert(name.to_owned(), result.clone().map(|_| ()));
        if result == Ok(Outcome::Loaded) {
            self.want(&soft.after, under_way);
        }
        under_way.pop();
        result
    }

    fn insert_with_needs(
        &mut self,
        name: &str,
        file: &Path,
        needs: &[String],
        parameters: &str,
        under_way: &mut Vec<String>,
    ) -> Result<Outcome, LoadError> {
        for needed in needs.iter().rev() {
            self.need(needed, "", under_way).map_err(|error| LoadError {
                module: name.to_owned(),
                ..error
            })?;
        }
        let path = self.folder.join(file);
        let failed = |reason: String, errno| LoadError {
            module: name.to_owned(),
            file: Some(path.clone()),
            reason,
            errno,
        };
        let all = [parameters, &self.options.parameters(name)].join(" ");
        let all = CString::new(all.trim()).map_err(|_| failed("its parameters hold a NUL".to_owned(), None))?;
        match self.kernel.insert(&path, &all) {
            Ok(()) => {
                log::debug!("loaded the module {name}");
                Ok(Outcome::Loaded)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Outcome::AlreadyLoaded),
            Err(error) => Err(failed(error.to_string(), error.raw_os_error())),
        }
    }

    /// Loads what a module works better with: names or aliases; what fails is not missed.
    fn want(&mut self, names: &[String], under_way: &mut Vec<String>) {
        for name in names {
            let modules = if self.index.module(name).is_some() {
                vec![name.clone()]
            } else {
                self.index.matching(name).into_iter().map(str::to_owned).collect()
            };
            for module in modules {
                if let Err(error) = self.need(&module, "", under_way) {
                    log::info!("going on without a soft dependency: {error}");
                }
            }
        }
    }

    /// Whether the kernel has the module already. Only modules have this file, not the parts of the kernel that have parameters.
    fn is_live(&self, name: &str) -> bool {
        let state = self.root.join("sys/module").join(name).join("initstate");
        fs::read_to_string(state).is_ok_and(|state| state.trim_end() == "live")
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::cmdline::CommandLine;
    use std::ffi::CStr;

    /// Notes what is inserted, and refuses files whose name has `broken` or `loaded` in it.
    #[derive(Debug, Default)]
    pub struct List(pub Vec<String>);

    impl Insert for List {
        fn insert(&mut self, file: &Path, parameters: &CStr) -> io::Result<()> {
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            self.0
                .push([name.as_str(), parameters.to_str().unwrap()].join(" ").trim().to_owned());
            match name {
                _ if name.contains("broken") => Err(io::Error::from_raw_os_error(8)),
                _ if name.contains("loaded") => Err(io::Error::from_raw_os_error(17)),
                _ => Ok(()),
            }
        }
    }

    /// A root with the modules of a kernel called 6.
    pub fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("lib/modules/6");
        fs::create_dir_all(folder.join("k")).unwrap();
        fs::write(folder.join("k/broken.ko"), "").unwrap();
        let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
        write(
            "modules.dep",
            "k/xfs.ko.xz: k/libcrc32c.ko.xz k/crc.ko.xz\nk/libcrc32c.ko.xz: k/crc.ko.xz\nk/crc.ko.xz:\nk/virtio-blk.ko:\nk/broken.ko:\n\
             k/needs-broken.ko: k/broken.ko\nk/loaded.ko:\nk/late.ko:\nk/egg.ko:\nk/hen.ko:\n",
        );
        write(
            "modules.alias",
            "alias virtio:d2v* virtio_blk\nalias virtio:d*v* broken\nalias fs-xfs xfs\nalias usb:v1* late\n",
        );
        write(
            "modules.softdep",
            "softdep crc pre: broken nowhere\nsoftdep virtio_blk post: late\nsoftdep egg pre: hen\nsoftdep hen pre: egg\n",
        );
        write("modules.builtin", "k/ext4.ko\n");
        root
    }

    pub fn loader(root: &Path, command_line: &str) -> Loader<List> {
        Loader::with(
            root,
            "6",
            Options::from_command_line(&CommandLine::parse(command_line.as_bytes()).unwrap()),
            List::default(),
        )
        .unwrap()
    }

    fn inserted(loader: &Loader<List>) -> Vec<&str> {
        loader.kernel.0.iter().map(String::as_str).collect()
    }

    #[test]
    fn what_a_module_needs_is_loaded_first_and_soft_dependencies_may_fail() {
        let root = root();
        let mut loader = loader(root.path(), "");
        assert_eq!(loader.load("xfs", ""), Ok(Outcome::Loaded));
        assert_eq!(inserted(&loader), ["broken.ko", "crc.ko.xz", "libcrc32c.ko.xz", "xfs.ko.xz"]);
        assert_eq!(loader.load("xfs", ""), Ok(Outcome::AlreadyLoaded));
        assert_eq!(loader.load("virtio-blk", ""), Ok(Outcome::Loaded));
        assert_eq!(inserted(&loader)[4..], ["virtio-blk.ko", "late.ko"]);
    }

    #[test]
    fn soft_dependencies_in_a_circle_end() {
        let root = root();
        let mut loader = loader(root.path(), "");
        assert_eq!(loader.load("egg", ""), Ok(Outcome::Loaded));
        assert_eq!(inserted(&loader), ["hen.ko", "egg.ko"]);
    }

    #[test]
    fn what_is_there_already_is_a_success() {
        let root = root();
        let state = root.path().join("sys/module/late/initstate");
        fs::create_dir_all(state.parent().unwrap()).unwrap();
        fs::write(state, "live\n").unwrap();
        let mut loader = loader(root.path(), "modprobe.blacklist=egg");
        for (name, outcome) in [
            ("ext4", Outcome::Builtin),
            ("late", Outcome::AlreadyLoaded),
            ("loaded", Outcome::AlreadyLoaded),
            ("egg", Outcome::Blacklisted),
            ("fs-xfs", Outcome::Loaded),
        ] {
            assert_eq!(loader.load(name, ""), Ok(outcome), "{name}");
        }
    }

    #[test]
    fn parameters_of_the_command_line_follow_those_of_the_configuration() {
        let root = root();
        let mut loader = loader(root.path(), "late.a=2 crc.b=3");
        loader.load("late", "a=1").unwrap();
        loader.load("libcrc32c", "").unwrap();
        assert_eq!(
            inserted(&loader),
            ["late.ko a=1 a=2", "broken.ko", "crc.ko.xz b=3", "libcrc32c.ko.xz"]
        );
    }

    #[test]
    fn after_a_failure_the_others_are_loaded_and_it_names_file_and_reason() {
        let root = root();
        let mut loader = loader(root.path(), "");
        let report = loader.load_all([("needs-broken", ""), ("nowhere", ""), ("late", "")]);
        assert_eq!(report.loaded, ["late"]);
        let failures: Vec<String> = report.failures.iter().map(LoadError::to_string).collect();
        assert!(
            failures[0].starts_with("loading the module needs_broken, inserting ") && failures[0].contains("/lib/modules/6/k/broken.ko: "),
            "{failures:?}"
        );
        assert_eq!(report.failures[0].errno, Some(8));
        assert!(
            failures[1].contains("loading the module nowhere: there is no such module in "),
            "{failures:?}"
        );
    }

    #[test]
    fn a_device_gets_every_driver_that_matches_and_a_failure_is_reported_once() {
        let root = root();
        let mut loader = loader(root.path(), "");
        let first = loader.load_matching("virtio:d2v1AF4");
        assert_eq!((first.loaded, first.failures.len()), (vec!["virtio_blk".to_owned()], 1));
        assert_eq!(loader.load_matching("virtio:d2v1AF4"), Report::default());
        let mut forbidden = self::loader(root.path(), "module_blacklist=virtio-blk,broken");
        assert_eq!(forbidden.load_matching("virtio:d2v1AF4"), Report::default());
        assert_eq!(inserted(&forbidden), Vec::<&str>::new());
    }

    #[test]
    fn a_matching_driver_whose_file_is_not_in_the_initrd_is_passed_over() {
        let root = root();
        fs::remove_file(root.path().join("lib/modules/6/k/broken.ko")).unwrap();
        let mut loader = loader(root.path(), "");
        assert_eq!(loader.load_matching("virtio:d1v1").failures, []);
        assert!(loader.load("broken", "").is_err(), "a configured one is missed");
    }

    #[test]
    fn a_kernel_without_modules_says_so_by_the_folder() {
        let root = tempfile::tempdir().unwrap();
        let error = loader(root.path(), "").load("xfs", "").unwrap_err().to_string();
        assert!(error.contains("/lib/modules/6; is it among those of the initrd"), "{error}");
    }
}
