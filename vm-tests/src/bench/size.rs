//! The agent's size, and what takes the room: symbols of a build that keeps them, by crate.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use super::figure::{Figure, Target};
use crate::build;
use crate::command::Tool;
use crate::lab::Lab;

/// What the issue of the first release asks for.
const MOST: f64 = 3_900_000.0;
const NM_LIMIT: Duration = Duration::from_secs(60);
/// Rows below this are summed up.
const LEAST_ROW: u64 = 4096;
/// Beginnings of names of C and assembly code that is not glibc's, and whose they are.
const C_CODE: &[(&str, &str)] = &[
    ("ring_core_", "ring, C and assembly"),
    ("ecp_nistz256", "ring, C and assembly"),
    ("p256_", "ring, C and assembly"),
    ("k25519", "ring, C and assembly"),
    ("fiat_", "ring, C and assembly"),
    ("x25519_", "ring, C and assembly"),
    ("ZSTD", "zstd, C and assembly"),
    ("HUF", "zstd, C and assembly"),
    ("FSE", "zstd, C and assembly"),
    ("XXH", "zstd, C and assembly"),
    ("_Unwind", "libgcc"),
    ("uw_", "libgcc"),
];
const LIBC: &str = "glibc and start-up code";

/// The size as it is shipped, and the table.
pub fn measure(lab: &Lab) -> Result<(Figure, String)> {
    let agent = lab.agent()?;
    let size = fs::metadata(&agent)
        .with_context(|| format!("looking at {}", agent.display()))?
        .len();
    let figure = Figure::alone(
        "size of the agent: static, with TLS, stripped",
        "bytes",
        vec![size as f64],
        Target::AtMost(MOST),
    )?;
    let symbols = build::agent_with_symbols(&lab.workspace)?;
    let listing = Tool::new("nm", NM_LIMIT)
        .args(["--size-sort", "--print-size", "--demangle"])
        .arg(&symbols)
        .text()?;
    let sections = Tool::new("size", NM_LIMIT).arg("--format=sysv").arg(&agent).text()?;
    Ok((figure, table(&by_owner(&listing), unwinding(&sections), size)))
}

/// Bytes by owner, from what `nm --print-size --demangle` lists. What takes no room in the file is left out; names for the same place count once.
fn by_owner(listing: &str) -> BTreeMap<String, u64> {
    let mut sizes = BTreeMap::new();
    let mut seen = std::collections::BTreeSet::new();
    for line in listing.lines() {
        let mut fields = line.splitn(4, ' ');
        let (Some(address), Some(size), Some(kind), Some(name)) = (fields.next(), fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let Ok(size) = u64::from_str_radix(size, 16) else { continue };
        if !matches!(kind, "b" | "B") && seen.insert(address.to_owned()) {
            *sizes.entry(owner(name)).or_insert(0) += size;
        }
    }
    sizes
}

/// Whose a symbol is: a Rust path begins with its crate, or with the type that a trait is implemented for.
fn owner(name: &str) -> String {
    if let Some((_, whose)) = C_CODE.iter().find(|(begin, _)| name.starts_with(begin)) {
        return (*whose).to_owned();
    }
    if !name.contains("::") {
        return LIBC.to_owned();
    }
    // «<&mut T as a::B>::c» belongs to the crate of the first path in it.
    let (before, _) = name.split_once("::").unwrap_or((name, ""));
    let krate = before
        .rsplit(|letter: char| !letter.is_alphanumeric() && letter != '_')
        .next()
        .unwrap_or(before);
    match krate {
        "core" | "alloc" | "std" | "gimli" | "addr2line" | "miniz_oxide" | "object" | "rustc_demangle" | "hashbrown" | "memchr"
        | "__rustc" | "" => "Rust's standard library".to_owned(),
        name => name.to_owned(),
    }
}

/// Bytes of the tables that nobody uses under `panic = "abort"` but backtraces, from what `size --format=sysv` lists.
fn unwinding(sections: &str) -> u64 {
    let rows = sections.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| matches!(row.first(), Some(&(".eh_frame" | ".eh_frame_hdr" | ".gcc_except_table"))))
        .filter_map(|row| row.get(1)?.parse::<u64>().ok())
        .sum()
}

fn table(sizes: &BTreeMap<String, u64>, unwinding: u64, file: u64) -> String {
    let mut rows: Vec<(&str, u64)> = sizes.iter().map(|(name, size)| (name.as_str(), *size)).collect();
    rows.sort_by_key(|(name, size)| (std::cmp::Reverse(*size), *name));
    let named: u64 = rows.iter().map(|(_, size)| size).sum();
    let (large, small): (Vec<_>, Vec<_>) = rows.into_iter().partition(|(_, size)| *size >= LEAST_ROW);
    let mut text = "bytes of code and data, by crate:\n".to_owned();
    let rest = small.iter().map(|(_, size)| size).sum();
    let others = format!("{} others", small.len());
    for (name, size) in large.into_iter().chain([
        (others.as_str(), rest),
        ("all symbols", named),
        ("unwind tables", unwinding),
        ("strings and padding", file.saturating_sub(named + unwinding)),
        ("the file", file),
    ]) {
        // Writing to a String cannot fail.
        if writeln!(text, "{size:>10}  {name}").is_err() {
            break;
        }
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn a_symbol_belongs_to_its_crate() {
        for (name, whose) in [
            ("freshroot::boot::acquire::Acquire::next", "freshroot"),
            ("<freshroot::digest::Digest as core::fmt::Display>::fmt", "freshroot"),
            ("<&mut ureq::body::Body as std::io::Read>::read", "ureq"),
            ("<[rustls::x::Y] as alloc::Z>::f", "rustls"),
            ("core::fmt::write", "Rust's standard library"),
            ("<str as core::fmt::Debug>::fmt", "Rust's standard library"),
            ("gimli::read::unit::parse", "Rust's standard library"),
            ("ring_core_0_17_14__sha512_block_data_order_avx", "ring, C and assembly"),
            ("ZSTD_decompressBlock_internal", "zstd, C and assembly"),
            ("getaddrinfo", LIBC),
        ] {
            assert_eq!(owner(name), whose, "{name}");
        }
    }

    #[test]
    fn the_table_adds_up_and_counts_folded_functions_once() {
        let listing = "0000000000000100 0000000000002000 T freshroot::main\n\
                       0000000000000100 0000000000002000 T ureq::same\n\
                       0000000000000300 0000000000000010 r tiny\n\
                       0000000000000400 0000000000009000 b std::zeroes\nnonsense\n";
        let sizes = by_owner(listing);
        assert_eq!(sizes.values().sum::<u64>(), 0x2010);
        let sections = "agent  :\nsection  size  addr\n.text 8192 4096\n.eh_frame_hdr 92 8\n.eh_frame 700 100\nTotal 9000\n";
        let text = table(&sizes, unwinding(sections), 10_000);
        for row in [
            "      8192  freshroot",
            "        16  1 others",
            "      8208  all symbols",
            "       792  unwind tables",
            "      1000  strings and padding",
            "     10000  the file",
        ] {
            assert!(text.contains(row), "{text}");
        }
    }
}
