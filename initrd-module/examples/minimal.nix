# The least: a host that boots from a web server, and from its own disk when that is down.
{
  imports = [ ../. ];

  boot.freshroot = {
    enable = true;
    url = "http://images.lan/freshroot";
    channel = "minimal";
    trustedPublicKeys = [ "lab-1:jVfuRsCOrnFIIQdQgwUVUEyB/PSpZ8ld6DIS5hxiKv4=" ];
    cache = {
      device = "PARTLABEL=freshroot-cache";
      fsType = "ext4";
    };
  };
  boot.initrd.systemd.enable = true;

  networking.hostName = "minimal";
  nixpkgs.hostPlatform = "x86_64-linux";
  system.stateVersion = "26.05";
}
