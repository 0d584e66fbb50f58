#!/usr/bin/env bash
# The guest's kernel: Debian's cloud kernel, downloaded and unpacked, never installed.
#
#   build/kernel/vmlinux           the ELF inside vmlinuz: it boots by PVH, without the decompressor
#   build/kernel/modules/          lib/modules/VERSION, indexed by depmod
#   build/kernel/modules.squashfs  the same tree for the guests: mounted at /lib/modules it shows VERSION/
#   build/kernel/version           VERSION; written last, so a directory that has it is whole
#
# All of it is made in a draft beside its place and renamed, so a set-up that was cut short heals itself with the next one.
# A kernel that is there stays, whatever Debian has released since: remove build/kernel to take the newest.
set -euo pipefail

readonly meta_package=linux-image-cloud-amd64
readonly out=build/kernel
readonly draft=build/kernel.draft

say() { printf 'setup: %s\n' "$*" >&2; }
fail() {
  printf 'setup: %s\n' "$*" >&2
  exit 1
}

# The versioned package behind the meta package, which names it as its dependency; empty when apt knows neither.
newest_kernel_package() {
  apt-cache depends "$meta_package" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*-cloud-amd64\)$/\1/p' | head -n 1
}

refresh_package_lists() {
  [ "$(id -u)" = 0 ] || fail "apt's package lists are missing or too old to fetch the guest kernel; run: sudo apt-get update"
  say 'refreshing the package lists'
  apt-get update -qq || true
}

# Leaves the .deb in the draft. Lists that have aged name files that the mirror no longer has: refresh them once and try again.
download_kernel() {
  local package attempt
  for attempt in first second; do
    package=$(newest_kernel_package)
    if [ -n "$package" ]; then
      say "downloading $package"
      # Root's apt would rather download as a user that cannot write here, and says so at length.
      if (cd "$draft" && apt-get download -qq -o APT::Sandbox::User=root "$package"); then
        return
      fi
    fi
    [ "$attempt" = second ] || refresh_package_lists
  done
  fail "the guest kernel could not be downloaded: 'apt-get download $meta_package' has to work on this host (is this Debian 12 on amd64, and its mirror reachable?); then run the same command again"
}

# little_endian FILE OFFSET BYTES: an unsigned number of a binary file.
little_endian() { od -An --endian=little -t "u$3" -j "$2" -N "$3" "$1" | tr -d ' '; }

# cut_vmlinux VMLINUZ VMLINUX, by the boot protocol's header: the payload lies payload_offset (0x248) behind the real-mode part
# of setup_sects (0x1f1) sectors, and all but gzip carry the size of what comes out in four bytes at the end.
cut_vmlinux() {
  local vmlinuz=$1 vmlinux=$2 start length size magic unpack
  [ "$(od -An -c -j 514 -N 4 "$vmlinuz" | tr -d ' ')" = HdrS ] || fail "$vmlinuz has no boot header: this is no x86 kernel"
  start=$((($(little_endian "$vmlinuz" 497 1) + 1) * 512 + $(little_endian "$vmlinuz" 584 4)))
  length=$(little_endian "$vmlinuz" 588 4)
  size=$(little_endian "$vmlinuz" $((start + length - 4)) 4)
  magic=$(od -An -t x1 -j "$start" -N 4 "$vmlinuz" | tr -d ' ')
  case $magic in
    02214c18) unpack='lz4 -dc' length=$((length - 4)) ;;
    28b52ffd) unpack='zstd -dc' length=$((length - 4)) ;;
    fd377a58) unpack='xz -dc' length=$((length - 4)) ;;
    1f8b*) unpack='gzip -dc' ;;
    *) fail "the kernel's payload begins with $magic: neither LZ4, zstd, xz nor gzip" ;;
  esac
  dd if="$vmlinuz" iflag=skip_bytes,count_bytes bs=1M skip="$start" count="$length" status=none | $unpack >"$vmlinux"
  [ "$(stat -c %s "$vmlinux")" = "$size" ] || fail "the kernel did not unpack to the $size bytes that its header promises"
  [ "$(od -An -t x1 -N 4 "$vmlinux" | tr -d ' ')" = 7f454c46 ] || fail "the kernel's payload is no ELF file"
}

# The .deb has no index of the modules: Debian's postinst would make it.
index_modules() {
  local version=$1
  rm -f "$draft/modules/lib/modules/$version/build" "$draft/modules/lib/modules/$version/source"
  PATH=$PATH:/usr/sbin:/sbin depmod -b "$draft/modules" "$version"
}

pack_modules() {
  tar -C "$draft/modules/lib/modules" --sort=name --owner=0 --group=0 --numeric-owner -cf - "$1" |
    tar2sqfs -q -f -c lz4 "$draft/modules.squashfs"
}

main() {
  local version
  [ -f "$out/version" ] && exit 0
  rm -rf "$draft"
  mkdir -p "$draft/deb" "$draft/modules/lib"
  download_kernel
  dpkg-deb -x "$draft"/*.deb "$draft/deb"
  version=$(basename "$draft"/deb/boot/vmlinuz-*)
  version=${version#vmlinuz-}
  say "unpacking the guest kernel $version"
  cut_vmlinux "$draft/deb/boot/vmlinuz-$version" "$draft/vmlinux"
  mv "$draft/deb/boot/config-$version" "$draft/config"
  mv "$draft/deb/lib/modules" "$draft/modules/lib/modules"
  index_modules "$version"
  pack_modules "$version"
  rm -rf "$draft/deb" "$draft"/*.deb
  printf '%s\n' "$version" >"$draft/version"
  sync -f "$draft/version"
  rm -rf "$out"
  mv -T "$draft" "$out"
}

main "$@"
