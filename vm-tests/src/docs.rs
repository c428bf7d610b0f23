//! The pages: every link between them leads somewhere, every page can be found from the README, and every command of ours that a page names exists, with
//! its options.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::build;
use crate::command::Tool;
use crate::workspace::Workspace;

const HELP_LIMIT: Duration = Duration::from_secs(10);

/// What is wrong with the pages, a sentence each.
pub fn problems(workspace: &Workspace) -> Result<Vec<String>> {
    let mut files = BTreeSet::new();
    list(workspace.root(), Path::new("docs"), &mut files)?;
    let mut pages = BTreeMap::new();
    for path in files
        .iter()
        .filter(|path| path.extension().is_some_and(|end| end == "md"))
        .chain([&PathBuf::from("README.md")])
    {
        let text = fs::read_to_string(workspace.root().join(path)).with_context(|| format!("reading {}", path.display()))?;
        pages.insert(path.clone(), text);
    }
    let mut found = links(&pages, &|path| workspace.root().join(path).exists());
    let reached = reached(&pages);
    found.extend(
        files
            .iter()
            .filter(|path| !reached.contains(*path))
            .map(|path| format!("{}: no link leads to it from README.md", path.display())),
    );
    for (path, text) in &pages {
        found.extend(shown(path, text, &|path| {
            fs::read_to_string(workspace.root().join(path)).unwrap_or_default()
        }));
    }
    let publisher = build::publisher(workspace)?.program;
    let programs = BTreeMap::from([("freshroot", build::plain_agent(workspace)?), ("freshroot-publish", publisher)]);
    let mut helps = BTreeMap::new();
    for (path, text) in &pages {
        for call in calls(text) {
            let Some(program) = programs.get(call.program.as_str()) else {
                continue;
            };
            let key = (call.program.clone(), call.command.clone());
            if !helps.contains_key(&key) {
                helps.insert(key.clone(), help(program, &call.command)?);
            }
            match helps.get(&key).and_then(Option::as_ref) {
                None => found.push(format!(
                    "{}: there is no command «{} {}»",
                    path.display(),
                    call.program,
                    call.command
                )),
                Some(help) => found.extend(
                    call.options
                        .iter()
                        .filter(|option| !has_option(help, option))
                        .map(|option| format!("{}: «{} {}» has no option {option}", path.display(), call.program, call.command)),
                ),
            }
        }
    }
    Ok(found)
}

fn list(root: &Path, folder: &Path, into: &mut BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(root.join(folder)).with_context(|| format!("listing {}", folder.display()))? {
        let path = folder.join(entry?.file_name());
        if root.join(&path).is_dir() {
            list(root, &path, into)?;
        } else {
            into.insert(path);
        }
    }
    Ok(())
}

/// What a command says about itself, with that of the command whose options it has as well; none: it does not exist.
fn help(program: &Path, command: &str) -> Result<Option<String>> {
    let output = Tool::new(&program.to_string_lossy(), HELP_LIMIT)
        .args([command, "--help"])
        .output()?;
    if !output.status.success() {
        return Ok(None);
    }
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    let other = text.split_once("all options of «").and_then(|(_, rest)| rest.split_once('»'));
    if let Some(other) = other.map(|(other, _)| other.to_owned()) {
        text.push_str(&help(program, &other)?.unwrap_or_default());
    }
    Ok(Some(text))
}

fn has_option(help: &str, option: &str) -> bool {
    help.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
        .any(|word| word == option)
}

/// The lines of a page, each with whether it is inside a fence.
fn lines(text: &str) -> impl Iterator<Item = (bool, &str)> {
    let mut fenced = false;
    text.lines().filter_map(move |line| {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            return None;
        }
        Some((fenced, line))
    })
}

/// Where the links of a page lead, except out of the repository.
fn targets(text: &str) -> Vec<String> {
    let mut targets = Vec::new();
    for (_, line) in lines(text).filter(|(fenced, _)| !fenced) {
        // What stands between backticks is code.
        let plain: String = line.split('`').step_by(2).collect::<Vec<_>>().join("code");
        targets.extend(
            plain
                .split("](")
                .skip(1)
                .filter_map(|rest| rest.split_once(')'))
                .map(|(target, _)| target.to_owned()),
        );
    }
    targets.retain(|target| !target.contains("://") && !target.starts_with("mailto:"));
    targets
}

