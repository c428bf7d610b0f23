//! What holds for every command line and every file, however odd.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use freshroot::cmdline::{CommandLine, Unreadable, quote_init_argument, quote_param};
use freshroot::settings::table::TABLE;
use freshroot::settings::value::{LONGEST, duration, show_duration, size};
use freshroot::settings::{Origin, Settings, Size, Verify};
use proptest::collection::vec;
use proptest::prelude::*;

/// Names of settings, as the command line spells them, so that garbage reaches their values.
fn a_key() -> impl Strategy<Value = String> {
    let ours = (0..TABLE.len()).prop_map(|row| format!("freshroot.{}", TABLE[row].kebab()));
    prop_oneof![4 => ours, 1 => Just("init".to_owned()), 1 => Just("freshroot.kexec".to_owned()), 1 => "[a-z.=\"-]{0,12}"]
}

fn a_value() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        // What the guarded settings would take.
        "(1|true|size|LABEL=other|/ca[.]pem|ext4|ro|other|a-1:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=)",
        "[0-9]{0,24}(ms|s|min|h|d|K|GiB|%|TiB)?",
        "https?://(\\[[0-9a-f:]{0,8}\\])?[a-z:/?=%@0-9\" ]{0,16}",
        "/nix/store/[0-9a-df-np-sv-z]{31,33}-[a-z.]{0,8}(/init)?",
        "[a-zA-Z0-9+/=:,-]{0,60}",
    ]
}

/// A word of the grammar: what a printer could be asked to write.
fn a_param() -> impl Strategy<Value = (String, Option<String>)> {
    ("[^\"=\0\\s]{1,12}", proptest::option::of("[^\"\0]{0,24}"))
        .prop_filter("the line would end", |(key, value)| key != "--" || value.is_some())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_parsed_or_refused_with_a_position_inside(bytes in vec(any::<u8>(), 0..200)) {
        match CommandLine::parse(&bytes) {
            Ok(line) => prop_assert!(line.params.iter().all(|param| param.position < bytes.len())),
            Err(Unreadable::NotUtf8 { position } | Unreadable::Nul { position }) => prop_assert!(position < bytes.len()),
        }
    }

    #[test]
    fn every_byte_of_a_command_line_is_white_space_a_quote_an_equals_sign_or_in_a_word(line in "[a-c=\" \t\n-]{0,60}") {
        let parsed = CommandLine::parse(line.as_bytes()).unwrap();
        let words: String = parsed.params.iter().map(|p| format!("{}{}", p.key, p.value.clone().unwrap_or_default()))
            .chain(parsed.init_arguments.iter().cloned()).collect();
        let letters = |text: &str| text.chars().filter(|c| ('a'..='c').contains(c)).collect::<String>();
        prop_assert_eq!(letters(&words), letters(&line));
    }

    #[test]
    fn what_the_printer_quotes_the_parser_reads_back(params in vec(a_param(), 0..6), init in vec("[^\"\0]{0,12}", 0..4)) {
        let mut words: Vec<String> = params.iter().map(|(key, value)| quote_param(key, value.as_deref()).unwrap()).collect();
        if !init.is_empty() {
            words.push("--".to_owned());
            words.extend(init.iter().map(|argument| quote_init_argument(argument).unwrap()));
        }
        let line = CommandLine::parse(words.join(" ").as_bytes()).unwrap();
        let read: Vec<_> = line.params.into_iter().map(|param| (param.key, param.value)).collect();
        prop_assert_eq!(read, params);
        prop_assert_eq!(line.init_arguments, init);
    }

    #[test]
    fn no_command_line_makes_trust_weaker_where_nothing_is_listed(words in vec((a_key(), a_value()), 0..8)) {
        let file = br#"{"version": 1, "cache": {"device": "LABEL=cache"}, "fileSystems": {"/a": {}}}"#;
        let line: Vec<String> = words.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        let Ok(settings) = Settings::from_sources(Some(("config.json", file)), line.join(" ").as_bytes()) else { return Ok(()) };
        prop_assert!(!settings.allow_unsigned && settings.trusted_public_keys.is_empty() && settings.http.ca_file.is_none());
        prop_assert_eq!(settings.verify, Verify::Full);
        prop_assert_eq!(settings.cache.device.as_deref(), Some("LABEL=cache"));
        prop_assert!(settings.cache.options.is_empty() && settings.store.rw_device.is_none());
        prop_assert_eq!(settings.cache.path.to_str(), Some("freshroot"));
        prop_assert_eq!(settings.file_systems.len(), 1);
        prop_assert!(settings.command_line_may.is_empty());
        prop_assert!(settings.on_failure.max_delay >= settings.on_failure.delay && settings.cache.keep >= 2);
        prop_assert!(settings.policy.wait <= LONGEST && !settings.policy.wait.is_zero());
    }

    #[test]
    fn each_origin_points_at_the_word_that_set_it(words in vec((a_key(), a_value()), 0..8)) {
        let line = words.iter().filter_map(|(key, value)| quote_param(key, Some(value))).collect::<Vec<_>>().join(" ");
        let Ok(settings) = Settings::from_sources(None, line.as_bytes()) else { return Ok(()) };
        for row in TABLE {
            match settings.origin(row.name) {
                Origin::CommandLine { position } => {
                    let word = format!("freshroot.{}=", row.kebab());
                    prop_assert!(line[position..].starts_with(&word));
                    prop_assert_eq!(line.rfind(&word), Some(position));
                }
                Origin::Default => prop_assert!((row.show)(&settings) == (row.show)(&Settings::from_sources(None, b"").unwrap()) || row.name == "onFailure.maxDelay"),
                Origin::File => prop_assert!(false, "there is no file"),
            }
        }
    }

    #[test]
    fn no_file_makes_the_reader_panic(bytes in vec(any::<u8>(), 0..100), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let good = br#"{"version": 1, "url": ["http://a"], "policy": {"wait": "5s", "mode": "wait"}, "cache": {"keep": 3}, "root": {"tmpfsSize": "50%"}}"#;
        let mut bent = good.to_vec();
        let at = at.index(bent.len());
        bent[at] = byte;
        for file in [&bytes, &bent] {
            if let Err(error) = Settings::from_sources(Some(("config.json", file)), b"") {
                let message = format!("{error:#}");
                prop_assert!(message.starts_with("config.json"), "{}", message);
            }
        }
    }

    #[test]
    fn a_duration_that_is_shown_reads_back(milliseconds in 0..=7 * 24 * 3600 * 1000u64) {
        let value = Duration::from_millis(milliseconds);
        prop_assert_eq!(duration(&show_duration(value)), Ok(value));
    }

    #[test]
    fn durations_and_sizes_stay_within_their_bounds(text in "[0-9]{0,24}(ms|s|min|m|h|d|w|K|MiB|GiB|T|%)?([0-9]{1,20}(s|ms))?") {
        if let Ok(value) = duration(&text) { prop_assert!(value <= LONGEST); }
        match size(&text) {
            Ok(Size::Bytes(bytes)) => prop_assert!((1 << 20..=64 << 40).contains(&bytes)),
            Ok(Size::Percent(percent)) => prop_assert!((1..=100).contains(&percent)),
            Err(_) => {}
        }
    }
}
