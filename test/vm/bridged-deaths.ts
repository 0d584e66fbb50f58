/** The daemon's death under VMs of a driver that needs KVM and a bridge, in a network namespace of the test's own. */
import { after, before } from 'node:test'
import type { HypervisorName } from '../../packages/daemon/src/hypervisors/hypervisor.ts'
import { type Lab, makeLab } from '../harness/bridged-lab.ts'
import { type Death, each, tellDeaths } from './crash-sleep-story.ts'

/** At each a daemon that comes after has to find a VM as it is: paused, loaded, half started, or gone; and its disks, which have no layers. */
const BRIDGED_DEATHS: readonly Death[] = [
  ...each('standby', 'capture record', { from: 'Running', deed: 'standby', ends: 'Running' }),
  ...each('standby', 'kill', { from: 'Running', deed: 'standby', ends: 'Standby' }),
  ...each('restore', 'record', { from: 'Standby', deed: 'restore', ends: 'Standby' }),
  ...each('restore', 'resume wake', { from: 'Standby', deed: 'restore', ends: 'Running' }),
  ...each('fork', 'capture resume', { from: 'Running', deed: 'fork', ends: 'Running' }),
  ...each('create', 'flatten', { from: 'Running', deed: 'fork', ends: 'Running' }),
  ...each('create', 'wake', { from: 'Running', deed: 'fork', ends: 'Running', hasFork: true }),
  ...each('restore_snapshot', 'wake', { from: 'Standby', deed: 'goBack', ends: 'Running', isBack: true }),
  ...each('create', 'spawn', { from: 'Running', deed: 'create', ends: 'Running' }),
  ...each('start', 'record', { from: 'Stopped', deed: 'start', ends: 'Stopped' }),
  ...each('boot', 'go', { from: 'Stopped', deed: 'start', ends: 'Running' }),
  ...each('stop', 'kill', { from: 'Running', deed: 'stop', ends: 'Stopped' }),
  ...each('attach_volume', 'insert settle', { from: 'Running', deed: 'attach', ends: 'Running', attached: [false, true] }),
  ...each('detach_volume', 'eject record', { from: 'Running', deed: 'detach', ends: 'Running', attached: [true, false] }),
]

export function tellBridgedDeaths(hypervisor: HypervisorName): void {
  let lab: Lab
  before(async () => {
    lab = await makeLab()
  })
  after(() => lab?.[Symbol.asyncDispose]())
  tellDeaths({
    driver: hypervisor,
    env: { DORMOUSE_NETWORK: 'bridged', DORMOUSE_CPU_RATIO: '32', DORMOUSE_MEMORY_RATIO: '4' },
    parts: [{ hypervisor, deaths: BRIDGED_DEATHS }],
  })
}
