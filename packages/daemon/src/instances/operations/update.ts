import { isDeepStrictEqual } from 'node:util'
import { AppError } from '@dormouse/api/errors.ts'
import { changedVariables } from '../../egress/credentials.ts'
import type { Evacuate, PortForward, Vm } from '../../hypervisors/hypervisor.ts'
import { diskRateOf } from '../disk-rate.ts'
import { assertDiskRateMoves } from '../driver-limits.ts'
import type { Instance, UpdateInstance } from '../instance.ts'
import type { InstanceWork } from '../instance-work.ts'
import {
  type AllLimits,
  assertAllowedAs,
  assertCheckable,
  bandwidthOf,
  checkEnv,
  checkHotplug,
  checkName,
  checkSizes,
  limitsOf,
} from '../limits.ts'
import { underNewPolicy } from '../restart-policy.ts'
import { nicOf } from '../vm-spec-of.ts'
import { flattenDisk } from './flatten-disk.ts'

export interface UpdateInputs {
  readonly patch: Omit<UpdateInstance, 'network'>
  /** Resolved: chosen, free on the host. Undefined leaves them. */
  readonly ports: readonly PortForward[] | undefined
  /** Bytes per second; 0 takes a limit away, absent leaves it. */
  readonly bandwidth: Pick<NonNullable<UpdateInstance['network']>, 'bandwidthDownload' | 'bandwidthUpload'>
  readonly limits: AllLimits
}

/**
 * Changes what can be changed, all or nothing. Ports and the disks' rate move while the VM runs; the disk grows while it is Stopped, and its record is
 * the commit point: a growth that was cut short is finished by the next daemon.
 */
export async function update(work: InstanceWork, { patch, ports, bandwidth, limits }: UpdateInputs): Promise<void> {
  await work.step('intent', 10_000)
  const before = work.instance
  const change: Partial<Instance> = {
    ...changeOf(before, patch, limits),
    ...networkOf(before.network, ports, bandwidth),
  }
  if (ports !== undefined) assertPortsFree(work, ports)
  if (patch.name !== undefined) assertNameFree(work, patch.name)
  const { live } = work
  const rate = diskRateOf({ ...before, ...change }, work.uses.settings.diskIo)
  const rateBefore = diskRateOf(before, work.uses.settings.diskIo)
  if (live && rate !== rateBefore) assertDiskRateMoves(work.hypervisor, before)

  await using undo = new AsyncDisposableStack()
  const [was, is] = [nicOf(before), nicOf({ ...before, ...change })]
  const { network } = work.uses
  if (ports !== undefined && live && was && is) {
    const step = await work.step('ports', 10_000)
    undo.defer(() => network.publish(live.vm, was, work.undoStep(10_000)))
    await network.publish(live.vm, is, step)
  }
  if (live && was && is && !isDeepStrictEqual(is.bandwidth, was.bandwidth)) {
    const step = await work.step('bandwidth', 10_000)
    undo.defer(() => network.pace(live.vm, was, work.undoStep(10_000)))
    await network.pace(live.vm, is, step)
  }
  if (live && rate !== rateBefore) {
    const step = await work.step('disk_rate', 10_000)
    undo.defer(() => live.vm.setDiskRate(rateBefore, work.undoStep(10_000)))
    await live.vm.setDiskRate(rate, step)
  }
  if (live && change.hotplugBytes !== undefined && change.hotplugBytes !== before.hotplugBytes) {
    const step = await work.step('memory', HOTPLUG_LIMIT_MS)
    const evacuate: Evacuate = async (stretch, own) => (await live.connected(own)).offlineMemory(stretch, own)
    undo.defer(() => takeBackMemory(work, live.vm, before.hotplugBytes, evacuate))
    await live.vm.setHotplug(change.hotplugBytes, evacuate, step)
  }
  const grows = change.overlayBytes !== undefined && change.overlayBytes > before.overlayBytes
  await work.step('record', 10_000)
  work.change({ ...change, ...(grows ? { operation: 'update' } : {}) }, { evenWhenFull: false })
  undo.move()
  if (change.env !== undefined) await work.rotate()
  if (!grows) return
  try {
    await finishUpdate(work)
  } catch (error) {
    // Cut short, not refused: the intent stays, and the disk is grown before anything else is done with it.
    if (work.isEnding) throw error
    takeBack(work, before, change)
    throw error
  }
}

