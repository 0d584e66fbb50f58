#!/usr/bin/env bash
# Makes the image that a guest rehearses with: a root with one program, packed as images are.
#   make-rehearsal.sh <rehearsal program> <rehearsal.squashfs>
set -euo pipefail
program=$1 image=$2

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir -p "$stage"/{bin,dev,etc,lib/modules,proc,root,run,sys,tmp,usr,var}
install -m 0755 "$program" "$stage/bin/rehearsal"
echo 'root:x:0:0:root:/root:/bin/rehearsal' > "$stage/etc/passwd"
echo 'root:x:0:' > "$stage/etc/group"
tar --create --directory="$stage" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner . |
	tar2sqfs --quiet --force --compressor lz4 --block-size 131072 "$image.partial" > /dev/null
mv "$image.partial" "$image"
