/** What the VMMs of all drivers are called, and how each is asked from outside whether its machine runs. */
import { join } from 'node:path'
import { Control } from '../../packages/daemon/src/hypervisors/cloud-hypervisor/control.ts'
import { apiOf } from '../../packages/daemon/src/hypervisors/firecracker/firecracker-vm.ts'
import { describeRequest } from '../../packages/daemon/src/hypervisors/firecracker/requests.ts'
import { QMP_SOCKET } from '../../packages/daemon/src/hypervisors/qemu/qemu-vm.ts'
import { Qmp } from '../../packages/daemon/src/hypervisors/qemu/qmp.ts'
import { makeStep } from '../harness/qemu-driver.ts'

/** How the names of their programs begin. */
export const VMMS = ['qemu-system', 'cloud-hypervisor', 'firecracker'] as const

const LIMIT_MS = 10_000

/** `running`, `paused` and the like, in small letters. */
export async function stateOfVmm(hypervisor: string, runDir: string): Promise<string> {
  const step = makeStep(LIMIT_MS)
  if (hypervisor === 'cloud-hypervisor') return String(await new Control(() => runDir).state(step)).toLowerCase()
  if (hypervisor === 'firecracker') return ((await apiOf(runDir).ask(describeRequest, step)) as { state: string }).state.toLowerCase()
  using qmp = await Qmp.connect(join(runDir, QMP_SOCKET), step)
  return ((await qmp.execute('query-status', undefined, step)) as { status: string }).status
}
