/** The driver with a real Firecracker: skipped where there is none, or no KVM for it. */
import { driverContract } from '../../packages/daemon/src/hypervisors/contract-suite.ts'
import { firecrackerUnderTest, whyNoFirecracker } from '../harness/firecracker-driver.ts'
import { agentManners } from '../harness/guest-manners.ts'
import { tellLayeredStories, tellRefusals } from './layered-stories.ts'

const skip = await whyNoFirecracker(agentManners)
const underTest = () => firecrackerUnderTest(agentManners)

driverContract('firecracker', underTest, skip)
tellLayeredStories(underTest, skip)
tellRefusals(
  underTest,
  [
    { nic: { mac: '02:00:00:00:00:01', backend: 'user', ports: [] } },
    { hotplugMib: 128 },
    { freshBoot: true },
    { vcpus: 33 },
    { hostDevices: [{ kind: 'pci', address: '0000:00:00.0' }] },
  ],
  skip,
)
