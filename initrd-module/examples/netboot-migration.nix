# From nixpkgs' installer/netboot/netboot.nix. Remove its import; netbootRamdisk and netbootIpxeScript become system.build.freshroot.served, and what
# stood in netboot.storeContents goes into image.extraPaths. Until a key is made, unsigned images can be tried, which every boot says aloud.
{ pkgs, ... }:
{
  imports = [ ../. ];

  boot.freshroot = {
    enable = true;
    url = "http://images.lan/freshroot";
    allowUnsigned = true;
    image.extraPaths = [ pkgs.hello ];
  };
  boot.initrd.systemd.enable = true;

  networking.hostName = "netboot";
  nixpkgs.hostPlatform = "x86_64-linux";
  system.stateVersion = "26.05";
}
