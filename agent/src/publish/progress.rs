//! Progress of what takes long: a bar on a terminal, one plain line otherwise.

use indicatif::{ProgressBar, ProgressStyle};

/// What takes less than a tenth of a second on most machines needs no line.
const WORTH_A_LINE: u64 = 32 << 20;

/// Progress over a known number of bytes.
#[derive(Debug)]
pub struct Progress(ProgressBar);

impl Progress {
    /// Begins: `what` is a gerund and its object, such as «hashing image.squashfs».
    pub fn new(what: &str, bytes: u64) -> Self {
        if bytes < WORTH_A_LINE {
            return Self(ProgressBar::hidden());
        }
        if !std::io::IsTerminal::is_terminal(&std::io::stderr()) {
            eprintln!("{what} ({:.0} MB)", bytes as f64 / 1e6);
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new(bytes).with_message(what.to_owned());
        // The template is constant; were it refused, the default style would do as well.
        if let Ok(style) =
            ProgressStyle::with_template("{msg} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}")
        {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// `bytes` more are done.
    pub fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
