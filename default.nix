# Everything this repository offers to Nix; flake.nix only passes it on.
{
  pkgs ? import <nixpkgs> { },
}:
let
  inherit (pkgs) lib;
in
{
  freshroot = pkgs.pkgsStatic.callPackage ./initrd-module/package.nix { };
  freshroot-publish = pkgs.callPackage ./initrd-module/package.nix { publish = true; };
  nixosModule = ./initrd-module;
  fleet = pkgs.callPackage ./initrd-module/fleet.nix { };
  checks = import ./initrd-module/tests/checks.nix { inherit pkgs lib; };
}
