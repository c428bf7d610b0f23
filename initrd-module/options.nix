# The options. Those with the name of a setting in docs/settings.md are null where the agent's own default holds.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib)
    literalExpression
    mkEnableOption
    mkOption
    types
    ;
  cfg = config.boot.freshroot;

  # Forms as docs/settings.md has them. What passes here can still be refused by the agent; what is refused here never reaches a machine.
  matching =
    description: pattern:
    types.addCheck types.str (text: builtins.match pattern text != null) // { inherit description; };
  duration = matching "duration such as 30s, 5min or 1h30min" "([0-9]+(ms|sec|s|min|m|h|days|day|d|w)?)+";
  size = matching "size such as 512M or 2GiB, or 50% of the RAM" "[0-9]+([KMGT](iB)?)?|[1-9][0-9]?%|100%";
  bytes = types.either types.ints.unsigned (matching "number of bytes such as 512K or 2GiB" "[0-9]+([KMGT](iB)?)?");
  device = matching "LABEL=, UUID=, PARTLABEL=, PARTUUID= or a path below /dev" "(LABEL|UUID|PARTLABEL|PARTUUID)=[^/]+|/dev/.+";
  url = matching "http or https URL of a folder" "https?://[^ ?#]+";
  publicKey = matching "ed25519 key as name:base64" "[^: ]+:[A-Za-z0-9+/]{43}=";
  channelName = matching "1 to 64 letters, digits and ._-, no dot in front" "[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}";
  macAddress = matching "MAC address" "([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}";

  # A setting of the agent.
  setting =
    type: agentDefault: description:
    mkOption {
      type = types.nullOr type;
      default = null;
      description = description + lib.optionalString (agentDefault != null) " Null: ${agentDefault}.";
    };

  persistEntry =
    { name, config, ... }:
    {
      options = {
        enable = mkEnableOption "this entry" // {
          default = true;
        };
        mountPoint = mkOption {
          type = types.str;
          default = name;
          defaultText = literalExpression "<name>";
          description = "Where it is mounted.";
        };
        device = mkOption {
          type = types.nullOr types.str;
          default = null;
          example = "/dev/disk/by-partlabel/disk-main-state";
          description = ''
            The device. Not with {option}`source`. Null without that, too: the disk that {option}`fileSystems` has for this mount point, as disko declares it; its type and options stay.
          '';
        };
        source = mkOption {
          type = types.nullOr types.str;
          default = null;
          example = "/state/ssh";
          description = "A folder on another persistent file system that is bound to the mount point.";
        };
        how = mkOption {
          type = types.enum [
            "bind"
            "symlink"
          ];
          default = "bind";
          description = "How {option}`source` comes to the mount point. What a symlink leads to is made only where {option}`create` is set.";
        };
        fsType = mkOption {
          type = types.str;
          default = "auto";
          example = "xfs";
          description = "Type of the device's file system.";
        };
        options = mkOption {
          type = types.listOf types.str;
          default = [ "defaults" ];
          example = [ "noatime" ];
          description = "Mount options, as in fstab.";
        };
        depends = mkOption {
          type = types.listOf types.str;
          default = [ ];
          description = "Paths that must be mounted first.";
        };
        need = mkOption {
          type = types.enum [
            "required"
            "degraded"
            "optional"
          ];
          default = "required";
          description = ''
            What its absence means: the boot fails (`required`), goes on and is reported as degraded (`degraded`), or goes on (`optional`).
            The mount point is then an empty read-only tmpfs, so that nothing is written into RAM that was meant for a disk.
          '';
        };
        timeout = mkOption {
          type = types.ints.positive;
          default = 30;
          description = "How many seconds the device is waited for. Under systemd that is also how long the passphrase of `/dev/mapper/<name>` is asked for, where NixOS opens it.";
        };
        create = mkOption {
          type = types.nullOr (
            types.submodule {
              options = {
                mode = mkOption {
                  type = matching "octal mode" "0[0-7]{3}";
                  default = "0755";
                  description = "Mode, in octal digits.";
                };
                uid = mkOption {
                  type = types.ints.unsigned;
                  default = 0;
                  description = "User id. There are no user names in stage 1.";
                };
                gid = mkOption {
                  type = types.ints.unsigned;
                  default = 0;
                  description = "Group id.";
                };
                kind = mkOption {
                  type = types.nullOr (
                    types.enum [
                      "folder"
                      "file"
                    ]
                  );
                  default = null;
                  description = "What it has to be, and is made as: a folder, or a file (`/etc/machine-id`). Null: a folder is made, unless the mount point is a file; what is there may be either.";
                };
                parents = mkOption {
                  type = types.nullOr (
                    types.submodule {
                      options = {
                        mode = mkOption {
                          type = matching "octal mode" "0[0-7]{3}";
                          default = "0755";
                          description = "Mode, in octal digits.";
                        };
                        uid = mkOption {
                          type = types.ints.unsigned;
                          default = 0;
                          description = "User id.";
                        };
                        gid = mkOption {
                          type = types.ints.unsigned;
                          default = 0;
                          description = "Group id.";
                        };
                      };
                    }
                  );
                  default = null;
                  description = "Mode and owner of folders that have to be made above {option}`source` and the mount point. Null: 0755, root.";
                };
              };
            }
          );
          default = null;
          description = "With what mode and owner {option}`source` is made if it does not exist. Null: 0755, root.";
        };
        services = mkOption {
          type = types.listOf types.str;
          default = [ ];
          example = [ "lighthouse.service" ];
          description = "Units that need it: they are not started while the disk is missing.";
        };
      };
    };

  # A disk, as disko's trees declare it, cut down to what the agent prepares.
  diskEntry = {
    options = {
      device = mkOption {
        type = matching "/dev/disk/by-id/…, /dev/disk/by-path/…, serial=… or wwn=…" "/dev/disk/by-(id|path)/[^/]+|serial=.+|wwn=.+";
        example = "/dev/disk/by-id/nvme-eui.0025388b710116a1";
        description = "The disk, by a name that stays with it or with its place.";
      };
      size = {
        min = mkOption {
          type = bytes;
          example = "900G";
          description = "The least size that it may have.";
        };
        max = mkOption {
          type = bytes;
          example = "1100G";
          description = "The largest. A disk of another size is another disk, and refused.";
        };
      };
      prepare = mkEnableOption "partitioning it, and making its file systems, where it is blank";
      blankCheck = mkOption {
        type = types.nullOr (
          types.enum [
            "sampled"
            "full"
          ]
        );
        default = null;
        description = "How a blank disk is told: by both ends, the places of superblocks and 4096 samples, or by reading all of it. Null: `full` up to 64 GiB, `sampled` above.";
      };
      grow = mkEnableOption "growing its last partition, of size `100%`, with the file system in it, where the disk has become larger";
      removable = mkEnableOption "preparing it although it is a stick or a card";
      partitions = mkOption {
        type = types.nonEmptyListOf (types.attrsOf types.anything);
        example = [
          {
            name = "state";
            size = "100%";
            content = {
              type = "filesystem";
              format = "ext4";
            };
          }
        ];
        description = ''
          Its partitions, in their order: `name`, `size` (`100%` for the last one), and optionally `label` (default: disko's `disk-<name>-<partition>`), `type` (`EF00`, `8300` and the like, or a GUID)
          and `content`: `{ type = "filesystem"; format = "ext4"; }` (or `xfs`, `btrfs`, `vfat`), `{ type = "btrfs"; subvolumes = [ … ]; }` or `{ type = "swap"; }`, each with `label` and `extraArgs`; or
          `{ type = "luks"; settings.keyFile = "/etc/keys/state"; content = …; }`, whose key is a file of the initrd ({option}`boot.freshroot.initrd.extraFiles`, in systemd mode {option}`boot.initrd.systemd.contents`). Who has the initrd has that key.
        '';
      };
    };
  };
in
{
  options.boot.freshroot = {
    enable = mkEnableOption "booting from a verified, cached image of the Nix store";

    package = mkOption {
      type = types.package;
      default = pkgs.pkgsStatic.callPackage ./package.nix { };
      defaultText = literalExpression "pkgs.pkgsStatic.callPackage ./package.nix { }";
      description = "The agent, linked statically: there is no library in the initrd.";
    };

    publishPackage = mkOption {
      type = types.package;
      default = pkgs.buildPackages.callPackage ./package.nix { publish = true; };
      defaultText = literalExpression "pkgs.buildPackages.callPackage ./package.nix { publish = true; }";
      description = "The program that makes the served folder.";
    };

    mode = mkOption {
      type = types.enum [
        "systemd"
        "standalone"
      ];
      default = "systemd";
      description = ''
        `systemd`: a unit of NixOS's systemd stage 1; systemd mounts disks, with LUKS, LVM and checks. `standalone`: an initrd of our own, with the agent
        as the whole stage 1: the smallest thing that can boot a host over a slow link. LUKS, LVM and MD by their own programs, which are put into the initrd where the configuration names such devices.
      '';
    };

    url = setting (types.either url (types.listOf url)) null ''
      Where releases and images are served; mirrors are tried in this order. Trust is in signatures, not in the server.
    '';
    channel =
      setting channelName null
        "The channel that is followed when no system is selected on the command line.";
    trustedPublicKeys =
      setting (types.listOf publicKey) null
        "Keys that may sign releases, as `freshroot-publish keygen` prints them."
      // {
        example = [ "lab-1:jVfuRsCOrnFIIQdQgwUVUEyB/PSpZ8ld6DIS5hxiKv4=" ];
      };
    allowUnsigned =
      setting types.bool "false"
        "Whether manifests may be used that nobody signed. Every boot says so aloud.";
    verify =
      setting
        (types.enum [
          "full"
          "size"
        ])
        "`full`"
        "How a cached image is verified before it is mounted: the whole image is hashed, or only its size is compared.";

    policy = {
      mode =
        setting
          (types.enum [
            "offline"
            "cache-first"
            "wait"
            "require-fresh"
          ])
          "`wait`"
          "When the server is asked: never; after the boot; before it, with the cache as fall-back; before it, without one.";
      wait = setting duration "30s" "Limit until a valid answer, while something bootable is cached.";
      fetchWait =
        setting duration "5min"
          "Limit of a transfer, estimated or elapsed, while something bootable is cached; what was received is kept.";
      maxAge =
        setting duration "any age will do under `cache-first`, none under `wait`"
          "How old the last answer may be without asking, under `cache-first` and `wait`.";
      countdown =
        setting duration "5s"
          "How long keys are listened for on the consoles before a long download, while something bootable is cached: `c` boots that, `d` downloads. 0: not at all.";
      tries = mkOption {
        type = types.nullOr (types.ints.between 0 100);
        default = if cfg.bless.enable then 3 else null;
        defaultText = literalExpression "if config.boot.freshroot.bless.enable then 3 else null";
        description = ''
          A generation that was booted so often without being blessed ({option}`boot.freshroot.bless.enable`) is used only when nothing else boots. `0` and null: tries are not counted.
        '';
      };
    };

    transfer = {
      stall =
        setting duration "30s"
          "A transfer that receives nothing for so long is given up, and the next mirror tried.";
      connect =
        setting duration "10s"
          "Limit for finding the addresses of a server, and for connecting to one of them, proxy and TLS included.";
      minRate =
        setting bytes "1K"
          "Bytes a second: a transfer that is slower over `transfer.minRateWindow` is given up, and the next mirror tried. 0: none is too slow.";
      minRateWindow = setting duration "30s" "The time over which `transfer.minRate` is measured.";
      maxTime =
        setting duration "as long as it takes"
          "Limit of the transfer of an image, also where nothing is cached; what was received is kept.";
      rateLimit =
        setting bytes "as fast as it goes"
          "Bytes a second that are not exceeded, all transfers together.";
      budget =
        setting bytes "any number"
          "Bytes of answers that one boot may receive; what came is kept, and the next boot goes on.";
      budgetPerDay =
        setting bytes "any number"
          "Bytes of answers that may be received a day, by boots and `freshroot fetch` together; counted on the cache disk. What came is kept.";
      parallel =
        setting (types.ints.between 1 16) "1"
          "How many ranges of an image are asked for at once. More than one helps where a single connection does not fill the link, and costs a server as many connections.";
    };

    http = {
      caFile = setting types.str "none" ''
        Path in the initrd of a PEM file with the certificates that https trusts. The module sets it where a URL begins with https and no keys are pinned, see {option}`boot.freshroot.initrd.caBundle`.
      '';
      pinnedPublicKeys =
        setting
          (types.listOf (matching "sha256// and the base64 of a digest" "sha256//[A-Za-z0-9+/]{43}="))
          "none"
          "Public keys (digests of `SubjectPublicKeyInfo`, as curl's `--pinnedpubkey` takes them), of which an https server must have one. Alone they decide, and names and dates of certificates do not count; with `http.caFile` both must hold.";
      clientCertFile =
        setting types.str "none"
          "Path in the initrd of a PEM file with the certificate that the machine shows https servers, intermediates behind it.";
      clientKeyFile =
        setting types.str "it stands in `http.clientCertFile`"
          "Path in the initrd of a PEM file with its key. Whoever can read the initrd can read the key.";
      credentialsFile =
        setting types.str "none"
          "Path in the initrd of a file of one line, `bearer TOKEN` or `basic USER:PASSWORD`, which is sent to https servers. Whoever can read the initrd can read it.";
      proxy =
        setting (matching "http, https or socks5 URL of a proxy" "(http|https|socks5)://[^/ ?#]+/?") "none"
          "The proxy that requests take; names are resolved by it.";
      noProxy =
        setting (types.listOf types.str) "none"
          "Hosts, domains, addresses and networks that are asked without the proxy.";
    };

    cache = {
      device =
        setting device "images are kept in RAM, and fetched at every boot"
          "The disk that keeps images.";
      fsType = setting types.str "`auto`" "Type of its file system; `auto` finds out.";
      options = setting (types.listOf types.str) "none" "Options it is mounted with.";
      path = setting types.str "`freshroot`" "Folder on it that is ours.";
      wait = setting duration "20s" "How long a late disk is waited for.";
      keep = setting (types.ints.between 2 1000) "2" "How many generations are kept at least.";
    };

    root.tmpfsSize = setting size "50%" "Size of the tmpfs at `/`.";
    store = {
      tmpfsSize = setting size "50%" "Size of the tmpfs that takes writes to `/nix/store`.";
      rwDevice = setting device "the tmpfs" "A disk that takes writes to `/nix/store`.";
    };

    disks = setting (types.attrsOf (types.submodule diskEntry)) "none" ''
      Disks that the agent prepares where they are blank, before anything is mounted (in systemd mode by `freshroot-prepare.service`). What is on them is mounted by {option}`boot.freshroot.persist`. A disk that is not blank is never written to.
    '' // {
      example = {
        main = {
          device = "/dev/disk/by-id/nvme-eui.0025388b710116a1";
          size.min = "900G";
          size.max = "1100G";
          prepare = true;
          partitions = [
            {
              name = "state";
              size = "100%";
              content = {
                type = "filesystem";
                format = "ext4";
              };
            }
          ];
        };
      };
    };

    network = {
      interface = setting types.str "any with a link" "The one interface that may be used.";
      dns =
        setting (types.listOf types.str) "none"
          "DNS servers that are asked before those of the lease.";
      ipv6 = setting types.bool "true" "Whether IPv6 is configured by router advertisement.";
      wait = setting duration "1min" "Limit for link and address together.";
      keep = setting types.bool "false" "Whether addresses and routes are left to the running system.";
      by =
        setting
          (types.enum [
            "agent"
            "system"
          ])
          "`agent`"
          "Who configures the network in stage 1, should it be needed: the agent, or something else, such as systemd-networkd, whose address the agent then waits for.";
    };

    media = {
      device = setting device "none" ''
        A local medium, such as an ISO or a USB stick, with a served folder. It is looked at before {option}`boot.freshroot.url`; signatures are checked all the same.
      '';
      path = setting types.str "`freshroot`" "The served folder on it.";
    };

    kernel = {
      modules =
        setting (types.listOf types.str) "what the module computes"
          "Modules that the agent loads whatever the hardware.";
      autoload =
        setting types.bool "true"
          "Whether the agent loads modules whose alias matches the hardware.";
      settle = setting duration "10s" "Limit for hardware to settle after modules were loaded.";
    };

    onFailure = {
      action = setting (types.enum [
        "reboot"
        "poweroff"
        "shell"
      ]) "`reboot`" "What happens when nothing boots.";
      delay =
        setting duration "30s"
          "Pause before the first retry or the action; it doubles from failure to failure.";
      maxDelay = setting duration "10min" "What the doubling stops at.";
      shellTimeout =
        setting duration "10min"
          "After so long without a key a shell ends and the machine reboots.";
      retries =
        setting (types.ints.between 0 1000) "0"
          "How often the boot is tried again from the top before the action.";
      deadline = mkOption {
        type = duration;
        default = "30min";
        description = "Limit of systemd stage 1 as a whole. The agent moves it as long as there is progress; without any the machine reboots.";
      };
    };

    log = setting (types.enum [
      "error"
      "warn"
      "info"
      "debug"
      "trace"
    ]) "`info`" "What is logged.";

    commandLineMay =
      setting (types.listOf types.str) "none"
        "Guarded settings that the kernel command line may set.";

    settings = mkOption {
      type = types.lazyAttrsOf types.anything;
      default = { };
      example = {
        policy.wait = "10s";
      };
      description = ''
        The agent's configuration file, by the names in docs/settings.md. The options above are its defaults here; what is given here wins, and what has no
        option of its own can be set.
      '';
    };

    persist = mkOption {
      type = types.attrsOf (types.submodule persistEntry);
      default = { };
      example = {
        "/state" = {
          device = "/dev/disk/by-partlabel/disk-main-state";
          fsType = "xfs";
        };
        "/etc/ssh" = {
          source = "/state/ssh";
          create.mode = "0700";
        };
      };
      description = "What outlives the boot, by mount point. Mounted in stage 1, before activation reads secrets.";
    };

    initrd = {
      availableKernelModules = mkOption {
        type = types.listOf types.str;
        default = [
          "atlantic"
          "bnx2"
          "e1000"
          "e1000e"
          "igb"
          "igc"
          "isofs"
          "ixgbe"
          "r8169"
          "realtek"
          "sr_mod"
          "tg3"
          "uas"
          "usb_storage"
          "virtio_net"
          "vmxnet3"
        ];
        description = "Modules for the boot besides those of {option}`boot.initrd.availableKernelModules`: network cards, above all, which NixOS has none of, and what reads ISOs and sticks.";
      };
      caBundle = mkOption {
        type = types.path;
        default = "${pkgs.cacert}/etc/ssl/certs/ca-bundle.crt";
        defaultText = literalExpression ''"''${pkgs.cacert}/etc/ssl/certs/ca-bundle.crt"'';
        description = "Certificates that https trusts. They are in the initrd only where a URL begins with https.";
      };
      microcode = mkOption {
        type = types.listOf types.path;
        default = config.boot.initrd.prepend;
        defaultText = literalExpression "config.boot.initrd.prepend";
        description = "Archives in front of a standalone initrd: the processor's microcode.";
      };
      extraFiles = mkOption {
        type = types.attrsOf types.path;
        default = { };
        example = literalExpression ''{ "/keys/disk" = "/var/keys/disk"; }'';
        description = ''
          More files of a standalone initrd, by their path there, such as a key of {option}`boot.initrd.luks.devices`. Whoever can fetch the initrd can read them.
        '';
      };
      compressor = mkOption {
        type = types.str;
        default = "zstd";
        description = "How a standalone initrd is compressed.";
      };
      compressorArgs = mkOption {
        type = types.nullOr (types.listOf types.str);
        default = [ "-19" ];
        description = "Arguments of the compressor. Null: nixpkgs' own.";
      };
    };

    image = {
      channel = mkOption {
        type = channelName;
        default = if cfg.channel == null then "default" else cfg.channel;
        defaultText = literalExpression ''if config.boot.freshroot.channel == null then "default" else config.boot.freshroot.channel'';
        description = "The channel that {option}`system.build.freshroot.served` is published under.";
      };
      extraPaths = mkOption {
        type = types.listOf types.path;
        default = [ ];
        description = "Store paths that are in the image besides the system, with their closures.";
      };
      compressionLevel = mkOption {
        type = types.ints.between 1 22;
        default = 19;
        description = "zstd's level.";
      };
      followChannel = mkOption {
        type = types.bool;
        default = false;
        description = ''
          Whether generated command lines name the channel, so that machines ask at each boot, instead of this system, so that a machine that has it asks nobody.
        '';
      };
      servedUrl = mkOption {
        type = types.nullOr url;
        default = null;
        example = "http://images.lan/freshroot";
        description = "Where the folder will be served, for boot scripts. Null: they find files beside themselves, which iPXE can.";
      };
    };

    netboot = {
      macAddresses = mkOption {
        type = types.listOf macAddress;
        default = [ ];
        example = [ "00:1f:29:12:34:56" ];
        description = "Machines that boot this system: they get a script in `netboot/by-mac/` and an entry in `hosts.json`.";
      };
      ids = mkOption {
        type = types.listOf types.str;
        default = [ ];
        description = "UUIDs and serial numbers of machines that follow this channel, for `hosts.json`.";
      };
    };

    refresh = {
      enable = mkEnableOption "refreshing the cache from the running system" // {
        default = cfg.policy.mode == "cache-first";
        defaultText = literalExpression ''config.boot.freshroot.policy.mode == "cache-first"'';
      };
      dates = mkOption {
        type = types.str;
        default = "hourly";
        description = "When, as {manpage}`systemd.time(7)` writes it.";
      };
      randomizedDelay = mkOption {
        type = types.str;
        default = "30min";
        description = "Machines of a fleet are spread over this time.";
      };
    };

    bless = {
      enable = mkEnableOption "marking a boot as good once the system is up" // {
        default = true;
      };
      requires = mkOption {
        type = types.listOf types.str;
        default = [ ];
        example = [ "lighthouse.service" ];
        description = "Units that must be up before a boot counts as good, besides what boot-complete.target waits for.";
      };
    };

    raspberryPi4.firmware = mkOption {
      type = types.nullOr types.path;
      default = null;
      description = "Unpacked release of the Raspberry Pi 4's UEFI firmware (RPI_EFI.fd and what comes with it), for {option}`system.build.freshroot.raspberryPi4`.";
    };

    lib = mkOption {
      type = types.attrsOf types.raw;
      internal = true;
      readOnly = true;
      default = import ./lib.nix;
      description = "The functions of lib.nix.";
    };
  };
}