/// Paths from the top of the repository, and the heading behind «#».
fn resolve(page: &Path, target: &str) -> (PathBuf, Option<String>) {
    let (file, heading) = match target.split_once('#') {
        Some((file, heading)) => (file, Some(heading.to_owned())),
        None => (target, None),
    };
    if file.is_empty() {
        return (page.to_owned(), heading);
    }
    let mut path = PathBuf::new();
    for part in page.parent().unwrap_or(Path::new("")).join(file).components() {
        match part {
            Component::ParentDir => {
                path.pop();
            }
            Component::Normal(name) => path.push(name),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    (path, heading)
}

fn links(pages: &BTreeMap<PathBuf, String>, exists: &dyn Fn(&Path) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for (page, text) in pages {
        for target in targets(text) {
            let (path, heading) = resolve(page, &target);
            if !exists(&path) {
                found.push(format!("{}: the link to {target} leads nowhere", page.display()));
            } else if let (Some(heading), Some(text)) = (heading, pages.get(&path))
                && !headings(text).contains(&heading)
            {
                found.push(format!("{}: {} has no heading «{heading}»", page.display(), path.display()));
            }
        }
    }
    found
}

/// Fences that show a file, which a comment right before them names, have to be that file.
fn shown(page: &Path, text: &str, read: &dyn Fn(&Path) -> String) -> Vec<String> {
    let mut found = Vec::new();
    for part in text.split("<!-- the file ").skip(1) {
        let Some((name, rest)) = part.split_once(" -->\n```") else {
            found.push(format!("{}: a file is named, and no fence follows it", page.display()));
            continue;
        };
        let fence = rest.split_once('\n').and_then(|(_, rest)| rest.split_once("\n```"));
        let (path, _) = resolve(page, name);
        if fence.map(|(fence, _)| fence) != Some(read(&path).trim_end()) {
            found.push(format!("{}: it shows {} otherwise than it is", page.display(), path.display()));
        }
    }
    found
}

/// Headings as GitHub makes anchors of them: lower case, hyphens for blanks, no punctuation.
fn headings(text: &str) -> BTreeSet<String> {
    lines(text)
        .filter(|(fenced, line)| !fenced && line.starts_with('#'))
        .map(|(_, line)| {
            line.trim_start_matches('#')
                .trim()
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

/// What can be found from the README.
fn reached(pages: &BTreeMap<PathBuf, String>) -> BTreeSet<PathBuf> {
    let mut reached = BTreeSet::new();
    let mut open = vec![PathBuf::from("README.md")];
    while let Some(page) = open.pop() {
        if let Some(text) = pages.get(&page) {
            open.extend(
                targets(text)
                    .iter()
                    .map(|target| resolve(&page, target).0)
                    .filter(|path| !reached.contains(path)),
            );
        }
        reached.insert(page);
    }
    reached
}

/// A call of one of our programs.
#[derive(Debug, PartialEq, Eq)]
struct Call {
    program: String,
    command: String,
    options: Vec<String>,
}

/// The calls in fences, and those that a piece of code begins with.
fn calls(text: &str) -> Vec<Call> {
    // Lines that are gone on with are one.
    let text = text.replace("\\\n", " ");
    let mut calls = Vec::new();
    for (fenced, line) in lines(&text) {
        if fenced {
            let code = without_substitutions(line.split(" #").next().unwrap_or(line));
            for part in code.split(['|', ';', '&']) {
                let words: Vec<&str> = part.split_whitespace().collect();
                let at = words.iter().position(|word| is_ours(word));
                // Only as a program: at the beginning, behind sudo, or as `nix run …#publish --`.
                if let Some(at) = at.filter(|at| words[..*at].iter().all(|word| *word == "sudo")) {
                    calls.extend(call(&words[at..]));
                }
                if let Some(at) = words.iter().position(|word| word.ends_with("freshroot#publish")) {
                    let rest: Vec<&str> = ["freshroot-publish"]
                        .into_iter()
                        .chain(words[at + 1..].iter().copied().skip_while(|word| *word == "--"))
                        .collect();
                    calls.extend(call(&rest));
                }
            }
        } else {
            for code in line.split('`').skip(1).step_by(2) {
                let words: Vec<&str> = code.split_whitespace().collect();
                if words.first().is_some_and(|word| is_ours(word)) {
                    calls.extend(call(&words));
                }
            }
        }
    }
    calls
}

/// Without «$(…)», whose words are those of another program.
fn without_substitutions(line: &str) -> String {
    match line.split_once("$(") {
        Some((before, rest)) => format!("{before}$ {}", rest.split_once(')').map_or("", |(_, after)| after)),
        None => line.to_owned(),
    }
}

fn is_ours(word: &str) -> bool {
    matches!(word.rsplit('/').next(), Some("freshroot" | "freshroot-publish"))
}

fn call(words: &[&str]) -> Option<Call> {
    let (program, rest) = words.split_first()?;
    let command = rest.first().filter(|word| word.starts_with(|c: char| c.is_ascii_lowercase()))?;
    if *command == "help" || !command.chars().all(|c| c.is_ascii_lowercase() || c == '-') {
        return None;
    }
    let name = |word: &&str| {
        word.trim_start_matches('[')
            .trim_end_matches(']')
            .split('=')
            .next()
            .unwrap_or(word)
            .to_owned()
    };
    Some(Call {
        program: program.rsplit('/').next()?.to_owned(),
        command: (*command).to_owned(),
        options: rest
            .iter()
            .map(name)
            .filter(|word| word.starts_with("--") && word.len() > 2)
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
    use super::*;

    fn pages(list: &[(&str, &str)]) -> BTreeMap<PathBuf, String> {
        list.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect()
    }

    #[test]
    fn a_link_that_leads_nowhere_is_named_with_its_page() {
        let pages = pages(&[
            ("README.md", "[a](docs/a.md) [b](docs/b.md#two-words) [web](https://x.example/y)"),
            (
                "docs/a.md",
                "`[no](link)` [up](../README.md) [gone](gone.md)\n```\n[no](link)\n```\n",
            ),
            ("docs/b.md", "# Two words!\n[self](#two-words) [self](#three)"),
        ]);
        let known: BTreeSet<PathBuf> = pages.keys().cloned().collect();
        assert_eq!(
            links(&pages, &|path| known.contains(path)),
            [
                "docs/a.md: the link to gone.md leads nowhere",
                "docs/b.md: docs/b.md has no heading «three»"
            ]
        );
    }

    #[test]
    fn a_file_that_is_shown_is_the_file() {
        let read = |path: &Path| if path == Path::new("docs/a.conf") { "one\ntwo\n" } else { "" }.to_owned();
        let wrong = |text: &str| shown(Path::new("docs/a.md"), text, &read).len();
        assert_eq!(wrong("x\n<!-- the file a.conf -->\n```nginx\none\ntwo\n```\ny"), 0);
        assert_eq!(wrong("<!-- the file a.conf -->\n```\none\n```\n"), 1);
        assert_eq!(wrong("<!-- the file b.conf -->\n```\none\n```\n"), 1);
        assert_eq!(wrong("<!-- the file a.conf -->\nnothing"), 1);
    }

    #[test]
    fn what_no_link_leads_to_is_not_reached() {
        let pages = pages(&[
            ("README.md", "[a](docs/a.md)"),
            ("docs/a.md", "[b](howto/b.md)"),
            ("docs/howto/b.md", "[a](../a.md)"),
            ("docs/c.md", "[a](a.md)"),
        ]);
        let reached = reached(&pages);
        assert!(reached.contains(Path::new("docs/howto/b.md")) && !reached.contains(Path::new("docs/c.md")));
    }

    #[test]
    fn calls_are_found_in_fences_and_at_the_beginning_of_code() {
        let text = "Use `freshroot-publish sign FOLDER --key FILE`, not `the freshroot agent`.\n```sh\ncp a b && freshroot-publish serve x --listen \\\n  0.0.0.0:80 --rate=1k # freshroot none\n\
            sudo freshroot status\nfreshroot-publish closure \"$(nix-build --no-out-link)\" --out x\nnix run github:x/freshroot#publish -- keygen a --out .\n# in /etc/freshroot as it is\nmkdir freshroot boot\n```\n";
        let found: Vec<String> = calls(text)
            .iter()
            .map(|call| format!("{} {} {}", call.program, call.command, call.options.join(" ")))
            .collect();
        assert_eq!(
            found,
            [
                "freshroot-publish sign --key",
                "freshroot-publish serve --listen --rate",
                "freshroot status ",
                "freshroot-publish closure --out",
                "freshroot-publish keygen --out",
            ]
        );
    }

    #[test]
    fn an_option_is_a_whole_word_of_the_help() {
        assert!(has_option("  --key FILE  sign", "--key"));
        assert!(!has_option("  --keys FILE  sign", "--key"));
    }
}
