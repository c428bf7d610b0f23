//! What `freshroot plan` makes of the age of an answer, at a time that is given.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    #[allow(dead_code, reason = "shared with the tests of transfers")]
    pub mod world;
}

use std::fs;

use freshroot::candidates::RunningKernel;
use freshroot::mode::Mode;
use freshroot::plan::plan;
use freshroot::settings::Settings;
use support::world::{World, key, open};

const NOW: u64 = 2_000_000_000;

#[test]
fn the_age_of_an_answer_is_told_and_decides_as_at_a_boot() {
    let folder = tempfile::tempdir().unwrap();
    World::new(1).install(&open(folder.path()), 1);
    let kernel = RunningKernel {
        release: "6.6.1".to_owned(),
        store_name: None,
    };
    let now = || NOW;
    for (mode, confirmed, machine, rule, told) in [
        (
            "wait",
            NOW - 600,
            now as fn() -> u64,
            "[max-age]",
            "the last answer is 10 min 0 s old",
        ),
        ("wait", NOW - 3600, now, "[ask]", "the last answer is 1 h 0 min old"),
        (
            "cache-first",
            NOW - 600,
            now,
            "[max-age]",
            "policy.maxAge = 1h (from the configuration file)",
        ),
        ("cache-first", NOW + 1, now, "[ask]", "it is not known how old the last answer is"),
        ("require-fresh", NOW - 600, now, "[ask]", "policy.mode = require-fresh"),
        ("offline", NOW - 7200, now, "[offline]", "policy.mode = offline"),
        // A clock of 1970: nothing is known, and somebody is asked.
        ("wait", NOW - 600, || 0, "[ask]", "it is not known how old the last answer is"),
    ] {
        let state = format!(r#"{{"version": 1, "channels": {{"stable": {{"serial": 1, "confirmed": {confirmed}}}}}}}"#);
        fs::write(folder.path().join("state.json"), state).unwrap();
        let config = format!(
            r#"{{"version": 1, "url": "http://a", "channel": "stable", "trustedPublicKeys": ["{}"], "policy": {{"mode": "{mode}", "maxAge": "1h"}}}}"#,
            key().public()
        );
        let settings = Settings::from_sources(Some(("config.json", config.as_bytes())), b"").unwrap();
        let text = plan(&settings, Mode::Standalone, Some(folder.path()), &kernel, &[], machine)
            .unwrap()
            .to_string();
        let decision = text.lines().find(|line| line.starts_with("decision:")).unwrap();
        assert!(decision.ends_with(rule), "{mode}, {confirmed}: {text}");
        assert!(text.contains(told), "{mode}, {confirmed}: {text}");
    }
}
