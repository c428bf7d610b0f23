//! The kernel command line and the configuration file, to where they decide something.

use freshroot::boot::online::net_settings;
use freshroot::boot::system::entries;
use freshroot::cmdline::{CommandLine, quote_init_argument, quote_param};
use freshroot::device::DeviceName;
use freshroot::kmod::options::Options;
use freshroot::mode::{MODES, Mode};
use freshroot::mount::entry::{DeviceFs, MountEntry, MountKind};
use freshroot::select::select;
use freshroot::settings::table::TABLE;
use freshroot::settings::{Origin, Settings, Verify};
use serde_json::json;

use crate::Target;
use crate::input::{split_at_ff, told};

/// A configuration file (may be empty: none), the byte 0xff, a command line. Without that byte all of it is the command line.
pub const COMMAND_LINE: Target = Target {
    name: "command_line",
    longest: 4096,
    memory: 1024,
    check: command_line,
};

/// A configuration file.
pub const SETTINGS: Target = Target {
    name: "settings",
    longest: 4096,
    memory: 4096,
    check: settings,
};

fn command_line(input: &[u8]) {
    let (file, line) = match split_at_ff(input) {
        (line, None) => (&b""[..], line),
        (file, Some(line)) => (file, line),
    };
    let parsed = match CommandLine::parse(line) {
        Ok(parsed) => parsed,
        Err(why) => {
            assert!(std::str::from_utf8(line).is_err() || line.contains(&0));
            return told(why);
        }
    };
    let text = std::str::from_utf8(line).unwrap();
    same_as_the_kernel(text, &parsed);
    reads_back(&parsed);
    module_options(&parsed);

    let file = (!file.is_empty()).then_some(("config.json", file));
    let merged = match Settings::from_sources(file, line) {
        Ok(settings) => settings,
        Err(why) => return told(format!("{why:#}")),
    };
    assert_eq!(Settings::from_sources(file, line).unwrap(), merged);
    merged.warnings.iter().for_each(told);
    let configured = Settings::from_sources(file, b"").unwrap();
    nothing_weaker(&configured, &merged);
    for row in TABLE {
        match merged.origin(row.name) {
            // The word stands where it is said to stand.
            Origin::CommandLine { position } => assert!(text[position..].contains(&row.kebab())),
            Origin::File | Origin::Default if row.name == "onFailure.maxDelay" => {}
            Origin::File | Origin::Default => assert_eq!((row.show)(&merged), (row.show)(&configured), "{}", row.name),
        }
    }
    usable(&merged);
}

/// What the command line may not do unless the configuration lists it.
fn nothing_weaker(configured: &Settings, merged: &Settings) {
    let listed = |name| configured.command_line_may.contains(&name);
    assert!(listed("trustedPublicKeys") || merged.trusted_public_keys == configured.trusted_public_keys);
    assert!(listed("allowUnsigned") || merged.allow_unsigned == configured.allow_unsigned);
    assert!(listed("resetFloor") || merged.reset_floor == configured.reset_floor);
    assert!(listed("http.caFile") || merged.http.ca_file == configured.http.ca_file);
    assert!(listed("verify") || merged.verify == configured.verify || merged.verify == Verify::Full);
    assert!(listed("manifestSha256") || configured.manifest_sha256.is_none() || merged.manifest_sha256 == configured.manifest_sha256);
    assert!(listed("cache.device") || merged.cache.device == configured.cache.device);
    assert!(listed("cache.options") || merged.cache.options == configured.cache.options);
    assert!(listed("cache.path") || merged.cache.path == configured.cache.path);
    assert!(listed("store.rwDevice") || merged.store.rw_device == configured.store.rw_device);
    assert_eq!(merged.file_systems, configured.file_systems);
    assert_eq!(merged.kernel.store_name, configured.kernel.store_name);
    assert_eq!(merged.command_line_may, configured.command_line_may);
}

/// What passed here must not stop a boot later on.
fn usable(settings: &Settings) {
    for (_, mode) in MODES {
        let (wanted, oddities) = select(settings, mode).unwrap_or_else(|refusal| panic!("settings that pass cannot be used: {refusal}"));
        oddities.iter().for_each(told);
        assert_eq!(wanted.trust.keys.len(), settings.trusted_public_keys.len());
    }
    for device in [&settings.cache.device, &settings.store.rw_device].into_iter().flatten() {
        assert!(
            device.parse::<DeviceName>().is_ok(),
            "{device} passes as a setting and names no device"
        );
    }
    net_settings(settings).1.iter().for_each(told);
    assert!(settings.on_failure.max_delay >= settings.on_failure.delay && settings.cache.keep >= 2);
}

