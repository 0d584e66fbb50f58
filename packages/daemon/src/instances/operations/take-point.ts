/**
 * An instance at one moment, for others to go on from: the memory, and the disk as it was at the same instant. The instance itself
 * goes on. A VM that runs stands still for the capture only and is never torn down; all that takes time happens before or after.
 */
import { mkdir, rm } from 'node:fs/promises'
import { AppError } from '@dormouse/api/errors.ts'
import type { Capture, CaptureUnderWay, Pivot } from '../../hypervisors/hypervisor.ts'
import type { DiskRole } from '../../hypervisors/vm-spec.ts'
import type { Step } from '../../lib/step.ts'
import { linkCapture, readManifest } from '../../memory/capture-files.ts'
import type { FreshBase } from '../../memory/memory.ts'
import type { Instance } from '../instance.ts'
import { disksOf, withLayers } from '../instance-disks.ts'
import type { InstanceWork } from '../instance-work.ts'
import type { LiveVm } from '../live-vm.ts'
import { addLayers } from './add-layer.ts'
import { shortenDisks } from './flatten-disk.ts'
import { freezeWorkload } from './freeze-workload.ts'
import { hasLayers } from './plain-disks.ts'
import { runOn, thaw } from './run-on.ts'
import { liveOf } from './standby.ts'

export interface Point {
  /** As it was. Its disks are of layers that no one writes any more. */
  readonly instance: Instance
  /** Absent when it was stopped, or the disk alone was asked for. */
  readonly capture?: Capture
  /** A base that was made for it; `settle` it once the rows that stand on it are written. */
  readonly fresh?: FreshBase
}

const CAPTURE_LIMIT_MS = 600_000
const COPY_LIMIT_MS = 600_000
const CONSOLIDATE_LIMIT_MS = 600_000
/** From here on a base for all takers costs less than that each of them loads the changed pages: making one takes some 150 ms. */
const WIDE_BYTES = 64 << 20

export interface TakePoint {
  /** Memory and devices are written below it. Must not exist; nothing of it is left when this throws. */
  readonly dir: string
  /** Called when the moment has come: how many go on from it, once all of them are there. Who comes later needs another point. */
  readonly close: () => Promise<number>
  /** What was written is not made part of a base, however much it is: it is about to be compressed. */
  readonly keepsDelta?: boolean
  /** No one wants its memory: none is written. */
  readonly diskOnly?: boolean
}

export async function takePoint(work: InstanceWork, taking: TakePoint): Promise<Point> {
  await using undo = new AsyncDisposableStack()
  // A shim that is still writing into it may be in the way for a moment.
  undo.defer(() => rm(taking.dir, { recursive: true, force: true, maxRetries: 5 }))
  await shortenDisks(work)
  const point = work.instance.state === 'Running' ? await takeRunning(work, liveOf(work), taking) : await takeResting(work, taking)
  undo.move()
  return point
}

async function takeResting(work: InstanceWork, { dir, close, diskOnly = false }: TakePoint): Promise<Point> {
  const { instance } = work
  await close()
  const capture = instance.state === 'Standby' && !diskOnly ? await shareSleep(work, dir) : undefined
  const frozen = await freezeAtRest(work)
  return { instance: { ...instance, ...frozen }, ...(capture === undefined ? {} : { capture }) }
}

async function takeRunning(work: InstanceWork, live: LiveVm, taking: TakePoint): Promise<Point> {
  const { dir, close, keepsDelta = false, diskOnly = false } = taking
  const before = work.instance
  const captured = `${dir}/point`
  await work.step('draft', 10_000)
  await mkdir(captured, { recursive: true, mode: 0o700 })
  let takers = 0
  const begin = async (): Promise<void> => {
    takers = await close()
  }
  const into = diskOnly ? undefined : captured
  const { capturing, instance } = hasLayers(work.hypervisor)
    ? { capturing: await captureWithDisk(work, live, into, begin), instance: before }
    : await captureWithCopies(work, live, into, begin)
  if (capturing === undefined) return { instance }
  const capture = await capturing.stored
  const { delta, ...manifest } = await readManifest(captured)
  const isWide = delta !== undefined && !keepsDelta && delta.bytes * takers > WIDE_BYTES
  if (!isWide) return { instance, capture: { ...capture, isShared: true } }

  const fresh = await work.uses.memory.consolidate(capture, await work.step('consolidate', CONSOLIDATE_LIMIT_MS))
  await using undo = new AsyncDisposableStack()
  undo.defer(() => fresh.settle())
  const wide = { dir: `${dir}/wide`, base: fresh.ref, isShared: true }
  await linkCapture(captured, wide.dir, { ...manifest, base: fresh.ref, baseSum: fresh.sum })
  undo.move()
  return { instance, capture: wide, fresh }
}

/**
 * The record names the new layers before the VM writes to them: a layer that no row names is taken away when a daemon starts. Named too
 * early it is empty, and changes nothing.
 */
