//! Why a request failed, by what helps, in words that hold no secret.

use std::io;
use std::time::Duration;

use super::date;
use super::meter::BudgetSpent;
use super::tls::Tls;

/// Why a request failed, by what helps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HttpError {
    /// Trying again does not help.
    Fatal(String),
    /// Trying again does not help, and neither does another file of this server: it cannot be believed, or another one answers in its place.
    Unusable(String),
    /// The server says that it is not there.
    NotFound(String),
    /// Trying again may help, not before the given time if the server names one.
    Retryable(String, Option<Duration>),
}

impl std::fmt::Display for HttpError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fatal(what) | Self::Unusable(what) | Self::NotFound(what) | Self::Retryable(what, _) => f.write_str(what),
        }
    }
}

impl std::error::Error for HttpError {}

/// A page of HTML where none was asked for.
pub fn page_instead(url: &str) -> HttpError {
    HttpError::Unusable(format!(
        "{url}: a page of HTML came instead: a captive portal, a proxy or an error page stands in between"
    ))
}

/// What a body's read error means.
pub fn cut(url: &str, error: &io::Error) -> HttpError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<BudgetSpent>()) {
        Some(spent) => HttpError::Fatal(format!("{url}: {spent}")),
        None => HttpError::Retryable(format!("{url}: the transfer broke: {}", broken(error)), None),
    }
}

fn broken(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>()) {
        Some(ureq::Error::Timeout(ureq::Timeout::PerRead)) => "nothing came for too long (transfer.stall)".to_owned(),
        Some(ureq::Error::Timeout(_)) => "the time for it is over".to_owned(),
        Some(_) | None => error.to_string(),
    }
}

/// A URL as it may be printed: what stands before the `@` is nobody's business, and neither is a query.
pub fn without_credentials(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (authority, path) = rest.find(['/', '?', '#']).map_or((rest, ""), |end| rest.split_at(end));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    format!("{scheme}://{host}{path}")
}

/// Which server a URL names: scheme, host and port (RFC 6454), without anything that is secret.
pub fn mirror_of(url: &str) -> String {
    let shown = without_credentials(url);
    let (scheme, rest) = shown.split_once("://").unwrap_or(("http", &shown));
    let host = rest.split(['/', '#']).next().unwrap_or_default();
    // What follows the brackets of an IPv6 address, and what follows a name, is a port.
    let has_port = host.rsplit_once(']').map_or(host, |(_, after)| after).contains(':');
    let port = match (has_port, scheme.eq_ignore_ascii_case("https")) {
        (true, _) => "",
        (false, true) => ":443",
        (false, false) => ":80",
    };
    format!("{scheme}://{host}{port}").to_ascii_lowercase()
}

/// What a request that brought no answer means.
#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "the library's enum may grow; whatever is new may be tried again"
)]
pub(super) fn classify(url: &str, error: &ureq::Error, tls: &Tls) -> HttpError {
    match error {
        // Where a redirect leads may hold a token: it is not shown.
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
            HttpError::Fatal(format!("{url}: it cannot be asked, or redirects to what is no http or https URL"))
        }
        ureq::Error::RequireHttpsOnly(_) => HttpError::Fatal(format!("{url}: it redirects from https to plain http")),
        ureq::Error::Protocol(why) if why.to_string().contains("location header") => {
            HttpError::Fatal(format!("{url}: it redirects to nowhere"))
        }
        ureq::Error::RedirectFailed => HttpError::Fatal(format!("{url}: it redirects to nowhere")),
        ureq::Error::TooManyRedirects | ureq::Error::LargeResponseHeader(..) | ureq::Error::TlsRequired => {
            HttpError::Fatal(format!("{url}: {error}"))
        }
        // A certificate does not mend itself; a clock may.
        ureq::Error::Tls(why) => HttpError::Unusable(format!("{url}: TLS: {why}")),
        ureq::Error::Other(why) => match why.downcast_ref::<rustls::Error>() {
            Some(error) => HttpError::Unusable(format!("{url}: {}", tls.explain(error))),
            None => HttpError::Unusable(format!("{url}: {why}")),
        },
        ureq::Error::HostNotFound => HttpError::Retryable(format!("{url}: its name has no address"), None),
        ureq::Error::Timeout(ureq::Timeout::Resolve) => {
            HttpError::Retryable(format!("{url}: its name was not resolved in time (transfer.connect)"), None)
        }
        ureq::Error::Timeout(ureq::Timeout::Connect) => {
            HttpError::Retryable(format!("{url}: no connection in time (transfer.connect)"), None)
        }
        ureq::Error::Timeout(ureq::Timeout::RecvResponse | ureq::Timeout::PerRead) => {
            HttpError::Retryable(format!("{url}: no answer in time (transfer.stall)"), None)
        }
        ureq::Error::Timeout(_) => HttpError::Retryable(format!("{url}: the time for it is over"), None),
        ureq::Error::Io(error) => HttpError::Retryable(format!("{url}: {error}"), None),
        _ => HttpError::Retryable(format!("{url}: {error}"), None),
    }
}

