/** The real Firecracker driver for a test, as qemu-driver.ts has QEMU's; and why there is none here. */
import { join } from 'node:path'
import { FirecrackerHypervisor, type FirecrackerUses } from '../../packages/daemon/src/hypervisors/firecracker/firecracker.ts'
import { artefacts, type GuestManners, makeStep, type QemuUnderTest, qemuUnderTest } from './qemu-driver.ts'
import { kvmProbeLimitMs } from './slow-host.ts'

export interface FirecrackerUnderTest extends Omit<QemuUnderTest, 'hypervisor'> {
  readonly hypervisor: FirecrackerHypervisor
}

/** Its machines have no network. */
export async function firecrackerUnderTest(guest: GuestManners, changes: Partial<FirecrackerUses> = {}): Promise<FirecrackerUnderTest> {
  const house = await qemuUnderTest('qemu', guest)
  const { dir, memory } = house
  const isRoot = process.geteuid?.() === 0
  const hypervisor = new FirecrackerHypervisor({
    memory,
    log: makeStep().log,
    shimPath: artefacts.shimPath,
    kernelPath: artefacts.kernelPath,
    initrdPath: artefacts.initrdPath,
    program: { file: undefined, searchPath: process.env.PATH ?? '' },
    workDir: join(dir, 'work'),
    probeFile: join(dir, 'firecracker-kvm.json'),
    ...(kvmProbeLimitMs === undefined ? {} : { kvmProbeLimitMs }),
    awaitParked: guest.awaitParked,
    ...(isRoot ? { goldenUser: { uid: GOLDEN_UID, gid: GOLDEN_UID } } : {}),
    ...changes,
  })
  return {
    ...house,
    hypervisor,
    async makeSpec(changes = {}) {
      const { nic: _nic, ...spec } = await house.makeSpec(changes)
      return changes.nic === undefined ? spec : { ...spec, nic: changes.nic }
    },
  }
}

/** Undefined when it can be tried here. */
export async function whyNoFirecracker(guest: GuestManners): Promise<string | undefined> {
  await using driver = await firecrackerUnderTest(guest)
  // A VM keeps no process from ending, and nothing else is here yet that would.
  const awake = setInterval(() => undefined, 60_000)
  const { available, reason } = await driver.hypervisor.probe(makeStep()).finally(() => clearInterval(awake))
  return available ? undefined : (reason ?? 'it is not available')
}

const GOLDEN_UID = 599_999
