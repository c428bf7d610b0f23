//! Asking which generation is wanted: one request to one mirror after the other, until one answer is valid or time is up.

use std::time::{Duration, Instant};

use super::Source;
use super::retry::{After, jitter, pause};
use crate::formats::ANSWER_LIMIT;
use crate::formats::answer::{Question, Received};
use crate::formats::authorised::{Authorised, Trust};
use crate::http::{HttpError, Request, without_credentials};

/// A valid answer.
#[derive(Debug)]
pub struct Valid {
    /// As it came.
    pub received: Received,
    /// The proof.
    pub authorised: Authorised,
    /// The URL that it came from, without credentials.
    pub source: String,
    /// Its entity tag.
    pub etag: Option<String>,
}

/// What asking brought.
#[derive(Debug)]
pub enum Asked {
    /// A valid answer.
    Valid(Box<Valid>),
    /// What is known with this entity tag is still the newest.
    NotModified,
}

/// What an earlier answer to the same question was, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Earlier {
    /// The URL, without credentials.
    pub source: String,
    /// The entity tag.
    pub etag: String,
}

/// Asks until `deadline`. `accept` says why a verified answer is refused all the same: a serial below the floor, an expired release.
///
/// # Errors
/// What every mirror answered last, in one sentence.
pub fn ask(
    source: &Source<'_>,
    question: &Question,
    trust: &Trust,
    earlier: Option<&Earlier>,
    accept: &dyn Fn(&Authorised) -> Result<(), String>,
    deadline: Instant,
) -> Result<Asked, String> {
    let mut mirrors = source.in_order();
    while let Some(number) = mirrors.current() {
        let url = format!("{}/{}", source.mirrors[number], question.path());
        let error = match ask_one(source, &url, question, trust, earlier, mirrors.share(left(deadline))) {
            Ok(None) => {
                source.memory.worked(number);
                return Ok(Asked::NotModified);
            }
            Ok(Some(valid)) => match accept(&valid.authorised) {
                Ok(()) => {
                    source.memory.worked(number);
                    return Ok(Asked::Valid(Box::new(valid)));
                }
                Err(why) => HttpError::Fatal(format!("{}: {why}", valid.source)),
            },
            Err(error) => error,
        };
        log::warn!("{error}");
        source.memory.failed(number, &error);
        match mirrors.failed(error, jitter(), Instant::now()) {
            After::Enough => break,
            After::Pause(length) if !pause(length, Some(deadline)) => {
                return Err(format!("no valid answer in time: {}", mirrors.failures()));
            }
            After::Pause(_) => {}
        }
    }
    Err(mirrors.failures())
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

fn ask_one(
    source: &Source<'_>,
    url: &str,
    question: &Question,
    trust: &Trust,
    earlier: Option<&Earlier>,
    left: Duration,
) -> Result<Option<Valid>, HttpError> {
    let shown = without_credentials(url);
    if left.is_zero() {
        return Err(HttpError::Retryable(format!("{shown}: there was no time left to ask"), None));
    }
    let unless = earlier
        .filter(|earlier| earlier.source == shown)
        .map(|earlier| earlier.etag.as_str());
    let request = Request {
        url,
        unless,
        newest: true,
        total: Some(left),
        ..Request::default()
    };
    let Some((bytes, etag)) = source.client.get_bytes(&request, ANSWER_LIMIT)? else {
        return match unless {
            Some(_) => Ok(None),
            None => Err(HttpError::Fatal(format!(
                "{shown}: the server answers 304 to a request without a condition"
            ))),
        };
    };
    let refused = |refusal: crate::formats::Refusal| HttpError::Fatal(format!("{shown}: {refusal}"));
    let received = Received::parse(question, &bytes).map_err(refused)?;
    let authorised = received.authorise(question, trust).map_err(refused)?;
    Ok(Some(Valid {
        received,
        authorised,
        source: shown,
        etag,
    }))
}
