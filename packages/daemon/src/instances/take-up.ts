import type { Step } from '../lib/step.ts'
import type { Logger } from '../log.ts'
import type { Nic } from '../network/network.ts'
import type { Instance } from './instance.ts'
import { type Reconciled, type ReconcileUses, reconcile } from './reconcile.ts'
import type { Sleeps } from './sleeps.ts'
import { nicOf } from './vm-spec-of.ts'

export interface TakeUpUses extends ReconcileUses {
  readonly sleeps: Sleeps
}

/** Of each part: the network, the devices, the ways out. */
const LIMIT_MS = 60_000

/** What the last daemon has left: places in networks and devices that are held, then the instances themselves, then what sleeps. */
export async function takeUp(uses: TakeUpUses): Promise<Reconciled> {
  const { rows, network, egress, devices, sleeps, log } = uses
  // What is under way may have been cut short with its place in the network taken; whoever undoes it gives it up.
  const held = rows.list().filter(({ vm, operation }) => vm !== undefined || operation !== undefined)
  await egress.recover(held, stepOf(log))
  const nics = held.flatMap((instance) => {
    const nic = nicOf(instance)
    return nic === undefined ? [] : [{ ...nic, ...egressOf(instance, egress.portOf(instance.id)) }]
  })
  await network.recover(
    nics.filter(({ id }) => network.addressOf(id) !== undefined),
    stepOf(log),
  )
  await devices.recover((id) => rows.find(id) !== undefined, stepOf(log))
  const reconciled = await reconcile(uses)
  await egress.mend(
    rows.list().filter(({ vm }) => vm !== undefined),
    stepOf(log),
  )
  // Those that the last daemon did not come to.
  for (const { id, sleep } of rows.list({ state: 'Standby' })) {
    if (sleep?.wakes) sleeps.restore(id).catch(() => undefined)
    else sleeps.attend(id)
  }
  return reconciled
}

const stepOf = (log: Logger): Step => ({ signal: AbortSignal.timeout(LIMIT_MS), log })

/** How its network is to lead it out. */
const egressOf = ({ egress }: Pick<Instance, 'egress'>, proxyPort: number | undefined): Pick<Nic, 'egress'> =>
  egress === undefined ? {} : { egress: { mode: egress.mode, proxyPort } }
