//! The texts of `--help`.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

/// `freshroot-publish --help`.
pub const MAIN: &str = "\
freshroot-publish: publishes NixOS store images for freshroot

Usage: freshroot-publish COMMAND [ARGUMENTS]

Commands:
  keygen   make a key pair
  image    publish a squashfs image
  closure  make an image of a store closure and publish it
  sign     sign what was published without a signature
  rotate   replace the keys that have signed what was published
  hosts    say which machine boots which channel
  serve    serve a published folder over HTTP, for a lab or a test

«freshroot-publish COMMAND --help» says more. The manual: freshroot-publish(1).

Options:
  -h, --help     this text
  -V, --version  the version
";

/// `keygen --help`.
pub const KEYGEN: &str = "\
Makes an Ed25519 key pair in Nix's format and prints the public key. Never overwrites a file.

Usage: freshroot-publish keygen NAME --out FOLDER|FILE

  --out FOLDER  gets NAME.secret (mode 0600) and NAME.pub
  --out FILE    the secret key; FILE.pub is the public one

Keys made by «nix key generate-secret» do as well.

Example:
  freshroot-publish keygen lab-1 --out /root/keys
";

/// `image --help`.
pub const IMAGE: &str = "\
Publishes a squashfs image of store paths.

Usage: freshroot-publish image FILE --out FOLDER (--key FILE… | --unsigned) [OPTIONS]

  --out FOLDER             the served folder; made if it is not there
  --key FILE               sign with this secret key; may be repeated
  --unsigned               do not sign (see «sign»)
  --kernel FILE            with --initrd: what iPXE and kexec load
  --initrd FILE
  --channel NAME           publish under this name (default: «default»)
  --serial N               the channel's serial (default: the last one + 1)
  --not-after WHEN         machines that do not have it yet refuse it after WHEN: a date (2027-01-31), a time
                           (2027-01-31T12:00:00Z) or a duration from now (30d)
  --system NAME=TOPLEVEL   publish this system of the image; may be repeated, the first is the default
                           one (default: all)
  --kernel-params TEXT     for the command lines of the boot scripts
  --url URL                where the folder will be served (default: boot scripts find files beside themselves)
  --channel-mode           the boot script of the channel names the channel, not its default system: machines
                           ask at each boot

Publishing the same again changes nothing and keeps the serial. The first channel with a kernel is what machines boot that nothing
else is said of (netboot.ipxe, pixiecore.json, kexec-boot): see «hosts».

Examples:
  freshroot-publish image store.squashfs --out /srv/freshroot --key lab-1.secret
  freshroot-publish image store.squashfs --out /srv/freshroot --key lab-1.secret --channel lab \\
    --kernel bzImage --initrd initrd --kernel-params 'console=ttyS0 panic=30' --not-after 90d
";

/// `closure --help`.
pub const CLOSURE: &str = "\
Makes a squashfs image of store paths with NixOS's flags, its data in an order that keeps updates small, and publishes it.

Usage: freshroot-publish closure STOREPATH… --out FOLDER (--key FILE… | --unsigned) [OPTIONS]

  --registration FILE  the closure, as «nix-store --dump-db» and nixpkgs' closureInfo write it (default: nix-store is asked)
  --store FOLDER       where the store paths are read (default: /nix/store)
  --level N            zstd's level, 1 to 22 (default: 19)

and all options of «image».

Examples:
  freshroot-publish closure /run/current-system --out /srv/freshroot --key lab-1.secret
  freshroot-publish closure /nix/store/…-nixos-system-lab --registration registration --out served --unsigned
";

/// `sign --help`.
pub const SIGN: &str = "\
Signs every answer of a published folder, for instance of one that was made in the Nix sandbox. A signature by a key of the same
name is replaced, others stay.

Usage: freshroot-publish sign FOLDER --key FILE…

Example:
  cp -r --no-preserve=mode result /srv/freshroot && freshroot-publish sign /srv/freshroot --key lab-1.secret
";

/// `rotate --help`.
pub const ROTATE: &str = "\
Signs every answer of a published folder with new keys, beside the old ones or in their place. Serial and date of what is published stay,
so that machines take the signature over and fetch nothing. An answer that none of the keys has signed is refused, and nothing is changed then.

Usage: freshroot-publish rotate FOLDER --key FILE… --old-public KEY… [--drop-old] [--dry-run]

  --key FILE        a new secret key; may be repeated
  --old-public KEY  a public key that machines trust today, or its file; may be repeated
  --drop-old        remove the signatures of the old keys: machines that trust these alone take nothing any more
  --dry-run         only say what there is to do

The order in which machines and folder are changed stands in publishing.md, «Replacing a key».

Examples:
  freshroot-publish rotate /srv/freshroot --key lab-2.secret --old-public lab-1.pub --dry-run
  freshroot-publish rotate /srv/freshroot --key lab-2.secret --old-public lab-1.pub
  freshroot-publish rotate /srv/freshroot --key lab-2.secret --old-public lab-1.pub --drop-old
";

/// `hosts --help`.
pub const HOSTS: &str = "\
Keeps the table of machines of a published folder: hosts.json, netboot/by-mac/ for iPXE, and the channel of all other machines
(netboot.ipxe, pixiecore.json, kexec-boot). Prints the table; without changes it only makes anew what is missing.

Usage: freshroot-publish hosts FOLDER [MACHINE=CHANNEL…] [OPTIONS]

  MACHINE            a MAC address (00:1f:29:12:34:56), a UUID or a serial number; iPXE and Pixiecore go by MAC addresses
  --remove MACHINE   forget it; may be repeated
  --default CHANNEL  what machines boot that are not named (at first: the channel that was published first)
  --url URL          with --default: where the folder is served (default: netboot.ipxe finds files beside itself)

A channel must have been published with --kernel and --initrd.

Examples:
  freshroot-publish hosts /srv/freshroot 00:1f:29:12:34:56=lab 00:1f:29:12:34:57=prod
  freshroot-publish hosts /srv/freshroot --remove 00:1f:29:12:34:56 --default prod
";

/// `serve --help`.
pub const SERVE: &str = "\
Serves a folder over HTTP, with ranges and entity tags. The first line on stdout says where. A line on stderr for each request,
when its response has ended: client, method, path, status, bytes of the body that were sent, range or -, milliseconds.

It is an API server for Pixiecore too («pixiecore api http://server:8080»): /v1/boot/MAC is answered by hosts.json, or with the default
channel where there is no hosts.json. A machine that is not in hosts.json gets 404, and is then left alone.

Usage: freshroot-publish serve FOLDER [OPTIONS]

  --listen ADDRESS:PORT  where to listen (default: 127.0.0.1:8080; port 0: any free one)
  --port-file FILE       write the port there
  --rate BYTES           at most so many bytes a second over all connections; k, M and G are 10^3, 10^6 and 10^9
  --url URL              what the URLs in Pixiecore's answers begin with (default: http:// and the host that the request names)

Examples:
  freshroot-publish serve /srv/freshroot --listen 0.0.0.0:8080
  freshroot-publish serve /srv/freshroot --listen '[::1]:0' --port-file port --rate 750k
";
