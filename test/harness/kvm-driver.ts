/** A real driver that needs KVM, and a program of its VMM's own project, for a test; and why there is none here. */
import { join } from 'node:path'
import type { Hypervisor } from '../../packages/daemon/src/hypervisors/hypervisor.ts'
import type { KvmDriverUses } from '../../packages/daemon/src/hypervisors/kvm-host.ts'
import { artefacts, type GuestManners, makeStep, type QemuUnderTest, qemuUnderTest } from './qemu-driver.ts'
import { kvmProbeLimitMs } from './slow-host.ts'

export interface KvmDriverUnderTest<Driver extends Hypervisor> extends Omit<QemuUnderTest, 'hypervisor'> {
  readonly hypervisor: Driver
}

/** Its machines have no network. */
export async function kvmDriverUnderTest<Driver extends Hypervisor>(
  guest: GuestManners,
  goldenUid: number,
  make: (uses: KvmDriverUses) => Driver,
): Promise<KvmDriverUnderTest<Driver>> {
  const house = await qemuUnderTest('qemu', guest)
  const { dir, memory } = house
  const { shimPath, kernelPath, initrdPath } = artefacts
  const hypervisor = make({
    ...{ memory, shimPath, kernelPath, initrdPath },
    log: makeStep().log,
    program: { file: undefined, searchPath: process.env.PATH ?? '' },
    workDir: join(dir, 'work'),
    probeFile: join(dir, 'vmm-kvm.json'),
    ...(kvmProbeLimitMs === undefined ? {} : { kvmProbeLimitMs }),
    awaitParked: guest.awaitParked,
    ...(process.geteuid?.() === 0 ? { goldenUser: { uid: goldenUid, gid: goldenUid } } : {}),
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
export async function whyNot(made: Promise<KvmDriverUnderTest<Hypervisor>>): Promise<string | undefined> {
  await using driver = await made
  // A VM keeps no process from ending, and nothing else is here yet that would.
  const awake = setInterval(() => undefined, 60_000)
  const { available, reason } = await driver.hypervisor.probe(makeStep()).finally(() => clearInterval(awake))
  return available ? undefined : (reason ?? 'it is not available')
}
