import assert from 'node:assert/strict'
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { silentLogger } from '../log.ts'
import { Memory } from '../memory/memory.ts'
import { KvmHost, type KvmVmm } from './kvm-host.ts'

let dir: string
before(async () => {
  dir = await mkdtemp(path.join(os.tmpdir(), 'kvm-host-'))
})
after(() => rm(dir, { recursive: true, force: true }))

const VMM: KvmVmm = { title: 'Test VMM', program: 'test-vmm', setting: 'TEST_VMM', home: 'https://vmm.example', versions: ['1.2'] }

async function script(name: string, words: string): Promise<string> {
  const file = path.join(dir, name)
  await writeFile(file, `#!/bin/sh\necho '${words}'\n`)
  await chmod(file, 0o755)
  return file
}

interface Place {
  readonly device: string
  readonly reach: string
  readonly needsReach?: boolean
  /** What comes of the boot that is tried. */
  readonly boot?: () => Promise<void>
}

/** A device is any file here, and the guest's are small ones; without `boot` there are none, and no guest is tried. */
async function hostOf({ device, reach, needsReach = false, boot }: Place): Promise<KvmHost> {
  const guestFile = path.join(dir, 'guest')
  await writeFile(guestFile, 'guest')
  const guest = boot === undefined ? path.join(dir, 'absent') : guestFile
  const memory = new Memory({
    goldenDir: path.join(dir, 'golden'),
    basesDir: path.join(dir, 'memory'),
    shimPath: 'no-shim',
    log: silentLogger,
    isNeeded: () => true,
  })
  const uses = {
    ...{ memory, log: silentLogger, kernelPath: guest, initrdPath: guest, kvmDevice: device },
    shimPath: await script('shim', reach),
    program: { file: await script('test-vmm', 'Test VMM v1.2.3'), searchPath: '' },
    workDir: path.join(dir, 'work'),
    probeFile: path.join(await mkdtemp(path.join(dir, 'probe-')), 'kvm.json'),
    awaitParked: async () => undefined,
  }
  return new KvmHost({ ...VMM, needsReach }, uses, boot ?? (() => assert.fail('a guest was tried')))
}

test('what a host has not is said before any file of the guest is read', async () => {
  const [device, absent] = [await script('device', ''), path.join(dir, 'no-kvm')]
  const noKvm = await (await hostOf({ device: absent, reach: 'yes' })).probe()
  assert.deepEqual([noKvm.available, noKvm.reason], [false, 'Test VMM needs KVM: This host has no KVM'])
  assert.match(noKvm.mend ?? '', /dormouse doctor/)
  const noReach = await (await hostOf({ device, reach: 'no Yama', needsReach: true })).probe()
  assert.match(noReach.reason ?? '', /look into the memory of VMs here, which Test VMM's need: Yama/)
})

test('a guest that boots settles it, and where memory is out of reach is said beside; one that does not is the reason', async () => {
  const device = await script('device', '')
  const works = await (await hostOf({ device, reach: 'no Yama', boot: async () => undefined })).probe()
  assert.deepEqual(works, { available: true, version: '1.2.3', acceleration: 'kvm', memoryOutOfReach: 'Yama' })
  const fails = await (await hostOf({ device, reach: 'yes', boot: () => Promise.reject(new Error('it stood still')) })).probe()
  assert.match(fails.reason ?? '', /Test VMM needs KVM: KVM is there, but no guest boots with it \(it stood still\)/)
})
