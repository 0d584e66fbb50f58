/** What a volume's own layers cost the guest that writes to it and reads it: nothing, beside a disk of the same kind in plain QEMU. */
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'
import type { DiskSpec } from '../../packages/daemon/src/hypervisors/vm-spec.ts'
import { guestNetworkOf } from '../../packages/daemon/src/network/network.ts'
import { bareGuestConfig, limited, MAC, MODULES } from '../anchors/bare-guest.ts'
import { BareQemu } from '../anchors/bare-qemu.ts'
import type { Bench } from '../bench.ts'
import { timed } from '../both-sides.ts'
import { atMostTimesAnchor, type Measurement } from '../promise.ts'
import { SleepingHouse } from '../sleeping-house.ts'

const GUEST_MIB = 512
const FILE_MIB = 128
/** Its source is in the guest's memory, and no zeros, which a disk would leave out. */
const PREPARE = `head -c ${8 << 20} /dev/urandom > /dev/shm/some`
const WRITE = `rm -f /data/file; for i in $(seq ${FILE_MIB / 8}); do cat /dev/shm/some; done > /data/file && sync`
const FORGET = 'echo 3 > /proc/sys/vm/drop_caches'
const READ = 'cat /data/file > /dev/null'

/** Runs a script in a guest to its end. */
type Shell = (script: string) => Promise<void>

export async function measureDiskThroughput(bench: Bench): Promise<Measurement[]> {
  const { dir, runs, tell } = bench
  await using house = await SleepingHouse.open(bench, 'disks')
  tell('two machines with a disk of 2 GB beside their own: one of an instance, one of plain QEMU')
  await house.daemon.client.post('/volumes', { name: 'data', size_gb: 2 })
  const instance = await house.create('writer', GUEST_MIB)
  await house.daemon.client.post('/instances/writer/volumes/data', { mount_path: '/data' })
  await using bare = await bareWith(join(dir, 'disks/bare'), house)
  const own: Shell = (script) => house.run(instance, ['/bin/sh', '-c', script])
  const plain: Shell = async (script) => {
    const run = await bare.guest.exec({ command: ['/bin/sh', '-c', script] }, limited())
    run.stdout.resume()
    run.stderr.resume()
    const { code } = await run.exit
    if (code !== 0) throw new Error(`${script} ended with ${code} in the plain guest`)
  }
  const [ours, anchor] = [
    { write: [] as number[], read: [] as number[] },
    { write: [] as number[], read: [] as number[] },
  ]
  for (const shell of [own, plain]) await shell(PREPARE)
  // The first run makes the file's blocks.
  for (let run = -1; run < runs; run += 1) {
    tell(`disk_throughput: run ${run + 1} of ${runs}`)
    const sides = [
      [own, ours],
      [plain, anchor],
    ] as const
    // Who comes second finds the host's disk busy with what the first has flushed.
    for (const [shell, into] of run % 2 === 0 ? sides : sides.toReversed()) {
      const written = await timed(() => shell(WRITE))
      await shell(FORGET)
      const read = await timed(() => shell(READ))
      if (run < 0) continue
      into.write.push(written)
      into.read.push(read)
    }
  }
  const what = (does: string): string =>
    `a guest of 512 MiB ${does} ${FILE_MIB} MiB on a volume; the anchor is a guest of plain QEMU on a raw file with the same options`
  return [
    {
      id: 'disk_throughput',
      what: what('writes and flushes'),
      unit: 'ms',
      target: atMostTimesAnchor(1.2),
      ours: ours.write,
      anchor: anchor.write,
    },
    {
      id: 'disk_throughput_read',
      what: what('reads, past its page cache,'),
      unit: 'ms',
      target: atMostTimesAnchor(1.2),
      ours: ours.read,
      anchor: anchor.read,
    },
  ]
}

async function bareWith(dir: string, { machine, rootfs }: SleepingHouse): Promise<BareQemu> {
  await mkdir(dir, { recursive: true })
  const disk = async (role: DiskSpec['role'], size: string): Promise<DiskSpec> => {
    const path = join(dir, `${role}.raw`)
    await runCommand(['truncate', '-s', size, path], { step: limited() })
    await runCommand(['mkfs.ext4', '-q', '-F', '-m', '0', '-E', 'lazy_journal_init=1', path], { step: limited() })
    return { role, path, format: 'raw', readOnly: false }
  }
  const disks: DiskSpec[] = [
    { role: 'rootfs', path: rootfs, format: 'raw', readOnly: true },
    await disk('overlay', '10G'),
    { role: 'modules', path: MODULES, format: 'raw', readOnly: true },
    await disk('volume-0', '2G'),
  ]
  const bare = await BareQemu.start({ ...machine, memoryMib: GUEST_MIB, dir, disks })
  const guest = await bare.connectGuest()
  const config = bareGuestConfig(['/bin/sleep', '100000'], guestNetworkOf(MAC, []))
  const volumes = [{ serial: 'volume-0', mountPath: '/data', readOnly: false, fs: 'ext4' }] as const
  await guest.go({ ...config, disks: { ...config.disks, volumes } }, limited())
  return bare
}
