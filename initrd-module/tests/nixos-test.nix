# The examples as whole NixOS systems: every option that is set exists there, every assertion holds, and what is built can be instantiated. Part → lines:
# evaluated one part at a time, since a system takes some hundred megabytes that an evaluator does not give back.
{
  nixpkgs,
  # A module for trees that are not whole.
  extra ? { },
}:
let
  support = import ./support.nix;
  lib = import (nixpkgs + "/lib");
  names = map (lib.removeSuffix ".nix") (
    lib.filter (lib.hasSuffix ".nix") (lib.attrNames (builtins.readDir ../examples))
  );
  eval =
    name: more:
    (import (nixpkgs + "/nixos/lib/eval-config.nix") {
      system = null;
      modules = [
        (../examples + "/${name}.nix")
        extra
      ]
      ++ more;
    }).config;
  derivation = value: value.drvPath or "${value}";
  # flake.nix, with nixpkgs as a flake would give it.
  flake =
    let
      inputs = {
        self = flake;
        nixpkgs = {
          inherit lib;
          legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (system: import nixpkgs { inherit system; });
        };
      };
    in
    (import ../../flake.nix).outputs inputs;
  # The template, as a user's flake that has ours among its inputs.
  template =
    let
      self = (import ../template/flake.nix).outputs {
        inherit self;
        nixpkgs.lib = lib // {
          nixosSystem = arguments: import (nixpkgs + "/nixos/lib/eval-config.nix") ({ system = null; } // arguments);
        };
        freshroot = flake;
      };
    in
    self;
  outputs = [
    "image"
    "initrd"
    "ipxe"
    "isoImage"
    "kernel"
    "kexecTree"
    "manifest"
    "pixiecore"
    "publish"
    "served"
  ];
  evaluates =
    name: value:
    support.check name (builtins.tryEval (builtins.deepSeq value true)).success "it does not evaluate";
  services = config: config.boot.initrd.systemd.units;
