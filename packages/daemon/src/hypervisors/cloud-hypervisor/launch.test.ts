/** What is seen before there is a VMM: whether the memory that it is to read is the one that was written. */
import assert from 'node:assert/strict'
import { chmod, mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { silentLogger } from '../../log.ts'
import { launch } from './launch.ts'

let dir: string
before(async () => {
  dir = await mkdtemp(path.join(os.tmpdir(), 'launch-'))
})
after(() => rm(dir, { recursive: true, force: true }))

const SUM = '0123456789abcdef'
const mapping = { slot: 0, gpa: 0, size: 2 ** 20, file_offset: 0 }
const state = { snapshots: { 'memory-manager': { snapshot_data: { state: JSON.stringify({ guest_ram_mappings: [mapping] }) } } } }

/** A shim that says this of the pages; asked for anything else it ends at once. */
async function launchWith(says: string, code = 0): Promise<{ readonly failure: Promise<unknown>; readonly left: () => Promise<string[]> }> {
  const house = await mkdtemp(path.join(dir, 'house-'))
  const shimPath = path.join(house, 'shim')
  const scratchDir = path.join(house, 'scratch')
  await mkdir(scratchDir)
  await writeFile(
    shimPath,
    `#!/bin/sh\n[ "$1" = ranges ] || exit 7\n[ ${code} = 0 ] && echo pages > "$3"\nprintf '${says}'\nexit ${code}\n`,
  )
  await chmod(shimPath, 0o755)
  const runDir = path.join(house, 'run')
  const plan = { shimPath, runDir, logs: [], groups: [], isolateNetwork: false, vmm: { argv: ['/bin/true'], descriptors: [] } }
  const written = { bytes: 4096, pages: 1, sum: SUM }
  const from = { saved: { config: {}, state }, delta: { file: path.join(house, 'delta'), written, scratchDir } }
  const step = { signal: AbortSignal.timeout(20_000), log: silentLogger }
  return {
    failure: launch({ plan, machine: { vcpus: 1, memoryMib: 1 }, from, until: 'Paused' }, step),
    left: async () => [...(await readdir(scratchDir)), ...(await readdir(runDir).catch(() => []))],
  }
}

test('a memory that is not the one that was written is refused before anything is started, and leaves nothing', async () => {
  for (const says of [`range 0 1\\nsum ${SUM} 2 1048576\\n`, `range 0 1\\nsum ${'0'.repeat(16)} 1 1048576\\n`, 'nonsense\\n']) {
    const { failure, left } = await launchWith(says)
    await assert.rejects(failure, { code: 'snapshot_unusable', message: /not the one that was written/ })
    assert.deepEqual(await left(), [])
  }
})

test('a host that has no room for it is not told to throw the memory away', async () => {
  const full = await launchWith("error cannot write the VM's memory: No space left on device\\n".replace("'", "'\\''"), 1)
  await assert.rejects(full.failure, { code: 'insufficient_resources' })
  assert.deepEqual(await full.left(), [])
  const broken = await launchWith('error the delta cannot be used: its sum is wrong\\n', 1)
  await assert.rejects(broken.failure, { code: 'snapshot_unusable', message: /could not be loaded/ })
  assert.deepEqual(await broken.left(), [])
})

test('one that is whole goes on to the VMM', async () => {
  const { failure, left } = await launchWith(`range 0 1\\nsum ${SUM} 1 1048576\\n`)
  await assert.rejects(failure, (error: { code?: string }) => error.code !== 'snapshot_unusable')
  assert.deepEqual(await left(), [])
})
