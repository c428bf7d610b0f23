# The module under nixpkgs' own lib.evalModules, with stubs of NixOS's options.
{ lib }:
let
  support = import ./support.nix;
  inherit (support) check equal;
  eval =
    modules:
    (lib.evalModules {
      modules = [ ./stubs.nix ] ++ modules;
    }).config;
  minimal = ../examples/minimal.nix;
  diskless = ../examples/diskless.nix;
  staker = eval [ ../examples/home-staker.nix ];
  refusals = config: map (one: one.message) (lib.filter (one: !one.assertion) config.assertions);
  file = config: builtins.fromJSON config.boot.freshroot.internal.configFile;
  # One sentence must name the option that is to be changed.
  refused =
    name: modules: word:
    let
      found = refusals (eval modules);
    in
    check "refused: ${name}" (
      lib.length found == 1 && lib.hasInfix word (lib.head found)
    ) "${builtins.toJSON found} should be one sentence with «${word}»";
  accepted =
    name:
    equal "the example ${name} is accepted" (refusals (eval [ (../examples + "/${name}.nix") ])) [ ];
  freshroot = settings: { boot.freshroot = settings; };
  # A value that the type does not take.
  ill =
    name: settings:
    check "no value: ${name}" (support.throws (
      file (eval [
        minimal
        (freshroot settings)
      ])
    )) "it was taken";
  unit = config: config.boot.initrd.systemd.services.freshroot;
  blank = {
    device = "serial=S4X1";
    size = {
      min = "900G";
      max = "1100G";
    };
    prepare = true;
    partitions = [
      {
        name = "swap";
        size = "8G";
        content.type = "swap";
      }
      {
        name = "state";
        size = "100%";
        content = {
          type = "btrfs";
          subvolumes = [ "logs" ];
        };
      }
    ];
  };
