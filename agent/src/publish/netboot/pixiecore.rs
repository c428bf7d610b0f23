//! Answers of Pixiecore's API: `GET /v1/boot/<mac>` (<https://github.com/danderson/netboot/blob/main/pixiecore/README.api.md>).

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{Wanted, command_line};
use crate::formats::manifest::Boot;
use crate::publish::params::join;

/// What a machine is booted with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The command line. Pixiecore takes it for a template of Go's text/template.
    pub cmdline: String,
    /// URLs of initrds.
    pub initrd: Vec<String>,
    /// URL of the kernel.
    pub kernel: String,
}

impl Answer {
    /// The answer for what is published. Without a base URL its URLs are naked paths, which Pixiecore resolves against the root of its API server.
    ///
    /// # Errors
    /// A command line that is too long.
    pub fn new(boot: &Boot, wanted: &Wanted, params: &[String], url: Option<&str>) -> Result<Self> {
        let base = url.unwrap_or("");
        Ok(Self {
            cmdline: literal(&join(&command_line(wanted, params))?),
            initrd: vec![format!("{base}/initrds/{}", boot.initrd.sha256)],
            kernel: format!("{base}/kernels/{}", boot.kernel.sha256),
        })
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).context("reading an answer for Pixiecore")
    }

    /// The answer as a file holds it.
    ///
    /// # Errors
    /// Never in practice: all of it can be written as JSON.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec(self).context("writing an answer for Pixiecore")?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Naked paths become URLs below `base`, which has no slash at its end.
    pub fn based(mut self, base: &str) -> Self {
        for url in self.initrd.iter_mut().chain([&mut self.kernel]) {
            if url.starts_with('/') {
                *url = format!("{base}{url}");
            }
        }
        self
    }
}

/// A text as a template that makes this text.
fn literal(text: &str) -> String {
    text.replace("{{", "{{\"{{\"}}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use super::*;
    use crate::digest::Digest;
    use crate::publish::netboot::testing::{boot, system};

    #[test]
    fn the_answer_is_that_of_the_nixos_module() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../initrd-module/tests/golden/pixiecore.json");
        let golden: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let (kernel, initrd) = (Digest::of(b"kernel"), Digest::of(b"initrd"));
        let base = "http://images.lan/freshroot";
        let made = Answer::new(&boot(), &system(), &["quiet".to_owned()], Some(base)).unwrap();
        let made: serde_json::Value = serde_json::from_slice(&made.to_bytes().unwrap()).unwrap();
        let names = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&made), names(&golden));
        let text = golden.to_string();
        let text = text.replace("kernels/aa", &format!("kernels/{kernel}"));
        let text = text.replace("initrds/bb", &format!("initrds/{initrd}"));
        let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&made["kernel"], &made["initrd"]), (&golden["kernel"], &golden["initrd"]));
    }

    #[test]
    fn paths_get_their_base_and_urls_stay() {
        let kernel = format!("kernels/{}", Digest::of(b"kernel"));
        let naked = Answer::new(&boot(), &system(), &[], None).unwrap();
        assert_eq!(naked.kernel, format!("/{kernel}"));
        assert_eq!(naked.based("http://h:1/x").kernel, format!("http://h:1/x/{kernel}"));
        let full = Answer::new(&boot(), &system(), &[], Some("http://a")).unwrap();
        assert_eq!(full.clone().based("http://b"), full);
        assert_eq!(Answer::parse(&full.to_bytes().unwrap()).unwrap(), full);
    }

    #[test]
    fn what_go_would_take_for_a_template_is_written_as_one_that_makes_it() {
        for (text, expected) in [
            ("quiet", "quiet"),
            ("a={x}", "a={x}"),
            ("a={{x}}", "a={{\"{{\"}}x}}"),
            ("{{{", "{{\"{{\"}}{"),
        ] {
            assert_eq!(literal(text), expected, "{text}");
        }
    }
}
