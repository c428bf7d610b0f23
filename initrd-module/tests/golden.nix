# What lib.nix makes of fixed arguments: file name → text. The expected texts are in golden/.
let
  fresh = import ../lib.nix;
  toplevel = "/nix/store/${
    builtins.substring 0 32 "0123456789abcdfghijklmnpqrsvwxyz"
  }-nixos-system-demo-26.05";
  persist = {
    device = null;
    source = null;
    fsType = "auto";
    options = [ "defaults" ];
    depends = [ ];
    need = "required";
    timeout = 30;
    create = null;
    services = [ ];
  };
  data = persist // {
    device = "/dev/disk/by-partlabel/my data";
    fsType = "xfs";
    options = [ "noatime" ];
    timeout = 120;
  };
  ssh = persist // {
    source = "/data/ssh";
    create = {
      mode = "0700";
      uid = 0;
      gid = 0;
    };
  };
  scratch = persist // {
    device = "LABEL=scratch";
    need = "optional";
  };
  at = mountPoint: entry: fresh.persistFileSystem entry // { inherit mountPoint; };
  entries = [
    {
      mountPoint = "/";
      device = "tmpfs";
      fsType = "tmpfs";
      options = [
        "mode=0755"
        "size=50%"
      ];
      depends = [ ];
    }
    (at "/data" data)
    (at "/etc/ssh" ssh)
    (at "/scratch" scratch)
  ];
  extras = {
    "/data" = data;
    "/etc/ssh" = ssh;
    "/scratch" = scratch;
  };
  homestakeros = fresh.persistOfHomestakerOS {
    chain = {
      enable = true;
      description = "chain";
      what = "/dev/disk/by-label/chain";
      where = "/mnt/chain";
      type = "btrfs";
      options = "noatime,subvol=/chain";
      wantedBy = [ "multi-user.target" ];
      before = [
        "erigon.service"
        "multi-user.target"
      ];
    };
    plain = {
      what = "/dev/sdb1";
      where = "/mnt/plain";
    };
    off = {
      enable = false;
      what = "/dev/sdc1";
      where = "/mnt/off";
    };
  };
  units = import ../units.nix;
in
{
  "config-minimal.json" = fresh.configJson (
    fresh.settingsOf {
      url = "http://images.lan/freshroot";
      channel = null;
      policy.mode = null;
      cache.device = "PARTLABEL=freshroot-cache";
      # Options that are no settings are not rendered.
      package = "x";
      onFailure.deadline = "30min";
    }
  );
  "config-full.json" = fresh.configJson (
    fresh.settingsOf {
      url = [
        "https://a.example/f"
        "http://[2001:db8::1]:8080/f"
      ];
      allowUnsigned = false;
      cache.options = [ ];
      cache.keep = 3;
      network.by = "system";
      commandLineMay = [ "allowUnsigned" ];
    }
    // {
      kernel.storeName = "x-linux-6.18";
      fileSystems = fresh.agentFileSystems entries extras;
    }
  );
  "fstab-initrd" = fresh.initrdFstab {
    inherit entries extras;
    owned = [ "/etc/ssh" ];
  };
  "cmdline-system" = fresh.commandLine { system = toplevel; } [ "console=ttyS0" ];
  "cmdline-channel" = fresh.commandLine {
    channel = "lab";
    "media.device" = "LABEL=FRESH ROOT";
  } [ ];
  "cmdline-iso" = fresh.isoCommandLine { system = toplevel; } [ "root=fstab" ];
  "netboot.ipxe" = fresh.ipxeEntry {
    channel = "lab";
    url = "http://images.lan/freshroot";
  };
  "netboot-beside.ipxe" = fresh.ipxeEntry { channel = "lab"; };
  "by-mac-${fresh.macName "00:1F:29:12:34:56"}.ipxe" = fresh.ipxeByMac "lab";
  "hosts.json" = fresh.hostsJson {
    "00:1F:29:12:34:56" = "lab";
    "4C4C4544-0042" = "prod";
  };
  "pixiecore.json" = fresh.pixiecoreAnswer {
    url = "http://images.lan/freshroot";
    kernel = "aa";
    initrd = "bb";
    cmdline = fresh.commandLine { system = toplevel; } [ "quiet" ];
  };
  "persist-homestakeros.json" = builtins.toJSON homestakeros;
  "persist-check.service" = fresh.unitText (
    fresh.checkUnit {
      agent = "/bin/freshroot";
      mountPoint = "/mnt/my data 100%";
    }
  );
  "unlock-limits.json" =
    let
      on = device: limit: {
        inherit device;
        options = [
          "nofail"
          "x-systemd.device-timeout=${limit}"
        ];
      };
    in
    builtins.toJSON (
      fresh.unlockLimits
        [
          "two-mounts"
          "for-ever"
          "unmounted"
        ]
        [
          (on "/dev/mapper/two-mounts" "30s")
          (on "/dev/mapper/two-mounts" "2min")
          (on "/dev/mapper/for-ever" "30")
          (on "/dev/mapper/for-ever" "infinity")
          (on "LABEL=unmounted" "30s")
          { device = null; }
        ]
    );
  "names" = builtins.concatStringsSep "\n" [
    (fresh.escapePath "/")
    (fresh.escapePath "/.hidden//a-b/c_d")
    (fresh.mountUnit "/nix/.ro-store")
    (fresh.sysrootMountUnit "/")
    (fresh.sysrootMountUnit "/var/lib")
    (fresh.deviceUnit "PARTLABEL=my cache")
    (fresh.deviceUnit "/dev/mapper/vg0-data")
    (builtins.concatStringsSep " " (fresh.luksUnits [ "crypt-a" ] "/dev/mapper/crypt-a"))
    (fresh.kebab "onFailure.maxDelay")
    ""
  ];
}
// (
  let
    some = units {
      devices = [
        "PARTLABEL=freshroot-cache"
        "/dev/mapper/crypt"
      ];
      mounts = [ "/data" ];
      luks = [ "crypt" ];
      disks = {
        main = {
          size.max = "1100G";
          prepare = true;
          partitions = [ ];
        };
        left = {
          size.max = 1;
          partitions = [ ];
        };
        grown = {
          size.max = "64GiB";
          grow = true;
          partitions = [ ];
        };
      };
    };
    flat =
      prefix: set:
      builtins.listToAttrs (
        map (name: {
          name = prefix + builtins.replaceStrings [ "/" ] [ "-" ] name;
          value = set.${name};
        }) (builtins.attrNames set)
      );
  in
  flat "" some
  // {
    "freshroot.service-nixos-init" = (units { nixosInit = true; })."freshroot.service";
  }
)
