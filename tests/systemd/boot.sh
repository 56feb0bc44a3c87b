#!/bin/sh
# Runs a command as process 1 of a Debian root, in namespaces of its own; without a command: systemd, which boots it.
#
#   unshare --mount --pid --uts --ipc --cgroup --fork --kill-child -- tests/systemd/boot.sh ROOT WORK [COMMAND...]
#
# ROOT stays as it is: what is written is in WORK/upper. WORK/ssd is /ssd, WORK/shared is /shared. The network and /dev
# are the machine's, for loop devices.
set -eu
tree=$1 work=$2
shift 2
mount --make-rprivate /
mkdir -p "$work/upper" "$work/overlay" "$work/root" "$work/ssd" "$work/shared"
mount -t overlay -o "lowerdir=$tree,upperdir=$work/upper,workdir=$work/overlay" overlay "$work/root"
cd "$work/root"
mkdir -p ssd shared .old
mount --bind "$work/ssd" ssd
mount --bind "$work/shared" shared
mount --rbind /dev dev
mount -t devpts -o newinstance,mode=0620,ptmxmode=0666 devpts dev/pts
touch "$work/console"
mount --bind "$work/console" dev/console
mount -t proc proc proc
# The kernel's own settings are the machine's.
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=0755 tmpfs run
mount -t tmpfs tmpfs tmp
pivot_root . .old
cd /
umount --lazy .old
if [ $# -gt 0 ]; then
	exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "$@"
fi
exec env -i container=x /lib/systemd/systemd