/// The kernel's rules once more, told over bytes and one at a time: where words end, which quotes go, where the first `=` is.
fn same_as_the_kernel(text: &str, parsed: &CommandLine) {
    let is_space = |byte: u8| byte == b' ' || (9..=13).contains(&byte);
    let bytes = text.as_bytes();
    let (mut params, mut arguments, mut for_init) = (Vec::new(), Vec::new(), false);
    let mut at = 0;
    loop {
        while at < bytes.len() && is_space(bytes[at]) {
            at += 1;
        }
        if at == bytes.len() {
            break;
        }
        let position = at;
        let mut quoted = false;
        while at < bytes.len() && (quoted || !is_space(bytes[at])) {
            quoted ^= bytes[at] == b'"';
            at += 1;
        }
        let mut word = bytes[position..at].to_vec();
        let whole = word[0] == b'"';
        if whole {
            word.remove(0);
        }
        let equals = word.iter().skip(1).position(|byte| *byte == b'=').map(|at| at + 1);
        let value_begins = equals.map_or(word.len(), |at| at + 1);
        let value_quoted = equals.is_some() && word.get(value_begins) == Some(&b'"');
        if value_quoted {
            word.remove(value_begins);
        }
        // The quote that was opened first is the one that is closed; it may have been the only byte.
        let floor = if equals.is_some() { value_begins } else { 0 };
        if (whole || value_quoted) && word.len() > floor && word.last() == Some(&b'"') {
            word.pop();
        }
        let word = String::from_utf8(word).unwrap();
        match equals {
            _ if for_init => arguments.push(word),
            None if word == "--" => for_init = true,
            None => params.push((word, None, position)),
            Some(at) => params.push((word[..at].to_owned(), Some(word[at + 1..].to_owned()), position)),
        }
    }
    let ours: Vec<_> = parsed
        .params
        .iter()
        .map(|param| (param.key.clone(), param.value.clone(), param.position))
        .collect();
    assert_eq!(ours, params);
    assert_eq!(parsed.init_arguments, arguments);
}

/// What can be written is read back, all on one line.
fn reads_back(parsed: &CommandLine) {
    let writable = parsed
        .params
        .iter()
        .filter_map(|param| Some((param, quote_param(&param.key, param.value.as_deref())?)));
    let (params, mut words): (Vec<_>, Vec<String>) = writable.unzip();
    let arguments: Vec<(&String, String)> = parsed
        .init_arguments
        .iter()
        .filter_map(|argument| Some((argument, quote_init_argument(argument)?)))
        .collect();
    words.push("--".to_owned());
    words.extend(arguments.iter().map(|(_, written)| written.clone()));
    let again = CommandLine::parse(words.join(" ").as_bytes()).unwrap();
    assert_eq!(again.params.len(), params.len());
    for (again, param) in again.params.iter().zip(params) {
        assert_eq!((&again.key, &again.value), (&param.key, &param.value));
    }
    assert!(again.init_arguments.iter().eq(arguments.iter().map(|(argument, _)| *argument)));
}

/// Parameters of modules reach `init_module` as the kernel would have read them.
fn module_options(parsed: &CommandLine) {
    let options = Options::from_command_line(parsed);
    for param in &parsed.params {
        let Some((module, _)) = param
            .key
            .split_once('.')
            .filter(|(module, rest)| !module.is_empty() && !rest.is_empty())
        else {
            continue;
        };
        let module = freshroot::kmod::pattern::normalise(module);
        let of_module = |key: &str| {
            let (name, rest) = key.split_once('.')?;
            (freshroot::kmod::pattern::normalise(name) == module && !rest.is_empty()).then(|| rest.to_owned())
        };
        let wanted: Vec<_> = parsed
            .params
            .iter()
            .filter_map(|param| Some((of_module(&param.key)?, param.value.clone())))
            .collect();
        // With a quote in the middle there may be no way to say it.
        let plain = |text: &str| !text.contains('"');
        if wanted
            .iter()
            .all(|(key, value)| plain(key) && key != "--" && value.as_deref().is_none_or(plain))
        {
            let found = CommandLine::parse(options.parameters(&module).as_bytes()).unwrap();
            let found: Vec<_> = found.params.into_iter().map(|param| (param.key, param.value)).collect();
            let expected: Vec<_> = wanted
                .into_iter()
                .filter(|(key, _)| !key.contains(|c: char| c == ' ' || ('\t'..='\r').contains(&c)))
                .collect();
            if expected.len() == found.len() {
                assert_eq!(found, expected);
            }
        }
    }
}

/// Settings that a command line can never set.
const FILE_ONLY: [&str; 6] = ["fileSystems", "luks", "swapDevices", "disks", "kernel.storeName", "commandLineMay"];

