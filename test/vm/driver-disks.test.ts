/** What a guest sees of its disks: a golden boot knows none of them, and each guest that wakes from it has its own. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, readdir, readFile, stat, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'
import { MICROVM, Q35 } from '../../packages/daemon/src/hypervisors/qemu/boards.ts'
import type { DiskSpec } from '../../packages/daemon/src/hypervisors/vm-spec.ts'
import { agentManners } from '../harness/guest-manners.ts'
import { makeStep, type QemuUnderTest, qemuUnderTest } from '../harness/qemu-driver.ts'
import { makeRootfs, type RunningGuest, runGuest } from '../harness/running-guest.ts'

interface House {
  readonly driver: QemuUnderTest
  readonly rootfs: DiskSpec
}

async function house(t: TestContext, board: typeof Q35): Promise<House> {
  const driver = await qemuUnderTest(board.hypervisor, agentManners)
  t.after(() => driver[Symbol.asyncDispose]())
  await mkdir(join(driver.dir, 'image'))
  const path = await makeRootfs(join(driver.dir, 'image'))
  return { driver, rootfs: { role: 'rootfs', path, format: 'raw', readOnly: true } }
}

const ROLES = ['overlay', 'modules', 'volume-0', 'volume-1', 'volume-2'] as const

/** Disks of these sizes for the slots behind the rootfs's, the last of them for reading only. */
async function makeVolumes(dir: string, mib: readonly number[], roles: readonly DiskSpec['role'][] = ROLES): Promise<DiskSpec[]> {
  await mkdir(dir)
  return Promise.all(
    mib.map(async (size, index): Promise<DiskSpec> => {
      const path = join(dir, `volume-${index}`)
      await writeFile(path, '')
      await truncate(path, size * 2 ** 20)
      await runCommand(['mkfs.ext4', '-q', '-F', path], { step: makeStep() })
      return { role: roles[index] ?? 'overlay', path, format: 'raw', readOnly: index === mib.length - 1 }
    }),
  )
}

/** What the guest's kernel holds to be true of each disk, by serial; of the machine's own slots that are empty, which have none, by the disk's name. */
async function disksOf(guest: RunningGuest): Promise<Map<string, { sectors: number; ro: boolean; queue: string }>> {
  const queue = ['write_cache', 'logical_block_size', 'max_sectors_kb', 'max_segments', 'discard_max_bytes', 'write_zeroes_max_bytes']
  const told = await guest.sh(
    `cd /sys/block; for d in vd*; do s=$(cat $d/serial); echo \${s:-$d} $(cat $d/size $d/ro) $(cd $d/queue; cat ${queue.join(' ')}); done`,
  )
  return new Map(
    told.split('\n').map((line) => {
      const [name = '', sectors, ro, ...queue] = line.split(' ')
      return [name, { sectors: Number(sectors), ro: ro === '1', queue: queue.join(' ') }]
    }),
  )
}

const sectorsOf = async ({ path }: DiskSpec): Promise<number> => (await stat(path)).size / 512

test('a machine starts beside VMMs that hold the whole of the image locked that they read', async (t) => {
  const { driver, rootfs } = await house(t, Q35)
  const lock = 'import fcntl, sys; f = open(sys.argv[1]); fcntl.lockf(f, fcntl.LOCK_SH); print("held", flush=True); sys.stdin.read()'
  const holder = spawn('python3', ['-c', lock, rootfs.path], { stdio: ['pipe', 'pipe', 'inherit'] })
  t.after(() => holder.kill())
  await once(holder.stdout, 'data')
  await using guest = await runGuest(driver, rootfs.path, { disks: [rootfs] })
  assert.equal(await guest.sh('echo here'), 'here')
})

for (const board of [Q35, MICROVM]) {
  test(`on ${board.hypervisor} each guest that wakes knows its own disks as well as one that booted with them`, async (t) => {
    const { driver, rootfs } = await house(t, board)
    const seen = async (disks: readonly DiskSpec[], freshBoot = false): ReturnType<typeof disksOf> => {
      await using guest = await runGuest(driver, rootfs.path, { disks, freshBoot })
      assert.equal(guest.vm.origin, freshBoot ? 'boot' : 'golden')
      const told = await disksOf(guest)
      assert.equal(told.size, board.diskSlots)
      for (const disk of disks) {
        const { sectors, ro } = told.get(disk.role) ?? assert.fail(`${disk.role} is not there`)
        assert.deepEqual({ sectors, ro }, { sectors: await sectorsOf(disk), ro: disk.readOnly }, disk.role)
      }
      const empty = [...told].filter(([name]) => !disks.some(({ role }) => role === name))
      assert.equal(empty.length, board.diskSlots - disks.length)
      assert.deepEqual(new Set(empty.map(([, { sectors }]) => sectors)), new Set(empty.length > 0 ? [0] : []))
      return told
    }
    // Up to the last slot, and with two that stay empty.
    const many = [rootfs, ...(await makeVolumes(join(driver.dir, 'many'), [8, 16, 24, 32, 40]))]
    const few = [rootfs, ...(await makeVolumes(join(driver.dir, 'few'), [48, 12, 20]))]
    const woken = await seen(many)
    await seen(few)
    assert.equal((await readdir(join(driver.dir, 'golden'))).length, 1)
    assert.deepEqual(woken, await seen(many, true))
  })

  test(`on ${board.hypervisor} a disk that is for reading only is not written by a guest that woke, whatever its root tries`, async (t) => {
    const { driver, rootfs } = await house(t, board)
    const disks = [rootfs, ...(await makeVolumes(join(driver.dir, 'volumes'), [8], ['volume-0']))]
    const before = await Promise.all(disks.map(({ path }) => readFile(path)))
    await using guest = await runGuest(driver, rootfs.path, { disks })
    assert.equal(guest.vm.origin, 'golden')
    for (const { role } of disks) {
      const device = `/dev/$(cd /sys/block; grep -lx ${role} vd*/serial | cut -d/ -f1)`
      const write = `dd if=/dev/urandom of=${device} bs=4096 count=1 conv=fsync,notrunc; echo "ended with $?"`
      assert.match(await guest.sh(write), /not permitted[\s\S]*ended with 1$/)
      assert.match(await guest.sh(`blockdev --setrw ${device} && ${write}`), /Input\/output error[\s\S]*ended with 1$/)
    }
    assert.equal(await guest.sh('echo still here'), 'still here')
    for (const [index, { path }] of disks.entries()) assert.ok((await readFile(path)).equals(before[index] ?? Buffer.of()))
  })
}
