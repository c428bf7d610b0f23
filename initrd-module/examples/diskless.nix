# No disk at all: the image is kept in RAM and fetched at each boot. Pixiecore or a DHCP server tells the machine what to load.
{
  imports = [ ../. ];

  boot.freshroot = {
    enable = true;
    # The agent is the whole stage 1: the initrd is the smallest there is.
    mode = "standalone";
    url = "http://images.lan/freshroot";
    channel = "diskless";
    trustedPublicKeys = [ "lab-1:jVfuRsCOrnFIIQdQgwUVUEyB/PSpZ8ld6DIS5hxiKv4=" ];
    # Little of the RAM for files, and less for what is written to the store: the image needs its share.
    root.tmpfsSize = "25%";
    store.tmpfsSize = "10%";
    image.servedUrl = "http://images.lan/freshroot";
    netboot.macAddresses = [
      "00:1f:29:12:34:56"
      "00:1F:29:12:34:57"
    ];
    onFailure.retries = 10;
  };

  networking.hostName = "diskless";
  nixpkgs.hostPlatform = "x86_64-linux";
  system.stateVersion = "26.05";
}
