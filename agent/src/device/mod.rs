//! Block devices: found by label, uuid, partlabel, partuuid or path, without udev.
//!
//! [`name`] parses what a person wrote, [`probe`] and [`table`] say what a device holds, [`mod@observe`] reads all of them from sysfs and `/dev` (`links`: their names in `/dev/disk/by-id`),
//! [`resolve`] decides which one is meant, [`mountable`] whether it may be mounted, and [`find`] waits for it. Only `observe` and `find` touch the machine.

pub mod find;
mod links;
pub mod mountable;
pub mod name;
pub mod observe;
pub mod probe;
pub mod resolve;
pub mod table;

pub use find::{FindError, Progress, wait_for, wait_for_members};
pub use name::DeviceName;
pub use observe::{BlockDevice, Partition, observe};
pub use resolve::{Match, Members, members, resolve};
