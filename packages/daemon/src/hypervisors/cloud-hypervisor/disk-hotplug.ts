/**
 * Volumes in and out of a VM that runs: each is a PCI device, which its guest's kernel is told of by ACPI. Cloud Hypervisor cannot exchange
 * what is behind a device. It opens the file by a name that the shim answers.
 */
import { randomBytes } from 'node:crypto'
import { AppError } from '@dormouse/api/errors.ts'
import { pollUntil } from '../../host/poll-until.ts'
import type { Step } from '../../lib/step.ts'
import type { DiskHotplug } from '../hypervisor.ts'
import type { Shim } from '../shim.ts'
import type { DiskRole, DiskSpec } from '../vm-spec.ts'
import { VmmRefusal } from '../vmm-api.ts'
import type { Control } from './control.ts'
import { answerOf, drainsDisks, RATE_GROUP, slotsOf, volumeSlot } from './machine.ts'

type Devices = Pick<Control, 'addDisk' | 'removeDevice' | 'resizeDisk' | 'devices'>
type Names = Pick<Shim, 'answer' | 'extend' | 'refuse' | 'isLocked'>

export class PluggedDisks implements DiskHotplug {
  readonly #control: Devices
  readonly #shim: Names
  readonly #version: string

  /** `version` is the VMM's, as it says itself. */
  constructor(control: Devices, shim: Names, version: string) {
    this.#control = control
    this.#shim = shim
    this.#version = version
  }

  async insertDisk(disk: DiskSpec, step: Step): Promise<void> {
    // Refuses what it cannot be given.
    slotsOf([disk])
    const { role } = disk
    const { disks, rateGroups } = await this.#control.devices(step)
    if (disks.has(role)) return
    // One that is on its way out may still have it open.
    await this.#untilGone(role, step)
    await this.#shim.answer(answerOf(disk), step)
    try {
      const { path, readOnly } = volumeSlot(disk)
      // A name that no device has had: release 52 gives it what that one was when its machine was saved.
      const id = `${role}-${randomBytes(4).toString('hex')}`
      const rated = rateGroups.has(RATE_GROUP) ? { rate_limit_group: RATE_GROUP } : {}
      const inTurn = drainsDisks(this.#version) ? {} : ({ disable_io_uring: true, disable_aio: true } as const)
      await this.#control.addDisk({ id, path, readonly: readOnly, serial: role, image_type: 'Raw', ...rated, ...inTurn }, step)
    } catch (error) {
      const undo = { ...step, signal: AbortSignal.timeout(UNDO_LIMIT_MS) }
      await this.ejectDisk(role, undo).catch((err: unknown) => step.log.warn({ err }, 'a disk may still be in its VM'))
      if (!(error instanceof VmmRefusal)) throw error
      throw new AppError('internal_error', `Cloud Hypervisor did not take the disk ${role}`, { cause: error })
    }
  }

  async ejectDisk(role: DiskRole, step: Step): Promise<void> {
    const { disks } = await this.#control.devices(step)
    const id = disks.get(role)
    if (id !== undefined) await this.#control.removeDevice(id, step)
    await this.#untilGone(role, step)
    await this.#shim.refuse(role, step)
  }

  /** The VMM would make a file smaller as well; its shim does not. */
  async growDisk(role: DiskRole, bytes: number, step: Step): Promise<void> {
    await this.#shim.extend(role, bytes, step)
    const id = (await this.#control.devices(step)).disks.get(role)
    if (id === undefined) throw new AppError('not_found', `The VM has no disk ${role}`)
    await this.#control.resizeDisk(id, bytes, step)
  }

  /** Its file is closed then, which may be a moment after the device was gone: the VMM's lock goes with it. */
  async #untilGone(role: DiskRole, step: Step): Promise<void> {
    const isGone = async (): Promise<boolean> => {
      const { present } = await this.#control.devices(step)
      return ![...present].some((id) => id === role || id.startsWith(`${role}-`)) && !(await this.#shim.isLocked(role, step))
    }
    await pollUntil(`the guest to let go of the disk ${role}`, isGone, step)
  }
}

const UNDO_LIMIT_MS = 5000
