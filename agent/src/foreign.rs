//! Foreign text in messages. What a server, a disk or a command line says goes to consoles and logs, where it must neither move the cursor, nor begin a
//! line that looks like one of ours, nor fill the screen.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

/// As much of a foreign text as a word in a message can bear, in characters.
const WORD: usize = 120;
/// The same for a sentence that quotes foreign text, such as those of the JSON reader.
const SENTENCE: usize = 600;

/// A word as a message can bear it.
pub fn word(text: &str) -> String {
    shown(text, WORD)
}

/// A sentence as a message can bear it.
pub fn sentence(text: &str) -> String {
    shown(text, SENTENCE)
}

/// At most `most` characters, and in place of those that a terminal or a log would act upon the one that says that something stood there.
fn shown(text: &str, most: usize) -> String {
    let mut shown: String = text
        .chars()
        .take(most)
        .map(|c| if acts(c) { char::REPLACEMENT_CHARACTER } else { c })
        .collect();
    if text.chars().nth(most).is_some() {
        shown.push('…');
    }
    shown
}

/// Control characters, line and paragraph separators, and what turns the direction of writing round (Unicode 16, 23.2).
fn acts(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_console_would_act_upon_is_replaced_and_the_rest_stays() {
        for (text, expected) in [
            ("", ""),
            ("grün ≤ 5", "grün ≤ 5"),
            ("a\u{1b}[2Jb", "a\u{fffd}[2Jb"),
            ("a\nfreshroot: all is well", "a\u{fffd}freshroot: all is well"),
            ("\u{202e}txt", "\u{fffd}txt"),
        ] {
            assert_eq!(word(text), expected);
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(word(&"ü".repeat(121)), format!("{}…", "ü".repeat(120)));
        assert_eq!(word(&"ü".repeat(120)), "ü".repeat(120));
        assert_eq!(sentence(&"x".repeat(5000)).chars().count(), 601);
    }
}
