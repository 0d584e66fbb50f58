/** The real Firecracker driver for a test, as qemu-driver.ts has QEMU's. */
import { FirecrackerHypervisor } from '../../packages/daemon/src/hypervisors/firecracker/firecracker.ts'
import type { KvmDriverUses } from '../../packages/daemon/src/hypervisors/kvm-host.ts'
import { type KvmDriverUnderTest, kvmDriverUnderTest, whyNot } from './kvm-driver.ts'
import type { GuestManners } from './qemu-driver.ts'

export type FirecrackerUnderTest = KvmDriverUnderTest<FirecrackerHypervisor>

export const firecrackerUnderTest = (guest: GuestManners, changes: Partial<KvmDriverUses> = {}): Promise<FirecrackerUnderTest> =>
  kvmDriverUnderTest(guest, GOLDEN_UID, (uses) => new FirecrackerHypervisor({ ...uses, ...changes }))

/** Undefined when it can be tried here. */
export const whyNoFirecracker = (guest: GuestManners): Promise<string | undefined> => whyNot(firecrackerUnderTest(guest))

const GOLDEN_UID = 599_999
