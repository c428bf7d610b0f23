//! Handing a module to the kernel.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::io::Errno;
use rustix::system::{finit_module, init_module};

/// Larger than any module when decompressed: the largest that are shipped, drivers of graphics cards, have some 100 MiB.
const LARGEST: u64 = 256 * 1024 * 1024;

/// The most memory that an xz file may ask for, in KiB: 64 MiB of dictionary is what `xz -9` wants, the kernel's build takes 1 MiB.
const DICTIONARY_KIB: u32 = 80 * 1024;

/// The kernel decompresses by itself (Linux 5.17, `include/uapi/linux/module.h`).
const MODULE_INIT_COMPRESSED_FILE: i32 = 4;

/// Something that modules are inserted into: the kernel, or a list in a test.
pub trait Insert {
    /// Inserts the module in `file` with its parameters.
    ///
    /// # Errors
    /// The kernel's refusal with its errno, or what was wrong with the file. `EEXIST` says that it is loaded already.
    fn insert(&mut self, file: &Path, parameters: &CStr) -> io::Result<()>;
}

/// The running kernel.
#[derive(Debug, Default)]
pub struct Kernel {
    xz: Decompressor,
    zstd: Decompressor,
}

/// Who decompresses files of one kind.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Decompressor {
    /// Not tried yet.
    #[default]
    Unknown,
    /// The kernel has done it.
    Kernel,
    /// The kernel cannot, we have done it.
    Here,
}

/// Decompresses a file into memory.
type Unpack = fn(File) -> io::Result<Vec<u8>>;

impl Insert for Kernel {
    fn insert(&mut self, path: &Path, parameters: &CStr) -> io::Result<()> {
        let file = File::open(path)?;
        let (decompressor, unpack): (_, Unpack) = match path.extension().and_then(|ending| ending.to_str()) {
            Some("xz") => (&mut self.xz, unpack_xz),
            Some("zst") => (&mut self.zstd, unpack_zstd),
            Some(_) | None => return Ok(finit_module(file, parameters, 0)?),
        };
        if *decompressor != Decompressor::Here {
            match finit_module(&file, parameters, MODULE_INIT_COMPRESSED_FILE) {
                Ok(()) => {
                    *decompressor = Decompressor::Kernel;
                    return Ok(());
                }
                // Where it has done it before, this is the module's own answer.
                Err(error) if *decompressor == Decompressor::Kernel || !means_cannot(error) => return Err(error.into()),
                Err(_) => {}
            }
        }
        let image = unpack(file)?;
        init_module(&image, parameters)?;
        *decompressor = Decompressor::Here;
        Ok(())
    }
}

/// Whether the kernel says by this that it cannot decompress the file: `EINVAL` before 5.17, and from one that is built for the other
/// compression; `EOPNOTSUPP` from one without `CONFIG_MODULE_DECOMPRESS`; `ENOSYS` from one without `finit_module`. A module's own `EINVAL` looks
/// the same; it then gets a second chance, and answers again.
fn means_cannot(error: Errno) -> bool {
    [Errno::INVAL, Errno::OPNOTSUPP, Errno::NOSYS].contains(&error)
}

fn unpack_xz(file: impl Read) -> io::Result<Vec<u8>> {
    bounded(lzma_rust2::XzReader::new_mem_limit(file, false, DICTIONARY_KIB))
}

fn unpack_zstd(file: impl Read) -> io::Result<Vec<u8>> {
    bounded(zstd::stream::read::Decoder::new(file)?)
}

fn bounded(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut image = Vec::new();
    reader.take(LARGEST + 1).read_to_end(&mut image)?;
    if image.len() as u64 > LARGEST {
        return Err(io::Error::other(format!("more than {} MiB when decompressed", LARGEST >> 20)));
    }
    Ok(image)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use std::process::{Command, Stdio};

    /// What the command makes of `input`.
    fn filtered(command: &str, input: &[u8]) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("module"), input).unwrap();
        let file = File::open(folder.path().join("module")).unwrap();
        let output = Command::new("sh").args(["-c", command]).stdin(Stdio::from(file)).output().unwrap();
        assert!(output.status.success(), "this test needs «{command}» to work");
        output.stdout
    }

    fn module() -> Vec<u8> {
        (0..3_000_000_u32)
            .map(|index| (index.wrapping_mul(index >> 7) >> 11).to_le_bytes()[0])
            .collect()
    }

    #[test]
    fn modules_are_decompressed_as_the_kernels_build_compresses_them() {
        // scripts/Makefile.modinst; and nixpkgs' way, which is the plain xz.
        for command in ["xz --check=crc32 --lzma2=dict=1MiB", "xz -6", "xz --threads=2 --block-size=1MiB"] {
            assert!(unpack_xz(&filtered(command, &module())[..]).unwrap() == module(), "{command}");
        }
        for command in ["zstd -q -T0", "zstd -q -19", "zstd -q --ultra -22 --long=27"] {
            assert!(unpack_zstd(&filtered(command, &module())[..]).unwrap() == module(), "{command}");
        }
    }

    #[test]
    fn a_damaged_or_cut_file_is_an_error() {
        for (command, unpack) in [
            ("xz", (|bytes| unpack_xz(bytes)) as fn(&[u8]) -> io::Result<Vec<u8>>),
            ("zstd -q --check", |bytes| unpack_zstd(bytes)),
        ] {
            let packed = filtered(command, &module());
            assert!(unpack(&packed[..packed.len() / 2]).is_err(), "{command}, cut");
            let mut damaged = packed.clone();
            damaged[packed.len() / 2] ^= 0x55;
            assert!(unpack(&damaged).is_err(), "{command}, damaged");
            assert!(unpack(b"not compressed").is_err());
        }
    }

    #[test]
    fn what_unpacks_to_more_than_any_module_is_refused() {
        let bomb = filtered("head -c 300M /dev/zero | zstd -q", b"");
        assert!(unpack_zstd(&bomb[..]).unwrap_err().to_string().contains("256 MiB"));
    }

    #[test]
    fn only_answers_that_mean_so_lead_to_decompressing_here() {
        let cases = [
            (Errno::INVAL, true),
            (Errno::OPNOTSUPP, true),
            (Errno::NOSYS, true),
            (Errno::EXIST, false),
            (Errno::PERM, false),
            (Errno::NOEXEC, false),
        ];
        for (error, here) in cases {
            assert_eq!(means_cannot(error), here, "{error}");
        }
    }
}
