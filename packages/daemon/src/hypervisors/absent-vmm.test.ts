/** Without its program a driver is there, and says what is missing and where it is to be had. */
import assert from 'node:assert/strict'
import { mkdtemp, readdir, rm } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { silentLogger } from '../log.ts'
import { Memory } from '../memory/memory.ts'
import { CloudHypervisor } from './cloud-hypervisor/cloud-hypervisor.ts'
import { FirecrackerHypervisor } from './firecracker/firecracker.ts'
import type { VmSpec } from './vm-spec.ts'

for (const [name, make, home] of [
  ['cloud-hypervisor', (uses: Uses) => new CloudHypervisor(uses), /github\.com\/cloud-hypervisor\/cloud-hypervisor\/releases/],
  ['firecracker', (uses: Uses) => new FirecrackerHypervisor(uses), /github\.com\/firecracker-microvm\/firecracker\/releases/],
] as const) {
  test(`${name} that is not installed is unavailable: what is missing, where to get it and how to name it; a start says the same`, async (t) => {
    const dir = await mkdtemp(path.join(os.tmpdir(), 'absent-vmm-'))
    t.after(() => rm(dir, { recursive: true, force: true }))
    const driver = make(usesIn(dir))
    const step = { signal: AbortSignal.timeout(20_000), log: silentLogger }
    const { available, reason = '', mend = '' } = await driver.probe(step)
    assert.equal(available, false)
    assert.match(reason, new RegExp(`not installed: there is no ${name} in PATH`))
    for (const word of [home, /DORMOUSE_/, ...driver.versions.map((version) => new RegExp(`\\b${RegExp.escape(version)}\\b`))]) {
      assert.match(mend, word)
    }
    const refusal = { code: 'dependency_missing', message: reason, hint: mend }
    await assert.rejects(driver.assertAvailable(step), refusal)
    await assert.rejects(driver.start(specIn(dir), step), refusal)
    assert.deepEqual(await readdir(dir), [])
  })
}

type Uses = ReturnType<typeof usesIn>

const usesIn = (dir: string) => ({
  memory: new Memory({
    goldenDir: path.join(dir, 'golden'),
    basesDir: path.join(dir, 'memory'),
    shimPath: 'no-shim',
    log: silentLogger,
    isNeeded: () => true,
  }),
  log: silentLogger,
  shimPath: 'no-shim',
  kernelPath: 'no-kernel',
  initrdPath: 'no-initrd',
  program: { file: undefined, searchPath: dir },
  workDir: path.join(dir, 'work'),
  probeFile: path.join(dir, 'kvm.json'),
  awaitParked: async () => undefined,
})

const specIn = (dir: string): VmSpec => ({
  id: 'vm',
  runDir: path.join(dir, 'run'),
  vcpus: 1,
  memoryMib: 256,
  disks: [],
  logs: { app: 'app', vmm: 'vmm', journal: 'journal', maxBytes: 1 },
})
