//! What the agent does at its next start, without a network: opens the cache, decides, verifies.

use std::path::Path;

use freshroot::boot::acquire::Acquire;
use freshroot::boot::cache_disk::open_cache;
use freshroot::candidates::RunningKernel;
use freshroot::digest::Digest;
use freshroot::mode::Mode;
use freshroot::report::Report;
use freshroot::select::select;
use freshroot::settings::Settings;
use freshroot::verify::BootImage;

use super::world::{World, key};

/// The manifest of what boots from this cache: an image that was verified as a whole.
///
/// # Errors
/// Why nothing does.
pub fn boots(folder: &Path) -> Result<Digest, String> {
    let config = format!(
        r#"{{"version": 1, "channel": "stable", "policy": {{"mode": "offline"}}, "trustedPublicKeys": ["{}"]}}"#,
        key().public()
    );
    let settings = Settings::from_sources(Some(("config.json", config.as_bytes())), b"").unwrap();
    let (wanted, _) = select(&settings, Mode::Standalone).unwrap();
    let kernel = RunningKernel {
        release: "6.6.1".to_owned(),
        store_name: None,
    };
    let mut report = Report::new("test");
    let cache = open_cache(folder).map_err(|error| format!("{error:#}"))?;
    let mut acquire = Acquire::new(Path::new("/"), &settings, &wanted, kernel, Some(cache), &mut report);
    let acquired = acquire
        .next(&mut report)
        .map_err(|failure| format!("{}; {}", failure.what, report.warnings.join("; ")))?;
    match acquired.image {
        BootImage::Verified(_) => Ok(acquired.known.authorised.digest()),
        BootImage::Unverified(_) => Err("it was not verified".to_owned()),
    }
}

/// Says which of two generations boots; anything else is a failure.
pub fn old_or_new(folder: &Path, old: &World, new: &World) -> Result<&'static str, String> {
    let booted = boots(folder)?;
    let digest = |world: &World| Digest::of(world.manifest.as_bytes());
    match booted {
        booted if booted == digest(old) => Ok("old"),
        booted if booted == digest(new) => Ok("new"),
        other => Err(format!("neither the old nor the new generation boots, but {other}")),
    }
}
