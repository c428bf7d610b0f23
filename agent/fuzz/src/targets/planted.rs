//! A bug that was put there, to see that the fuzzers find one.

use crate::Target;

/// The input that it falls over. Eight bytes, compared in three ways: blind search would take longer than the universe has.
#[cfg(test)]
pub(crate) const KEY: &[u8] = b"freshFUZ";

/// See [`crate::PLANTED`].
pub const PLANTED: Target = Target {
    name: "planted",
    longest: 64,
    memory: 64,
    check: |input| {
        let Some((head, rest)) = input.split_first_chunk::<4>() else {
            return;
        };
        if u32::from_le_bytes(*head) == u32::from_le_bytes(*b"fres")
            && rest.first() == Some(&b'h')
            && rest
                .get(1..)
                .is_some_and(|rest| std::str::from_utf8(rest).is_ok_and(|rest| rest.starts_with("FUZ")))
        {
            panic!("the planted bug");
        }
    },
};
