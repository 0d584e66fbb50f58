import assert from 'node:assert/strict'
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { scratchDir } from '../harness/scratch.ts'
import { findPrograms } from './programs.ts'

test('programs are those that are named, under their own names, and those that PATH has first', async (t) => {
  const dir = await scratchDir(t)
  for (const [place, name, mode] of [
    ['first', 'firecracker', 0o755],
    ['first', 'cloud-hypervisor', 0o644],
    ['second', 'firecracker', 0o755],
    ['second', 'cloud-hypervisor', 0o755],
    ['named', 'cloud-hypervisor', 0o755],
    ['named', 'firecracker-older', 0o755],
  ] as const) {
    await mkdir(join(dir, place), { recursive: true })
    await writeFile(join(dir, place, name), '', { mode })
  }
  const PATH = `${dir}/absent:${dir}/first:${dir}/second`
  const named = ['cloud-hypervisor', 'firecracker-older'].map((name) => join(dir, 'named', name))
  assert.deepEqual(Object.fromEntries(await findPrograms({ PATH, LAB_PROGRAMS: named.join(':') })), {
    'cloud-hypervisor': named[0],
    'firecracker-older': named[1],
    firecracker: join(dir, 'first/firecracker'),
  })
  // What cannot be run is passed over.
  assert.deepEqual(Object.fromEntries(await findPrograms({ PATH })), {
    'cloud-hypervisor': join(dir, 'second/cloud-hypervisor'),
    firecracker: join(dir, 'first/firecracker'),
  })
  assert.equal((await findPrograms({})).size, 0)
  await assert.rejects(
    findPrograms({ LAB_PROGRAMS: join(dir, 'first/cloud-hypervisor') }),
    /cloud-hypervisor, which is no program that can be run/,
  )
})
