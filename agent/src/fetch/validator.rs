//! Whether two answers are of one file: entity tag and date, as a server tells them (RFC 9110, 8.8). They spare a download that is bound to fail.
//! They prove nothing; what a chunk is, its digest decides. Pure.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::http::{Response, date};

/// What an answer says about the file that it is of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Validator {
    etag: Option<String>,
    last_modified: Option<String>,
    date: Option<String>,
}

impl Validator {
    /// That of an answer.
    pub fn of(answer: &Response) -> Self {
        Self {
            etag: answer.etag.clone(),
            last_modified: answer.last_modified.clone(),
            date: answer.date.clone(),
        }
    }

    /// What may stand behind `If-Range`: a strong entity tag, or a date that is a strong one, because the file was not changed within the second
    /// in which it was sent (RFC 9110, 13.1.5 and 8.8.2.2).
    pub fn if_range(&self) -> Option<&str> {
        if let Some(etag) = &self.etag {
            return (etag.starts_with('"') && etag.ends_with('"') && etag.len() >= 2).then_some(etag);
        }
        let (changed, sent) = (self.last_modified.as_deref()?, self.date.as_deref()?);
        (date::parse(changed)? < date::parse(sent)?).then_some(changed)
    }

    /// Why the file of a later answer is another one. A date that is left out says nothing: an answer to `If-Range` need not repeat it.
    pub fn contradiction(&self, later: &Self) -> Option<String> {
        let absent = "none";
        if self.etag.is_some() && self.etag != later.etag {
            let tag = |validator: &Self| validator.etag.clone().unwrap_or_else(|| absent.to_owned());
            return Some(format!("its ETag was {} and is {}", tag(self), tag(later)));
        }
        match (&self.last_modified, &later.last_modified) {
            (Some(before), Some(now)) if before != now => Some(format!("its Last-Modified was {before} and is {now}")),
            (Some(_) | None, Some(_) | None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EARLY: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const LATE: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    fn validator(etag: &str, last_modified: &str, date: &str) -> Validator {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Validator {
            etag: some(etag),
            last_modified: some(last_modified),
            date: some(date),
        }
    }

    #[test]
    fn only_what_is_strong_stands_behind_if_range() {
        for (etag, last_modified, date, expected) in [
            ("\"a\"", EARLY, LATE, Some("\"a\"")),
            ("", EARLY, LATE, Some(EARLY)),
            ("W/\"a\"", EARLY, LATE, None),
            ("a", "", "", None),
            ("\"", "", "", None),
            ("", EARLY, EARLY, None),
            ("", EARLY, "", None),
            ("", "yesterday", LATE, None),
            ("", "", LATE, None),
        ] {
            assert_eq!(
                validator(etag, last_modified, date).if_range(),
                expected,
                "{etag} {last_modified} {date}"
            );
        }
    }

    #[test]
    fn another_tag_or_date_is_another_file() {
        for (before, later, other) in [
            (("\"a\"", EARLY), ("\"a\"", EARLY), false),
            (("\"a\"", EARLY), ("\"a\"", ""), false),
            (("\"a\"", EARLY), ("\"b\"", EARLY), true),
            (("\"a\"", ""), ("", ""), true),
            (("W/\"a\"", ""), ("W/\"b\"", ""), true),
            (("", EARLY), ("", LATE), true),
            (("", EARLY), ("", ""), false),
            (("", EARLY), ("\"a\"", EARLY), false),
            (("\"a\"", EARLY), ("\"a\"", LATE), true),
            (("", ""), ("\"a\"", LATE), false),
        ] {
            let (first, second) = (validator(before.0, before.1, ""), validator(later.0, later.1, ""));
            assert_eq!(first.contradiction(&second).is_some(), other, "{before:?} {later:?}");
        }
    }
}
