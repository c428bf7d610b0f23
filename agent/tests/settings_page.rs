//! `docs/settings.md` says what the table of settings says.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use freshroot::settings::doc::page;

#[test]
fn the_page_of_settings_is_fresh() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/settings.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap();
    let fresh = page();
    if let Some((at, (found, fresh))) = found.lines().zip(fresh.lines()).enumerate().find(|(_, (a, b))| a != b) {
        panic!(
            "docs/settings.md is stale at line {}; UPDATE_DOCS=1 writes it anew\n found {found}\n fresh {fresh}",
            at + 1
        );
    }
    assert_eq!(
        found.len(),
        fresh.len(),
        "docs/settings.md is stale at its end; UPDATE_DOCS=1 writes it anew"
    );
}
