//! The first of the three types: what the file says. JSON, version 1, no field that the table does not know, each value of the right form.
//!
//! Values are checked while they are read, as only then line and column are known.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::nearest::nearest;
use super::row::{Input, Row};
use super::table::{TABLE, by_name, is_group};
use super::validated::Settings;
use super::value::cut;

/// The one version of the file that this code reads.
pub const VERSION: u64 = 1;

/// What the file says, in its order.
#[derive(Debug, Default)]
pub struct ParsedFile {
    /// Rows of the table and their checked values.
    pub values: Vec<(&'static Row, Value)>,
}

/// What is wrong with a file, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileProblem {
    /// The file, as the caller named it.
    pub file: String,
    /// Line, from 1; 0 where the file as a whole is meant.
    pub line: usize,
    /// Column in bytes, at or behind what is wrong.
    pub column: usize,
    /// The field and what to do about it.
    pub problem: String,
}

impl fmt::Display for FileProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            return write!(f, "{}: {}", self.file, self.problem);
        }
        write!(f, "{}, line {}, column {}: {}", self.file, self.line, self.column, self.problem)
    }
}

impl std::error::Error for FileProblem {}

/// The version alone: a file of another version is refused for that, not for a field that this version does not know.
#[derive(Deserialize)]
struct Head {
    version: Option<Value>,
}

impl ParsedFile {
    /// Reads the bytes of a file; `file` names it in errors.
    ///
    /// # Errors
    /// [`FileProblem`], for the first thing that is wrong.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, FileProblem> {
        let wrong = |error: serde_json::Error| {
            let (line, column) = (error.line(), error.column());
            let text = error.to_string();
            FileProblem {
                file: file.to_owned(),
                line,
                column,
                problem: text
                    .strip_suffix(&format!(" at line {line} column {column}"))
                    .unwrap_or(&text)
                    .to_owned(),
            }
        };
        let whole = |problem: String| FileProblem {
            file: file.to_owned(),
            line: 0,
            column: 0,
            problem,
        };
        let head: Head = serde_json::from_slice(bytes).map_err(wrong)?;
        match head.version {
            Some(version) if version.as_u64() == Some(VERSION) => {}
            Some(version) => {
                return Err(whole(format!(
                    "version {} is not known here: this freshroot ({}) reads version {VERSION}; build file and initrd from one release",
                    cut(&version.to_string()),
                    env!("CARGO_PKG_VERSION")
                )));
            }
            None => return Err(whole(format!("there is no \"version\": write \"version\": {VERSION}"))),
        }
        let mut parsed = Self::default();
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let level = Level {
            prefix: String::new(),
            values: &mut parsed.values,
        };
        level.deserialize(&mut json).map_err(wrong)?;
        json.end().map_err(wrong)?;
        Ok(parsed)
    }
}

/// One level of the file: the whole, or a group such as `policy`.
struct Level<'a> {
    /// Empty, or the name of the group with a dot behind it.
    prefix: String,
    values: &'a mut Vec<(&'static Row, Value)>,
}

impl<'de> DeserializeSeed<'de> for Level<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Level<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix.strip_suffix('.') {
            None => f.write_str("an object of settings"),
            Some(group) => write!(f, "an object for {group}"),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            let name = format!("{}{key}", self.prefix);
            if seen.contains(&key) {
                return Err(A::Error::custom(format!("{} stands here twice: remove one", cut(&name))));
            }
            seen.push(key);
            if name == "version" {
                map.next_value::<IgnoredAny>()?;
            } else if let Some(row) = by_name(&name) {
                let value: Value = map.next_value()?;
                // Nix writes an option that is not set as null.
                if value.is_null() {
                    continue;
                }
                let input = Input::Json(value);
                row.put(&mut Settings::defaults(), &input)
                    .map_err(|problem| A::Error::custom(format!("{name}: {problem}")))?;
                if let Input::Json(value) = input {
                    self.values.push((row, value));
                }
            } else if is_group(&name) {
                map.next_value_seed(Level {
                    prefix: format!("{name}."),
                    values: &mut *self.values,
                })?;
            } else {
                return Err(A::Error::custom(unknown(&name)));
            }
        }
        Ok(())
    }
}

