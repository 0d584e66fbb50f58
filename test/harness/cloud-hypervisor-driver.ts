/** The real Cloud Hypervisor driver for a test, as qemu-driver.ts has QEMU's. */
import { CloudHypervisor, type CloudHypervisorUses } from '../../packages/daemon/src/hypervisors/cloud-hypervisor/cloud-hypervisor.ts'
import { type KvmDriverUnderTest, kvmDriverUnderTest, whyNot } from './kvm-driver.ts'
import type { GuestManners } from './qemu-driver.ts'

export type CloudHypervisorUnderTest = KvmDriverUnderTest<CloudHypervisor>

export const cloudHypervisorUnderTest = (
  guest: GuestManners,
  changes: Partial<CloudHypervisorUses> = {},
): Promise<CloudHypervisorUnderTest> => kvmDriverUnderTest(guest, GOLDEN_UID, (uses) => new CloudHypervisor({ ...uses, ...changes }))

/** Undefined when it can be tried here. */
export const whyNoCloudHypervisor = (guest: GuestManners): Promise<string | undefined> => whyNot(cloudHypervisorUnderTest(guest))

const GOLDEN_UID = 599_998
