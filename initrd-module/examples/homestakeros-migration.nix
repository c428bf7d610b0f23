# From HomestakerOS: its mounts.<name> as they are, become persistent mounts that are there before activation, and its kexecTree becomes
# system.build.freshroot.kexecTree (bzImage, initrd, kexec-boot, netboot.ipxe).
let
  fresh = import ../lib.nix;

  # As the web interface writes it.
  mounts = {
    ethereum = {
      enable = true;
      description = "Storage of the chain";
      what = "/dev/disk/by-label/ethereum";
      where = "/mnt/ethereum";
      type = "btrfs";
      options = "noatime,subvol=/ethereum";
      wantedBy = [ "multi-user.target" ];
      before = [
        "sops-nix.service"
        "multi-user.target"
      ];
    };
    unused = {
      enable = false;
      what = "/dev/disk/by-label/old";
      where = "/mnt/old";
    };
  };
in
{
  imports = [ ../. ];

  boot.freshroot = {
    enable = true;
    url = "http://images.lan/freshroot";
    channel = "homestakeros";
    trustedPublicKeys = [ "lab-1:jVfuRsCOrnFIIQdQgwUVUEyB/PSpZ8ld6DIS5hxiKv4=" ];
    cache.device = "LABEL=freshroot";
    persist = fresh.persistOfHomestakerOS mounts;
  };
  boot.initrd.systemd.enable = true;

  networking.hostName = "homestakeros";
  nixpkgs.hostPlatform = "x86_64-linux";
  system.stateVersion = "26.05";
}