fn unknown(name: &str) -> String {
    let meant = nearest(name, TABLE.iter().map(|row| row.name));
    format!(
        "there is no setting {}: {}",
        cut(name),
        meant.map_or_else(
            || "remove it, or see docs/settings.md for its name".to_owned(),
            |name| format!("is {name} meant?")
        )
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn problem(text: &str) -> FileProblem {
        ParsedFile::parse("config.json", text.as_bytes()).unwrap_err()
    }

    #[test]
    fn values_come_in_order_with_null_as_if_absent() {
        let parsed = ParsedFile::parse(
            "config.json",
            br#"{"version": 1, "url": "http://a", "policy": {"wait": 5, "mode": null}, "log": "warn"}"#,
        )
        .unwrap();
        let names: Vec<_> = parsed.values.iter().map(|(row, _)| row.name).collect();
        assert_eq!(names, ["url", "policy.wait", "log"]);
    }

    #[test]
    fn a_problem_is_named_with_line_field_and_remedy() {
        for (text, line, parts) in [
            ("{\n \"version\": 1,\n \"sytem\": 1}", 3, ["no setting sytem", "is system meant?"]),
            ("{\"version\": 1,\n\"policy\": {\n\"wiat\": 1}}", 3, ["policy.wiat", "policy.wait"]),
            (
                "{\"version\": 1,\n\n\"policy\": {\"wait\": \"5 parsecs\"}}",
                3,
                ["policy.wait", "1h30min"],
            ),
            (
                "{\"version\": 1,\n\"allowUnsigned\": \"yes\"}",
                2,
                ["allowUnsigned: a text stands", "true or false"],
            ),
            ("{\"version\": 1,\n\"policy\": 3}", 2, ["integer `3`", "an object for policy"]),
            (
                "{\"version\": 1,\n\"log\": \"info\",\n\"log\": \"info\"}",
                3,
                ["log stands here twice", "remove"],
            ),
            ("{\"version\": 1,\n\"url\": [\"http://a\", 2]}", 2, ["url: a list", "list of texts"]),
            ("{\"version\": 1,\n\"cache\": {\"keep\": 1.5}}", 2, ["cache.keep", "whole number"]),
            ("{\"version\": 1,\n\"commandLineMay\": [\"fileSystems\"]}", 2, ["never", "remove"]),
            (
                "{\"version\": 1,\n\"disks\": {\"main\": {\"device\": \"/dev/sda\", \"size\": {\"min\": \"1G\", \"max\": \"1G\"}, \"partitions\": []}}}",
                2,
                ["main.device", "/dev/sda"],
            ),
            ("{\"version\": 1,\n\"fileSystems\": {\"/a/..\": {}}}", 2, ["fileSystems", "/a/.."]),
            ("{\"version\": 1\n", 2, ["EOF", ""]),
            ("{\"version\": 1}\nx", 2, ["trailing", ""]),
            ("", 1, ["EOF", ""]),
            ("{}", 0, ["no \"version\"", "write"]),
            ("{\"version\": 2, \"new\": 1}", 0, ["version 2", "reads version 1"]),
            ("{\"version\": \"1\"}", 0, ["version \"1\"", "reads version 1"]),
            ("[1]", 1, ["sequence", "an object of settings"]),
        ] {
            let problem = problem(text);
            let message = problem.to_string();
            assert!(parts.iter().all(|part| message.contains(part)), "{text}: {message}");
            assert!(message.starts_with("config.json"), "{message}");
            assert_eq!(problem.line, line, "{text}: {message}");
        }
    }
}
