/**
 * A VM that waits for the restore of one sleeper:
 *
 *   base mapped, delta loaded, disks opened and not yet locked ─► `become`: logs and ports ─► device state loaded ─► paused, as after any load
 *
 * What is left is what a restore has to do at the moment that it is asked for.
 */
import path from 'node:path'
import type { Step } from '../../lib/step.ts'
import type { Capture } from '../hypervisor.ts'
import type { VmSpec } from '../vm-spec.ts'
import { STATE_URI } from './command-line.ts'
import { QMP_SOCKET } from './qemu-vm.ts'
import { Qmp } from './qmp.ts'
import { WaitingMachine } from './waiting-machine.ts'

/** Memory that was added is given to those who ask for it only, and not to one who may be asked for. Pure. */
export const canPrepareFor = ({ hotplugMib }: Pick<VmSpec, 'hotplugMib'>): boolean => hotplugMib === undefined

/** The same for a sleeper as long as nothing of it has changed but what it takes over at last. Pure. */
export function preparedKey(spec: VmSpec, capture: Capture): string {
  const { runDir: _runDir, logs: _logs, freshBoot: _freshBoot, diskIoBps: _rate, nic, ...rest } = spec
  return JSON.stringify([rest, nic?.mac, capture.dir, capture.base, capture.isShared === true])
}

/** Into a machine that was started for it and has its memory. It is then as it was when it was paused. */
export async function loadDevices(qmp: Qmp, step: Step): Promise<void> {
  await qmp.execute('migrate-set-capabilities', { capabilities: [{ capability: 'events', state: true }] }, step)
  await qmp.execute('migrate-incoming', { uri: STATE_URI }, step)
  await qmp.event('MIGRATION', step, ({ status }) => status === 'completed')
}

export class PreparedMachine extends WaitingMachine {
  protected async finish(spec: VmSpec, ready: Promise<unknown>, step: Step): Promise<void> {
    using qmp = await Qmp.connect(path.join(spec.runDir, QMP_SOCKET), step)
    // With its devices QEMU sets up the TAP, which is to be its own by then.
    if (spec.nic?.backend === 'tap') await ready
    await Promise.all([this.limitDisks(spec, qmp, step), loadDevices(qmp, step), ready])
  }
}
