/**
 * The daemon's death at the steps of standby, restore, fork, snapshot and their like around their commit points, with QEMU's VMs. The whole
 * matrix runs on the fake driver: instances/crash.test.ts.
 */
import { type Death, each, tellDeaths } from './crash-sleep-story.ts'

const ON_MICROVM: readonly Death[] = [
  ...each('standby', 'capture record', { from: 'Running', deed: 'standby', ends: 'Running' }),
  ...each('standby', 'kill', { from: 'Running', deed: 'standby', ends: 'Standby' }),
  ...each('consolidate', 'publish record', { from: 'Running', deed: 'standbyWide', ends: 'Standby' }),
  ...each('restore', 'load record', { from: 'Standby', deed: 'restore', ends: 'Standby' }),
  ...each('restore', 'resume wake', { from: 'Standby', deed: 'restore', ends: 'Running' }),
  ...each('fork', 'capture pivot resume', { from: 'Running', deed: 'fork', ends: 'Running' }),
  ...each('create', 'record', { from: 'Running', deed: 'fork', ends: 'Running' }),
  ...each('create', 'wake', { from: 'Running', deed: 'fork', ends: 'Running', hasFork: true }),
  ...each('snapshot', 'record', { from: 'Running', deed: 'snapshot', ends: 'Running' }),
  ...each('restore_snapshot', 'record', { from: 'Standby', deed: 'goBack', ends: 'Standby' }),
  ...each('restore_snapshot', 'wake', { from: 'Standby', deed: 'goBack', ends: 'Running', isBack: true }),
]
const ON_Q35: readonly Death[] = [
  ...each('standby', 'record', { from: 'Running', deed: 'standby', ends: 'Running' }),
  ...each('standby', 'kill', { from: 'Running', deed: 'standby', ends: 'Standby' }),
  ...each('restore', 'record', { from: 'Standby', deed: 'restore', ends: 'Standby' }),
  ...each('restore', 'wake', { from: 'Standby', deed: 'restore', ends: 'Running' }),
  ...each('fork', 'pivot', { from: 'Running', deed: 'fork', ends: 'Running' }),
]

tellDeaths({
  driver: 'qemu-microvm',
  parts: [
    { hypervisor: 'qemu-microvm', deaths: ON_MICROVM },
    { hypervisor: 'qemu', deaths: ON_Q35 },
  ],
  inBetween: true,
})
