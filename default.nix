# Everything this repository offers to Nix; flake.nix only passes it on.
{
  pkgs ? import <nixpkgs> { },
}:
let
  inherit (pkgs) lib;
  freshroot = pkgs.pkgsStatic.callPackage ./initrd-module/package.nix { };
  freshroot-publish = pkgs.callPackage ./initrd-module/package.nix { publish = true; };
  app = description: program: {
    type = "app";
    program = "${program}";
    meta = { inherit description; };
  };
in
{
  inherit freshroot freshroot-publish;
  nixosModule = ./initrd-module;
  # Many hosts, one served folder: fleet [ nixosConfigurations.a nixosConfigurations.b ].
  fleet = pkgs.callPackage ./initrd-module/fleet.nix { };
  apps = {
    publish = app "Publishes and serves images" (lib.getExe freshroot-publish);
    demo = app "Boots the minimal example in QEMU, from a server on this machine" (
      import ./initrd-module/demo.nix { inherit pkgs freshroot-publish; }
    );
  };
  checks = import ./initrd-module/tests/checks.nix { inherit pkgs freshroot freshroot-publish; };
}
