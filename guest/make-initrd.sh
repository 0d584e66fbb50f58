#!/usr/bin/env bash
# Packs the guest binary as /init with the kernel modules it loads itself, each set in the order in which they depend on each other.
#   make-initrd.sh <dormouse-guest> <unpacked lib/modules/version> <initrd.cpio>
set -euo pipefail
guest=$1 tree=$2 out=$3
[ -d "$tree/kernel" ] || { echo "make-initrd: no kernel modules in '$tree': set KERNEL_MODULES to an unpacked lib/modules/<version>" >&2; exit 1; }

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
chmod 0755 "$stage"

# The names a module says it depends on, from its own .modinfo: needs no depmod.
depends() {
	objcopy -O binary --only-section=.modinfo "$1" /dev/stdout | tr '\0' '\n' | sed -n 's/^depends=//p' | tr ',' ' '
}

seen=' '
count=0
add() { # set, module
	local file need
	case $seen in *" $2 "*) return ;; esac
	seen="$seen$2 "
	# A file is named with - or _, the module always with _.
	file=$(find "$tree/kernel" -name "$(echo "$2" | sed 's/_/[-_]/g').ko" -print -quit)
	if [ -z "$file" ]; then
		grep -q "/$(echo "$2" | sed 's/_/[-_]/g')\.ko$" "$tree/modules.builtin" && return
		echo "make-initrd: there is no module $2 in $tree" >&2
		exit 1
	fi
	for need in $(depends "$file"); do add "$1" "$need"; done
	count=$((count + 1))
	mkdir -p "$stage/modules/$1"
	install -m 0644 "$file" "$stage/modules/$1/$(printf '%02d' $count)-$2.ko"
}

install -m 0755 "$guest" "$stage/init"
# What the agent's own ports need, and what meets its devices once they have been opened.
for module in virtio_mmio virtio_pci virtio_console; do add ports $module; done
# Only where the machine has such a device.
add vsock vmw_vsock_virtio_transport
for module in virtio_blk virtio_net squashfs overlay tcp_diag; do add later $module; done
mkdir -p "$stage/dev" "$stage/proc" "$stage/sys"
find "$stage" -exec touch -h -d @0 {} +
(cd "$stage" && find . | LC_ALL=C sort | cpio --quiet --reproducible -o -H newc -R 0:0) > "$out.partial"
mv "$out.partial" "$out"
