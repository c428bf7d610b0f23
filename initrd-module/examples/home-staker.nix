# An Ethereum node: chain data and keys on an XFS on LVM, whose host keys decrypt secrets during activation. A validator never starts on an empty folder.
{
  imports = [ ../. ];

  boot.freshroot = {
    enable = true;
    url = [
      "https://images.example.org/homestaking"
      "http://192.0.2.10/homestaking"
    ];
    channel = "stable";
    trustedPublicKeys = [ "fleet-1:jVfuRsCOrnFIIQdQgwUVUEyB/PSpZ8ld6DIS5hxiKv4=" ];
    # Up at once after a power cut, also without the Internet; a newer image is fetched while the node is working.
    policy.mode = "cache-first";
    cache = {
      device = "/dev/mapper/vg0-cache";
      fsType = "xfs";
    };
    persist = {
      "/data" = {
        device = "/dev/mapper/vg0-data";
        fsType = "xfs";
        options = [ "noatime" ];
        # A slashing database that is not there must not be begun anew: without its disk the node stays down.
        need = "required";
        timeout = 120;
        services = [
          "lighthouse-validator.service"
          "erigon.service"
        ];
      };
      # sops-nix and agenix decrypt with the host's key during activation: it is in place before.
      "/etc/ssh" = {
        source = "/data/ssh";
        create.mode = "0700";
      };
      # Users keep their ids.
      "/var/lib/nixos".source = "/data/nixos";
    };
    bless.requires = [ "lighthouse-validator.service" ];
    onFailure = {
      action = "reboot";
      maxDelay = "30min";
    };
  };
  boot.initrd.systemd.enable = true;
  boot.initrd.services.lvm.enable = true;

  systemd.services = {
    lighthouse-validator = {
      wantedBy = [ "multi-user.target" ];
      serviceConfig.ExecStart = "/run/current-system/sw/bin/true";
    };
    erigon = {
      wantedBy = [ "multi-user.target" ];
      serviceConfig.ExecStart = "/run/current-system/sw/bin/true";
    };
  };

  networking.hostName = "home-staker";
  nixpkgs.hostPlatform = "x86_64-linux";
  system.stateVersion = "26.05";
}
