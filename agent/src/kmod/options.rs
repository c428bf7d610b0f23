//! What the kernel's command line says about modules: `<module>.<parameter>=<value>` and blacklists.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeMap, BTreeSet};

use super::pattern::normalise;
use crate::cmdline::{CommandLine, quote_param};

/// Parameters and blacklists, by normalised names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    parameters: BTreeMap<String, Vec<String>>,
    blacklist: BTreeSet<String>,
}

impl Options {
    /// Collects them from the kernel's command line.
    ///
    /// `modprobe.blacklist=` and `module_blacklist=` are both obeyed for configured and for matching modules; the latter the kernel enforces
    /// by itself, also where a module is needed by another one.
    pub fn from_command_line(line: &CommandLine) -> Self {
        let mut options = Self::default();
        for param in &line.params {
            let (key, value) = (param.key.as_str(), param.value.as_deref());
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

/// The parameter as `init_module` reads it, which cuts its argument as the kernel cuts the command line.
fn written(parameter: &str, value: Option<&str>) -> String {
    quote_param(parameter, value).unwrap_or_else(|| {
        let value = value.unwrap_or_default();
        // A quote that stands in the middle of a value stays there, and opens and closes again at the same places.
        let forms = [
            format!("{parameter}={value}"),
            format!("{parameter}=\"{value}"),
            format!("{parameter}=\"{value}\""),
        ];
        // One that nobody closes holds to the end of the command line: nothing follows there that it could swallow here.
        let reads_back = |form: &&String, followed_by: &str| {
            let line = CommandLine::parse(format!("{form}{followed_by}").as_bytes()).unwrap_or_default();
            line.params.first().is_some_and(|param| param.value.as_deref() == Some(value))
        };
        let form = forms
            .iter()
            .find(|form| reads_back(form, " x"))
            .or_else(|| forms.iter().find(|form| reads_back(form, "")));
        form.unwrap_or(&forms[0]).clone()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    fn options(line: &str) -> Options {
        Options::from_command_line(&CommandLine::parse(line.as_bytes()).unwrap())
    }

    #[test]
    fn parameters_are_collected_by_module() {
        let options = options(
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
        let options = options("modprobe.blacklist=nouveau,snd-pcsp module_blacklist=ast modprobe.blacklist=,x");
        for module in ["nouveau", "snd_pcsp", "ast", "x"] {
            assert!(options.is_blacklisted(module), "{module}");
        }
        assert!(!options.is_blacklisted("") && !options.is_blacklisted("blacklist"));
        assert_eq!(options.parameters("modprobe"), "");
    }

    #[test]
    fn a_quote_that_is_not_closed_holds_to_the_end() {
        assert_eq!(options("a.b=\"c d.e=f").parameters("a"), "b=\"c d.e=f\"");
    }

    #[test]
    fn a_quote_inside_a_value_swallows_no_parameter_that_follows() {
        for (line, written) in [
            ("m.a=b\"c d\"e m.f", "a=b\"c d\"e f"),
            ("m.a=\"x\"y m.f", "a=\"x\"y f"),
            ("m.a=b\"c m.f", "a=b\"c m.f"),
        ] {
            assert_eq!(options(line).parameters("m"), written, "{line}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(values in proptest::collection::vec("[a-c\" ]{0,8}", 1..4)) {
            let line: Vec<String> = values.iter().map(|value| format!("m.p={value}")).collect();
            let given = CommandLine::parse(line.join(" ").as_bytes()).unwrap();
            let given: Vec<_> = given.params.iter().filter(|param| param.key == "m.p").map(|param| param.value.clone()).collect();
            let read = CommandLine::parse(options(&line.join(" ")).parameters("m").as_bytes()).unwrap();
            let read: Vec<_> = read.params.into_iter().map(|param| param.value).collect();
            prop_assert_eq!(read, given);
        }

        #[test]
        fn any_command_line_is_read_without_panic(text in "([a-z]{1,3}|[.=\", -]|\\PC){0,40}") {
            options(&text);
        }
    }
}