/** Nothing where nothing of it was asked for. Pure. */
function networkOf(before: Instance['network'], ports: UpdateInputs['ports'], bandwidth: UpdateInputs['bandwidth']): Partial<Instance> {
  const { bandwidthDownload, bandwidthUpload } = bandwidth
  if (ports === undefined && bandwidthDownload === undefined && bandwidthUpload === undefined) return {}
  const { bandwidthDownload: _down, bandwidthUpload: _up, ...rest } = before
  return { network: { ...rest, ...(ports === undefined ? {} : { ports }), ...bandwidthOf(bandwidth, before) } }
}

/** The memory as it was; where the guest does not follow, the record follows the guest. */
async function takeBackMemory(work: InstanceWork, vm: Vm, bytes: number, evacuate: Evacuate): Promise<void> {
  const step = work.undoStep(HOTPLUG_LIMIT_MS)
  await vm.setHotplug(bytes, evacuate, step).catch((err: unknown) => work.log.warn({ err }, 'added memory could not be taken back'))
  const hotplugBytes = await vm.hotplugBytes(step)
  if (hotplugBytes !== work.instance.hotplugBytes) work.change({ hotplugBytes })
}

/** The record as it was: the filesystem is as large as before, and a file that is larger does no harm. */
function takeBack(work: InstanceWork, before: Instance, change: Partial<Instance>): void {
  const kept = Object.fromEntries(Object.keys(change).map((key) => [key, before[key as keyof Instance]]))
  try {
    work.change({ ...kept, operation: undefined })
  } catch (error) {
    // Someone has been given the name or a port that it had.
    work.log.warn({ err: error }, 'a part of a failed update stays: what was there before is taken')
    work.change({ overlayBytes: before.overlayBytes, operation: undefined })
  }
}

// A guest moves what is in memory that it is to give back.
const HOTPLUG_LIMIT_MS = 60_000
const TAKES_MEMORY: ReadonlySet<Instance['state']> = new Set(['Running', 'Stopped'])

// A check reads the whole of what is in use, and half a growth is worse than a long one.
const GROW_LIMIT_MS = 1_800_000

/** The disk becomes as large as the record says. Repeat is harmless. */
export async function finishUpdate(work: InstanceWork): Promise<void> {
  const step = await work.step('grow', GROW_LIMIT_MS)
  // The tools of a filesystem know files and devices, not layers.
  await flattenDisk(work, 'overlay', step)
  const { disk, overlayBytes, uid } = work.instance
  const owner = uid === undefined ? {} : { owner: { uid, gid: uid } }
  for (const layer of disk) await work.uses.disks.grow(layer, overlayBytes, { step, ...owner })
  await work.step('settle', 10_000)
  work.change({ operation: undefined })
}

