//! The kernel command line, cut into parameters as the kernel cuts it.
//!
//! The rules are those of `next_arg()` in the kernel's `lib/cmdline.c`: parameters end at white space outside double quotes; a quote may open
//! anywhere; quotes are removed where they enclose a whole parameter (`"key=a b"`) or a whole value (`key="a b"`), and stay where they stand in
//! the middle of one. The first `=` that is not the first character ends the key. What follows a lone `--` belongs to init.
//!
//! Two things differ, on purpose. The kernel takes byte 0xa0 for white space, which cuts UTF-8 characters in two: here it is a byte like others.
//! And the kernel takes `-` and `_` in a key for the same: here a key is kept, and compared, as it stands.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;

/// One parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Param {
    /// What stands before `=`; may be empty only if the parameter is `""`.
    pub key: String,
    /// What stands after `=`; none if there is no `=`.
    pub value: Option<String>,
    /// Offset in bytes, from 0.
    pub position: usize,
}

/// A command line, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommandLine {
    /// What is meant for the kernel and for us.
    pub params: Vec<Param>,
    /// What follows `--`, each with its `=` back in place and its enclosing quotes gone.
    pub init_arguments: Vec<String>,
}

/// Why a command line cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// Bytes that are no UTF-8.
    NotUtf8 {
        /// Offset of the first bad byte.
        position: usize,
    },
    /// A NUL: the kernel's own line ends there, so what follows would be seen by us alone.
    Nul {
        /// Offset of the NUL.
        position: usize,
    },
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotUtf8 { position } => write!(
                f,
                "the command line is not UTF-8 at byte {position}: remove or percent-encode what stands there"
            ),
            Self::Nul { position } => write!(f, "the command line holds a NUL at byte {position}: remove it"),
        }
    }
}

impl std::error::Error for Unreadable {}

impl CommandLine {
    /// Reads a command line, as `/proc/cmdline` gives it.
    ///
    /// # Errors
    /// [`Unreadable`], with the position.
    pub fn parse(line: &[u8]) -> Result<Self, Unreadable> {
        let text = std::str::from_utf8(line).map_err(|e| Unreadable::NotUtf8 { position: e.valid_up_to() })?;
        if let Some(position) = text.find('\0') {
            return Err(Unreadable::Nul { position });
        }
        let mut all = Self::default();
        let mut for_init = false;
        let mut at = 0;
        while let Some(skip) = text[at..].find(|c| !is_space(c)) {
            at += skip;
            let (key, value, length) = next_param(&text[at..]);
            if for_init {
                all.init_arguments.push(match value {
                    Some(value) => format!("{key}={value}"),
                    None => key.to_owned(),
                });
            } else if key == "--" && value.is_none() {
                for_init = true;
            } else {
                all.params.push(Param {
                    key: key.to_owned(),
                    value: value.map(str::to_owned),
                    position: at,
                });
            }
            at += length;
        }
        Ok(all)
    }

    /// The last parameter of this key: the one that counts.
    pub fn last(&self, key: &str) -> Option<&Param> {
        self.params.iter().rev().find(|param| param.key == key)
    }

    /// All parameters of this key, in order.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a Param> {
        self.params.iter().filter(move |param| param.key == key)
    }
}

/// The white space of the kernel's `isspace()`, but for 0xa0.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t'..='\r')
}

/// Cuts the first parameter off `text`, which begins with it: key, value and length in bytes.
fn next_param(text: &str) -> (&str, Option<&str>, usize) {
    let (body, opened) = match text.strip_prefix('"') {
        Some(body) => (body, true),
        None => (text, false),
    };
    let mut quoted = opened;
    let mut equals = None;
    let mut end = body.len();
    for (at, c) in body.char_indices() {
        if is_space(c) && !quoted {
            end = at;
            break;
        }
        if c == '=' && at > 0 && equals.is_none() {
            equals = Some(at);
        }
        if c == '"' {
            quoted = !quoted;
        }
    }
    let length = end + usize::from(opened);
    let body = &body[..end];
    let Some(equals) = equals else {
        return (if opened { unquote_end(body) } else { body }, None, length);
    };
    let value = &body[equals + 1..];
    let value = match value.strip_prefix('"') {
        Some(inner) => unquote_end(inner),
        None if opened => unquote_end(value),
        None => value,
    };
    (&body[..equals], Some(value), length)
}

/// One closing quote is removed, never two, and a missing one is no error: so does the kernel.
fn unquote_end(text: &str) -> &str {
    text.strip_suffix('"').unwrap_or(text)
}

