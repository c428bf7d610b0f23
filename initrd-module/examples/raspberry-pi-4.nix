# A Raspberry Pi 4 by UEFI netboot: firmware, then iPXE, then this. Its clock begins in 1970, and its SD card is slow: the cache's limits say so.
{ pkgs, ... }:
{
  imports = [ ../. ];

  boot.freshroot = {
    enable = true;
    mode = "standalone";
    url = "http://images.lan/freshroot";
    channel = "raspberry-pi-4";
    trustedPublicKeys = [ "lab-1:jVfuRsCOrnFIIQdQgwUVUEyB/PSpZ8ld6DIS5hxiKv4=" ];
    cache = {
      device = "LABEL=FRCACHE";
      fsType = "ext4";
      # SD cards take their time to appear.
      wait = "40s";
    };
    initrd.availableKernelModules = [
      "bcmgenet"
      "broadcom"
      "mdio_bcm_unimac"
      "pcie_brcmstb"
      "sdhci_iproc"
    ];
    image.servedUrl = "http://images.lan/freshroot";
    # In reality: an unpacked release of https://github.com/pftf/RPi4.
    raspberryPi4.firmware = pkgs.emptyDirectory;
  };

  boot.kernelParams = [ "console=ttyS0,115200" ];
  networking.hostName = "raspberry-pi-4";
  nixpkgs.hostPlatform = "aarch64-linux";
  system.stateVersion = "26.05";
}
