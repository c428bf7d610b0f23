{
  description = "Boots NixOS hosts from a locally cached, verified image of their Nix store";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      eachSystem = lib.genAttrs [
        "x86_64-linux"
        "aarch64-linux"
      ];
      ours = eachSystem (system: import ./. { pkgs = nixpkgs.legacyPackages.${system}; });
    in
    {
      nixosModules.default = ./initrd-module;
      lib = import ./initrd-module/lib.nix;
      overlays.default = final: _: {
        inherit (import ./. { pkgs = final; }) freshroot freshroot-publish;
      };
      packages = lib.mapAttrs (_: one: {
        inherit (one) freshroot freshroot-publish;
        default = one.freshroot;
      }) ours;
      legacyPackages = lib.mapAttrs (_: one: { inherit (one) fleet; }) ours;
      apps = lib.mapAttrs (_: one: one.apps) ours;
      checks = lib.mapAttrs (_: one: one.checks) ours;
      formatter = eachSystem (system: nixpkgs.legacyPackages.${system}.nixfmt-tree);
      templates.default = {
        path = ./initrd-module/template;
        description = "A host that boots by freshroot";
      };
    };
}
