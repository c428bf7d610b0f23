//! What a row of the table of settings is, and how a value gets through it.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

use serde_json::{Map, Value};

use super::validated::Settings;
use super::value::{Size, bytes, count, duration_of_at_least, show_duration, size, switch};

/// One setting.
#[derive(Debug)]
pub struct Row {
    /// Its one name, as in the file: camelCase, with dots between levels. The other spellings follow from it.
    pub name: &'static str,
    /// What values it takes and where they go.
    pub kind: Kind,
    /// What the command line may do with it.
    pub guard: Guard,
    /// Writes the value that `Settings` holds; empty: none.
    pub show: fn(&Settings) -> String,
    /// One line for the docs.
    pub about: &'static str,
}

/// What values a setting takes and where they go.
#[derive(Debug)]
pub enum Kind {
    /// On or off.
    Switch(fn(&mut Settings) -> &mut bool),
    /// A whole number within bounds.
    Number {
        /// The least.
        least: u32,
        /// The most.
        most: u32,
        /// Where it goes.
        place: fn(&mut Settings) -> &mut u32,
    },
    /// A duration; the upper bound is the same for all.
    Time {
        /// The least.
        least: Duration,
        /// Where it goes.
        place: fn(&mut Settings) -> &mut Duration,
    },
    /// A size of a tmpfs.
    Size(fn(&mut Settings) -> &mut Size),
    /// A number of bytes, or of bytes a second; 0: no limit.
    Bytes(fn(&mut Settings) -> &mut u64),
    /// One text.
    Text {
        /// What it looks like, for the docs.
        form: &'static str,
        /// Checks and stores it.
        put: fn(&mut Settings, &str) -> Result<(), String>,
    },
    /// Several texts.
    List {
        /// What one of them looks like, for the docs.
        form: &'static str,
        /// What separates them on the command line.
        separator: Separator,
        /// Whether the file may hold one text instead of a list of one.
        or_one: bool,
        /// Checks and stores them.
        put: fn(&mut Settings, &[&str]) -> Result<(), String>,
    },
    /// Objects by name: only in the file.
    Objects {
        /// What they look like, for the docs.
        form: &'static str,
        /// Checks and stores them.
        put: fn(&mut Settings, &Map<String, Value>) -> Result<(), String>,
    },
}

/// What separates the elements of a list on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Separator {
    /// White space alone: the elements may hold commas.
    Spaces,
    /// White space and commas.
    SpacesOrCommas,
}

/// What the command line may do with a setting.
#[derive(Debug, Clone, Copy)]
pub enum Guard {
    /// Set it. A value that cannot be read is replaced by the configured one.
    Free,
    /// Set it. It decides what is booted or how fresh it must be, so a value that cannot be read refuses the boot.
    Strict,
    /// Set it where `commandLineMay` lists it: it weakens trust or writes to disks.
    Listed,
    /// Set it, but listed in `commandLineMay` where this function (configured, wanted) says that trust is weakened.
    ListedIfWeaker(fn(&Settings, &Settings) -> bool),
    /// Nothing.
    Never,
}

/// A value as it came.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// From the file.
    Json(Value),
    /// From the command line.
    Text(String),
}

/// No list of settings is longer: the longest known, modules of a generic installation image, has about 150 elements.
const LIST_LIMIT: usize = 512;

impl Row {
    /// The name behind `freshroot.` on the command line: `policy.fetchWait` is `policy.fetch-wait` there.
    pub fn kebab(&self) -> String {
        let mut kebab = String::with_capacity(self.name.len() + 4);
        for c in self.name.chars() {
            if c.is_ascii_uppercase() {
                kebab.push('-');
            }
            kebab.push(c.to_ascii_lowercase());
        }
        kebab
    }

    /// Its place in the file, as RFC 6901 writes it.
    pub fn pointer(&self) -> String {
        format!("/{}", self.name.replace('.', "/"))
    }

    /// Checks a value and stores it. With an error, `settings` is as it was.
    ///
    /// # Errors
    /// A sentence that says what is expected.
    pub fn put(&self, settings: &mut Settings, input: &Input) -> Result<(), String> {
        match input {
            Input::Json(value) => self.put_json(settings, value),
            Input::Text(text) => self.put_text(settings, text),
        }
    }

