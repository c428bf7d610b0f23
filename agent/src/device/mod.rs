//! Block devices: found by label, uuid, partlabel, partuuid or path, without udev.
