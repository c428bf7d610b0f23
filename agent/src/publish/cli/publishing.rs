//! The options that `image` and `closure` share.

use std::num::NonZeroU64;
use std::path::PathBuf;

use lexopt::{Parser, ValueExt as _};

use super::{Usage, meaning, missing, unknown, value};
use crate::formats::release::ChannelName;
use crate::publish::netboot::base_url;
use crate::publish::params;
use crate::store_path::StorePath;

/// How to publish.
#[derive(Debug)]
pub struct Options {
    /// The served folder.
    pub out: PathBuf,
    /// Secret keys; none: unsigned.
    pub keys: Vec<PathBuf>,
    /// Kernel and initrd.
    pub boot: Option<(PathBuf, PathBuf)>,
    /// The channel.
    pub channel: ChannelName,
    /// Its serial.
    pub serial: Option<NonZeroU64>,
    /// Seconds since 1970.
    pub not_after: Option<u64>,
    /// Systems by name.
    pub systems: Vec<(String, StorePath)>,
    /// Parameters for the kernel.
    pub kernel_params: Vec<String>,
    /// Base URL.
    pub url: Option<String>,
    /// Boot by channel.
    pub channel_mode: bool,
}

/// The names of the options.
pub(super) const PUBLISHING: &[&str] = &[
    "out",
    "key",
    "unsigned",
    "kernel",
    "initrd",
    "channel",
    "serial",
    "not-after",
    "system",
    "kernel-params",
    "url",
    "channel-mode",
];

/// The options of publishing as they were given.
#[derive(Debug, Default)]
pub(super) struct Given {
    out: Option<PathBuf>,
    keys: Vec<PathBuf>,
    unsigned: bool,
    kernel: Option<PathBuf>,
    initrd: Option<PathBuf>,
    channel: Option<String>,
    serial: Option<NonZeroU64>,
    not_after: Option<String>,
    systems: Vec<String>,
    kernel_params: Option<String>,
    url: Option<String>,
    channel_mode: bool,
}

impl Given {
    /// Takes the option `name`, and its value from `parser`.
    pub(super) fn take(&mut self, name: &str, parser: &mut Parser) -> Result<(), Usage> {
        match name {
            "unsigned" => self.unsigned = true,
            "channel-mode" => self.channel_mode = true,
            "out" => self.out = Some(parser.value()?.into()),
            "key" => self.keys.push(parser.value()?.into()),
            "kernel" => self.kernel = Some(parser.value()?.into()),
            "initrd" => self.initrd = Some(parser.value()?.into()),
            "channel" => self.channel = Some(parser.value()?.string()?),
            "serial" => self.serial = Some(parser.value()?.parse()?),
            "not-after" => self.not_after = Some(parser.value()?.string()?),
            "system" => self.systems.push(parser.value()?.string()?),
            "kernel-params" => self.kernel_params = Some(parser.value()?.string()?),
            "url" => self.url = Some(parser.value()?.string()?),
            other => return Err(unknown("option", other, PUBLISHING)),
        }
        Ok(())
    }

    /// Their meaning.
    pub(super) fn options(self, now: u64) -> Result<Options, Usage> {
        if self.unsigned != self.keys.is_empty() {
            let why = if self.unsigned {
                "--key and --unsigned exclude each other"
            } else {
                "how to sign? give --key FILE, or --unsigned and sign later"
            };
            return Err(Usage(why.to_owned()));
        }
        let boot = match (self.kernel, self.initrd) {
            (Some(kernel), Some(initrd)) => Some((kernel, initrd)),
            (None, None) => None,
            (Some(_), None) => return Err(missing("--initrd, which --kernel needs,")),
            (None, Some(_)) => return Err(missing("--kernel, which --initrd needs,")),
        };
        let mut systems = Vec::new();
        for system in &self.systems {
            systems.push(value::system(system).map_err(meaning)?);
        }
        let channel = self.channel.as_deref().unwrap_or("default");
        Ok(Options {
            out: self.out.ok_or_else(|| missing("--out FOLDER"))?,
            keys: self.keys,
            boot,
            channel: channel.parse().map_err(|error| Usage(format!("--channel: {error}")))?,
            serial: self.serial,
            not_after: self.not_after.map(|when| value::time(&when, now)).transpose().map_err(meaning)?,
            systems,
            kernel_params: params::split(self.kernel_params.as_deref().unwrap_or("")).map_err(meaning)?,
            url: self.url.map(|url| base_url(&url)).transpose().map_err(meaning)?,
            channel_mode: self.channel_mode,
        })
    }
}
