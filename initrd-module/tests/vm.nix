# Boots of whole NixOS systems by NixOS's test driver: one behaviour each. The driver runs the machine; the server is a process beside it, so that it can
# be ended in between.
{ pkgs, freshroot-publish }:
let
  inherit (pkgs) lib;
  system =
    modules:
    import (pkgs.path + "/nixos/lib/eval-config.nix") {
      inherit pkgs;
      system = null;
      modules = [
        ../default.nix
        ./guest.nix
        (pkgs.path + "/nixos/modules/profiles/minimal.nix")
        # The driver's shell, by which it gives commands.
        (pkgs.path + "/nixos/modules/testing/test-instrumentation.nix")
      ]
      ++ modules;
    };
  first = system [ { environment.etc.generation.text = "1"; } ];
  second = system [ { environment.etc.generation.text = "2"; } ];
  persistent = system [
    { boot.freshroot.persist."/data".device = "/dev/disk/by-label/freshroot-cache"; }
  ];

  # Python for a test: boot(name) starts a machine with the cache disk in this folder.
  prelude =
    config:
    let
      fresh = import ../lib.nix;
      build = config.config.system.build;
      cmdline =
        toplevel: fresh.commandLine { system = toString toplevel; } config.config.boot.kernelParams;
    in
    ''
      import subprocess, os, shutil
      publish = "${lib.getExe freshroot-publish}"
      disk = os.path.join(os.getcwd(), "cache.img")
      subprocess.run(["truncate", "-s", "4G", disk], check=True)
      subprocess.run(["${pkgs.e2fsprogs}/bin/mkfs.ext4", "-q", "-L", "freshroot-cache", disk], check=True)

      def serve(folder):
          return subprocess.Popen([publish, "serve", folder, "--listen", "127.0.0.1:8080"])

      def boot(name, cmdline="${cmdline build.toplevel}"):
          machine = create_machine(
              "${pkgs.qemu_test}/bin/qemu-kvm -m 2048 -cpu max -kernel ${build.freshroot.kernel} -initrd ${build.freshroot.initrd}/initrd"
              + f" -append '{cmdline}' -drive file={disk},format=raw,if=virtio -nic user,model=virtio-net-pci",
              name=name,
          )
          machine.start()
          machine.wait_for_unit("multi-user.target")
          return machine

      def report(machine, field):
          return machine.succeed("${pkgs.jq}/bin/jq -r " + field + " /run/freshroot/boot.json").strip()

      def stop(server):
          server.terminate()
          server.wait()
    '';
  served = config: config.config.system.build.freshroot.served;
  test =
    name: config: script:
    pkgs.testers.runNixOSTest {
      name = "freshroot-${name}";
      # Machines are made by the script: what is tested is how they boot.
      nodes = { };
      testScript = prelude config + script;
    };
in
{
  cold = test "cold" first ''
    server = serve("${served first}")
    machine = boot("cold")
    assert report(machine, ".source") == "network"
    machine.succeed("findmnt -n -o FSTYPE /nix/store | grep -x overlay", "nix-store --verify --check-contents", "systemctl is-active freshroot-bless")
    machine.shutdown()
    stop(server)
  '';
  warm = test "warm" first ''
    server = serve("${served first}")
    boot("cold").shutdown()
    stop(server)
    machine = boot("warm")
    assert report(machine, ".source") == "cache"
    assert report(machine, ".requests") == "0"
    machine.shutdown()
  '';
  server-down = test "server-down" first ''
    server = serve("${served first}")
    boot("cold").shutdown()
    stop(server)
    # In channel mode it would ask: nobody answers, and the cache boots.
    machine = boot("down", "init=/nix/.freshroot/init freshroot.channel=default freshroot.policy.wait=5s ${toString first.config.boot.kernelParams}")
    assert report(machine, ".source") == "cache"
    machine.shutdown()
  '';
  corrupt = test "corrupt" first ''
    server = serve("${served first}")
    boot("cold").shutdown()
    # One byte of the image in the cache is turned.
    subprocess.run(["${pkgs.e2fsprogs}/bin/debugfs", "-R", "dump /freshroot/images/" + os.path.basename([name for name in os.listdir("${served first}/images") if name.endswith(".squashfs")][0]) + " image", disk], check=True)
    with open("image", "r+b") as image:
        image.seek(1 << 20)
        byte = image.read(1)
        image.seek(1 << 20)
        image.write(bytes([byte[0] ^ 1]))
    name = [name for name in os.listdir("${served first}/images") if name.endswith(".squashfs")][0]
    subprocess.run(["${pkgs.e2fsprogs}/bin/debugfs", "-w", "-R", "rm /freshroot/images/" + name, disk], check=True)
    subprocess.run(["${pkgs.e2fsprogs}/bin/debugfs", "-w", "-R", "write image /freshroot/images/" + name, disk], check=True)
    machine = boot("corrupt")
    assert int(report(machine, ".bytes.received")) > 0
    machine.shutdown()
    stop(server)
  '';
  persistent = test "persistent" persistent ''
    server = serve("${served persistent}")
    machine = boot("first")
    machine.succeed("echo kept > /data/file", "echo lost > /file", "sync")
    machine.shutdown()
    machine = boot("second")
    machine.succeed("grep -x kept /data/file", "! test -e /file")
    machine.shutdown()
    stop(server)
  '';
  rollback = test "rollback" second ''
    # Both have one kernel and one initrd: the second system is wanted, is nowhere to be had, and the first one boots.
    server = serve("${served first}")
    boot("first", "init=/nix/.freshroot/init freshroot.system=${first.config.system.build.toplevel} ${toString first.config.boot.kernelParams}").shutdown()
    stop(server)
    machine = boot("second", "init=/nix/.freshroot/init freshroot.system=${second.config.system.build.toplevel} freshroot.policy.wait=5s ${toString second.config.boot.kernelParams}")
    machine.succeed("grep -x 1 /etc/generation")
    machine.shutdown()
  '';
}
