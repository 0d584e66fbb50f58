/**
 * Volumes into and out of a VM that runs. Each slot has its disk from the boot (decision 0082), and opens one name for ever: what the shim
 * has behind that name is exchanged, and the disk opened anew, which tells the guest of its size.
 */
import type { Step } from '../../lib/step.ts'
import type { DiskHotplug } from '../hypervisor.ts'
import type { Shim } from '../shim.ts'
import type { DiskRole, DiskSpec } from '../vm-spec.ts'
import type { VmmApi } from '../vmm-api.ts'
import { answerFor, assertTakes, volumeSlotOf } from './machine.ts'
import { refreshDrive } from './requests.ts'

const UNDO_LIMIT_MS = 5000

export class FirecrackerDiskHotplug implements DiskHotplug {
  readonly #shim: Pick<Shim, 'answer' | 'extend'>
  readonly #api: Pick<VmmApi, 'ask'>

  constructor(shim: Pick<Shim, 'answer' | 'extend'>, api: Pick<VmmApi, 'ask'>) {
    this.#shim = shim
    this.#api = api
  }

  async insertDisk(disk: DiskSpec, step: Step): Promise<void> {
    assertTakes(disk)
    const slot = volumeSlotOf(disk.role)
    try {
      await this.#shim.answer(answerFor(disk.role, disk), step)
      await this.#api.ask(refreshDrive(slot), step)
    } catch (error) {
      const undo = { ...step, signal: AbortSignal.timeout(UNDO_LIMIT_MS) }
      await this.ejectDisk(disk.role, undo).catch((err: unknown) =>
        step.log.warn({ err }, 'a VM may still have a disk that it was not to have'),
      )
      throw error
    }
  }

  /** What the guest wrote is in the file by then: a write is answered once it is. The name leads nowhere before the disk is let go of. */
  async ejectDisk(role: DiskRole, step: Step): Promise<void> {
    const slot = volumeSlotOf(role)
    await this.#shim.answer(answerFor(role), step)
    await this.#api.ask(refreshDrive(slot), step)
  }

  async growDisk(role: DiskRole, bytes: number, step: Step): Promise<void> {
    const slot = volumeSlotOf(role)
    await this.#shim.extend(slot.name, bytes, step)
    await this.#api.ask(refreshDrive(slot), step)
  }
}
