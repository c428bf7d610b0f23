//! Looking whether the last partition of a disk may grow: read-only, and with an exclusive hold on the disk from here to the last write.

use std::fs::File;
use std::path::Path;

use anyhow::Context as _;
use rustix::fs::{Advice, OFlags, fadvise};

use crate::device::observe::BlockDevice;
use crate::device::probe::{Kind, signatures};

use super::blank::{Area, Bytes, Refusal, areas, check_of, scan, total, unfit};
use super::declaration::Declared;
use super::grow::{Growth, growth};
use super::identity::Known;
use super::layout::{ALIGNMENT, Geometry};
use super::look::{GROWN, Intent, Part, first_look, hold, open, patience};
use super::marks::marks;
use super::sysfs::{sector, uses};

/// What a person can do about a partition that is not grown.
const NOT_GROWN: &str = "grow it by hand (growpart, then the file system's own program), or remove grow";

/// How the last partition of a prepared disk is grown, and the disk held for it; none: it has all that there is.
///
/// # Errors
/// [`Refusal`]: it is to be left as it is.
pub fn look_growth(root: &Path, declared: &Declared, known: &Known, intent: Intent) -> Result<Option<(Growth, File)>, Refusal> {
    let refuse = |reasons: Vec<String>| Refusal {
        name: declared.name.clone(),
        disk: known.shown(),
        undone: GROWN,
        reasons,
        remedy: NOT_GROWN,
    };
    let failed = |error: anyhow::Error| refuse(vec![format!("{error:#}")]);
    let disk = &known.disk;
    let label = declared.partitions.last().map(|last| last.label.as_str()).unwrap_or_default();
    let geometry = Geometry {
        size: disk.size,
        sector: sector(root, &disk.name).map_err(failed)?,
    };
    if !first_look(root, declared, disk, geometry).map_err(failed)?.prepared {
        return Err(refuse(vec!["it has no GPT with the declared partitions".to_owned()]));
    }
    let seen = |file: &File| growth(file, geometry, label).map_err(|reason| refuse(vec![reason]));
    // Without a hold: a disk that has nothing to grow may be in use, as it should be.
    let file = open(root, disk, OFlags::empty(), Intent::Look).map_err(failed)?;
    if seen(&file)?.is_none() {
        return Ok(None);
    }
    let mut uses = uses(root, disk).map_err(failed)?;
    uses.partitions.clear();
    let reasons = unfit(declared, disk, &uses);
    if !reasons.is_empty() {
        return Err(refuse(reasons));
    }
    let file = hold(root, disk, intent).map_err(failed)?;
    let forget = || {
        fadvise(&file, 0, None, Advice::DontNeed)
            .context("having the disk read anew")
            .map_err(failed)
    };
    forget()?;
    let Some(growth) = seen(&file)? else { return Ok(None) };
    // One that was begun is only completed: its partition has its new size already.
    if growth.to > growth.from {
        let reasons = not_growable(&file, declared, disk, &growth);
        if !reasons.is_empty() {
            return Err(refuse(reasons));
        }
        // That may have taken a while, and what was read of a large disk is not to stay in memory.
        forget()?;
        if seen(&file)?.as_ref() != Some(&growth) {
            return Err(refuse(vec!["it was written to since the first look".to_owned()]));
        }
    }
    Ok(Some((growth, file)))
}

/// Why a partition is not to be grown: what is on it does not grow, or what lies behind it is not free.
fn not_growable(disk: &File, declared: &Declared, device: &BlockDevice, growth: &Growth) -> Vec<String> {
    let part = Part {
        disk,
        start: growth.start,
        length: growth.from,
    };
    let looked = signatures(&part, growth.from).and_then(|found| Ok((found, marks(&part, growth.from)?)));
    let (found, mut marks) = match looked {
        Ok(looked) => looked,
        Err(error) => return vec![format!("{} cannot be read: {error}", growth.label)],
    };
    // What is kept at the end of a device is not found there any more once it is larger: DRBD, arrays. What stands at the beginning, the probe tells better.
    marks.retain(|mark| mark.offset >= growth.from.saturating_sub(ALIGNMENT));
    let grows = matches!(found.as_slice(), [one] if matches!(one.kind, Kind::Ext4 | Kind::Xfs | Kind::Btrfs | Kind::Luks));
    if !grows || !marks.is_empty() {
        let found = found.iter().map(ToString::to_string).chain(marks.iter().map(ToString::to_string));
        let found: Vec<String> = found.collect();
        let found = if found.is_empty() {
            "nothing that is known".to_owned()
        } else {
            found.join(", ")
        };
        return vec![format!(
            "{} holds {found}: only ext4, xfs and btrfs grow, also in a LUKS container",
            growth.label
        )];
    }
    let shown = device.path.display();
    for free in &growth.free {
        let areas: Vec<Area> = areas(free.length, check_of(declared, free.length))
            .into_iter()
            .map(|area| Area {
                offset: free.offset + area.offset,
                ..area
            })
            .collect();
        match scan(disk, &areas, &mut patience(&format!("what {shown} has free"), total(&areas))) {
            Bytes::Zero => {}
            Bytes::NotZero(at) => return vec![format!("the byte at {at}, behind {}, is not zero", growth.label)],
            Bytes::Unreadable(at, why) => return vec![format!("it cannot be read at {at}: {why}")],
        }
    }
    Vec::new()
}
