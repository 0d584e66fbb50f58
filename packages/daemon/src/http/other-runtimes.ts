import type { Runtime } from '@dormouse/api/capabilities.ts'
import { HYPERVISORS } from '@dormouse/api/instances.ts'
import { WHY_ABSENT } from '../hypervisors/absent-drivers.ts'

/** Those of the contract beside `known`, none of which is available, each with the reason. */
export const otherRuntimes = (known: readonly { readonly name: string }[]): Runtime[] =>
  HYPERVISORS.filter((name) => name !== 'fake')
    .filter((name) => !known.some((runtime) => runtime.name === name))
    .map((name) => ({ name, available: false, features: [], reason: WHY_ABSENT[name] }))