in
lib.mapAttrs (_: support.lines) (
  lib.listToAttrs (
    map (
      name:
      let
        config = eval name [ ];
      in
      lib.nameValuePair "example-${name}" (
        [ (evaluates "NixOS: the system of ${name}" config.system.build.toplevel.drvPath) ]
        ++ lib.optionals (config ? boot.freshroot) (
          map (
            output: evaluates "NixOS: ${output} of ${name}" (derivation config.system.build.freshroot.${output})
          ) (outputs ++ lib.optional (name == "raspberry-pi-4") "raspberryPi4")
        )
      )
    ) names
  )
  // {
    stage-1 = [
      (
        let
          fresh = import ../lib.nix;
          config = eval "home-staker" [ ];
          text = (services config)."freshroot.service".text;
          ours = fresh.unitText (
            removeAttrs config.boot.initrd.systemd.services.freshroot [ ]
            // fresh.bootUnit {
              agent = "${config.boot.freshroot.package}/bin/freshroot";
              devices = [ "/dev/mapper/vg0-cache" ];
              mounts = [ "/data" ];
            }
          );
          # NixOS adds an environment, and makes links of RequiredBy.
          essence =
            text:
            lib.sort lib.lessThan (
              lib.filter (
                line:
                line != ""
                && !(lib.hasPrefix "[" line)
                && !(lib.hasPrefix "Environment=" line)
                && !(lib.hasPrefix "RequiredBy=" line)
              ) (lib.splitString "\n" text)
            );
        in
        support.equal "NixOS: the unit is what lib.nix says" (map (lib.replaceStrings
          [ "=true" "=false" ]
          [ "=1" "=0" ]
        ) (essence text)) (map (lib.replaceStrings [ "=true" "=false" ] [ "=1" "=0" ]) (essence ours))
      )
      (
        let
          systemd = (eval "home-staker" [ ]).boot.initrd.systemd;
          fstab = systemd.managerEnvironment.SYSTEMD_SYSROOT_FSTAB;
          text = fstab.text or (builtins.readFile fstab);
        in
        support.check "NixOS: the initrd's fstab is ours in both places that read it, and holds nothing of the agent's" (
          "${systemd.services.initrd-parse-etc.environment.SYSTEMD_SYSROOT_FSTAB}" == "${fstab}"
          && lib.any (path: "${path.source or path}" == "${fstab}") systemd.storePaths
          && text == ''
            tmpfs / tmpfs x-initrd.mount,mode=0755,size=50% 0 0
            /dev/mapper/vg0-data /data xfs x-initrd.mount,noatime,x-systemd.device-timeout=120s 0 2
          ''
        ) (builtins.toJSON text)
      )
      (
        let
          systemd = (eval "minimal" [ ]).boot.initrd.systemd;
        in
        # As drop-ins of systemd's own units, which NixOS puts into the initrd.
        support.equal "NixOS: emergency.service and initrd.target are extended, not replaced"
          (map (name: [
            systemd.units.${name}.overrideStrategy
            (lib.elem name systemd.suppressedUnits)
          ]) [ "emergency.service" "initrd.target" ])
          [
            [
              "asDropinIfExists"
              false
            ]
            [
              "asDropinIfExists"
              false
            ]
          ]
      )
    ];
    initrd = [
      (
        let
          config = eval "minimal" [
            {
              system.nixos-init.enable = true;
              system.etc.overlay.enable = true;
              services.userborn.enable = true;
              boot.initrd.systemd.shell.enable = false;
            }
          ];
        in
        support.check "NixOS: with nixos-init, an etc overlay and no shell" (
          (builtins.tryEval config.system.build.toplevel.drvPath).success
          # The last resort sleeps by this, with or without a shell.
          && lib.any (package: lib.hasInfix "coreutils" "${package}") config.boot.initrd.systemd.initrdBin
          && !(services config ? "initrd-find-nixos-closure.service")
          && config.boot.initrd.systemd.services.freshroot.requiredBy == [
            "initrd-fs.target"
            "initrd-find-etc.service"
          ]
        ) "${builtins.toJSON config.boot.initrd.systemd.services.freshroot.requiredBy}"
      )
      (
        let
          of =
            name:
            (eval "minimal" [
              {
                networking.hostName = lib.mkForce "minimal";
                environment.etc.x.text = name;
              }
            ]).system.build.freshroot.initrd.drvPath;
        in
        support.equal "NixOS: the initrd is the same for another generation with the same kernel" (of "a") (
          of "b"
        )
      )
    ];
    refusals = [
      (
        let
          config = eval "netboot-migration" [ (nixpkgs + "/nixos/modules/installer/netboot/netboot.nix") ];
          refused = map (one: one.message) (lib.filter (one: !one.assertion) config.assertions);
        in
        support.check "NixOS: what netboot.nix mounts is refused by its name" (lib.all
          (path: lib.any (lib.hasInfix "fileSystems.\"${path}\": boot.freshroot mounts this itself") refused)
          [
            "/nix/store"
            "/nix/.ro-store"
            "/nix/.rw-store"
          ]
        ) (builtins.toJSON refused)
      )
    ];
    command-lines = [
      (
        let
          scripts = name: (eval name [ ]).system.build.freshroot.isoImage.buildCommand;
          params = name: lib.filter (lib.hasPrefix "root=") (lib.splitString " " (scripts name));
          inits = name: lib.length (lib.filter (lib.hasInfix "init=") (lib.splitString " " (scripts name)));
        in
        # Without root=fstab systemd mounts no /sysroot; nixos-init takes exactly one init=.
        support.equal "NixOS: generated command lines say root=fstab for systemd only, and init= once"
          [
            (params "minimal" != [ ])
            (params "diskless")
            (inits "minimal")
            (inits "diskless")
          ]
          [
            true
            [ ]
            1
            1
          ]
      )
    ];
    flake =
      lib.concatMap
        (
          system:
          lib.mapAttrsToList (name: check: evaluates "NixOS: check ${name} for ${system}" check.drvPath) (
            # The others are above and below.
            lib.filterAttrs (
              name: _: !(lib.hasPrefix "example-" name) && !(lib.hasPrefix "vm-" name)
            ) flake.checks.${system}
          )
        )
        [
          "x86_64-linux"
          "aarch64-linux"
        ]
      ++ [
        (support.equal "NixOS: every example is a check"
          (lib.sort lib.lessThan (
            lib.concatMap (
              system: map (lib.removePrefix "example-") (lib.filter (lib.hasPrefix "example-") (lib.attrNames flake.checks.${system}))
            ) [ "x86_64-linux" "aarch64-linux" ]
          ))
          names
        )
        (evaluates "NixOS: the flake's apps" (map (app: app.program) (lib.attrValues flake.apps.x86_64-linux)))
        (evaluates "NixOS: the flake's packages" (
          map (system: map (one: one.drvPath) (lib.attrValues flake.packages.${system})) [ "x86_64-linux" "aarch64-linux" ]
        ))
        (
          let
            pkgs = import nixpkgs {
              system = "x86_64-linux";
              overlays = [ flake.overlays.default ];
            };
          in
          support.equal "NixOS: the overlay's agent is the flake's, and static" [
            pkgs.freshroot.drvPath
            pkgs.freshroot.stdenv.hostPlatform.isStatic
          ] [
            flake.packages.x86_64-linux.freshroot.drvPath
            true
          ]
        )
      ];
    vm-tests = [
      (support.equal "NixOS: every behaviour has a VM test"
        (lib.filter (name: !(flake.checks.x86_64-linux ? "vm-${name}")) [
          "cold"
          "warm"
          "server-down"
          "corrupt"
          "persistent"
          "rollback"
        ])
        [ ]
      )
    ]
    # Those of one platform will do: they are the same.
    ++ lib.mapAttrsToList (name: check: evaluates "NixOS: check ${name}" check.drvPath) (
      lib.filterAttrs (name: _: lib.hasPrefix "vm-" name) flake.checks.x86_64-linux
    );
    template = [
      (evaluates "NixOS: the template" (map (one: one.drvPath) (lib.attrValues template.packages.x86_64-linux)))
    ];
  }
)
