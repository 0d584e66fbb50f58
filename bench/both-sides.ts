/** What is done on both sides alike: to an instance, and by hand. */
import { open } from 'node:fs/promises'
import { runCommand } from '../packages/daemon/src/host/run-command.ts'
import type { DiskSpec } from '../packages/daemon/src/hypervisors/vm-spec.ts'
import { limited, MODULES } from './anchors/bare-guest.ts'

/** What a program of the guest writes anew before each nap, fork and snapshot; the guest's own affairs come on top. */
const CHANGED_MIB = 16

/** The guest's program for that. `/dev/shm` is the guest's memory. */
export const change = (mib: number = CHANGED_MIB): string[] => [
  '/bin/sh',
  '-c',
  `head -c ${4 << 20} /dev/urandom > /tmp/some && for i in $(seq ${mib / 4}); do cat /tmp/some; done > /dev/shm/changed`,
]

/** Those of an instance. */
export const disksOver = (rootfs: string, overlay: string): DiskSpec[] => [
  { role: 'rootfs', path: rootfs, format: 'raw', readOnly: true },
  { role: 'overlay', path: overlay, format: 'raw', readOnly: false },
  { role: 'modules', path: MODULES, format: 'raw', readOnly: true },
]

export async function timed(work: () => Promise<unknown>): Promise<number> {
  const from = performance.now()
  await work()
  return performance.now() - from
}

export async function copySparse(from: string, to: string): Promise<void> {
  await runCommand(['cp', '--sparse=always', '--reflink=auto', from, to], { step: limited() })
}

/** An ext4 disk as `create` makes one. */
export async function makeOverlay(path: string): Promise<void> {
  await runCommand(['truncate', '-s', '10G', path], { step: limited() })
  await runCommand(['mkfs.ext4', '-q', '-F', path], { step: limited() })
}

export async function flush(file: string): Promise<void> {
  await using handle = await open(file, 'r')
  await handle.sync()
}
