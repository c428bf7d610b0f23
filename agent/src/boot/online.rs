//! The network, brought up when the first request needs it and not before.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::deadline::{Deadline, NO_DEADLINE};
use super::ledger::Ledger;
use crate::clock::Clock;
use crate::fetch::Source;
use crate::fetch::hurry::Hurry;
use crate::fetch::image::Patience;
use crate::fetch::pace::Slowest;
use crate::fetch::retry::Memory;
use crate::foreign;
use crate::http::proxy::Routes;
use crate::http::{Budget, Client, Limits, Options, TlsOptions};
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
    client: Client,
    memory: Memory,
}

impl<'a> Online<'a> {
    /// Nothing is up yet. The ledger knows the time, and what may be received.
    pub fn new(settings: &'a Settings, ledger: &Ledger) -> Self {
        Self {
            settings,
            deadline: &NO_DEADLINE,
            network: None,
            client: client(settings, ledger),
            memory: Memory::default(),
        }
    }

    /// `deadline` is told while the network is waited for.
    #[must_use]
    pub fn within(self, deadline: &'a Deadline) -> Self {
        Self { deadline, ..self }
    }

    /// The servers; brings the network up first, or waits for it, until `deadline`, if it is not up.
    ///
    /// # Errors
    /// Why there is no network, and what to do about it.
    pub fn source(&mut self, deadline: Instant, report: &mut Report) -> Result<Source<'_>, String> {
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
        Ok(Source {
            client: &self.client,
            mirrors: &self.settings.urls,
            memory: &self.memory,
        })
    }

    /// How fast mirrors were, as far as enough came from them.
    pub fn rates(&self) -> Vec<(&'a String, u64)> {
        let rates = self.memory.rates().into_iter();
        rates
            .filter_map(|(number, rate)| Some((self.settings.urls.get(number)?, rate)))
            .collect()
    }

    /// The mirror that is asked first from now on.
    pub fn first_mirror(&self) -> Option<&'a String> {
        let urls = &self.settings.urls;
        self.memory.order(urls.len()).first().and_then(|number| urls.get(*number))
    }

    /// What may still be received.
    pub fn budget_left(&self) -> Option<(Budget, u64)> {
        self.client.budget().zip(self.client.budget_left())
    }

    /// Requests made and bytes received so far.
    pub fn counted(&self) -> (u64, u64) {
        (self.client.requests(), self.client.received())
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

/// A client with what the settings say; the ledger knows the time, and what may be received.
pub fn client(settings: &Settings, ledger: &Ledger) -> Client {
    Client::new(options(settings, *ledger.clock(), ledger.budget()))
}

/// What the settings mean for the client.
fn options(settings: &Settings, clock: Clock, budget: Option<Budget>) -> Options {
    let (transfer, http) = (&settings.transfer, &settings.http);
    let limited = |value: u64| (value > 0).then_some(value);
    Options {
        limits: Limits {
            connect: transfer.connect,
            stall: transfer.stall,
        },
        tls: TlsOptions {
            ca_file: http.ca_file.clone(),
            pinned_public_keys: http.pinned_public_keys.clone(),
            client_certificate: http.client_cert_file.clone().map(|certificate| {
                let key = http.client_key_file.clone().unwrap_or_else(|| certificate.clone());
                (certificate, key)
            }),
            clock,
        },
        credentials_file: http.credentials_file.clone(),
        routes: Routes {
            proxy: http.proxy.clone(),
            exceptions: http.no_proxy.clone(),
        },
        rate_limit: limited(transfer.rate_limit),
        budget,
    }
}

/// How long the transfer of an image may take: longer where there is nothing to hurry for.
pub fn patience(settings: &Settings, hurried: bool) -> Patience {
    let (policy, transfer) = (&settings.policy, &settings.transfer);
    let limits = [
        hurried.then_some(policy.fetch_wait),
        Some(transfer.max_time).filter(|limit| *limit > Duration::ZERO),
    ];
    Patience {
        deadline: limits.into_iter().flatten().min().map(|limit| Instant::now() + limit),
        hurry: hurried.then(|| Hurry::new(policy.fetch_wait)),
        without_progress: policy.fetch_wait,
        slowest: Slowest {
            rate: transfer.least_rate(),
            window: transfer.min_rate_window,
        },
        parallel: transfer.parallel as usize,
    }
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
