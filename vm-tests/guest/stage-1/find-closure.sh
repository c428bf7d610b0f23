#!/bin/sh
# shellcheck shell=dash
# Follows the last init= of the command line inside /sysroot, as NixOS's find-closure and find-etc do: the folder of what it leads to is the closure.
# Links are followed by hand, since an absolute one means the root of /sysroot. With «etc», looks for the closure's etc only.
set -eu
init=
for word in $(cat /proc/cmdline); do
    case "$word" in init=*) init=${word#init=} ;; esac
done
[ -n "$init" ] || { echo "find-closure: the command line has no init=" >&2; exit 1; }

done_path='' rest=$init links=0
while [ -n "$rest" ]; do
    rest=${rest#/}
    name=${rest%%/*}
    case "$rest" in */*) rest=/${rest#*/} ;; *) rest='' ;; esac
    case "$name" in
    '' | .) continue ;;
    ..) done_path=${done_path%/*} && continue ;;
    esac
    if [ -L "/sysroot$done_path/$name" ]; then
        links=$((links + 1))
        [ $links -lt 40 ] || { echo "find-closure: $init is a link that leads in a circle" >&2; exit 1; }
        target=$(readlink "/sysroot$done_path/$name")
        case "$target" in
        /*) done_path='' rest=$target$rest ;;
        *) rest=/$target$rest ;;
        esac
    else
        done_path=$done_path/$name
    fi
done
[ -e "/sysroot$done_path" ] || { echo "find-closure: $init leads to $done_path, which /sysroot does not have" >&2; exit 1; }
closure=${done_path%/*}

if [ "${1:-}" = etc ]; then
    [ -d "/sysroot$closure" ] || exit 1
    ln -s "$closure/etc" /etc-basedir
    exit
fi
[ -x "/sysroot$closure/prepare-root" ] || { echo "find-closure: $closure has no prepare-root: it is no NixOS system" >&2; exit 1; }
ln -s "$closure" /nixos-closure
echo "find-closure: $closure" >/dev/kmsg
# Empty: systemd takes the path that it was built with, and hands its state over.
echo NEW_INIT= >/etc/switch-root.conf
