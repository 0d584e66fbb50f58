#!/bin/bash
# The lab's own life: makes of a bare kernel what tests expect of a host, runs what it was asked to, reports, and turns itself off.
export PATH=/dormouse/node_modules/.bin:/opt/programs:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 NO_COLOR=1

mkdir -p /dev/pts /dev/shm
mount -t tmpfs -o size=60% tmpfs /tmp && mount -t tmpfs tmpfs /run
mount -t devpts devpts /dev/pts && mount -t tmpfs shm /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -sf /proc/self/fd /dev/fd
modprobe -a qemu_fw_cfg virtio_console virtio_rng kvm_amd tun bridge veth nf_tables vhost_net vhost_vsock loop
# As udev does.
groupadd -rf kvm && chgrp kvm /dev/kvm && chmod 660 /dev/kvm && chmod 666 /dev/net/tun
hostname lab && ip link set lo up

told() { cat "/sys/firmware/qemu_fw_cfg/by_name/opt/dormouse/$1/raw"; }
# Its number is its bus's.
for _ in {1..100}; do
  port=$(echo /dev/vport*p1)
  if [ -c "$port" ]; then break; else sleep 0.1; fi
done
exec >"$port" 2>&1

cd /dormouse || exit
mapfile -t command < <(told command)
"${command[@]}" </dev/null
echo "lab: exit $?"
sync
echo o >/proc/sysrq-trigger
sleep 60