/** What the patch makes of the record. Pure; throws when a part of it is wrong or its time is not now. */
function changeOf(instance: Instance, patch: UpdateInputs['patch'], allLimits: AllLimits): Partial<Instance> {
  const {
    name,
    tags,
    env,
    snapshotPolicy,
    autoStandby,
    expiresAtMs,
    healthCheck,
    restartPolicy,
    vcpus,
    memoryBytes,
    hotplugBytes,
    overlayBytes,
    diskIoBps,
  } = patch
  if (instance.expiresAtMs !== undefined && instance.expiresAtMs <= Date.now()) {
    throw new AppError('instance_expired', `The instance ${instance.name} has expired and is about to be deleted`)
  }
  if (name !== undefined) checkName(name)
  if (healthCheck) assertCheckable(healthCheck, { hasNetwork: instance.network.enabled, skipGuestAgent: instance.skipGuestAgent })
  const envAfter = env && changedVariables(instance.env, env, instance.egress?.credentials ?? {})
  if (envAfter !== undefined) checkEnv(envAfter, { hasEgress: instance.egress !== undefined })
  if (hotplugBytes !== undefined && hotplugBytes !== instance.hotplugBytes && !TAKES_MEMORY.has(instance.state)) {
    throw new AppError(
      'invalid_state',
      `The memory of ${instance.name} can be changed while it is Running or Stopped; it is ${instance.state}`,
    )
  }
  const limits = limitsOf(name ?? instance.name, allLimits)
  const resizes = [vcpus, memoryBytes, overlayBytes].some((value) => value !== undefined)
  if (resizes) {
    if (instance.state !== 'Stopped') {
      throw new AppError(
        'invalid_state',
        `The sizes of ${instance.name} can be changed only while it is Stopped; it is ${instance.state}`,
        {
          hint: `Stop it first: dormouse stop ${instance.name}`,
        },
      )
    }
    checkSizes(
      {
        vcpus: vcpus ?? instance.vcpus,
        memoryBytes: memoryBytes ?? instance.memoryBytes,
        overlayBytes: overlayBytes ?? instance.overlayBytes,
      },
      limits,
    )
    if (overlayBytes !== undefined && overlayBytes < instance.overlayBytes) {
      throw new AppError('invalid_overlay_size', 'overlay_size can only grow')
    }
  }
  if (memoryBytes !== undefined || hotplugBytes !== undefined)
    checkHotplug(hotplugBytes ?? instance.hotplugBytes, memoryBytes ?? instance.memoryBytes, limits)
  if (name !== undefined) {
    assertAllowedAs(name, { ...instance, ...present({ vcpus, memoryBytes, overlayBytes, hotplugBytes }) }, allLimits)
  }
  return {
    ...(name === undefined ? {} : { name }),
    ...(tags === undefined ? {} : { tags }),
    ...(envAfter === undefined ? {} : { env: envAfter }),
    ...(snapshotPolicy === undefined ? {} : { snapshotPolicy }),
    ...(autoStandby === undefined ? {} : { autoStandby }),
    ...(expiresAtMs === undefined ? {} : { expiresAtMs: expiresAtMs ?? undefined }),
    ...(healthCheck === undefined ? {} : { healthCheck }),
    ...(restartPolicy === undefined ? {} : { restartPolicy, restarts: underNewPolicy(instance.restarts) }),
    ...(vcpus === undefined ? {} : { vcpus }),
    ...(memoryBytes === undefined ? {} : { memoryBytes }),
    ...(overlayBytes === undefined ? {} : { overlayBytes }),
    ...(hotplugBytes === undefined ? {} : { hotplugBytes }),
    ...(diskIoBps === undefined ? {} : { diskIoBps: diskIoBps || undefined }),
  }
}

const present = <T extends object>(values: T): { [K in keyof T]?: NonNullable<T[K]> } =>
  Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined)) as { [K in keyof T]?: NonNullable<T[K]> }

function assertNameFree(work: InstanceWork, name: string): void {
  const owner = work.uses.rows.findByName(name)
  if (owner && owner.id !== work.instance.id) {
    throw new AppError('name_conflict', `The name ${name} is taken by another instance`, { detail: { id: owner.id } })
  }
}

function assertPortsFree(work: InstanceWork, ports: readonly PortForward[]): void {
  for (const port of ports) {
    const owner = work.uses.rows.findPortOwner(port)
    if (owner && owner.id !== work.instance.id) {
      throw new AppError('port_in_use', `The host port ${port.hostPort}/${port.protocol} is published by the instance ${owner.name}`)
    }
  }
}
