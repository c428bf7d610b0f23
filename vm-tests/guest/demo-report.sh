#!/bin/sh
# Says on the console what was booted, then runs the script disk if there is one, then does what demo.then= says.
# Everything for the harness is one line each, so that kernel messages in between do no harm.
set -u
cmdline=$(cat /proc/cmdline)
word() {
    for one in $cmdline; do
        case "$one" in "$1="*) printf '%s\n' "${one#*=}" ;; esac
    done | tail -n 1
}
console=/dev/console
say() { printf '\r\n%s\r\n' "$*" >$console; }

# The login prompt comes first: it is what «the system is up» means to a person. Its program then sleeps until somebody types.
prompt_waits() {
    pid=$(pgrep -x -t ttyS0 agetty) && grep -q '^State:.S' "/proc/$pid/status"
}
asleep=0 looks=0
while [ $asleep -lt 3 ] && [ $looks -lt 100 ]; do
    if prompt_waits; then asleep=$((asleep + 1)); else asleep=0; fi
    looks=$((looks + 1))
    sleep 0.2
done

say "DEMO-READY generation=$(cat /etc/demo-generation) uptime=$(cut -d' ' -f1 /proc/uptime) state=$(systemctl is-system-running) system=$(readlink /run/current-system)"
if [ -r /run/freshroot/boot.json ]; then
    say "BOOT-REPORT $(tr -d '\r\n' </run/freshroot/boot.json)"
else
    say "BOOT-REPORT none"
fi
say "MEMINFO $(sed -n 's/^\(MemTotal\|MemFree\|MemAvailable\|Cached\|Shmem\): *\([0-9]*\) kB$/\1=\2/p' /proc/meminfo | tr '\n' ' ')"

script=/dev/disk/by-id/virtio-script
if [ -b $script ]; then
    # The second serial port carries nothing else; its driver must not change line ends.
    stty -F /dev/ttyS1 raw -echo
    sh $script >/dev/ttyS1 2>&1 </dev/null
    status=$?
    printf 'SCRIPT-END %s\n' $status >/dev/ttyS1
    say "SCRIPT-DONE status=$status"
fi
case "$(word demo.then)" in
poweroff) systemctl poweroff ;;
reboot) systemctl reboot ;;
*) say "DEMO-STAYS" ;;
esac