    fn put_text(&self, settings: &mut Settings, text: &str) -> Result<(), String> {
        match self.kind {
            Kind::Switch(place) => *place(settings) = switch(text)?,
            Kind::Number { least, most, place } => *place(settings) = count(text, least, most)?,
            Kind::Time { least, place } => *place(settings) = duration_of_at_least(text, least)?,
            Kind::Size(place) => *place(settings) = size(text)?,
            Kind::Bytes(place) => *place(settings) = bytes(text)?,
            Kind::Text { put, .. } => put(settings, text)?,
            Kind::List { separator, put, .. } => {
                let split = |c: char| c.is_ascii_whitespace() || (separator == Separator::SpacesOrCommas && c == ',');
                let elements: Vec<&str> = text.split(split).filter(|element| !element.is_empty()).collect();
                put_list(settings, &elements, put)?;
            }
            Kind::Objects { .. } => return Err("it is set in the file only".to_owned()),
        }
        Ok(())
    }

    fn put_json(&self, settings: &mut Settings, value: &Value) -> Result<(), String> {
        let expected = |what: &str| Err(format!("{} stands where {what} is expected", describe(value)));
        match (&self.kind, value) {
            (Kind::Switch(place), Value::Bool(on)) => *place(settings) = *on,
            (Kind::Switch(_), _) => return expected("true or false"),
            (Kind::Number { .. }, Value::Number(number)) => self.put_text(settings, &number.to_string())?,
            (Kind::Number { .. }, _) => return expected("a number"),
            (Kind::Time { .. } | Kind::Size(_) | Kind::Bytes(_), Value::Number(number)) => self.put_text(settings, &number.to_string())?,
            (Kind::Time { .. } | Kind::Size(_) | Kind::Bytes(_) | Kind::Text { .. }, Value::String(text)) => {
                self.put_text(settings, text)?
            }
            (Kind::Time { .. }, _) => return expected("a duration such as \"30s\""),
            (Kind::Size(_), _) => return expected("a size such as \"512M\" or \"50%\""),
            (Kind::Bytes(_), _) => return expected("a number of bytes such as \"512K\""),
            (Kind::Text { .. }, _) => return expected("a text"),
            (Kind::List { or_one: true, put, .. }, Value::String(text)) => put_list(settings, &[text], *put)?,
            (Kind::List { put, .. }, Value::Array(values)) => {
                let Some(elements) = values.iter().map(Value::as_str).collect::<Option<Vec<_>>>() else {
                    return expected("a list of texts");
                };
                put_list(settings, &elements, *put)?;
            }
            (Kind::List { .. }, _) => return expected("a list of texts"),
            (Kind::Objects { put, .. }, Value::Object(map)) => put(settings, map)?,
            (Kind::Objects { .. }, _) => return expected("an object"),
        }
        Ok(())
    }

    /// What values look like, for the docs.
    pub fn form(&self) -> String {
        match self.kind {
            Kind::Switch(_) => "true or false".to_owned(),
            Kind::Number { least, most, .. } => format!("{least} to {most}"),
            Kind::Time { least, .. } if least.is_zero() => "duration".to_owned(),
            Kind::Time { least, .. } => format!("duration, at least {}", show_duration(least)),
            Kind::Size(_) => "size".to_owned(),
            Kind::Bytes(_) => "bytes".to_owned(),
            Kind::Text { form, .. } | Kind::Objects { form, .. } => form.to_owned(),
            Kind::List { form, or_one: true, .. } => format!("one or a list: {form}"),
            Kind::List { form, or_one: false, .. } => format!("list: {form}"),
        }
    }
}

fn put_list(settings: &mut Settings, elements: &[&str], put: fn(&mut Settings, &[&str]) -> Result<(), String>) -> Result<(), String> {
    if elements.len() > LIST_LIMIT {
        return Err(format!("{} elements are more than {LIST_LIMIT}", elements.len()));
    }
    put(settings, elements)
}

/// A JSON value in words, for messages.
fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(on) => format!("{on}"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(_) => "a text".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}
