# shellcheck shell=dash
# The demo system's activation, as NixOS's prepare-root does it: turns the empty root into one that systemd finds its way in.
# Runs in the new root, with /nix/store and /run in place. Whatever persistent mounts brought is kept.
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
# systemd brings these to the new root only when it switches to it; NixOS's activation mounts them too.
for folder in proc dev; do [ -d "/$folder" ] || mkdir "/$folder"; done
[ -e /proc/self ] || mount -t proc proc /proc
[ -e /dev/null ] || mount -t devtmpfs dev /dev

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
# dpkg's list of files is long, and nothing writes to it here.
if [ ! -e /var/lib/dpkg ]; then
    for entry in @userland@/var/* @userland@/var/lib/*; do
        name=${entry#@userland@}
        case "$name" in /var/lib | /var/lib/dpkg) continue ;; esac
        [ -e "$name" ] || cp -a "$entry" "$name"
    done
    ln -sfn @userland@/var/lib/dpkg /var/lib/dpkg
fi
[ -s /etc/machine-id ] || sed 's/-//g' /proc/sys/kernel/random/uuid >/etc/machine-id
: >/etc/NIXOS

ln -sfn @toplevel@ /run/current-system
ln -sfn @toplevel@ /run/booted-system
