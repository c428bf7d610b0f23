//! The network, brought up when the first request needs it and not before.

use std::net::IpAddr;
use std::time::Instant;

use anyhow::Result;

use super::deadline::{Deadline, NO_DEADLINE};
use crate::foreign;
use crate::http::{Client, Limits};
use crate::net::systems::wait_for_systems;
use crate::net::{Family, Mac, NetError, NetSettings, Network, Summary};
use crate::report::{NetworkReport, Report};
use crate::settings::{NetworkBy, Settings};

/// A network that is up.
enum Up {
    /// Configured here.
    Own(Network),
    /// Found as somebody else configured it.
    Systems(Summary),
}

impl Up {
    fn summary(&self) -> Summary {
        match self {
            Self::Own(network) => network.summary(),
            Self::Systems(summary) => summary.clone(),
        }
    }
}

/// The network and the client that uses it.
pub struct Online<'a> {
    settings: &'a Settings,
    deadline: &'a Deadline,
    network: Option<Up>,
    client: Option<Client>,
}

impl<'a> Online<'a> {
    /// Nothing is up yet.
    pub fn new(settings: &'a Settings) -> Self {
        Self {
            settings,
            deadline: &NO_DEADLINE,
            network: None,
            client: None,
        }
    }

    /// `deadline` is told while the network is waited for.
    #[must_use]
    pub fn within(self, deadline: &'a Deadline) -> Self {
        Self { deadline, ..self }
    }

    /// The client; brings the network up first, or waits for it, until `deadline`, if it is not up.
    ///
    /// # Errors
    /// Why there is no network, and what to do about it; or why there can be no client.
    pub fn client(&mut self, deadline: Instant, report: &mut Report) -> Result<&Client, String> {
        if self.network.is_none() {
            let by = self.settings.network.by;
            let (settings, oddities) = net_settings(self.settings);
            // Whoever else configures the network reads these words himself.
            for oddity in oddities.into_iter().filter(|_| by == NetworkBy::Agent) {
                report.warn(oddity);
            }
            let limit = deadline.min(Instant::now() + self.settings.network.wait);
            let end = self.deadline;
            let network = report.step("network", |_| -> Result<Up, NetError> {
                let mut observe = |line: &str| log::info!("network: {line}");
                let up = || match by {
                    NetworkBy::Agent => Network::bring_up(&settings, limit, &mut observe).map(Up::Own),
                    NetworkBy::System => wait_for_systems(&settings, limit, &mut observe).map(Up::Systems),
                };
                end.moved_within(limit.saturating_duration_since(Instant::now()), up)
            });
            self.network = Some(network.map_err(|error| format!("no network: {error}: {}", error.remedy()))?);
        }
        report.network = self.report();
        if self.client.is_none() {
            let client = client(self.settings);
            self.client = Some(client.map_err(|error| format!("{error:#}"))?);
        }
        self.client.as_ref().ok_or_else(|| "there is no client".to_owned())
    }

    /// Requests made and bytes received so far.
    pub fn counted(&self) -> (u64, u64) {
        self.client.as_ref().map_or((0, 0), |client| (client.requests(), client.received()))
    }

    fn report(&self) -> Option<NetworkReport> {
        let summary = self.network.as_ref()?.summary();
        Some(NetworkReport {
            interface: summary.interface,
            addresses: summary.addresses.iter().map(ToString::to_string).collect(),
            gateways: summary.gateways.iter().map(ToString::to_string).collect(),
            name_servers: summary.dns.iter().map(ToString::to_string).collect(),
        })
    }

    /// Removes what was configured here, unless `network.keep`.
    ///
    /// # Errors
    /// If something could not be removed.
    pub fn close(self) -> Result<()> {
        match self.network {
            Some(Up::Own(network)) => network.tear_down(self.settings.network.keep),
            Some(Up::Systems(_)) | None => Ok(()),
        }
    }
}

/// A client with the limits and the authorities of the settings.
///
/// # Errors
/// If there can be none: a file of certificates that cannot be read.
pub fn client(settings: &Settings) -> Result<Client> {
    let limits = Limits {
        connect: settings.transfer.connect,
        stall: settings.transfer.stall,
    };
    Client::new(&settings.urls, settings.http.ca_file.as_deref(), limits)
}

/// What the settings mean for the network, with sentences about what could not be read.
pub fn net_settings(settings: &Settings) -> (NetSettings, Vec<String>) {
    let mut oddities = Vec::new();
    let mut read = |text: &str, what: &str, error: String| oddities.push(format!("{what}{} is ignored: {error}", foreign::word(text)));
    let network = &settings.network;
    let mut net = NetSettings {
        interface: network.interface.clone(),
        ipv6: network.ipv6,
        dns: network.dns.clone(),
        family: family(&settings.urls),
        ..NetSettings::default()
    };
    for text in &network.ip {
        match crate::net::ip_param::parse(text) {
            Ok(param) => net.ip.push(param),
            Err(error) => read(text, "ip=", error.to_string()),
        }
    }
    if let Some(text) = &network.bootif {
        match Mac::parse_bootif(text) {
            Ok(mac) => net.bootif = Some(mac),
            Err(error) => read(text, "BOOTIF=", error.to_string()),
        }
    }
    for text in &network.nameserver {
        match text.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(address) => net.dns.push(address),
            Err(error) => read(text, "nameserver=", error.to_string()),
        }
    }
    (net, oddities)
}

/// The family that all URLs name by address; nothing if one of them has a name, or they differ.
fn family(urls: &[String]) -> Option<Family> {
    let mut families = urls.iter().map(|url| {
        let authority = url.split_once("://")?.1.split('/').next()?;
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        if host.starts_with('[') {
            return Some(Family::V6);
        }
        let host = host.split_once(':').map_or(host, |(host, _)| host);
        host.parse::<std::net::Ipv4Addr>().ok().map(|_| Family::V4)
    });
    let first = families.next()??;
    families.all(|other| other == Some(first)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_family_is_known_only_where_every_url_is_an_address_of_it() {
        for (urls, expected) in [
            (&["http://10.0.0.1/a"][..], Some(Family::V4)),
            (&["http://u:p@[fe80::1]:80/a"], Some(Family::V6)),
            (&["http://10.0.0.1:80", "http://10.0.0.2"], Some(Family::V4)),
            (&["http://10.0.0.1", "http://[::1]"], None),
            (&["http://10.0.0.1", "http://host"], None),
            (&["http://host/10.0.0.1"], None),
            (&[], None),
        ] {
            let urls: Vec<String> = urls.iter().map(|url| (*url).to_owned()).collect();
            assert_eq!(family(&urls), expected, "{urls:?}");
        }
    }
}
