# The system that the demo and the VM tests boot. 10.0.2.2 is the host of QEMU's user network.
{ lib, ... }:
{
  boot.freshroot = {
    enable = true;
    url = lib.mkDefault "http://10.0.2.2:8080";
    # What the sandbox publishes is unsigned.
    allowUnsigned = lib.mkDefault true;
    cache = {
      device = "LABEL=freshroot-cache";
      fsType = "ext4";
    };
    image.compressionLevel = 3;
    onFailure.delay = "1s";
  };
  boot.initrd.systemd.enable = true;
  boot.initrd.availableKernelModules = [
    "virtio_pci"
    "virtio_blk"
    "virtio_net"
  ];
  boot.kernelParams = [ "console=ttyS0" ];
  services.getty.autologinUser = "root";
  networking.hostName = "guest";
  system.stateVersion = lib.trivial.release;
}
