# The programs. The agent is built with pkgsStatic; publish = true builds the publishing side, which needs squashfs libraries and is not for initrds.
{
  lib,
  rustPlatform,
  makeWrapper,
  pkg-config,
  squashfs-tools-ng,
  squashfsTools,
  publish ? false,
}:
let
  root = ../.;
  manifest = builtins.fromTOML (builtins.readFile (root + "/Cargo.toml"));
in
rustPlatform.buildRustPackage {
  pname = if publish then "freshroot-publish" else "freshroot";
  inherit (manifest.workspace.package) version;

  src = lib.fileset.toSource {
    inherit root;
    fileset = lib.fileset.unions [
      (root + "/Cargo.toml")
      (root + "/Cargo.lock")
      (root + "/agent")
      (root + "/vm-tests/Cargo.toml")
      (root + "/vm-tests/src")
      (root + "/docs")
    ];
  };
  cargoLock.lockFile = root + "/Cargo.lock";
  buildAndTestSubdir = "agent";
  buildFeatures = lib.optional publish "publish";
  cargoBuildFlags = [
    "--bin"
    (if publish then "freshroot-publish" else "freshroot")
  ];

  nativeBuildInputs = lib.optionals publish [
    makeWrapper
    pkg-config
    rustPlatform.bindgenHook
  ];
  buildInputs = lib.optional publish squashfs-tools-ng;

  # What this version of the agent can be: the module refuses the others by name.
  passthru.modes = [
    "standalone"
    "systemd"
  ];

  # They mount, open sockets and want root: vm-tests/run has them.
  doCheck = false;

  postInstall = lib.optionalString publish ''
    wrapProgram "$out/bin/freshroot-publish" --prefix PATH : ${lib.makeBinPath [ squashfsTools ]}
  '';

  meta = {
    description =
      if publish then
        "Publishes images of Nix stores for freshroot"
      else
        "Boots a NixOS system from a locally cached, verified image of its Nix store";
    license = [
      lib.licenses.mit
      lib.licenses.asl20
    ];
    platforms = lib.platforms.linux;
    mainProgram = if publish then "freshroot-publish" else "freshroot";
  };
}
