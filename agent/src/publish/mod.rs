//! The publishing side: what lays a served folder out, signs it, and serves it in a lab. Host only, never part of the initrd.
//!
//! What is written is static files (`docs/formats.md`, «The served folder»): any web server serves them as well as [`serve`] does.

pub mod bzimage;
pub mod cli;
pub mod closure;
pub mod folder;
pub mod generation;
pub mod inspect;
pub mod keys;
pub mod netboot;
pub mod params;
pub mod progress;
pub mod registration;
pub mod run;
pub mod serve;
pub mod sign;
pub mod systems;

#[cfg(test)]
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
