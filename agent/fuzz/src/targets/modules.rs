//! What depmod wrote about the modules of a kernel, and the aliases of devices.

use freshroot::kmod::index::Index;
use freshroot::kmod::pattern::{matches, normalise};

use crate::Target;
use crate::input::pieces;

/// `modules.dep`, `.alias`, `.softdep`, `.builtin` and aliases of devices, each behind a NUL.
pub const MODULES: Target = Target {
    name: "modules",
    longest: 2048,
    memory: 1024,
    check: modules,
};

/// More comparisons than that only cost time.
const MOST: usize = 24;

fn modules(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut parts = text.splitn(5, '\0');
    let mut part = || parts.next().unwrap_or_default();
    let (dep, alias, softdep, builtin, devices) = (part(), part(), part(), part(), part());
    let index = Index::parse(dep, alias, softdep, builtin);
    for line in dep.lines() {
        let Some((file, _)) = line.split_once(':') else { continue };
        let base = file.rsplit('/').next().unwrap_or(file);
        let name = normalise(base.split(".ko").next().unwrap_or(base));
        let module = index.module(&name).unwrap_or_else(|| panic!("{line} is lost"));
        // The last of several lines about one module counts.
        let files = dep.lines().filter_map(|line| line.split_once(':')).map(|(file, _)| file);
        assert!(files.clone().any(|file| module.file.to_str() == Some(file)));
        assert!(module.needs.iter().all(|need| *need == normalise(need)));
    }

    // Found by bus or by trying all: the same, in the same order.
    let patterns: Vec<(String, String)> = alias
        .lines()
        .filter_map(|line| {
            let mut words = line.strip_prefix("alias ")?.split_whitespace();
            Some((normalise(words.next()?), normalise(words.next()?)))
        })
        .collect();
    for device in pieces(devices, '\n', MOST).chain(patterns.iter().take(MOST).map(|(pattern, _)| pattern.as_str())) {
        let plain = normalise(device);
        let mut all: Vec<&str> = Vec::new();
        for (pattern, module) in &patterns {
            if matches(pattern, &plain) && !all.contains(&module.as_str()) {
                all.push(module);
            }
        }
        let mut found = index.matching(device);
        found.sort_unstable();
        all.sort_unstable();
        assert_eq!(found, all, "{device}");
    }
    for (pattern, _) in patterns.iter().take(MOST) {
        for device in pieces(devices, '\n', MOST) {
            same_as_by_table(pattern, &normalise(device));
        }
    }
}

/// fnmatch(3) once more: by a table over the elements of the pattern and the bytes of the text, instead of going back to the last star.
fn same_as_by_table(pattern: &str, text: &str) {
    let (elements, text) = (elements(pattern.as_bytes()), text.as_bytes());
    // Which lengths of text the elements so far can stand for.
    let mut reached = vec![false; text.len() + 1];
    reached[0] = true;
    for element in &elements {
        let mut next = vec![false; text.len() + 1];
        match element {
            Element::Any => {
                let first = reached.iter().position(|reached| *reached).unwrap_or(text.len() + 1);
                next.iter_mut().skip(first).for_each(|reached| *reached = true);
            }
            Element::One(set) => {
                for at in 0..text.len() {
                    next[at + 1] = reached[at] && set[usize::from(text[at])];
                }
            }
        }
        reached = next;
    }
    let expected = reached[text.len()];
    let text = String::from_utf8_lossy(text);
    assert_eq!(
        matches(pattern, &text),
        expected,
        "«{}» and «{}»",
        pattern.escape_debug(),
        text.escape_debug()
    );
}

enum Element {
    Any,
    One(Box<[bool; 256]>),
}

fn only(byte: u8) -> Element {
    let mut set = [false; 256];
    set[usize::from(byte)] = true;
    Element::One(Box::new(set))
}

fn elements(mut pattern: &[u8]) -> Vec<Element> {
    let mut elements = Vec::new();
    while let Some((first, rest)) = pattern.split_first() {
        pattern = rest;
        elements.push(match first {
            b'*' => Element::Any,
            b'?' => Element::One(Box::new([true; 256])),
            b'\\' if !rest.is_empty() => {
                pattern = &rest[1..];
                only(rest[0])
            }
            b'[' => match set(rest) {
                Some((members, after)) => {
                    pattern = after;
                    Element::One(members)
                }
                None => only(b'['),
            },
            other => only(*other),
        });
    }
    elements
}

/// The members of a set, from behind its bracket, and what follows; none if it is not closed.
fn set(inside: &[u8]) -> Option<(Box<[bool; 256]>, &[u8])> {
    let negated = matches!(inside.first(), Some(b'!' | b'^'));
    let begin = usize::from(negated);
    let mut members = Box::new([false; 256]);
    let mut at = begin;
    loop {
        let byte = *inside.get(at)?;
        if byte == b']' && at > begin {
            break;
        }
        match (inside.get(at + 1), inside.get(at + 2)) {
            (Some(b'-'), Some(high)) if *high != b']' => {
                for member in byte..=*high {
                    members[usize::from(member)] = true;
                }
                at += 3;
            }
            _ => {
                members[usize::from(byte)] = true;
                at += 1;
            }
        }
    }
    if negated {
        members.iter_mut().for_each(|member| *member = !*member);
    }
    Some((members, &inside[at + 1..]))
}