/// Writes a parameter so that [`CommandLine::parse`], and the kernel, read the same back. None where the grammar has no way to say it:
/// a quote or NUL in it, a key that is empty, is `--` alone, or holds `=` or white space.
pub fn quote_param(key: &str, value: Option<&str>) -> Option<String> {
    let bad = |c: char| c == '"' || c == '\0';
    if key.is_empty() || key.contains(|c| bad(c) || c == '=' || is_space(c)) || (key == "--" && value.is_none()) {
        return None;
    }
    match value {
        None => Some(key.to_owned()),
        Some(value) if value.contains(bad) => None,
        Some(value) if value.contains(is_space) => Some(format!("{key}=\"{value}\"")),
        Some(value) => Some(format!("{key}={value}")),
    }
}

/// Writes one argument of init, for behind the `--`. None if it holds a quote or a NUL.
pub fn quote_init_argument(argument: &str) -> Option<String> {
    if argument.contains(['"', '\0']) {
        None
    } else if argument.is_empty() || argument.contains(is_space) {
        Some(format!("\"{argument}\""))
    } else {
        Some(argument.to_owned())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pairs(line: &str) -> Vec<(String, Option<String>)> {
        let line = CommandLine::parse(line.as_bytes()).unwrap();
        line.params.into_iter().map(|param| (param.key, param.value)).collect()
    }

    #[test]
    fn parameters_are_cut_as_the_kernel_cuts_them() {
        for (line, key, value) in [
            ("quiet", "quiet", None),
            ("a=b", "a", Some("b")),
            ("a=", "a", Some("")),
            ("a=b=c", "a", Some("b=c")),
            ("=a", "=a", None),
            ("=a=b", "=a", Some("b")),
            ("\"a=b c\"", "a", Some("b c")),
            ("a=\"b c\"", "a", Some("b c")),
            ("a=\"b c", "a", Some("b c")),
            ("a=\"", "a", Some("")),
            ("a=\"\"", "a", Some("")),
            ("\"a=\"", "a", Some("")),
            ("a=b\"c d\"e", "a", Some("b\"c d\"e")),
            ("a=b\" c\"", "a", Some("b\" c\"")),
            ("\"a b\"", "a b", None),
            ("\"\"", "", None),
            ("\"", "", None),
            ("a-b_c=1", "a-b_c", Some("1")),
            ("a=\u{e0}\u{a0}b", "a", Some("\u{e0}\u{a0}b")),
            (
                "freshroot.url=http://[fe80::1]:8080/x?a=b%20c",
                "freshroot.url",
                Some("http://[fe80::1]:8080/x?a=b%20c"),
            ),
        ] {
            assert_eq!(pairs(line), [(key.to_owned(), value.map(str::to_owned))], "{line}");
        }
    }

    #[test]
    fn white_space_separates_and_positions_count_bytes() {
        let line = CommandLine::parse("  a=1\t\"b=x y\"\n ä c \n".as_bytes()).unwrap();
        let seen: Vec<_> = line.params.iter().map(|p| (p.key.as_str(), p.position)).collect();
        assert_eq!(seen, [("a", 2), ("b", 6), ("ä", 15), ("c", 18)]);
    }

    #[test]
    fn the_last_one_counts_and_all_can_be_had() {
        let line = CommandLine::parse(b"ip=a x ip=b ip").unwrap();
        assert_eq!(line.last("ip").unwrap().position, 12);
        assert_eq!(line.all("ip").count(), 3);
        assert_eq!(line.last("IP"), None);
    }

    #[test]
    fn what_follows_two_dashes_is_init_s() {
        let line = CommandLine::parse(b"a --x \"--\" b=1 -- c=\"2 3\" \"d e\"").unwrap();
        assert_eq!(line.params.len(), 2);
        assert_eq!(line.init_arguments, ["b=1", "--", "c=2 3", "d e"]);
    }

    #[test]
    fn what_is_not_text_is_refused_with_its_position() {
        assert_eq!(CommandLine::parse(b"a=b \xff"), Err(Unreadable::NotUtf8 { position: 4 }));
        assert_eq!(CommandLine::parse(b"a\0b"), Err(Unreadable::Nul { position: 1 }));
    }

    #[test]
    fn what_the_grammar_cannot_say_is_not_written() {
        for (key, value) in [
            ("", Some("a")),
            ("a b", None),
            ("a=b", Some("c")),
            ("--", None),
            ("a", Some("b\"c")),
            ("a", Some("\0")),
        ] {
            assert_eq!(quote_param(key, value), None, "{key} {value:?}");
        }
        assert_eq!(quote_param("a", Some("b c")).unwrap(), "a=\"b c\"");
        assert_eq!(quote_init_argument("").unwrap(), "\"\"");
    }
}
