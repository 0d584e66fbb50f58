import { driverContract } from '../../packages/daemon/src/hypervisors/contract-suite.ts'
import { agentManners } from '../harness/guest-manners.ts'
import { qemuUnderTest } from '../harness/qemu-driver.ts'

driverContract('qemu', () => qemuUnderTest('qemu', agentManners))
