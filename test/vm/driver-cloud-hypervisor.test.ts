/** The driver with a real Cloud Hypervisor: skipped where there is none, or no KVM for it. */
import { driverContract } from '../../packages/daemon/src/hypervisors/contract-suite.ts'
import { cloudHypervisorUnderTest, whyNoCloudHypervisor } from '../harness/cloud-hypervisor-driver.ts'
import { agentManners } from '../harness/guest-manners.ts'
import { tellLayeredStories, tellRefusals } from './layered-stories.ts'
import { tellOfVolumes } from './volume-story.ts'

const skip = await whyNoCloudHypervisor(agentManners)
const underTest = () => cloudHypervisorUnderTest(agentManners)

driverContract('cloud-hypervisor', underTest, skip)
tellLayeredStories(underTest, skip)
tellOfVolumes(underTest, skip)
tellRefusals(
  underTest,
  [
    { nic: { mac: '02:00:00:00:00:01', backend: 'user', ports: [] } },
    { hotplugMib: 128 },
    { hostDevices: [{ kind: 'pci', address: '0000:00:00.0' }] },
  ],
  skip,
)
