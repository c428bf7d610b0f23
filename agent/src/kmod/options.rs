//! What the kernel's command line says about modules: `<module>.<parameter>=<value>` and blacklists.

use std::collections::{BTreeMap, BTreeSet};

use super::pattern::normalise;

/// Parameters and blacklists, by normalised names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    parameters: BTreeMap<String, Vec<String>>,
    blacklist: BTreeSet<String>,
}

impl Options {
    /// Collects them from the text of `/proc/cmdline`, quoted as the kernel's `next_arg` (`lib/cmdline.c`) reads it. What follows `--` is for init.
    ///
    /// `modprobe.blacklist=` and `module_blacklist=` are both obeyed for configured and for matching modules; the latter the kernel enforces
    /// by itself, also where a module is needed by another one.
    pub fn from_command_line(text: &str) -> Self {
        let mut options = Self::default();
        for word in words(text).take_while(|word| *word != "--") {
            let plain: String = word.chars().filter(|character| *character != '"').collect();
            let (key, value) = plain
                .split_once('=')
                .map_or((plain.as_str(), None), |(key, value)| (key, Some(value)));
            match (key, key.split_once('.')) {
                ("modprobe.blacklist" | "module_blacklist", _) => {
                    let names = value.unwrap_or_default().split(',').map(str::trim).filter(|name| !name.is_empty());
                    options.blacklist.extend(names.map(normalise));
                }
                (_, Some((module, parameter))) if !module.is_empty() && !parameter.is_empty() => {
                    options
                        .parameters
                        .entry(normalise(module))
                        .or_default()
                        .push(written(parameter, value));
                }
                (_, Some(_) | None) => {}
            }
        }
        options
    }

    /// The parameters for the module of this normalised name, as `init_module` takes them.
    pub fn parameters(&self, module: &str) -> String {
        self.parameters.get(module).map(|all| all.join(" ")).unwrap_or_default()
    }

    /// Whether the module of this normalised name is not to be loaded.
    pub fn is_blacklisted(&self, module: &str) -> bool {
        self.blacklist.contains(module)
    }
}

/// The words of a command line; a quote keeps blanks together wherever it stands in a word, and holds to the end if it is not closed.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |character: char| {
        quoted ^= character == '"';
        !quoted && character.is_ascii_whitespace()
    })
    .filter(|word| !word.is_empty())
}

fn written(parameter: &str, value: Option<&str>) -> String {
    match value {
        None => parameter.to_owned(),
        Some(value) if value.contains(|character: char| character.is_ascii_whitespace()) => format!("{parameter}=\"{value}\""),
        Some(value) => format!("{parameter}={value}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parameters_are_collected_by_module() {
        let options = Options::from_command_line(
            "root=fstab usb-storage.quirks=1:2:u usb_storage.delay_use=0 loop.max_loop=8 dyndbg.x=\"a b\" \"m.y=c  d\" m.flag .x=1 y.=2 -- loop.max_part=1\n",
        );
        let cases = [
            ("usb_storage", "quirks=1:2:u delay_use=0"),
            ("loop", "max_loop=8"),
            ("dyndbg", "x=\"a b\""),
            ("m", "y=\"c  d\" flag"),
            ("root", ""),
        ];
        for (module, parameters) in cases {
            assert_eq!(options.parameters(module), parameters, "{module}");
        }
    }

    #[test]
    fn both_blacklists_are_obeyed_and_add_up() {
        let options = Options::from_command_line("modprobe.blacklist=nouveau,snd-pcsp module_blacklist=ast modprobe.blacklist=,x");
        for module in ["nouveau", "snd_pcsp", "ast", "x"] {
            assert!(options.is_blacklisted(module), "{module}");
        }
        assert!(!options.is_blacklisted("") && !options.is_blacklisted("blacklist"));
        assert_eq!(options.parameters("modprobe"), "");
    }

    #[test]
    fn a_quote_that_is_not_closed_holds_to_the_end() {
        assert_eq!(Options::from_command_line("a.b=\"c d.e=f").parameters("a"), "b=\"c d.e=f\"");
    }

    proptest! {
        #[test]
        fn any_command_line_is_read_without_panic(text in "([a-z]{1,3}|[.=\", -]|\\PC){0,40}") {
            Options::from_command_line(&text);
        }
    }
}
