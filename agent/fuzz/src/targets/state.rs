//! The state of a cache disk: bounded, read back, and never lower than it was.

use freshroot::formats::state::{Claim, STATE_LIMIT, State};
use serde_json::Value;

use crate::Target;
use crate::input::told;

/// `state.json` of the cache.
pub const STATE: Target = Target {
    name: "state",
    longest: 8192,
    memory: 2048,
    check: state,
};

fn state(input: &[u8]) {
    let mut state = match State::parse(input) {
        Ok(state) => state,
        Err(refusal) => return told(refusal),
    };
    let written = state.to_bytes().unwrap();
    assert!((written.len() as u64) < STATE_LIMIT);
    assert_eq!(State::parse(&written), Ok(state.clone()));
    let stable = "stable".parse().unwrap();
    // A reader that knows nothing of ours sees the same. It also reads what we pass over, where half a character may stand.
    if let Ok(value) = serde_json::from_slice::<Value>(input) {
        let known = &value["channels"]["stable"];
        assert_eq!(known["serial"].as_u64().unwrap_or(0), state.serial(&stable));
        assert_eq!(known["confirmed"].as_u64(), state.confirmed(&stable));
        assert_eq!(value["time"].as_u64().unwrap_or(0), state.time());
        for (mirror, rate) in value["rates"].as_object().into_iter().flatten() {
            assert_eq!(state.rate(mirror), rate.as_u64(), "{mirror}");
        }
    }
    let (serial, time) = (state.serial(&stable), state.time());
    state.confirm(&stable, 3, 7);
    state.see_time(5);
    state.add_received(9, u64::MAX);
    state.see_rate("https://images.example:443", 1);
    assert_eq!((state.serial(&stable), state.time()), (serial.max(3), time.max(5)));
    assert_eq!((state.confirmed(&stable), state.received_on(9)), (Some(7), u64::MAX));
    assert_eq!(State::parse(&state.to_bytes().unwrap()), Ok(state.clone()));
    // After a reset the serial has gone down at the most, and what claims to be newer is withdrawn, and nothing else.
    let claim = |serial, created| Claim { serial, created };
    state.reset(&stable, claim(2, 2), [claim(u64::MAX, u64::MAX), claim(1, 2)]);
    assert_eq!((state.serial(&stable), state.time()), (2, 0));
    assert!(state.is_withdrawn(&stable, claim(u64::MAX, u64::MAX)));
    assert!(![claim(2, 2), claim(1, 2)].iter().any(|old| state.is_withdrawn(&stable, *old)));
    let written = state.to_bytes().unwrap();
    assert!((written.len() as u64) < STATE_LIMIT);
    assert_eq!(State::parse(&written), Ok(state));
}
