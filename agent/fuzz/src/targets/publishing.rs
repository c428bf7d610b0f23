//! What the publishing side reads of an image that is about to be published.

use std::collections::BTreeSet;

use freshroot::cmdline::CommandLine;
use freshroot::publish::params::{for_ipxe, for_shell, join, split};
use freshroot::publish::{bzimage, registration};
use freshroot::store_path::StorePath;

use crate::Target;
use crate::input::told;

/// `nix-path-registration`.
pub const REGISTRATION: Target = Target {
    name: "registration",
    longest: 4096,
    memory: 256,
    check: registrations,
};

/// A file of kernel parameters, and once more as the head of a kernel.
pub const KERNEL_PARAMS: Target = Target {
    name: "kernel_params",
    longest: 2048,
    memory: 512,
    check: kernel_params,
};

fn registrations(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let paths = match registration::paths(&text) {
        Ok(paths) => paths,
        Err(why) => return told(format!("{why:#}")),
    };
    assert!(!paths.is_empty());
    let lines: BTreeSet<&str> = text.lines().collect();
    assert!(paths.iter().all(|path| lines.contains(path.as_str())));
    // Written by somebody else, each path with a reference to itself and to the first, it lists the same.
    let first = paths.first().unwrap().to_string();
    let write = |paths: &BTreeSet<StorePath>| -> String {
        paths
            .iter()
            .map(|path| format!("{path}\nsha256:0\n120\n\n2\n{first}\n{path}\n"))
            .collect()
    };
    assert_eq!(registration::paths(&write(&paths)).unwrap(), paths);
    // Without its first path it is not whole.
    let mut rest = paths.clone();
    rest.pop_first();
    assert!(registration::paths(&write(&rest)).is_err());
    // Cut in the middle of an entry it is refused.
    let cut = write(&paths);
    assert!(registration::paths(cut.trim_end().rsplit_once('\n').unwrap().0).is_err());
}

fn kernel_params(input: &[u8]) {
    if let Some(release) = bzimage::release(input) {
        assert!(!release.is_empty() && !release.contains([' ', '\0']));
        assert!(input.windows(release.len()).any(|window| window == release.as_bytes()));
    }
    let text = String::from_utf8_lossy(input);
    let params = match split(&text) {
        Ok(params) => params,
        Err(why) => return told(format!("{why:#}")),
    };
    let line = match join(&params) {
        Ok(line) => line,
        Err(why) => return told(format!("{why:#}")),
    };
    // The agent cuts it at the same places, and so does the kernel.
    let kernel = CommandLine::parse(line.as_bytes()).unwrap();
    let own = CommandLine::parse(text.as_bytes()).unwrap();
    let words = |line: &CommandLine| -> Vec<(String, Option<String>)> {
        line.params.iter().map(|param| (param.key.clone(), param.value.clone())).collect()
    };
    assert_eq!(words(&kernel), words(&own), "«{text}» became «{line}»");
    assert_eq!(kernel.init_arguments, own.init_arguments);
    match for_ipxe(&params) {
        // iPXE cuts at white space, and puts together with single spaces.
        Ok(script) => {
            assert_eq!(script.split_ascii_whitespace().collect::<Vec<_>>().join(" "), line);
            assert!(!script.contains("${") && !script.contains('\n'));
        }
        Err(why) => told(format!("{why:#}")),
    }
    // One word of a shell: quotes open and close, and between them is the text.
    let word = for_shell(&line);
    let inner = word.strip_prefix('\'').and_then(|word| word.strip_suffix('\'')).unwrap();
    assert_eq!(inner.split("'\\''").collect::<Vec<_>>().join("'"), line);
    assert!(inner.split("'\\''").all(|part| !part.contains('\'')));
}
