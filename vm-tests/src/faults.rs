//! The fault matrix, `docs/faults.md`: whether the tests that it names exist, and the table of what they have seen, made of their own records.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::scenario;
use crate::workspace::Workspace;

const PAGE: &str = "docs/faults.md";
/// Where tests are, from the top of the repository.
const SOURCES: &[&str] = &["agent/src", "agent/tests", "agent/fuzz/src", "vm-tests/src"];
/// What the names of tests begin with that play what others have published.
const PUBLISHED: &[&str] = &["mender_", "rauc_"];
/// The variable that names the folder for the records.
pub const RECORDS: &str = "FRESHROOT_TEST_RECORDS";
/// Points at which the jobs of the kills are disturbed, all together: at least so many in each run, and in the nightly one.
const KILLS: (u64, u64) = (50, 1000);
/// Points of each job; a job that has fewer is disturbed at all of them.
const POINTS: (u64, u64) = (32, 1000);
/// Width of what a test is about.
const WHAT: usize = 74;
/// Width of an outcome.
const OUTCOME: usize = 58;

/// A row of the matrix, as the page has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    number: u32,
    layers: Vec<String>,
    tests: Vec<String>,
}

/// What a test of a transfer has seen (`agent/tests/support/record.rs`).
#[derive(Debug, Clone, Deserialize)]
struct Record {
    test: String,
    outcomes: Vec<String>,
    received: u64,
    image: u64,
    again: u64,
    cache: String,
}

/// How many points of a job were met (`agent/tests/support/disturb.rs`).
#[derive(Debug, Clone, Deserialize)]
struct Kills {
    kills: String,
    points: u64,
    of: u64,
}

/// What is wrong with the page, a sentence each.
pub fn problems(workspace: &Workspace) -> Result<Vec<String>> {
    let text = page(workspace)?;
    let mut known = BTreeSet::new();
    for folder in SOURCES {
        tests_below(&workspace.root().join(folder), &mut known)?;
    }
    known.extend(scenario::all().iter().map(scenario::Test::folder));
    Ok(check(&text, &known))
}

fn page(workspace: &Workspace) -> Result<String> {
    fs::read_to_string(workspace.root().join(PAGE)).with_context(|| format!("reading {PAGE}"))
}

/// The names of all tests in the files below a folder.
fn tests_below(folder: &Path, into: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            tests_below(&path, into)?;
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            into.extend(tests_in(&text));
        }
    }
    Ok(())
}

/// The functions of a file that are marked as tests.
fn tests_in(text: &str) -> Vec<String> {
    let mut marked = false;
    let mut names = Vec::new();
    for line in text.lines().map(str::trim) {
        if line == "#[test]" {
            marked = true;
        } else if let (true, Some(rest)) = (marked, line.strip_prefix("fn ")) {
            names.extend(rest.split(['(', '<']).next().map(str::to_owned));
            marked = false;
        }
    }
    names
}

/// The cells of the lines of all tables, without their heads.
fn cells(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().filter_map(|line| {
        let inside = line.strip_prefix("| ")?.strip_suffix('|')?;
        Some(inside.split(" | ").map(str::trim).collect())
    })
}

/// What stands between backticks.
fn named(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The rows of the matrix: number, fault, expected, layers, tests.
fn rows(text: &str) -> Vec<Row> {
    let row = |cells: Vec<&str>| {
        let [number, _, _, layers, tests] = cells.as_slice() else {
            return None;
        };
        Some(Row {
            number: number.parse().ok()?,
            layers: layers.split(", ").map(str::to_owned).collect(),
            tests: named(tests),
        })
    };
    cells(text).filter_map(row).collect()
}

/// `known` are the names of tests and boots.
fn check(text: &str, known: &BTreeSet<String>) -> Vec<String> {
    let exists = |name: &str| match name.strip_suffix('*') {
        Some(start) => known.iter().any(|known| known.starts_with(start)),
        None => known.contains(name),
    };
    let mut found = Vec::new();
    let rows = rows(text);
    let numbers: Vec<u32> = rows.iter().map(|row| row.number).collect();
    if numbers != (1..=numbers.len() as u32).collect::<Vec<_>>() || numbers.is_empty() {
        found.push(format!("{PAGE}: the rows are not numbered from 1: {numbers:?}"));
    }
    for row in &rows {
        for name in row.tests.iter().filter(|name| !exists(name)) {
            found.push(format!("{PAGE}: row {}: there is no test and no boot «{name}»", row.number));
        }
        let own = format!("row_{:02}_", row.number);
        let is_listed = |name: &String| row.tests.iter().any(|listed| name.starts_with(listed.trim_end_matches('*')));
        for name in known.iter().filter(|name| name.starts_with(&own) && !is_listed(name)) {
            found.push(format!("{PAGE}: row {} does not name «{name}»", row.number));
        }
        if row.tests.is_empty() != (row.layers == ["–"]) {
            found.push(format!("{PAGE}: row {}: layers and tests contradict each other", row.number));
        }
    }
    let mut published = BTreeSet::new();
    for cells in cells(text) {
        // Case, suite, test, outcome.
        let [case, _, tests, _] = cells.as_slice() else { continue };
        for name in named(tests) {
            if !exists(&name) {
                found.push(format!("{PAGE}: «{case}»: there is no test «{name}»"));
            }
            published.insert(name);
        }
    }
    let of_others = |name: &&String| PUBLISHED.iter().any(|suite| name.starts_with(suite));
    for name in known.iter().filter(of_others).filter(|name| !published.contains(*name)) {
        found.push(format!("{PAGE}: no case names «{name}»"));
    }
    found
}

/// Lines that tests have written into `folder`, as far as they are of this kind.
fn gather<T: for<'a> Deserialize<'a>>(folder: &Path) -> Result<Vec<T>> {
    let mut records = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let path = entry?.path();
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        records.extend(text.lines().filter_map(|line| serde_json::from_str(line).ok()));
    }
    Ok(records)
}

