//! Settings: a JSON file in the initrd and words on the kernel command line become one validated [`Settings`].
//!
//! Three steps, each with its own type, so that nothing unchecked can be used by mistake:
//! [`parsed`] (what the file says, line and column of what is wrong) → [`merged`] (file below command line, and what the command line may) →
//! [`validated`] (plain typed values). One [`table`] has a row for each setting; file, command line and `docs/settings.md` all come from it.

pub mod cmdline;
pub mod validated;
pub mod value;

pub use crate::store_path::StorePath;
pub use validated::{FailureAction, InitWord, OnFailure, Origin, PolicyMode, Settings, Verify};
pub use value::Size;
