//! Aliases with wildcards, as `fnmatch(3)` without flags compares them.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

/// The name of a module or an alias as it is compared: `-` and `_` are the same, but not within brackets (kmod's `alias_normalize`).
pub fn normalise(name: &str) -> String {
    let mut inside = false;
    name.chars()
        .map(|character| {
            inside = (inside || character == '[') && character != ']';
            if character == '-' && !inside { '_' } else { character }
        })
        .collect()
}

/// Whether `text` matches `pattern`, in which `*` is any text, `?` any byte, `[a-f0]` and `[!a]` one of a set, and a backslash takes the next byte as
/// it is. A bracket that is not closed stands for itself.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (mut pattern, mut text) = (pattern.as_bytes(), text.as_bytes());
    // Where to go on when what follows the last star does not match: one byte later. Earlier stars need not be tried again.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        if let [b'*', rest @ ..] = pattern {
            retry = Some((rest, text));
            pattern = rest;
            continue;
        }
        let step = match text.split_first() {
            None if pattern.is_empty() => return true,
            // Nothing is left for the pattern, however the stars are laid out.
            None => return false,
            Some((byte, rest)) => one(pattern, *byte).map(|pattern| (pattern, rest)),
        };
        (pattern, text) = match (step, &mut retry) {
            (Some(next), _) => next,
            (None, Some((after_star, from))) => {
                let Some((_, later)) = from.split_first() else { return false };
                *from = later;
                (*after_star, later)
            }
            (None, None) => return false,
        };
    }
}

/// The pattern's rest if its first element, which is no star, matches `byte`.
fn one(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    let (literal, rest) = match pattern {
        [] => return None,
        [b'?', rest @ ..] => return Some(rest),
        [b'[', set @ ..] => match in_set(set, byte) {
            Some((true, rest)) => return Some(rest),
            Some((false, _)) => return None,
            None => (b'[', set),
        },
        [b'\\', escaped, rest @ ..] => (*escaped, rest),
        [literal, rest @ ..] => (*literal, rest),
    };
    (literal == byte).then_some(rest)
}

/// Whether `byte` is in the set that begins after a bracket, and what follows the set; `None` if it is not closed.
fn in_set(set: &[u8], byte: u8) -> Option<(bool, &[u8])> {
    let (negated, mut rest) = match set {
        [b'!' | b'^', rest @ ..] => (true, rest),
        [..] => (false, set),
    };
    let mut found = false;
    let mut first = true;
    loop {
        rest = match rest {
            [] => return None,
            // A closing bracket in the first place is a member.
            [b']', after @ ..] if !first => return Some((found != negated, after)),
            [low, b'-', high, after @ ..] if *high != b']' => {
                found |= (*low..=*high).contains(&byte);
                after
            }
            [member, after @ ..] => {
                found |= *member == byte;
                after
            }
        };
        first = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn wildcards_match_as_fnmatch_has_them() {
        let cases = [
            ("virtio:d00000002v*", "virtio:d00000002v00001AF4", true),
            ("virtio:d00000002v*", "virtio:d00000001v00001AF4", false),
            (
                "pci:v*d*sv*sd*bc0Csc03i30*",
                "pci:v00001B36d0000000Dsv00001AF4sd00001100bc0Csc03i30",
                true,
            ),
            (
                "usb:v*p*d*dc*dsc*dp*ic08isc06ip50in*",
                "usb:v46F4p0001d0000dc00dsc00dp00ic08isc06ip50in00",
                true,
            ),
            ("usb:v05ACp12[9A]*d*", "usb:v05ACp12A8d0100", true),
            ("usb:v05ACp12[9A]*d*", "usb:v05ACp12B8d0100", false),
            ("a[0-9]z", "a5z", true),
            ("a[0-9]z", "a-z", false),
            ("a[!0-9]z", "abz", true),
            ("a[^0-9]z", "a5z", false),
            ("a[]]z", "a]z", true),
            ("a[-x]z", "a-z", true),
            ("a[x-]z", "a-z", true),
            ("a[bz", "a[bz", true),
            ("a[bz", "abz", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a\\*c", "a*c", true),
            ("a\\*c", "abc", false),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("**a*", "xxa", true),
            ("*ab", "aab", true),
            ("x*/y", "x/a/y", true),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn hyphens_are_underscores_but_in_sets() {
        assert_eq!(normalise("virtio-blk"), "virtio_blk");
        assert_eq!(normalise("a-b[0-9]c-d"), "a_b[0-9]c_d");
    }

    #[test]
    fn many_stars_do_not_take_long() {
        let pattern = "*a".repeat(60) + "b";
        assert!(!matches(&pattern, &"a".repeat(4000)));
    }

    proptest! {
        #[test]
        fn any_pattern_is_compared_without_panic_and_text_matches_itself_escaped(pattern in ".{0,30}", text in ".{0,30}") {
            matches(&pattern, &text);
            let escaped: String = text.chars().flat_map(|character| if character.is_ascii() { vec!['\\', character] } else { vec![character] }).collect();
            prop_assert!(matches(&escaped, &text));
        }
    }
}
