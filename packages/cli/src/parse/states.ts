/** The states of an instance for the command line. Spelt again, since the table of states brings its schemas with it; the compiler holds the two together. */
import type { InstanceState } from '@dormouse/api/instance-states.ts'

const every: Readonly<Record<InstanceState, true>> = {
  Created: true,
  Initializing: true,
  Running: true,
  Paused: true,
  Shutdown: true,
  Stopped: true,
  Standby: true,
  Unknown: true,
}

export const instanceStates = Object.keys(every) as InstanceState[]

/** Where a fork or a restored snapshot is to be. */
export const targetStates = ['Running', 'Standby', 'Stopped'] as const