/// Prints what the tests of transfers have seen, row by row.
///
/// # Errors
/// If a cache was changed, or, in a run of the `whole` layer, a row of it has no record.
pub fn tell_transfers(workspace: &Workspace, folder: &Path, whole: bool) -> Result<()> {
    let records: Vec<Record> = gather(folder)?;
    print!("{}", table(&records));
    let changed: Vec<&str> = records
        .iter()
        .filter(|record| record.cache == "CHANGED")
        .map(|record| record.test.as_str())
        .collect();
    ensure!(changed.is_empty(), "the cache was changed by {}", changed.join(", "));
    let missing = without_record(&rows(&page(workspace)?), &records);
    ensure!(!whole || missing.is_empty(), "no test has told of row {missing:?} of {PAGE}");
    Ok(())
}

fn without_record(rows: &[Row], records: &[Record]) -> Vec<u32> {
    let told: BTreeSet<u32> = records.iter().filter_map(|record| row_of(&record.test)).collect();
    let of_layer = rows.iter().filter(|row| row.layers.iter().any(|layer| layer == "http"));
    of_layer.map(|row| row.number).filter(|number| !told.contains(number)).collect()
}

fn row_of(test: &str) -> Option<u32> {
    test.strip_prefix("row_")?.split('_').next()?.parse().ok()
}

/// A line for each test of a row: what of all its cases.
fn table(records: &[Record]) -> String {
    let mut tests: BTreeMap<(u32, &str), Vec<&Record>> = BTreeMap::new();
    for record in records {
        if let Some(row) = row_of(&record.test) {
            tests.entry((row, record.test.as_str())).or_default().push(record);
        }
    }
    let mut text = format!(
        "\n{:>3}  {:<WHAT$} {:>5}  {:<OUTCOME$} {:>9} {:>8} {:>8}  cache\n",
        "row", "what", "cases", "outcome", "received", "image", "again"
    );
    for ((row, test), records) in tests {
        let what = test.splitn(3, '_').nth(2).unwrap_or(test).replace('_', " ");
        let most = |value: fn(&Record) -> u64| records.iter().map(|record| value(record)).max().unwrap_or(0);
        let mut caches: Vec<&str> = records.iter().map(|record| record.cache.as_str()).collect();
        caches.sort_unstable();
        caches.dedup();
        text.push_str(&format!(
            "{row:>3}  {:<WHAT$} {:>5}  {:<OUTCOME$} {:>9} {:>8} {:>8}  {}\n",
            cut(&what, WHAT),
            records.len(),
            cut(&outcomes(&records), OUTCOME),
            most(|record| record.received),
            most(|record| record.image),
            most(|record| record.again),
            caches.join("; "),
        ));
    }
    text.push_str("bytes of bodies, of the dearest case; again: what was received of an image and was of no use\n");
    text
}

/// Each outcome once, the most frequent first, with how often it came.
fn outcomes(records: &[&Record]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for outcome in records.iter().flat_map(|record| &record.outcomes) {
        *counts.entry(outcome).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(outcome, count)| (std::cmp::Reverse(*count), *outcome));
    let told = counts.into_iter().map(|(outcome, count)| match count {
        1 => outcome.to_owned(),
        _ => format!("{count} × {outcome}"),
    });
    told.collect::<Vec<_>>().join(" | ")
}

