//! What the kernel log says about a mount that was refused.
//!
//! File systems that have not been moved to the mount API take options as one text when they are mounted, and say what is wrong with it in the kernel log
//! alone (btrfs before Linux 6.8, vfat before 6.11, f2fs before 6.17).

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, SeekFrom, open, seek};
use rustix::io::{Errno, read};

/// More is not said about one mount.
const MOST_RECORDS: usize = 256;
/// So many lines are part of an error.
const MOST_LINES: usize = 6;

/// The kernel log from a moment on.
#[derive(Debug)]
pub struct KernelLog(Option<OwnedFd>);

impl KernelLog {
    /// From now on. A kernel log that cannot be read says nothing.
    pub fn from_now() -> Self {
        let opened = open("/dev/kmsg", OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
        let log = opened.and_then(|log| seek(&log, SeekFrom::End(0)).map(|_| log));
        Self(log.map_or_else(
            |errno| {
                log::debug!("opening /dev/kmsg: {errno}");
                None
            },
            Some,
        ))
    }

    /// What the kernel itself has said since, in lines that hold one of `words` (in any case).
    pub fn said_about(&self, words: &[&str]) -> Vec<String> {
        let Some(log) = &self.0 else { return Vec::new() };
        let mut said = Vec::new();
        let mut record = [0; 2048];
        for _ in 0..MOST_RECORDS {
            match read(log, &mut record) {
                Ok(length) => said.extend(kernels_line(&record[..length])),
                // Records were overwritten: the next read goes on behind them.
                Err(Errno::PIPE | Errno::INTR) => {}
                Err(_) => break,
            }
        }
        said.retain(|line| {
            let line = line.to_lowercase();
            words.iter().any(|word| line.contains(&word.to_lowercase()))
        });
        said.truncate(MOST_LINES);
        said
    }
}

/// The text of a record, `priority,sequence,time,flags;text`, if the kernel itself wrote it: its facility is 0.
fn kernels_line(record: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(record);
    let (head, line) = text.split_once(';')?;
    let priority: u32 = head.split(',').next()?.parse().ok()?;
    (priority < 8).then(|| line.lines().next().unwrap_or_default().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_of_the_kernel_itself_count() {
        for (record, line) in [
            (
                &b"3,12,345,-;BTRFS error: unrecognized mount option 'x'\n SUBSYSTEM=block\n"[..],
                Some("BTRFS error: unrecognized mount option 'x'"),
            ),
            (b"12,12,345,-;freshroot: btrfs", None),
            (b"nonsense", None),
        ] {
            assert_eq!(kernels_line(record).as_deref(), line);
        }
    }
}