/// What a status other than those of success means. `now` is the server's own time if it tells it.
pub(super) fn refused(url: &str, status: u16, retry_after: Option<&str>, now: u64) -> HttpError {
    let hint = match status {
        401 => " (credentials are missing or wrong: http.credentialsFile)",
        407 => " (a proxy wants other credentials: http.proxy)",
        _ => "",
    };
    let what = format!("{url}: the server answers {status}{hint}");
    match status {
        404 | 410 => HttpError::NotFound(what),
        408 | 425 | 429 | 500..=599 => HttpError::Retryable(what, retry_after.and_then(|text| wait(text.trim(), now))),
        _ => HttpError::Fatal(what),
    }
}

/// `Retry-After` (RFC 9110, 10.2.3): seconds, or a date.
fn wait(text: &str, now: u64) -> Option<Duration> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = if digits {
        // So many seconds that they cannot be counted are many.
        text.parse().unwrap_or(u64::MAX)
    } else {
        date::parse(text)?.saturating_sub(now)
    };
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_url_holds_no_secret() {
        for (url, shown) in [
            ("http://host/a/b", "http://host/a/b"),
            ("https://user:pass@host:8443/a?token=x", "https://host:8443/a"),
            ("http://a@b@host", "http://host"),
            ("http://host?token=x", "http://host"),
            ("http://[fe80::1]:80/x", "http://[fe80::1]:80/x"),
        ] {
            assert_eq!(without_credentials(url), shown);
        }
    }

    #[test]
    fn a_mirror_is_scheme_host_and_port() {
        for (url, mirror) in [
            ("http://host/a", "http://host:80"),
            ("https://u:p@Host/a?token=x", "https://host:443"),
            ("http://host:8080", "http://host:8080"),
            ("http://[fe80::1]/x", "http://[fe80::1]:80"),
            ("http://[fe80::1]:81/x", "http://[fe80::1]:81"),
        ] {
            assert_eq!(mirror_of(url), mirror);
        }
    }

    #[test]
    fn each_status_has_its_class() {
        for (status, class) in [
            (404, 'n'),
            (410, 'n'),
            (403, 'f'),
            (401, 'f'),
            (407, 'f'),
            (400, 'f'),
            (416, 'f'),
            (429, 'r'),
            (500, 'r'),
            (503, 'r'),
            (408, 'r'),
        ] {
            let found = match refused("u", status, None, 0) {
                HttpError::Fatal(_) => 'f',
                HttpError::Unusable(_) => 'u',
                HttpError::NotFound(_) => 'n',
                HttpError::Retryable(..) => 'r',
            };
            assert_eq!(found, class, "{status}");
        }
    }

    #[test]
    fn the_time_that_a_server_names_is_seconds_or_a_date() {
        let now = 784_111_777;
        for (text, seconds) in [
            ("7", Some(7)),
            (" 7 ", Some(7)),
            ("0", Some(0)),
            ("99999999999999999999999999", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sunday, 06-Nov-94 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:49:27 GMT", Some(0)),
            ("-7", None),
            ("+7", None),
            ("soon", None),
            ("", None),
        ] {
            let expected = HttpError::Retryable("u: the server answers 503".to_owned(), seconds.map(Duration::from_secs));
            assert_eq!(refused("u", 503, Some(text), now), expected, "{text}");
        }
    }
}
