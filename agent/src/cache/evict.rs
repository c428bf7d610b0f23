//! What is removed when the cache has no room for another image. Pure.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::digest::Digest;

/// Something that takes room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tenant {
    /// A generation and its image: `image` is none if another generation keeps it.
    Generation {
        /// Its manifest.
        manifest: Digest,
        /// The image that goes with it.
        image: Option<Digest>,
        /// Its order on this machine.
        sequence: u64,
        /// Whether it has to stay: running, blessed, or the one that boots if all else fails.
        protected: bool,
    },
    /// A file that no generation names: an image or a partial image of something that is not wanted any more, or what was put into quarantine.
    Orphan(std::path::PathBuf),
}

/// A tenant and the bytes that it takes.
pub type Room = (Tenant, u64);

/// Which tenants go so that `needed` bytes fit where `free` are free, at least `keep` generations staying where there are so many.
///
/// # Errors
/// The bytes that would be free if everything went that may go: not enough.
pub fn evict(tenants: &[Room], needed: u64, free: u64, keep: usize) -> Result<Vec<Tenant>, u64> {
    // What takes no room frees none, and is no generation that could boot: its image is missing, or counted with another one.
    let tenants: Vec<&Room> = tenants.iter().filter(|(_, bytes)| *bytes > 0).collect();
    let generations = tenants
        .iter()
        .filter(|(tenant, _)| matches!(tenant, Tenant::Generation { .. }))
        .count();
    let mut may_go = generations.saturating_sub(keep);
    let mut order = tenants;
    // Orphans first, then the oldest.
    order.sort_by_key(|(tenant, _)| match tenant {
        Tenant::Orphan(_) => 0,
        Tenant::Generation { sequence, .. } => sequence.saturating_add(1),
    });
    let (mut gone, mut room) = (Vec::new(), free);
    for (tenant, bytes) in order {
        if room >= needed {
            break;
        }
        match tenant {
            Tenant::Orphan(_) => {}
            Tenant::Generation { protected: true, .. } => continue,
            Tenant::Generation { protected: false, .. } if may_go == 0 => continue,
            Tenant::Generation { protected: false, .. } => may_go -= 1,
        }
        gone.push(tenant.clone());
        room = room.saturating_add(*bytes);
    }
    if room >= needed { Ok(gone) } else { Err(room) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn generation(sequence: u64, protected: bool) -> Tenant {
        Tenant::Generation {
            manifest: Digest::of(&[sequence as u8]),
            image: None,
            sequence,
            protected,
        }
    }

    fn orphan() -> Tenant {
        Tenant::Orphan("partial/x.part".into())
    }

    #[test]
    fn nothing_goes_while_there_is_room() {
        assert_eq!(evict(&[(orphan(), 10), (generation(1, false), 10)], 5, 5, 0).unwrap(), []);
    }

    #[test]
    fn orphans_go_first_then_the_oldest_that_is_not_protected() {
        let tenants = [
            (generation(3, false), 10),
            (generation(1, true), 10),
            (generation(2, false), 10),
            (orphan(), 10),
        ];
        assert_eq!(evict(&tenants, 10, 0, 1).unwrap(), [orphan()]);
        assert_eq!(evict(&tenants, 20, 0, 1).unwrap(), [orphan(), generation(2, false)]);
        assert_eq!(
            evict(&tenants, 30, 0, 1).unwrap(),
            [orphan(), generation(2, false), generation(3, false)]
        );
        assert_eq!(evict(&tenants, 31, 0, 1), Err(30), "the protected one stays");
    }

    #[test]
    fn a_generation_without_an_image_neither_counts_nor_goes() {
        // The new generation itself stands in the list, its image is still to come.
        let tenants = [(generation(3, true), 0), (generation(1, false), 0), (generation(2, false), 10)];
        assert_eq!(evict(&tenants, 10, 0, 1), Err(0));
        assert_eq!(evict(&tenants, 10, 0, 0).unwrap(), [generation(2, false)]);
    }

    #[test]
    fn as_many_generations_stay_as_are_to_be_kept() {
        let tenants = [(generation(1, false), 10), (generation(2, false), 10)];
        assert_eq!(evict(&tenants, 10, 0, 1).unwrap(), [generation(1, false)]);
        assert_eq!(evict(&tenants, 20, 0, 1), Err(10));
        assert_eq!(evict(&tenants, 10, 0, 2), Err(0));
    }
}
