//! Programs in the guest that write files and say which of them are safe, until the power goes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::qemu::Vm;

/// Bytes of a file: more than a block, so that it can be torn.
const LENGTH: u32 = 20_000;
/// How long all writers together may take for what is waited for.
const LIMIT: Duration = Duration::from_secs(180);
/// The file that the second serial port writes into is looked at so often: there is nothing to wait on.
const PACE: Duration = Duration::from_millis(100);
/// A writer ends here, so that no disk is full before the cut.
const MOST: u32 = 300;

/// By place: the highest number of a file that was told to be safe.
type Highest = BTreeMap<String, u32>;

/// All that was told, cut by cut.
#[derive(Debug, Default)]
pub struct Told(BTreeMap<(u32, String), u32>);

impl Told {
    fn add(&mut self, cut: u32, highest: Highest) {
        for (place, number) in highest {
            self.0.insert((cut, place), number);
        }
    }

    /// Adds what the second serial port of a machine told, from which the power was taken.
    pub fn add_told(&mut self, cut: u32, text: &str) {
        self.add(cut, told(text));
    }

    /// How many files that is.
    pub fn files(&self) -> u32 {
        self.0.values().sum()
    }

    /// A script that fails unless each of them is there with its content.
    pub fn look(&self) -> String {
        let mut script = format!(
            "lost=0; look() {{ n=0; while [ $n -lt $3 ]; do n=$((n+1)); yes \"$1 $2 $n\" 2>/dev/null | head -c {LENGTH} | cmp - $1/cut-$2-$n || lost=1; done; }}\n"
        );
        for ((cut, place), number) in &self.0 {
            script += &format!("look {place} {cut} {number}\n");
        }
        script + "test $lost = 0"
    }
}

/// A script in which a program for each place writes one file after the other, makes file and folder last, and says so. It does not end.
pub fn start(places: &[&str], cut: u32) -> String {
    let places = places.join(" ");
    format!(
        "writer() {{ n=0; while [ $n -lt {MOST} ]; do n=$((n+1)); f=$1/cut-{cut}-$n; yes \"$1 {cut} $n\" 2>/dev/null | head -c {LENGTH} >$f; \
         sync $f $1 || exit 1; echo \"SAFE $1 $n\"; done; }}\n\
         for place in {places}; do writer $place & done\nwait; sleep infinity"
    )
}

/// What the second serial port told so far: whole lines count, and of each writer the last.
fn told(text: &str) -> Highest {
    let mut highest = Highest::new();
    for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        if let Some((place, number)) = line.strip_prefix("SAFE ").and_then(|rest| rest.split_once(' '))
            && let Ok(number) = number.trim_end().parse()
        {
            highest.insert(place.to_owned(), number);
        }
    }
    highest
}

/// Waits until each place has `least` files.
pub fn wait(vm: &mut Vm, places: &[&str], least: u32) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let text = vm.second_port()?;
        let highest = told(&text);
        if places
            .iter()
            .all(|place| highest.get(*place).is_some_and(|number| *number >= least))
        {
            return Ok(());
        }
        if Instant::now() >= deadline || text.contains("SCRIPT-END") {
            bail!("not all file systems were written to:\n{text}");
        }
        std::thread::sleep(PACE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_the_power_cut_ended_does_not_count() {
        let highest = told("SAFE /a 1\nSAFE /b 1\nnoise\nSAFE /a 12\nSAFE /a 1");
        assert_eq!(highest, Highest::from([("/a".to_owned(), 12), ("/b".to_owned(), 1)]));
        let mut told = Told::default();
        told.add(3, highest);
        assert_eq!(told.files(), 13);
        assert!(told.look().contains("look /a 3 12\nlook /b 3 1\n"), "{}", told.look());
    }
}
