/** What a fork makes of a point in another instance's life: an instance of its own, which goes on from there. */
import { mkdir } from 'node:fs/promises'
import { isDeepStrictEqual } from 'node:util'
import { linkCapture, readManifest } from '../../memory/capture-files.ts'
import type { Instance } from '../instance.ts'
import type { InstanceWork } from '../instance-work.ts'
import type { Sizes } from '../limits.ts'
import { beginSleepDraft } from '../sleep-files.ts'
import { addLayers } from './add-layer.ts'
import { settleRunning } from './conclusions.ts'
import { undoCreate } from './create.ts'
import { powerOn } from './power-on.ts'
import { wakeFrom } from './restore.ts'
import { standby } from './standby.ts'
import type { Point } from './take-point.ts'

export type TargetState = 'Stopped' | 'Standby' | 'Running'

const BOOT_LIMIT_MS = 180_000

/** Judges what an instance is about to become, `runs` when a VM of it will; as `Admit` does. */
export type AdmitAs = (work: InstanceWork, then: Becoming) => Promise<() => void>

export interface Becoming extends Sizes, Pick<Instance, 'hotplugBytes' | 'diskIoBps'> {
  readonly runs: boolean
}

/** From a reserved row to `target`. When it throws nothing of the fork is left. */
export async function fork(work: InstanceWork, point: Point, { target, admit }: { target: TargetState; admit: AdmitAs }): Promise<void> {
  try {
    await followSource(work, point, { target, admit })
    await makeFiles(work)
    await goOnFrom(work, point, target)
  } catch (cause) {
    await undoCreate(work, cause)
    throw cause
  }
}

/**
 * An instance with a disk of its own above the point's becomes what it was there, or what `target` says. That is on record at once,
 * and with it what it becomes `along`; before that every failure leaves the instance as it was.
 */
export async function goOnFrom(work: InstanceWork, point: Point, target: TargetState, along: Partial<Instance> = {}): Promise<void> {
  const { capture } = point
  if (target === 'Stopped') {
    await work.step('record', 10_000)
    return work.change({ ...along, state: 'Stopped', operation: undefined, sleep: undefined })
  }
  if (capture === undefined) {
    await powerOn(work, { along })
    await work.live?.whenUp(await work.step('boot', BOOT_LIMIT_MS))
    await settleRunning(work)
    if (target === 'Standby') await standby(work)
    return
  }
  // A fork that has never been awake is still who its source was.
  const isForeign = point.instance.id !== work.instance.id || point.instance.sleep?.isForeign === true
  if (target === 'Running') return wakeFrom(work, capture, { isForeign, along })
  await using undo = new AsyncDisposableStack()
  await work.step('link', 30_000)
  await work.hypervisorWith(along).assertFits(work.vmSpec(along), capture)
  const draft = await beginSleepDraft(work.uses.paths, work.instance.id)
  undo.defer(() => draft.discard())
  await linkCapture(capture.dir, draft.dir, await readManifest(capture.dir))
  await draft.publish()
  await work.step('record', 10_000)
  work.change({ ...along, state: 'Standby', operation: undefined, sleep: { generation: draft.generation, base: capture.base, isForeign } })
  undo.move()
}

/** The source may have become another between the reservation and the point: its memory and its disk fit the machine that it was then. */
async function followSource(work: InstanceWork, point: Point, { target, admit }: { target: TargetState; admit: AdmitAs }): Promise<void> {
  const machine = machineOf(point.instance)
  const { instance } = work
  const isLarger = SIZES.some((size) => machine[size] > instance[size])
  const boots = point.capture === undefined && target === 'Standby'
  if (isLarger || boots) {
    const judge = await admit(work, { ...instance, ...machine, runs: boots || target === 'Running' })
    judge()
  }
  if (!isDeepStrictEqual(machine, machineOf(instance))) work.change(machine)
}

const SIZES = ['vcpus', 'memoryBytes', 'hotplugBytes', 'overlayBytes'] as const

const machineOf = ({ image, imageDigest, platform, vcpus, memoryBytes, hotplugBytes, overlayBytes, entrypoint, cmd }: Instance) => ({
  ...{ image, imageDigest, platform, vcpus, memoryBytes, hotplugBytes, overlayBytes },
  ...{ entrypoint, cmd },
})

/** Its rows name the point's layers already: it goes on above them. */
async function makeFiles(work: InstanceWork): Promise<void> {
  const { paths } = work.uses
  const { id } = work.instance
  await work.step('files', 60_000)
  // The VMM's user goes through to its disk and can list nothing.
  await mkdir(paths.instanceDir(id), { recursive: true, mode: 0o711 })
  await mkdir(paths.instanceLogsDir(id), { recursive: true, mode: 0o700 })
  await addLayers(work)
}
