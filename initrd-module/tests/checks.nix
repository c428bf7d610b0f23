# What `nix flake check` builds.
{
  pkgs,
  freshroot,
  freshroot-publish,
}:
let
  inherit (pkgs) lib;
  source = lib.fileset.toSource {
    root = ../..;
    fileset = lib.fileset.unions [
      ../../default.nix
      ../../flake.nix
      ../../initrd-module
    ];
  };
  names = map (lib.removeSuffix ".nix") (
    lib.filter (lib.hasSuffix ".nix") (lib.attrNames (builtins.readDir ../examples))
  );
  example =
    name:
    (import (pkgs.path + "/nixos/lib/eval-config.nix") {
      system = null;
      modules = [ (../examples + "/${name}.nix") ];
    }).config;
  # An example is checked on the platform that it is for: x86_64-linux, but for the Raspberry Pi.
  platform = name: if name == "raspberry-pi-4" then "aarch64-linux" else "x86_64-linux";
  here = lib.filter (name: platform name == pkgs.stdenv.hostPlatform.system) names;
  text =
    name: value:
    pkgs.runCommand name
      {
        inherit value;
        passAsFile = [ "value" ];
      }
      ''
        cat "$valuePath"
        # Not «! grep»: a negated command does not end a script.
        if grep '^FAILED' "$valuePath"; then exit 1; fi
        grep -q '^ok ' "$valuePath"
        touch "$out"
      '';
  cargo =
    name: command:
    freshroot-publish.overrideAttrs (old: {
      pname = name;
      nativeBuildInputs = old.nativeBuildInputs ++ [
        pkgs.clippy
        pkgs.rustfmt
      ];
      buildPhase = command;
      installPhase = ''touch "$out"'';
      postInstall = "";
      fixupPhase = "true";
    });
in
{
  inherit freshroot freshroot-publish;
  fmt-nix = pkgs.runCommand "freshroot-fmt-nix" { nativeBuildInputs = [ pkgs.nixfmt ]; } ''
    find ${source} -name '*.nix' -exec nixfmt --check {} +
    touch "$out"
  '';
  fmt = cargo "freshroot-fmt" "cargo fmt --check";
  clippy = cargo "freshroot-clippy" "cargo clippy --offline -p freshroot --all-targets --features publish -- -D warnings";
  lib = text "freshroot-lib-test" (import ./lib-test.nix);
  module = text "freshroot-module-test" (import ./module-test.nix { inherit lib; });
  option-docs =
    pkgs.runCommand "freshroot-option-docs"
      {
        page = import ../options-doc.nix { inherit lib; };
        passAsFile = [ "page" ];
      }
      ''
        diff -u ${../../docs/nixos-options.md} "$pagePath"
        touch "$out"
      '';
}
// lib.listToAttrs (
  map (name: lib.nameValuePair "example-${name}" (example name).system.build.toplevel) here
)
// lib.mapAttrs' (name: test: lib.nameValuePair "vm-${name}" test) (
  import ./vm.nix { inherit pkgs freshroot-publish; }
)