fn cut(text: &str, length: usize) -> String {
    if text.chars().count() <= length {
        return text.to_owned();
    }
    text.chars().take(length - 1).chain(['…']).collect()
}

/// What the kills need to know: seed and number of points, as variables.
pub fn kills_variables(seed: Option<u64>, nightly: bool) -> [(&'static str, String); 2] {
    let now = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(1, |now| u64::from(now.subsec_nanos()))
    };
    let seed = seed.unwrap_or_else(now);
    let points = if nightly { POINTS.1 } else { POINTS.0 };
    eprintln!("kills: seed {seed}; --seed {seed} disturbs the same points");
    [
        ("FRESHROOT_KILLS_SEED", seed.to_string()),
        ("FRESHROOT_KILLS_POINTS", points.to_string()),
    ]
}

/// Prints how many points of each job were met.
///
/// # Errors
/// If they are fewer than they should be in a run of the `whole` layer.
pub fn tell_kills(folder: &Path, whole: bool, nightly: bool) -> Result<()> {
    let records: Vec<Kills> = gather(folder)?;
    for Kills { kills, points, of } in &records {
        println!("{points:>5} of {of:>5} points: {}", kills.replace('_', " "));
    }
    let total: u64 = records.iter().map(|record| record.points).sum();
    let least = if nightly { KILLS.1 } else { KILLS.0 };
    println!("{total:>5} points in all");
    ensure!(!whole || total >= least, "{total} points were met, {least} are the least");
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    const TEXT: &str = "| row | fault | expected | layers | tests |\n|---|---|---|---|---|\n\
        | 1 | down | boots | boots | `down-warm` |\n| 2 | cut | resumed | http, boots | `row_02_*`, `cut` |\n| 3 | none | – | – | – |\n\
        \n| case | suite | test | outcome |\n|---|---|---|---|\n| short | theirs | `row_02_short` | fetched |\n";

    fn known(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_the_page_names_has_to_exist_and_what_exists_has_to_be_named() {
        assert_eq!(check(TEXT, &known(&["down-warm", "row_02_short", "cut"])), Vec::<String>::new());
        for (names, words) in [
            (&["row_02_short", "cut"][..], "row 1: there is no test and no boot «down-warm»"),
            (&["down-warm", "row_02_long", "cut"], "«short»: there is no test «row_02_short»"),
            (&["down-warm", "cut"], "row 2: there is no test and no boot «row_02_*»"),
            (&["down-warm", "row_02_short", "cut", "row_03_x"], "row 3 does not name «row_03_x»"),
            (&["down-warm", "row_02_short", "cut", "mender_x"], "no case names «mender_x»"),
        ] {
            let found = check(TEXT, &known(names));
            assert!(found.iter().any(|problem| problem.contains(words)), "{words}: {found:?}");
        }
        let found = check(&TEXT.replace("| 3 |", "| 4 |"), &known(&["down-warm", "row_02_short", "cut"]));
        assert!(found[0].contains("not numbered"), "{found:?}");
    }

    #[test]
    fn tests_are_found_by_their_mark() {
        let text = "#[test]\nfn a_b() {\n}\nfn c() {}\n    #[test]\n    #[should_panic]\n    fn d(x in 0..3u8) {\n";
        assert_eq!(tests_in(text), ["a_b", "d"]);
    }

    fn record(test: &str, outcome: &str, received: u64) -> Record {
        Record {
            test: test.to_owned(),
            outcomes: vec![outcome.to_owned()],
            received,
            image: 100,
            again: received.saturating_sub(100),
            cache: "as before".to_owned(),
        }
    }

    #[test]
    fn a_line_of_the_table_has_what_all_cases_have_seen() {
        let records = [
            record("row_02_short_body", "fetched", 100),
            record("row_02_short_body", "fetched", 130),
            record("row_02_short_body", "refused", 0),
            record("two_mirrors", "fetched", 1),
        ];
        let table = table(&records);
        let line = table.lines().find(|line| line.contains("short body")).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words.join(" "), "2 short body 3 2 × fetched | refused 130 100 30 as before");
        assert!(!table.contains("two mirrors"));
    }

    #[test]
    fn a_row_without_a_record_is_missed() {
        let rows = rows(TEXT);
        assert_eq!(rows[1].layers, ["http", "boots"]);
        assert_eq!(without_record(&rows, &[]), [2]);
        assert_eq!(without_record(&rows, &[record("row_02_x", "fetched", 1)]), Vec::<u32>::new());
    }
}
