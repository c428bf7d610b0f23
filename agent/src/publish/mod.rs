//! The publishing side: what lays a served folder out, signs it, and serves it in a lab. Host only, never part of the initrd.
//!
//! What is written is static files (`docs/formats.md`, «The served folder»): any web server serves them as well as [`serve`] does.

pub mod bzimage;
#[cfg(feature = "publish")]
pub mod cli;
#[cfg(feature = "publish")]
pub mod closure;
#[cfg(feature = "publish")]
pub mod folder;
#[cfg(feature = "publish")]
pub mod generation;
#[cfg(feature = "publish")]
pub mod hosts;
#[cfg(feature = "publish")]
pub mod inspect;
#[cfg(feature = "publish")]
pub mod keys;
#[cfg(feature = "publish")]
pub mod netboot;
pub mod params;
#[cfg(feature = "publish")]
pub mod progress;
pub mod registration;
#[cfg(feature = "publish")]
pub mod rotate;
#[cfg(feature = "publish")]
pub mod run;
#[cfg(feature = "publish")]
pub mod serve;
#[cfg(feature = "publish")]
pub mod sign;
#[cfg(feature = "publish")]
pub mod systems;

#[cfg(all(test, feature = "publish"))]
mod testing {
    #![allow(clippy::unwrap_used)]
    use std::io::Write as _;
    use std::path::Path;
    use std::process::{Command, Stdio};

    /// Writes a shell script by a child process: were it written here, a child that another test is just starting could hold it open for writing, and it could
    /// not be executed (ETXTBSY).
    pub fn script(path: &Path, body: &str) {
        let mut install = Command::new("install")
            .args(["-m", "755", "/dev/stdin"])
            .arg(path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = install.stdin.take().unwrap();
        writeln!(stdin, "#!/bin/sh\n{body}").unwrap();
        drop(stdin);
        assert!(install.wait().unwrap().success());
    }
}
