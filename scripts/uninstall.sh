#!/usr/bin/env bash
# uninstall.sh PREFIX DESTDIR: removes what `make install` put there. Instances, images and the configuration stay.
set -euo pipefail

readonly prefix=${1:?the prefix that was installed to}
readonly destdir=${2-}

if [ -z "$destdir" ] && [ -d /run/systemd/system ] && systemctl is-active --quiet dormouse; then
  printf 'uninstall: the daemon runs; stop it first: systemctl disable --now dormouse\n' >&2
  exit 1
fi
rm -rf "$destdir$prefix/lib/dormouse"
rm -f "$destdir$prefix/bin/dormouse" "$destdir$prefix/lib/systemd/system/dormouse.service"
printf 'Removed. Instances and images are still in /var/lib/dormouse, the configuration in /etc/dormouse.\n'