fn settings(input: &[u8]) {
    let settings = match Settings::from_sources(Some(("config.json", input)), b"") {
        Ok(settings) => settings,
        Err(why) => {
            let text = format!("{why:#}");
            assert!(text.starts_with("config.json"), "{text}");
            return told(text);
        }
    };
    settings.warnings.iter().for_each(told);
    usable(&settings);
    // What a row shows, a file and a command line can say: the same settings come of it.
    let may = TABLE.iter().map(|row| row.name).filter(|name| !FILE_ONLY.contains(name));
    let disks = settings.disks.iter().map(|disk| (disk.name.clone(), disk.source.clone()));
    let disks: serde_json::Map<_, _> = disks.collect();
    let file = json!({
        "version": 1,
        "fileSystems": settings.file_systems,
        "luks": settings.luks,
        "disks": disks,
        "swapDevices": settings.swap_devices.keys().map(|device| (device.clone(), json!({}))).collect::<serde_json::Map<_, _>>(),
        "kernel": {"storeName": settings.kernel.store_name},
        "commandLineMay": may.collect::<Vec<_>>(),
    });
    let file = file.to_string().into_bytes();
    let words: Option<Vec<String>> = TABLE
        .iter()
        .filter(|row| settings.origin(row.name) == Origin::File && !FILE_ONLY.contains(&row.name))
        .map(|row| quote_param(&format!("freshroot.{}", row.kebab()), Some(&(row.show)(&settings))))
        .collect();
    // A quote in a text cannot be written on a command line.
    if let Some(words) = words {
        let line = words.join(" ");
        let again = Settings::from_sources(Some(("again.json", &file)), line.as_bytes()).unwrap_or_else(|why| panic!("{line}: {why:#}"));
        for row in TABLE.iter().filter(|row| row.name != "commandLineMay") {
            assert_eq!(
                (row.show)(&again),
                (row.show)(&settings),
                "{} of {line}: {:?}",
                row.name,
                again.warnings
            );
        }
    }
    MODES.into_iter().for_each(|(_, mode)| file_systems(&settings, mode));
}

/// Entries as the boot reads them, in the order in which it mounts them.
fn file_systems(settings: &Settings, mode: Mode) {
    let ordered = match entries(settings, mode) {
        Ok(ordered) => ordered,
        Err(why) => return told(format!("{why:#}")),
    };
    assert_eq!(ordered.len(), settings.file_systems.len());
    for (at, entry) in ordered.iter().enumerate() {
        sound(entry, mode);
        for later in &ordered[at + 1..] {
            assert!(
                !entry.mount_point().starts_with(later.mount_point()),
                "{entry} is mounted before {later}"
            );
            assert!(
                !entry.sources().iter().any(|source| source.starts_with(later.mount_point())),
                "{entry} is mounted before {later}"
            );
            assert!(
                !entry.depends().iter().any(|path| path == later.mount_point()),
                "{entry} is mounted before {later}"
            );
        }
    }
}

/// What is true of each entry that may be mounted.
fn sound(entry: &MountEntry, mode: Mode) {
    let plain = |path: &std::path::Path| {
        let text = path.to_str().unwrap();
        text.starts_with('/') && !text.contains("//") && !text.split('/').any(|part| part == "." || part == "..")
    };
    assert!(plain(entry.mount_point()) && entry.depends().iter().all(|path| plain(path)));
    for ours in [
        "/nix/store",
        "/nix/.ro-store",
        "/nix/.rw-store",
        "/nix/.freshroot",
        "/proc",
        "/sys",
        "/dev",
        "/run/freshroot",
    ] {
        assert!(!entry.mount_point().starts_with(ours), "an entry for {ours}");
    }
    match entry.kind() {
        MountKind::Device(kind) => {
            assert!(mode == Mode::Standalone && entry.device().is_some_and(|device| !device.is_empty()));
            assert_eq!(DeviceFs::of(kind.name()), Some(*kind));
        }
        MountKind::Bind { source, .. } => assert!(plain(source) && entry.options().file_system.is_empty()),
        MountKind::Symlink { source } => assert!(plain(source)),
        MountKind::Tmpfs => assert_eq!(mode, Mode::Standalone),
        MountKind::Overlay(layers) => {
            assert!(mode == Mode::Standalone && !layers.lower.is_empty() && entry.sources().iter().all(|path| plain(path)));
        }
        MountKind::Systemds { .. } => assert_eq!(mode, Mode::Systemd),
    }
    assert!(entry.timeout().is_none_or(|timeout| !timeout.is_zero()));
    assert!(
        entry.create().own.mode <= 0o7777
            && entry.create().parents.mode <= 0o7777
            && entry.options().mkdir_mode.is_none_or(|mode| mode <= 0o7777)
    );
    assert!(
        !entry
            .options()
            .file_system
            .iter()
            .any(|option| option.key.is_empty() || option.key.contains([',', '=']))
    );
}