in
support.lines (
  map accepted [
    "minimal"
    "home-staker"
    "diskless"
    "raspberry-pi-4"
    "homestakeros-migration"
    "netboot-migration"
  ]
  ++ [
    (equal "an option that is not set leaves the agent's default" (file (eval [ minimal ])) {
      version = 1;
      url = "http://images.lan/freshroot";
      channel = "minimal";
      trustedPublicKeys = [ "lab-1:jVfuRsCOrnFIIQdQgwUVUEyB/PSpZ8ld6DIS5hxiKv4=" ];
      # But for this one, which goes with blessing.
      policy.tries = 3;
      cache = {
        device = "PARTLABEL=freshroot-cache";
        fsType = "ext4";
      };
      kernel.storeName = "00000000000000000000000000000000-linux-6.18.1";
      fileSystems = { };
    })
    (check "tries are counted only where boots are blessed" (
      !(
        (file (eval [
          minimal
          (freshroot { bless.enable = false; })
        ]))
        ? policy
      )
    ) "they are")
    (equal "what stands in settings wins over the option"
      (file (eval [
        minimal
        (freshroot {
          policy.wait = "10s";
          settings.policy.wait = "20s";
          settings.log = "debug";
        })
      ])).policy
      {
        tries = 3;
        wait = "20s";
      }
    )
    (equal "a CA bundle comes along only for https"
      [
        (staker.boot.initrd.systemd.contents ? "/etc/freshroot/ca-bundle.crt")
        ((eval [ minimal ]).boot.initrd.systemd.contents ? "/etc/freshroot/ca-bundle.crt")
        (file staker).http.caFile
      ]
      [
        true
        false
        "/etc/freshroot/ca-bundle.crt"
      ]
    )
    (check "the unit waits for no network" (
      !(lib.any (lib.hasInfix "network") ((unit staker).after ++ (unit staker).wants))
    ) (builtins.toJSON (unit staker)))
    (check "the unit comes after the disks that systemd mounts, not after binds" (
      lib.elem "sysroot-data.mount" (unit staker).after
      && !(lib.elem "sysroot-etc-ssh.mount" (unit staker).after)
    ) (builtins.toJSON (unit staker).after))
    (check "the unit has ExecStart only" (
      !((unit staker) ? script) && !((unit staker) ? path)
    ) "there is a script")
    (equal "entries of the agent are kept out of the initrd's fstab"
      staker.boot.initrd.systemd.managerEnvironment.SYSTEMD_SYSROOT_FSTAB.text
      ''
        tmpfs / tmpfs mode=0755,size=50% 0 0
        /dev/mapper/vg0-data /data xfs noatime,x-systemd.device-timeout=120s 0 2
      ''
    )
    (equal "both readers of the initrd's fstab have the same one"
      staker.boot.initrd.systemd.services.initrd-parse-etc.environment.SYSTEMD_SYSROOT_FSTAB.text
      staker.boot.initrd.systemd.managerEnvironment.SYSTEMD_SYSROOT_FSTAB.text
    )
    (equal "stage 2 does not end in emergency mode for a missing disk"
      (lib.filter (option: option == "nofail") staker.fileSystems."/data".options)
      [
        "nofail"
      ]
    )
    (
      let
        register = staker.systemd.services.freshroot-register-store;
      in
      check "the image's store paths are registered before nix-daemon, from where nothing collects them" (
        lib.all (unit: lib.elem unit register.before) [
          "nix-daemon.service"
          "nix-daemon.socket"
          "sysinit.target"
        ]
        && register.serviceConfig.StandardInput == "file:/nix/.ro-store/nix-path-registration"
        && lib.hasSuffix "nix-store --load-db" (lib.head register.serviceConfig.ExecStart)
        && !((eval [
          minimal
          { nix.enable = false; }
        ]).systemd.services ? freshroot-register-store)
      ) (builtins.toJSON register)
    )
    (equal "a boot is blessed when boot-complete.target is reached, which waits for what is asked for"
      [
        staker.systemd.services.freshroot-bless.requires
        (lib.elem "boot-complete.target" staker.systemd.services.freshroot-bless.after)
        staker.systemd.targets.boot-complete.requires
        staker.systemd.targets.boot-complete.after
        ((eval [
          minimal
          (freshroot { bless.enable = false; })
        ]).systemd.services ? freshroot-bless)
      ]
      [
        [ "boot-complete.target" ]
        true
        [ "lighthouse-validator.service" ]
        [ "lighthouse-validator.service" ]
        false
      ]
    )
    (equal "the cache is refreshed by a timer where a boot does not ask"
      (map
        (config: [
          (config.systemd.timers ? freshroot-fetch)
          (lib.hasSuffix "freshroot fetch" (config.systemd.services.freshroot-fetch.serviceConfig.ExecStart or ""))
        ])
        [
          staker
          (eval [ minimal ])
        ]
      )
      [
        [
          true
          true
        ]
        [
          false
          false
        ]
      ]
    )
    (check "the cache is unmounted from the shutdown ramfs, and by nobody before" (
      staker.systemd.shutdownRamfs.enable
      &&
        lib.all
          (
            name:
            staker.systemd.units.${name}.overrideStrategy == "asDropin"
            && lib.hasInfix "DefaultDependencies=false" staker.systemd.units.${name}.text
          )
          [
            "nix-.ro\\x2dstore.mount"
            "nix-.rw\\x2dstore.mount"
            "nix-store.mount"
            "run-freshroot-cache.mount"
          ]
    ) (builtins.toJSON (lib.attrNames staker.systemd.units)))
    (refused "a cache without the shutdown ramfs" [
      minimal
      { systemd.shutdownRamfs.enable = false; }
    ] "systemd.shutdownRamfs.enable")
    (equal "the running system has the initrd's configuration, for fetch and plan"
      (builtins.fromJSON staker.environment.etc."freshroot/config.json".text)
      (file staker)
    )
    (check "failures lead into the policy, and the policy's own into a reboot" (
      (unit staker).onFailure == [ "freshroot-failure.service" ]
      && staker.boot.initrd.systemd.services.freshroot-failure.onFailure == [ "freshroot-last-resort.service" ]
      && staker.boot.initrd.systemd.services.emergency.onFailure == [ "freshroot-last-resort.service" ]
      && lib.hasSuffix "fail --unit emergency.service" (
        lib.last staker.boot.initrd.systemd.services.emergency.serviceConfig.ExecStart
      )
      && staker.boot.initrd.systemd.services.freshroot-last-resort.unitConfig.SuccessAction == "reboot-force"
      && staker.boot.initrd.systemd.targets.initrd.unitConfig.JobTimeoutAction == "reboot-force"
    ) (builtins.toJSON staker.boot.initrd.systemd.services))
    (equal "services that need a disk are tied to its check"
      staker.systemd.services.freshroot-persist-data.requiredBy
      [
        "freshroot-persist-ok.target"
        "lighthouse-validator.service"
        "erigon.service"
      ]
    )
    (equal "networkd in the initrd configures the network for the agent"
      (file (eval [
        minimal
        { boot.initrd.systemd.network.enable = true; }
      ])).network.by
      "system"
    )
    (
      let
        configured = options: eval [
          minimal
          (freshroot {
            persist."/data" = {
              device = "/dev/sdb1";
              fsType = "ext4";
              inherit options;
            };
          })
        ];
        stageOne = config: [
          (lib.elem "nofail" (file config).fileSystems."/data".options)
          (lib.hasInfix "nofail" config.boot.initrd.systemd.managerEnvironment.SYSTEMD_SYSROOT_FSTAB.text)
        ];
      in
      equal "need = required wins over nofail in stage 1" (stageOne (configured [
        "nofail"
        "noatime"
      ])) [
        false
        false
      ]
    )
    (
      let
        config = eval [
          ../examples/home-staker.nix
          { system.etc.overlay.enable = true; }
          (freshroot { persist."/etc/ssh".create = lib.mkForce null; })
        ];
        fstab = config.boot.initrd.systemd.managerEnvironment.SYSTEMD_SYSROOT_FSTAB.text;
      in
      check "with an etc overlay systemd mounts what lies below /etc, after the agent" (
        refusals config == [ ]
        && lib.hasInfix "/data/ssh /etc/ssh none bind 0 0" fstab
        && !(lib.hasInfix "/var/lib/nixos" fstab)
        && lib.attrNames (file config).fileSystems == [
          "/data"
          "/var/lib/nixos"
        ]
        && !(lib.any (lib.hasPrefix "sysroot-etc") (unit config).after)
        && lib.elem "initrd-find-etc.service" (unit config).requiredBy
      ) "${fstab}${builtins.toJSON (unit config)}${config.boot.freshroot.internal.configFile}"
    )
    (
      let
        systemd =
          (eval [
            minimal
            {
              boot.initrd.luks.devices = {
                data-1.device = "/dev/disk/by-partlabel/data";
                other.device = "/dev/disk/by-partlabel/other";
              };
            }
            (freshroot {
              persist."/data" = {
                device = "/dev/mapper/data-1";
                timeout = 45;
              };
            })
          ]).boot.initrd.systemd;
      in
      equal "a passphrase is asked for as long as what lies on its container is waited for" [
        "[Service]\nTimeoutStartSec=45\n"
        "asDropin"
        false
      ] [
        systemd.units."systemd-cryptsetup@data\\x2d1.service".text
        systemd.units."systemd-cryptsetup@data\\x2d1.service".overrideStrategy
        (systemd.units ? "systemd-cryptsetup@other.service")
      ]
    )
    (
      let
        of =
          persist:
          (eval [
            minimal
            (freshroot { inherit persist; })
          ]).boot.initrd.systemd.units."systemd-fsck@dev-disk-by\\x2dpartlabel-freshroot\\x2dcache.service".text
            or "none";
      in
      equal "a disk with two names is not checked twice at once, and a check does not wait for its own mount"
        [
          (of {
            "/data".device = "/dev/disk/by-uuid/1234";
            "/x".source = "/data/x";
          })
          (of { "/data".device = "PARTLABEL=freshroot-cache"; })
        ]
        [
          "[Unit]\nAfter=sysroot-data.mount\n"
          "none"
        ]
    )
    (equal "a cache of unknown type brings drivers and checks of all that may be on it"
      (
        let
          initrd = (eval [
            minimal
            (freshroot { cache.fsType = lib.mkForce null; })
          ]).boot.initrd;
        in
        [
          initrd.supportedFilesystems
          (lib.elem "btrfs" initrd.availableKernelModules)
        ]
      )
      [
        [
          "ext4"
          "vfat"
          "xfs"
        ]
        true
      ]
    )
    (
      let
        config = eval [
          minimal
          { boot.initrd.systemd.emergencyAccess = true; }
        ];
      in
      check "emergencyAccess, which has no effect any more, is warned about" (
        lib.length config.warnings == 1 && lib.hasInfix "onFailure.action" (lib.head config.warnings)
      ) (builtins.toJSON config.warnings)
    )
    (
      let
        config = eval [
          minimal
          { boot.initrd.secrets."/key" = ./stubs.nix; }
        ];
      in
      check "secrets in a served initrd are warned about" (
        lib.length config.warnings == 1 && lib.hasInfix "/key" (lib.head config.warnings)
      ) (builtins.toJSON config.warnings)
    )
    (
      let
        warnings =
          need:
          (eval [
            minimal
            (freshroot {
              persist = {
                "/data" = {
                  device = "LABEL=data";
                  inherit need;
                };
                "/var/lib/nixos" = {
                  source = "/data/nixos";
                  inherit need;
                };
              };
            })
          ]).warnings;
      in
      check "the users' ids on a disk that may be missing are warned about" (
        warnings "required" == [ ] && lib.hasInfix "/var/lib/nixos" (toString (warnings "degraded"))
      ) (builtins.toJSON (warnings "degraded"))
    )
    (
      let
        prepend = (eval [
          diskless
          { boot.initrd.prepend = [ "/microcode.img" ]; }
        ]).system.build.freshroot.initrd.prepend;
      in
      check "a standalone initrd begins with microcode, then device nodes" (
        lib.length prepend == 2
        && lib.head prepend == "/microcode.img"
        && lib.hasInfix "device-nodes.sh" (lib.last prepend).script
      ) "prepend is not that"
    )
    (check "a standalone initrd has drivers of disks, which NixOS adds only to its own" (
        lib.all
          (module: lib.elem module (eval [ diskless ]).boot.freshroot.internal.modulesClosure.rootModules)
          [
            "nvme"
            "ahci"
            "sd_mod"
            "usb_storage"
            "isofs"
            "virtio_blk"
          ]
      ) "a module is missing"
    )
    (equal "a standalone initrd holds agent, configuration and modules, and nothing else"
      (map (one: one.target) (eval [ diskless ]).system.build.freshroot.initrd.contents)
      [
        "/init"
        "/etc/freshroot/config.json"
        "/lib"
      ]
    )
    (
      let
        config = eval [
          minimal
          (freshroot {
            persist."/state".device = "/dev/disk/by-label/state";
            persist."/etc/machine-id" = {
              source = "/state/machine-id";
              create.kind = "file";
            };
            persist."/home/alice/.config" = {
              source = "/state/alice/config";
              how = "symlink";
              create = {
                mode = "0700";
                uid = 1000;
                parents.uid = 1000;
              };
            };
          })
        ];
        told = (file config).fileSystems;
      in
      equal "files and symlinks are persisted, and the agent alone knows of symlinks"
        {
          kind = told."/etc/machine-id".create.kind;
          link = told."/home/alice/.config";
          inNixos = config.fileSystems ? "/home/alice/.config";
        }
        {
          kind = "file";
          link = {
            device = "/state/alice/config";
            fsType = "symlink";
            create = {
              mode = "0700";
              uid = 1000;
              gid = 0;
              parents = {
                mode = "0755";
                uid = 1000;
                gid = 0;
              };
            };
          };
          inNixos = false;
        }
    )
    (
      let
        services =
          (eval [
            minimal
            (freshroot {
              persist."/var/lib/data" = {
                device = "/dev/disk/by-label/data";
                need = "degraded";
                services = [ "data.service" ];
              };
              persist."/needed".device = "/dev/disk/by-label/needed";
            })
          ]).systemd.services;
        retry = services.freshroot-persist-retry-var-lib-data;
      in
      equal "a disk that need not be there is waited for in the running system, and then what needs it is started"
        {
          tail = lib.last (lib.splitString "/bin/freshroot " retry.serviceConfig.ExecStart);
          inherit (retry) wantedBy;
          others = lib.filter (lib.hasInfix "retry") (lib.attrNames services);
        }
        {
          tail = "persist-retry /var/lib/data freshroot-persist-var-lib-data.service freshroot-persist-ok.target data.service";
          wantedBy = [ "multi-user.target" ];
          others = [ "freshroot-persist-retry-var-lib-data" ];
        }
    )
    (
      let
        host = eval [
          minimal
          {
            fileSystems."/data" = {
              device = "/dev/disk/by-partlabel/disk-main-data";
              fsType = "xfs";
              options = [ "noatime" ];
            };
          }
          (freshroot {
            persist."/data" = {
              need = "degraded";
              timeout = 20;
              services = [ "data.service" ];
            };
          })
        ];
        inherit (host.fileSystems."/data") device fsType neededForBoot options;
      in
      equal "a disk that disko declares gets its need, limit and services by its mount point alone"
        {
          inherit device fsType neededForBoot;
          options = lib.sort lib.lessThan options;
          agent =
            let
              entry = host.boot.freshroot.internal.configuration.fileSystems."/data";
            in
            [
              entry.device
              entry.need
              entry.timeout
            ];
          retries = host.systemd.services ? freshroot-persist-retry-data;
        }
        {
          device = "/dev/disk/by-partlabel/disk-main-data";
          fsType = "xfs";
          neededForBoot = true;
          options = [
            "noatime"
            "nofail"
            "x-systemd.device-timeout=20s"
          ];
          agent = [
            "/dev/disk/by-partlabel/disk-main-data"
            "degraded"
            20
          ];
          retries = true;
        }
    )
    (equal "a standalone initrd holds the programs that check its disks, and no others"
      (lib.filter (lib.hasPrefix "/bin/") (
        map (one: one.target)
          (eval [
            diskless
            (freshroot {
              cache = {
                device = "/dev/disk/by-partlabel/cache";
                fsType = "ext4";
              };
              persist."/boot" = {
                device = "/dev/disk/by-label/ESP";
                fsType = "vfat";
              };
              persist."/data" = {
                device = "/dev/disk/by-label/data";
                fsType = "xfs";
              };
            })
          ]).system.build.freshroot.initrd.contents
      ))
      [
        "/bin/fsck.ext4"
        "/bin/fsck.vfat"
      ]
    )
    (
      let
        stacked = eval [
          diskless
          {
            boot.initrd.luks = {
              devices.crypt = {
                device = "/dev/disk/by-partlabel/disk-main-luks";
                keyFile = "/key:/dev/disk/by-label/STICK";
                allowDiscards = true;
              };
              cryptoModules = [ "xts" ];
            };
          }
          (freshroot {
            initrd.extraFiles."/keys/other" = ./stubs.nix;
            cache = {
              device = "/dev/vg/cache";
              fsType = "xfs";
            };
            persist."/data" = {
              device = "/dev/mapper/crypt";
              fsType = "xfs";
            };
            persist."/raid" = {
              device = "/dev/md/data";
              fsType = "xfs";
            };
          })
        ];
      in
      equal "a standalone initrd holds the programs that put its disks together, and the agent is told"
        {
          files = lib.filter (target: lib.hasPrefix "/bin/" target || lib.hasPrefix "/keys/" target) (
            map (one: one.target) stacked.system.build.freshroot.initrd.contents
          );
          modules = lib.all (module: lib.elem module stacked.boot.freshroot.internal.modulesClosure.rootModules) [
            "dm_crypt"
            "dm_mod"
            "raid1"
            "xts"
          ];
          loaded = lib.elem "xts" (file stacked).kernel.modules;
          inherit (file stacked) luks;
        }
        {
          files = [
            "/bin/cryptsetup"
            "/bin/lvm"
            "/bin/mdadm"
            "/keys/other"
          ];
          modules = true;
          loaded = true;
          luks.crypt = {
            device = "/dev/disk/by-partlabel/disk-main-luks";
            keyFile = "/key";
            keyFileDevice = "/dev/disk/by-label/STICK";
            allowDiscards = true;
          };
        }
    )
    (equal "swap space is told to the agent where nothing has to be made first"
      (file (eval [
        diskless
        {
          swapDevices = [
            {
              device = "/dev/disk/by-partlabel/disk-main-swap";
              priority = 5;
              discardPolicy = "both";
              options = [ "defaults" ];
              size = null;
              randomEncryption.enable = false;
            }
            {
              device = "/data/swapfile";
              options = [ "nofail" ];
            }
            {
              device = "/dev/disk/by-partlabel/disk-main-random";
              randomEncryption.enable = true;
            }
            {
              device = "/var/swapfile";
              size = 2048;
            }
          ];
        }
      ])).swapDevices
      {
        "/dev/disk/by-partlabel/disk-main-swap" = {
          priority = 5;
          discardPolicy = "both";
        };
        "/data/swapfile".options = [ "nofail" ];
      }
    )
    (check "under systemd, swap space is systemd's" (
      !(
        (file (eval [
          minimal
          { swapDevices = [ { device = "/dev/disk/by-label/swap"; } ]; }
        ])) ? swapDevices
      )
    ) "it was told to the agent")
    (equal "a standalone initrd has a CA bundle where a URL begins with https"
      (map (one: one.target)
        (eval [
          diskless
          (freshroot { url = lib.mkForce "https://images.example.org"; })
        ]).system.build.freshroot.initrd.contents
      )
      [
        "/init"
        "/etc/freshroot/config.json"
        "/lib"
        "/etc/freshroot/ca-bundle.crt"
      ]
    )
    (check "a cache of unknown type brings all that the agent mounts" (lib.all
      (
        module:
        lib.elem module
          (file (eval [
            diskless
            (freshroot { cache.device = "LABEL=x"; })
          ])).kernel.modules
      )
      [
        "btrfs"
        "ext4"
        "vfat"
        "xfs"
      ]
    ) "a module is missing")
    (equal "fileSystems that stage 1 needs are taken over"
      (file (eval [
        diskless
        {
          fileSystems."/var/log" = {
            device = "/dev/disk/by-partlabel/disk-main-log";
            fsType = "ext4";
            options = [ "noatime" ];
          };
          # As disko flattens a subvolume.
          fileSystems."/var/lib" = {
            device = "/dev/disk/by-partlabel/disk-main-state";
            fsType = "btrfs";
            options = [
              "defaults"
              "subvol=/lib"
            ];
          };
          fileSystems."/srv".device = "/dev/sdb1";
        }
      ])).fileSystems
      {
        "/var/log" = {
          device = "/dev/disk/by-partlabel/disk-main-log";
          fsType = "ext4";
          options = [ "noatime" ];
        };
        "/var/lib" = {
          device = "/dev/disk/by-partlabel/disk-main-state";
          fsType = "btrfs";
          options = [
            "defaults"
            "subvol=/lib"
          ];
        };
      }
    )
    (refused "systemd stage 1 switched off" [
      minimal
      { boot.initrd.systemd.enable = lib.mkForce false; }
    ] "boot.initrd.systemd.enable")
    (refused "a mode that the agent does not have" [
      minimal
      (freshroot { internal.modes = [ "standalone" ]; })
    ] "boot.freshroot.mode")
    (equal "in systemd mode a unit prepares disks, which has the programs, and which devices wait for"
      (
        let
          config = eval [
            minimal
            (freshroot {
              disks.main = blank;
              persist."/state" = {
                device = "PARTLABEL=disk-main-state";
                fsType = "btrfs";
              };
            })
          ];
          inherit (config.boot.initrd) systemd;
        in
        {
          refusals = refusals config;
          inherit (systemd.services.freshroot-prepare) before;
          programs = lib.attrNames systemd.extraBin;
          modules = lib.elem "btrfs" config.boot.initrd.availableKernelModules;
          device = systemd.units."dev-disk-by\\x2dpartlabel-disk\\x2dmain\\x2dstate.device".text;
          makefs = systemd.units."systemd-makefs@.service".text;
        }
      )
      {
        refusals = [ ];
        before = [
          "local-fs-pre.target"
          "cryptsetup-pre.target"
          "shutdown.target"
        ];
        programs = [
          "blkid"
          "mkfs.btrfs"
          "mkswap"
        ];
        modules = true;
        device = "[Unit]\nAfter=freshroot-prepare.service\n";
        makefs = "[Unit]\nAfter=freshroot-prepare.service\n\n";
      }
    )
    (equal "and a disk that only grows has the unit, and no programs"
      (
        let
          config = eval [
            minimal
            (freshroot {
              disks.main = blank // {
                prepare = false;
                grow = true;
              };
            })
          ];
          inherit (config.boot.initrd) systemd;
        in
        [
          (systemd.services ? freshroot-prepare)
          systemd.extraBin
        ]
      )
      [
        true
        { }
      ]
    )
    (equal "a declared disk that is not prepared has no unit"
      (
        let
          config = eval [
            minimal
            (freshroot { disks.main = blank // { prepare = false; }; })
          ];
        in
        [
          (refusals config)
          (config.boot.initrd.systemd.services ? freshroot-prepare)
        ]
      )
      [
        [ ]
        false
      ]
    )
    (refused "a resume from LUKS, which waits for what waits for the resume" [
      minimal
      (freshroot { disks.main = blank; })
      {
        boot.resumeDevice = "/dev/mapper/swap";
        boot.initrd.luks.devices.swap.device = "/dev/sda2";
      }
    ] "boot.resumeDevice")
    (equal "a standalone initrd has the programs that make what is declared, and the second probe"
      (eval [
        diskless
        (freshroot { disks.main = blank; })
      ]).boot.freshroot.internal.preparePrograms
      [
        "blkid"
        "mkfs.btrfs"
        "mkswap"
      ]
    )
    (equal "and for a LUKS container cryptsetup, and what makes what is in it"
      (eval [
        diskless
        (freshroot {
          disks.main = blank // {
            partitions = [
              {
                name = "crypt";
                size = "100%";
                content = {
                  type = "luks";
                  settings.keyFile = "/etc/keys/state";
                  content = {
                    type = "filesystem";
                    format = "xfs";
                  };
                };
              }
            ];
          };
        })
      ]).boot.freshroot.internal.preparePrograms
      [
        "blkid"
        "cryptsetup"
        "mkfs.xfs"
      ]
    )
    (equal "and without declared disks none of them" (eval [
      diskless
    ]).boot.freshroot.internal.preparePrograms [ ])
    (equal "a declared disk is in the configuration as it was written" (file (eval [
      diskless
      (freshroot { disks.main = blank; })
    ])).disks.main (
        blank
        // {
          grow = false;
          removable = false;
        }
      ))
    (ill "a disk by its place in the order of discovery" {
      disks.main = blank // {
        device = "/dev/sda";
      };
    })
    (refused "no key" [
      minimal
      (freshroot { trustedPublicKeys = lib.mkForce null; })
    ] "boot.freshroot.trustedPublicKeys")
    (refused "no source" [
      minimal
      (freshroot { url = lib.mkForce null; })
    ] "boot.freshroot.url")
    (refused "cache-first without a cache" [
      diskless
      (freshroot { policy.mode = "cache-first"; })
    ] "boot.freshroot.cache.device")
    (refused "tries that nothing blesses" [
      minimal
      (freshroot {
        policy.tries = 3;
        bless.enable = false;
      })
    ] "boot.freshroot.bless.enable")
    (refused "a root on a disk" [
      minimal
      {
        fileSystems."/" = {
          fsType = lib.mkForce "ext4";
          device = lib.mkForce "/dev/sda1";
        };
      }
    ] "boot.freshroot.persist")
    (refused "a disk at /nix" [
      minimal
      {
        fileSystems."/nix" = {
          device = "/dev/sda1";
          fsType = "ext4";
        };
      }
    ] "boot.freshroot.store.rwDevice")
    (refused "a persistent mount with neither device nor source" [
      minimal
      (freshroot { persist."/x" = { }; })
    ] "as disko does")
    (refused "a persistent mount with both device and source" [
      minimal
      (freshroot {
        persist."/x" = {
          device = "/dev/disk/by-label/x";
          source = "/data/x";
        };
      })
    ] "not both")
    (refused "a type for a disk that is declared elsewhere" [
      minimal
      { fileSystems."/x" = { device = "/dev/disk/by-label/x"; fsType = "ext4"; }; }
      (freshroot { persist."/x".fsType = "xfs"; })
    ] "fsType")
    (refused "the cache's file system with other options elsewhere" [
      minimal
      (freshroot {
        cache.options = [ "discard" ];
        persist."/x".device = "/dev/disk/by-partlabel/freshroot-cache";
      })
    ] "boot.freshroot.cache.options")
    (refused "LUKS by what standalone mode does not know" [
      diskless
      {
        boot.initrd.luks.devices.x = {
          device = "/dev/sda1";
          yubikey.slot = 2;
        };
      }
    ] "yubikey")
    (refused "ZFS in standalone mode" [
      diskless
      {
        fileSystems."/var" = {
          device = "tank/var";
          fsType = "zfs";
        };
      }
    ] "boot.freshroot.mode")
    (refused "a device to resume from in standalone mode" [
      diskless
      { boot.resumeDevice = "/dev/disk/by-label/swap"; }
    ] "boot.resumeDevice")
    (refused "a word that asks to resume in standalone mode" [
      diskless
      { boot.kernelParams = [ "resume=LABEL=swap" ]; }
    ] "boot.resumeDevice")
    (equal "a device to resume from is systemd's to look at" (refusals (eval [
      minimal
      { boot.resumeDevice = "/dev/disk/by-label/swap"; }
    ])) [ ])
    (refused "secrets in standalone mode" [
      diskless
      { boot.initrd.secrets."/key" = ./stubs.nix; }
    ] "boot.freshroot.persist")
    (refused "an etc overlay in standalone mode" [
      diskless
      { system.etc.overlay.enable = true; }
    ] "system.etc.overlay.enable")
    (refused "a mode of a folder that systemd would make" [
      ../examples/home-staker.nix
      { system.etc.overlay.enable = true; }
    ] "/data/ssh")
    (refused "nixos-init in standalone mode" [
      diskless
      { system.nixos-init.enable = true; }
    ] "system.nixos-init.enable")
    (ill "a duration in words" { policy.wait = "long"; })
    (ill "a URL without a scheme" { url = lib.mkForce "images.lan"; })
    (ill "a secret key" {
      trustedPublicKeys = lib.mkForce [ "x:${lib.concatStrings (lib.genList (_: "A") 88)}" ];
    })
    (ill "a device by a bare name" { cache.device = lib.mkForce "sda1"; })
    (ill "one generation only" { cache.keep = 1; })
    (ill "megabytes that mean two things" { root.tmpfsSize = "5MB"; })
  ]
  # What needs a network, or the host of a virtual machine, and a helper of its own.
  ++ map (
    fsType:
    refused "${fsType} in standalone mode" [
      diskless
      {
        fileSystems."/var" = {
          device = "server:/var";
          inherit fsType;
        };
      }
    ] "/var\" is ${fsType}"
  ) [ "nfs" "nfs4" "cifs" "9p" "virtiofs" ]
)
