//! From merged to validated: values go to their places, and are looked at together.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;

use super::merged::Merged;
use super::validated::{InitWord, Origin, Settings};
use super::value::show_duration;
use crate::cmdline::CommandLine;
use crate::store_path::StorePath;

/// `init=` of generated command lines: the agent makes the folder a symlink to the toplevel that it selects.
pub const OUR_INIT: &str = "/nix/.freshroot/init";

/// A merged value that no longer passes: only a mistake in the table can cause it.
#[derive(Debug)]
pub struct Unfit {
    name: &'static str,
    problem: String,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.problem)
    }
}

impl std::error::Error for Unfit {}

impl Settings {
    /// Puts merged values and the words of the command line that are no settings of ours into their places.
    ///
    /// # Errors
    /// [`Unfit`], where the table contradicts itself.
    pub(super) fn from_merged(merged: Merged, line: &CommandLine) -> Result<Self, Unfit> {
        let mut settings = Self::defaults();
        for (name, chosen) in &merged.chosen {
            chosen
                .row
                .put(&mut settings, &chosen.input)
                .map_err(|problem| Unfit { name, problem })?;
            settings.origins.insert(name, chosen.origin);
        }
        settings.kexeced = merged.kexeced;
        settings.warnings = merged.warnings;
        settings.take_words(line);
        settings.look_at_the_whole();
        Ok(settings)
    }

    /// Takes the standard words that other programs know as well.
    fn take_words(&mut self, line: &CommandLine) {
        let values = |key| {
            line.all(key)
                .filter_map(|param| param.value.clone())
                .filter(|value| !value.is_empty())
        };
        self.network.ip = values("ip").collect();
        self.network.nameserver = values("nameserver").collect();
        self.network.bootif = values("BOOTIF").last();
        self.init_arguments = line.init_arguments.clone();
        let Some(param) = line.last("init") else { return };
        self.init = init_word(param.value.as_deref().unwrap_or_default());
        let position = param.position;
        self.origins.insert("init", Origin::CommandLine { position });
    }

    /// Looks at values that are fine one by one. None of this is worth refusing a boot.
    fn look_at_the_whole(&mut self) {
        if self.on_failure.max_delay < self.on_failure.delay {
            self.warnings.push(format!(
                "onFailure.maxDelay ({}) is shorter than onFailure.delay ({}): the longer one is used for both",
                show_duration(self.on_failure.max_delay),
                show_duration(self.on_failure.delay)
            ));
            self.on_failure.max_delay = self.on_failure.delay;
        }
        if self.http.client_key_file.is_some() && self.http.client_cert_file.is_none() {
            self.warnings
                .push("http.clientKeyFile is of no use without http.clientCertFile".to_owned());
        }
        let http = |url: &String| !url.starts_with("https://");
        if self.http.credentials_file.is_some() && !self.urls.is_empty() && self.urls.iter().all(http) {
            self.warnings
                .push("http.credentialsFile is of no use: credentials are sent by https only, and no url is https".to_owned());
        }
        if self.transfer.least_rate() < self.transfer.min_rate && self.origin("transfer.minRate") != Origin::Default {
            self.warnings
                .push("transfer.minRate is more than half of transfer.rateLimit: half of it is used".to_owned());
        }
        if self.trusted_public_keys.is_empty() && self.manifest_sha256.is_none() && !self.allow_unsigned {
            self.warnings
                .push("nothing can be authorised: set trustedPublicKeys (or manifestSha256)".to_owned());
        }
    }
}

/// What a value of `init=` means.
fn init_word(value: &str) -> InitWord {
    if value.is_empty() {
        return InitWord::Absent;
    }
    if value == OUR_INIT {
        return InitWord::Ours;
    }
    match value.strip_suffix("/init").map(str::parse::<StorePath>) {
        Some(Ok(path)) => InitWord::Toplevel(path),
        Some(Err(_)) | None => InitWord::Other(value.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_selects_only_where_it_names_the_init_of_a_store_path() {
        let hash = "0123456789abcdfghijklmnpqrsvwxyz";
        for (value, selects) in [
            (format!("/nix/store/{hash}-a/init"), true),
            (format!("/nix/store/{hash}-a"), false),
            (format!("/nix/store/{hash}-a/bin/init"), false),
            ("/nix/store/../init".to_owned(), false),
            ("/bin/sh".to_owned(), false),
            ("/init".to_owned(), false),
        ] {
            assert_eq!(matches!(init_word(&value), InitWord::Toplevel(_)), selects, "{value}");
            assert_eq!(init_word(&value) == InitWord::Other(value.clone()), !selects, "{value}");
        }
        assert_eq!(init_word(OUR_INIT), InitWord::Ours);
        assert_eq!(init_word(""), InitWord::Absent);
    }
}
