//! A TUN device: a network interface whose packets a program reads and writes. The only file here that may hold `unsafe`: neither rustix nor nix wraps
//! the one ioctl that attaches to such a device, and crates for TUN bring an asynchronous runtime or generate bindings.
#![allow(unsafe_code, reason = "one ioctl, see above")]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::ioctl::{Setter, ioctl, opcode};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// `TUNSETIFF` of `linux/if_tun.h`.
const SET_INTERFACE: rustix::ioctl::Opcode = opcode::write::<i32>(b'T', 202);
/// `IFF_TUN | IFF_NO_PI`: IP packets, without a head of the device's own.
const FLAGS: u16 = 0x0001 | 0x1000;
/// `IFNAMSIZ`, with the zero at the end.
const NAME: usize = 16;

/// `struct ifreq` of `linux/if.h`: a name, and a union of which the flags are the first two bytes.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME],
    flags: u16,
    rest: [u8; 22],
}

/// Makes the device `name` in the network namespace that the file `namespace` stands for. It lives as long as the file that is returned. Reads and writes
/// do not wait.
pub fn open(namespace: &Path, name: &str) -> Result<File> {
    ensure!(!name.is_empty() && name.len() < NAME, "«{name}» is no name for an interface");
    // The namespace belongs to the thread, so a thread goes there.
    let opened = std::thread::scope(|scope| scope.spawn(|| open_there(namespace, name)).join());
    opened
        .map_err(|_| anyhow::anyhow!("the thread that makes the device {name} panicked"))?
        .with_context(|| format!("making the TUN device {name} in {}", namespace.display()))
}

fn open_there(namespace: &Path, name: &str) -> Result<File> {
    let namespace = File::open(namespace).context("opening the namespace")?;
    move_into_link_name_space(rustix::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network)).context("entering it")?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
        .open("/dev/net/tun")
        .context("opening /dev/net/tun (the kernel's module is tun)")?;
    let mut request = InterfaceRequest {
        name: [0; NAME],
        flags: FLAGS,
        rest: [0; 22],
    };
    for (place, byte) in request.name.iter_mut().zip(name.bytes()) {
        *place = byte;
    }
    // SAFETY: the opcode is that of TUNSETIFF, for which the kernel reads a `struct ifreq`; ours has its layout and its 40 bytes.
    let attached = unsafe { ioctl(&file, Setter::<SET_INTERFACE, InterfaceRequest>::new(request)) };
    attached.context("attaching to it")?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_as_long_as_the_kernels() {
        assert_eq!(size_of::<InterfaceRequest>(), 40);
        assert_eq!(SET_INTERFACE, 0x4004_54ca);
    }
}
