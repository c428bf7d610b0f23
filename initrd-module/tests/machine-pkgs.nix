# The few builders of nixpkgs that the module uses, by means of this machine's own tools: what the module builds is built for real, in Nix's sandbox, where
# no binary cache can be reached. tests/run lets /bin, /usr and freshroot-publish into the sandbox.
{ lib, publish }:
let
  store = "/nix/store/00000000000000000000000000000000";
  # nixpkgs' runCommand, but for structured attributes: they come as variables all the same.
  build =
    name: attributes: script:
    let
      variables = removeAttrs attributes [
        "__structuredAttrs"
        "env"
        "meta"
        "nativeBuildInputs"
        "passthru"
        "preferLocalBuild"
        "unsafeDiscardReferences"
      ];
      tools = lib.concatMapStrings (tool: "${tool}/bin:") (attributes.nativeBuildInputs or [ ]);
    in
    derivation (
      variables
      // attributes.env or { }
      // {
        inherit name script;
        passAsFile = (attributes.passAsFile or [ ]) ++ [ "script" ];
        system = builtins.currentSystem;
        builder = "/bin/bash";
        PATH = "${tools}/usr/bin:/bin:/usr/sbin";
        args = [
          "-euc"
          "source \"$scriptPath\""
        ];
      }
    );
in
rec {
  inherit lib;
  stdenv.hostPlatform = {
    isx86 = true;
    isAarch64 = false;
  };
  runCommand = build;
  writeText =
    name: text:
    build name {
      inherit text;
      passAsFile = [ "text" ];
    } ''cp "$textPath" "$out"'';
  closureInfo =
    { rootPaths }:
    build "closure-info"
      {
        exportReferencesGraph = lib.concatLists (
          lib.imap0 (at: path: [
            "graph-${toString at}"
            path
          ]) rootPaths
        );
      }
      ''
        mkdir "$out"
        # Path, deriver, number of references, references; a registration has hash and size behind the path. Here they are made up.
        cat graph-* | awk '
          left > 0 { if (!skip) print; left--; next }
          { path = $0; getline; getline count; skip = seen[path]++; left = count }
          !skip { print path; print "sha256:0"; print 0; print ""; print count }
        ' >"$out/registration"
      '';
  makeModulesClosure =
    { rootModules, ... }:
    build "modules-closure" { inherit rootModules; } ''
      mkdir -p "$out/lib/modules/6.18.1"
      echo "$rootModules" >"$out/lib/modules/6.18.1/modules.order"
    '';
  # As nixpkgs': what is in front, then one archive with links into the store.
  makeInitrdNG =
    {
      name,
      prepend ? [ ],
      contents,
      ...
    }:
    build name
      {
        prepend = map toString prepend;
        contents = map (one: "${one.target} ${one.source}") contents;
      }
      ''
        mkdir -p root "$out"
        set -- $contents
        while [ $# -gt 0 ]; do
          mkdir -p "root/$(dirname "$1")" "root/nix/store"
          ln -s "$2" "root/$1"
          [ -e "root/$2" ] || cp -r --parents "$2" root/
          shift 2
        done
        find root -exec touch -h -d @1 {} +
        for one in $prepend; do cat "$one" >>"$out/initrd"; done
        (cd root && find . | LC_ALL=C sort | cpio --quiet -o -H newc --reproducible -R +0:+0) >>"$out/initrd"
      '';
  callPackage =
    file: _:
    build "freshroot-programs" { inherit publish; } ''
      mkdir -p "$out/bin"
      ln -s "$publish" "$out/bin/freshroot-publish"
      echo agent >"$out/bin/freshroot"
    '';
  pkgsStatic = { inherit callPackage; };
  buildPackages = { inherit callPackage; };
  # The machine has them.
  nothing = build "nothing" { } ''mkdir "$out"'';
  squashfsTools = nothing;
  # Programs of a standalone initrd, by name alone; for the ISO the machine has them.
  programs =
    name: list:
    build name { inherit list; } ''
      mkdir -p "$out/bin"
      for program in $list; do echo program >"$out/bin/$program"; done
    '';
  cryptsetup = programs "cryptsetup" [ "cryptsetup" ];
  dosfstools = programs "dosfstools" [ "fsck.vfat" ];
  e2fsprogs = programs "e2fsprogs" [
    "fsck.ext2"
    "fsck.ext3"
    "fsck.ext4"
  ];
  lvm2 = programs "lvm2" [ "lvm" ];
  mdadm = programs "mdadm" [ "mdadm" ];
  mtools = nothing;
  xorriso = nothing;
  grub2 = build "grub" { } ''
    mkdir -p "$out/lib"
    ln -s /usr/lib/grub "$out/lib/grub"
  '';
  grub2_efi = grub2;
  ipxe = build "ipxe" { } ''mkdir "$out" && echo iPXE >"$out/ipxe.efi"'';
  cacert = "${store}-cacert";
  coreutils = "${store}-coreutils";
  hello = build "hello" { } ''echo hello >"$out"'';
}
