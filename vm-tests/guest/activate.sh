# shellcheck shell=dash
# The demo system's activation, as NixOS's prepare-root does it: turns the empty root into one that systemd finds its way in.
# Runs in the new root, with /nix/store, /dev, /proc, /sys and /run in place. Whatever persistent mounts brought is kept.
set -eu
PATH=@busybox@/bin
export PATH
umask 022
echo "demo: activating generation @generation@"

for folder in etc home mnt opt srv tmp usr var var/lib var/log; do
    [ -d "/$folder" ] || mkdir "/$folder"
done
[ -d /root ] || mkdir -m 0700 /root
chmod 1777 /tmp

# Debian's programs know only these places; NixOS would have them in the store alone.
mount -o bind @userland@/usr /usr
for folder in bin lib lib64 sbin; do
    [ -e "/$folder" ] || ln -s "usr/$folder" "/$folder"
done

cp -a @userland@/etc/. /etc/
cp -a @etc@/etc/. /etc/
# The image holds only files of root; what another owner needs is set here.
chmod 0640 /etc/shadow
chown 0:42 /etc/shadow
[ -e /var/lib/dpkg ] || cp -a @userland@/var/. /var/
[ -s /etc/machine-id ] || sed 's/-//g' /proc/sys/kernel/random/uuid >/etc/machine-id
: >/etc/NIXOS

ln -sfn @toplevel@ /run/current-system
ln -sfn @toplevel@ /run/booted-system
