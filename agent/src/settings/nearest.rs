//! The known word that somebody most likely meant.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

/// The candidate nearest to `word`, unless even that one is too far to be meant: more than a third of the letters, and more than two, differ.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Foreign words can be as long as a command line; what is longer than any name is meant for none.
    const LONGEST: usize = 80;
    if word.len() > LONGEST {
        return None;
    }
    let limit = (word.chars().count() / 3).max(2);
    candidates
        .into_iter()
        .map(|candidate| (distance(&word.to_lowercase(), &candidate.to_lowercase()), candidate))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, _)| *distance <= limit)
        .map(|(_, candidate)| candidate)
}

/// Letters to insert, delete or replace (Levenshtein), row by row.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (j, other) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j] = left;
            left = (diagonal + usize::from(letter != *other)).min(above + 1).min(left + 1);
            diagonal = above;
        }
        row[b.len()] = left;
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_levenshtein_s() {
        for (a, b, expected) in [
            ("", "", 0),
            ("a", "", 1),
            ("", "ab", 2),
            ("kitten", "sitting", 3),
            ("flaw", "lawn", 2),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn a_slip_finds_its_word_and_another_word_does_not() {
        let words = ["system", "cache.fs-type", "policy.wait", "url"];
        for (word, expected) in [
            ("sytem", Some("system")),
            ("cache.fsType", Some("cache.fs-type")),
            ("cache.fs_type", Some("cache.fs-type")),
            ("urls", Some("url")),
            ("completely.different", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, words), expected, "{word}");
        }
        assert_eq!(nearest(&"x".repeat(1 << 20), words), None);
    }
}