async function captureWithDisk(
  work: InstanceWork,
  live: LiveVm,
  into: string | undefined,
  begin: () => Promise<void>,
): Promise<CaptureUnderWay | undefined> {
  const { paths, disks } = work.uses
  const tops = await addLayers(work)
  const giveUp = async (free: readonly DiskRole[]): Promise<void> => {
    // Where the VM writes to one already, it stays: there is no way back then, and none is needed.
    if (free.length === 0) return
    work.change(withLayers(work.instance, (role) => (free.includes(role) ? layersIn(work.instance, role).slice(1) : undefined)))
    await disks.release(free.flatMap((role) => tops.get(role) ?? []))
  }
  const pivots = new Map<DiskRole, Pivot>()
  try {
    const step = await work.step('prepare_disk', 30_000)
    for (const { role, limitBytes } of disksOf(work.instance)) {
      const layer = { path: paths.disk(String(tops.get(role))), ...(limitBytes === undefined ? {} : { limitBytes }) }
      pivots.set(role, await live.vm.preparePivot(role, layer, step))
    }
    await begin()
    return await captureInPause(work, live, into, [...pivots.values()])
  } catch (error) {
    const free: DiskRole[] = []
    for (const role of tops.keys()) if ((await pivots.get(role)?.discard(work.undoStep(10_000))) ?? true) free.push(role)
    await giveUp(free)
    throw error
  }
}

/**
 * The same where a VMM knows no layers: its disks are copied while it stands still, for as long as that takes. No row names the copies
 * before someone goes on from them.
 */
async function captureWithCopies(
  work: InstanceWork,
  live: LiveVm,
  into: string | undefined,
  begin: () => Promise<void>,
): Promise<{ readonly capturing: CaptureUnderWay | undefined; readonly instance: Instance }> {
  const { disks } = work.uses
  const { uid } = work.instance
  const copies = new Map<DiskRole, string>()
  const copying = disksOf(work.instance).map(({ role, layers: [layer = ''] }): Pivot => {
    const owner = role !== 'overlay' || uid === undefined ? undefined : { uid, gid: uid }
    const commit = async (step: Step): Promise<void> => void copies.set(role, await disks.copy(layer, { owner, step }))
    return { commit, discard: async () => true }
  })
  try {
    await begin()
    const capturing = await captureInPause(work, live, into, copying, COPY_LIMIT_MS)
    await disks.flush([...copies.values()])
    const copied = withLayers(work.instance, (role) => {
      const copy = copies.get(role)
      return copy === undefined ? undefined : [copy]
    })
    return { capturing, instance: { ...work.instance, ...copied } }
  } catch (error) {
    await disks.release([...copies.values()])
    throw error
  }
}

const layersIn = (instance: Instance, role: DiskRole): readonly string[] =>
  disksOf(instance).find((disk) => disk.role === role)?.layers ?? []

/** Freeze, pause, capture unless there is nothing to write it `into`, pivot; then it goes on, whatever happened. */
async function captureInPause(
  work: InstanceWork,
  live: LiveVm,
  into: string | undefined,
  pivots: readonly Pivot[],
  pivotLimitMs = 10_000,
): Promise<CaptureUnderWay | undefined> {
  await using goOn = new AsyncDisposableStack()
  goOn.defer(() => thaw(work, live))
  if (!(await freezeWorkload(work, live))) {
    // A copy of it would run under its name before it could be told another.
    throw new AppError('guest_unavailable', `The guest of ${work.instance.name} does not answer, so it cannot be copied while it runs`, {
      hint: 'Put it into standby: that works with a guest that hangs',
    })
  }
  // Deferred before the pause, since one that timed out may still have happened; resume is harmless on repeat.
  goOn.defer(() => runOn(work, live))
  await live.vm.pause(await work.step('pause', 10_000))
  const pausedAt = performance.now()
  const capturing = into === undefined ? undefined : await live.vm.capture(into, await work.step('capture', CAPTURE_LIMIT_MS))
  capturing?.stored.catch(() => undefined)
  const pivoting = await work.step('pivot', pivotLimitMs)
  for (const pivot of pivots) await pivot.commit(pivoting)
  await live.vm.resume(await work.step('resume', 10_000))
  work.log.info({ bytes: capturing?.bytes, pausedMs: Math.round((performance.now() - pausedAt) * 10) / 10 }, 'VM captured, and goes on')
  return capturing
}

/** The layers of disks that no VM has, from now on for ever as they are; the instance goes on above them. */
async function freezeAtRest(work: InstanceWork): Promise<Pick<Instance, 'disk' | 'volumes'>> {
  const { instance } = work
  const { disks } = work.uses
  await work.step('freeze_disk', 60_000)
  const sources = new Map<DiskRole, readonly string[]>()
  const copies = new Map<DiskRole, readonly string[]>()
  const made: string[] = []
  try {
    for (const { role, layers, bytes, limitBytes } of disksOf(instance)) {
      const owner = role !== 'overlay' || instance.uid === undefined ? undefined : { uid: instance.uid, gid: instance.uid }
      const { source, copy } = await disks.freeze(layers, { bytes, owner, limitBytes })
      sources.set(role, source)
      copies.set(role, copy)
      made.push(...[...source, ...copy].filter((name) => !layers.includes(name)))
    }
    await disks.flush(made)
    work.change(withLayers(instance, (role) => sources.get(role)))
    return withLayers(instance, (role) => copies.get(role))
  } catch (error) {
    await disks.release(made)
    throw error
  }
}

/** A sleeping state for another to wake from: its files are shared, since they are never changed. */
async function shareSleep(work: InstanceWork, dir: string): Promise<Capture> {
  const { id, name, sleep } = work.instance
  if (sleep === undefined) throw new Error(`${name} is in standby and has no sleeping state`)
  if (sleep.isUnfrozen) {
    throw new AppError('guest_unavailable', `The guest of ${name} did not answer when it was put to sleep, so it cannot be copied`, {
      hint: 'Restore it: once it answers it can be',
    })
  }
  await work.step('share', 30_000)
  const from = work.uses.paths.instanceSleep(id, sleep.generation)
  const to = `${dir}/point`
  await linkCapture(from, to, await readManifest(from))
  return { dir: to, base: sleep.base, isShared: true }
}
