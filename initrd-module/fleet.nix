# One served folder for many hosts: fleet [ nixosConfiguration… ]. Each host's channel is its boot.freshroot.image.channel; hosts of one channel must be
# one system.
{
  lib,
  runCommand,
  writeText,
}:
hosts:
let
  fresh = import ./lib.nix;
  configOf = host: host.config;
  channelOf = host: (configOf host).boot.freshroot.image.channel;
  channels = map channelOf hosts;
  first = configOf (lib.head hosts);
  idsOf =
    host:
    lib.genAttrs (
      (configOf host).boot.freshroot.netboot.macAddresses ++ (configOf host).boot.freshroot.netboot.ids
    ) (_: channelOf host);
  allIds = lib.concatMap (host: lib.attrNames (idsOf host)) hosts;
in
assert lib.assertMsg (hosts != [ ]) "fleet: there are no hosts";
assert lib.assertMsg (lib.allUnique channels)
  "fleet: two hosts have the same boot.freshroot.image.channel (${toString channels}): give each its own";
assert lib.assertMsg (lib.allUnique (map fresh.toLower allIds))
  "fleet: a MAC address or id stands in two hosts' boot.freshroot.netboot (${toString allIds}): a machine follows one channel";
runCommand "freshroot-served"
  {
    __structuredAttrs = true;
    unsafeDiscardReferences.out = true;
    preferLocalBuild = true;
  }
  ''
    mkdir -p "$out/netboot/by-mac"
    ${lib.concatMapStrings (
      host:
      let
        served = (configOf host).system.build.freshroot.served;
      in
      ''
        # Same name, same bytes, wherever names are digests; netboot/ and channels/ are named by channel.
        cp -r --no-preserve=mode ${served}/. "$out/"
      ''
    ) hosts}
    # Each channel has its own in netboot/; without a name stand those of the first one, as netboot.ipxe has it.
    cp --no-preserve=mode ${first.system.build.freshroot.served}/pixiecore.json "$out/pixiecore.json"
    cp ${first.system.build.freshroot.served}/kexec-boot "$out/kexec-boot"
    chmod +x "$out/kexec-boot" "$out"/netboot/*.kexec-boot
    cp ${
      writeText "netboot.ipxe" (
        fresh.ipxeEntry {
          channel = channelOf (lib.head hosts);
          url = first.boot.freshroot.image.servedUrl;
        }
      )
    } "$out/netboot.ipxe"
    cp ${
      writeText "hosts.json" (fresh.hostsJson (lib.foldl' (all: host: all // idsOf host) { } hosts))
    } "$out/hosts.json"
  ''
