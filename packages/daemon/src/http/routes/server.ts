import os from 'node:os'
import type { Capabilities, RUNTIME_FEATURES, Runtime } from '@dormouse/api/capabilities.ts'
import { AppError } from '@dormouse/api/errors.ts'
import { EVENTS_LOST, scopeOfEvent } from '@dormouse/api/events.ts'
import type { Capability } from '@dormouse/api/instance-states.ts'
import type { MemoryReclaimRequest, MemoryReclaimResponse, ResourceStatus, Resources } from '@dormouse/api/resources.ts'
import { type Route, routes } from '@dormouse/api/routes.ts'
import type { SseMessage } from '@dormouse/api/streams.ts'
import { parseDuration } from '@dormouse/api/units.ts'
import { type Demand, demandOf, takesMemory } from '../../instances/admission.ts'
import { diskRateOf } from '../../instances/disk-rate.ts'
import { FLOOR_BYTES } from '../../instances/memory-reclaim.ts'
import { networkDemandOf } from '../../instances/network-admission.ts'
import type { RecordedEvent } from '../../store/events.ts'
import type { Caller } from '../auth.ts'
import type { Handlers } from '../handler.ts'
import type { Metrics } from '../metrics.ts'
import { otherRuntimes } from '../other-runtimes.ts'
import type { SseBatch } from '../streams/sse.ts'
import type { ServerUses } from '../uses.ts'

type ServerRoutes = Pick<Handlers, 'getHealth' | 'getCapabilities' | 'getResources' | 'reclaimMemory' | 'followEvents' | 'getMetrics'>

export function serverRoutes(uses: ServerUses, metrics: Metrics): ServerRoutes {
  return {
    getHealth: () => ({ status: 'ok' }),
    getCapabilities: () => capabilitiesOf(uses),
    getResources: () => resourcesOf(uses),
    reclaimMemory: ({ body }) => reclaimOf(uses, body),

    followEvents: async ({ query, header, signal, caller }) => {
      // A browser that comes back asks the same address again: what it has seen since counts, not where it began.
      const after = lastEventId(header('last-event-id')) ?? query.after
      return eventMessages(
        uses,
        { ...(after !== undefined && { after }), signal },
        {
          subjects: query.subject === undefined ? undefined : await subjectsCalled(uses, query.subject),
          caller,
        },
      )
    },

    getMetrics: ({ setHeader }) => {
      setHeader('content-type', metrics.contentType)
      return metrics.text()
    },
  }
}

async function* eventMessages(
  { events }: ServerUses,
  options: { after?: number; signal: AbortSignal },
  { subjects, caller }: { subjects: ReadonlySet<string> | undefined; caller: Caller },
): AsyncGenerator<SseBatch> {
  // So that whoever comes back before anything has happened misses nothing either.
  const after = Math.min(options.after ?? Number.MAX_SAFE_INTEGER, events.latestId())
  const isAbout = ({ subject }: RecordedEvent): boolean => subjects === undefined || subjects.has(subject)
  let isFirst = true
  for await (const batch of events.subscribe({ ...options, after })) {
    if (isFirst) yield [{ id: String(after) }]
    isFirst = false
    yield batch.filter((event) => event.kind === EVENTS_LOST || (isAbout(event) && mayHear(caller, event))).map(asMessage)
  }
}

/** What events call that which is called so now: an instance or a volume has its id there, an image its whole name. What is gone has its id alone. */
async function subjectsCalled({ instances, volumes, devices, images }: ServerUses, text: string): Promise<ReadonlySet<string>> {
  const found = await Promise.allSettled([
    Promise.try(() => instances.resolve(text).id),
    Promise.try(() => volumes.resolve(text).id),
    Promise.try(async () => (await devices.get(text)).id),
    Promise.try(() => images.getImage(text).name),
  ])
  return new Set([text, ...found.flatMap((one) => (one.status === 'fulfilled' ? one.value : []))])
}

/** What a token may not read it is not told of either. */
function mayHear({ scopes }: Caller, { kind }: RecordedEvent): boolean {
  const scope = scopeOfEvent(kind)
  return scopes === undefined || (scope !== undefined && scopes.has(scope))
}

function asMessage({ id, kind, atMs, subject, data }: RecordedEvent): SseMessage {
  return { id: String(id), data: JSON.stringify({ id, kind, at: new Date(atMs).toISOString(), subject, data }) }
}

/** What a reader saw last. One that is no number of ours is as good as none. */
const lastEventId = (text: string | undefined): number | undefined =>
  text !== undefined && /^\d{1,15}$/.test(text) ? Number(text) : undefined

/** The contract's words for what a driver can do. Whoever can exchange a disk under a guest that runs can make it larger, too. */
const FEATURES_OF: Readonly<Record<Capability, readonly (typeof RUNTIME_FEATURES)[number][]>> = {
  pause: ['pause'],
  standby: ['standby'],
  fork: ['fork'],
  snapshots: ['snapshots'],
  disk_hotplug: ['hotplug-disk', 'disk-resize'],
  memory_hotplug: ['hotplug-memory'],
  disk_limit: ['disk-io-limit'],
  gpu: ['gpu-passthrough'],
  // The contract has no words for these.
  disk_layers: [],
  disk_limit_live: [],
  fresh_boot: [],
}

/** A feature is told of only once the routes that use it are built. */
const isBuilt: Readonly<Record<string, boolean>> = (() => {
  const built = (route: Route): boolean => route.later === undefined
  return {
    standby: built(routes.standbyInstance),
    fork: built(routes.forkInstance),
    snapshots: built(routes.createSnapshot),
    gpu: built(routes.createDevice),
    disk_hotplug: built(routes.attachVolume),
  }
})()

async function capabilitiesOf({ host, version }: ServerUses): Promise<Capabilities> {
  const runtimes = await Promise.all(
    host.hypervisors.map(async ({ name, capabilities, versions, probe, waiting }): Promise<Runtime> => {
      const { available, version: vmm, acceleration, reason, memoryOutOfReach } = await probe()
      const count = waiting?.()
      // What the driver can do and this host does not let it is not there.
      const isThere = (one: Capability): boolean => (isBuilt[one] ?? true) && (one !== 'memory_hotplug' || memoryOutOfReach === undefined)
      const features = available ? [...capabilities].filter(isThere).flatMap((one) => FEATURES_OF[one]) : []
      return {
        name,
        available,
        features: features.sort(),
        ...(vmm !== undefined && { version: vmm }),
        ...(versions !== undefined && { versions: [...versions] }),
        ...(acceleration !== undefined && { acceleration }),
        ...(reason !== undefined && { reason }),
        ...(count !== undefined && { waiting: count }),
      }
    }),
  )
  const platform = host.facts.architecture === 'aarch64' ? 'linux/arm64' : 'linux/amd64'
  const built = (['volumes', 'ingresses', 'builds', 'devices'] as const).filter((tag) =>
    Object.values(routes as Record<string, Route>).some((route) => route.tag === tag && route.later === undefined),
  )
  return {
    server: { version, api_version: version },
    host: {
      os: os.platform(),
      arch: platform.split('/')[1] ?? '',
      cgroups: { ...host.cgroups, controllers: [...host.cgroups.controllers] },
    },
    default_runtime: {
      name: host.defaultHypervisor,
      available: runtimes.find((runtime) => runtime.name === host.defaultHypervisor)?.available ?? false,
    },
    runtimes: [...runtimes, ...otherRuntimes(runtimes)].sort((a, b) => (a.name < b.name ? -1 : 1)),
    network: { ...host.network, guest_to_guest: false },
    images: { platforms: [platform], default_platform: platform },
    features: [
      'auto-standby',
      'exec',
      'images',
      'instances',
      'logs',
      ...built.map((tag) => (tag === 'ingresses' ? 'ingress' : tag)),
    ].sort(),
  }
}

async function resourcesOf({ host, instances, images, volumes, devices }: ServerUses): Promise<Resources> {
  const all = instances.list({})
  const link = host.link()
  const live = all.filter(takesMemory)
  const taken = (name: keyof Demand): number => live.reduce((total, instance) => total + demandOf(instance)[name], 0)
  const diskIo = { capacityBps: host.diskIoBps, ratio: host.ratios.diskIo, cpus: host.facts.cpus }
  const volumesBytes = volumes.demandBytes()
  const [disk, { layersBytes, rootfsBytes }, overlays, gpu] = await Promise.all([
    host.disk(),
    images.usageByKind(),
    instances.room.diskBytes(),
    devices.gpus(),
  ])
  const imagesBytes = rootfsBytes + layersBytes
  return {
    cpu: { ...status('cpu', host.facts.cpus, host.ratios.cpu, taken('vcpus')), source: 'detected' },
    memory: { ...status('memory', host.facts.memoryBytes, host.ratios.memory, taken('memoryBytes')), source: 'detected' },
    disk: { ...status('disk', disk.totalBytes, host.ratios.disk, imagesBytes + overlays + volumesBytes), source: 'detected' },
    disk_io: {
      ...status('disk_io', host.diskIoBps, host.ratios.diskIo, taken('diskIoBps')),
      source: host.diskIoBps === 0 ? 'unknown' : 'configured',
    },
    network: {
      ...status(
        'network',
        link.bytesPerSecond ?? 0,
        host.ratios.network,
        live.reduce((total, { network }) => total + networkDemandOf(network), 0),
      ),
      source: link.source,
    },
    disk_breakdown: { images_bytes: rootfsBytes, oci_cache_bytes: layersBytes, volumes_bytes: volumesBytes, overlays_bytes: overlays },
    gpu: gpu ?? null,
    allocations: live.map((instance) => ({
      instance_id: instance.id,
      instance_name: instance.name,
      cpu: instance.vcpus,
      memory_bytes: demandOf(instance).memoryBytes,
      disk_bytes: instance.overlayBytes,
      ...withRate(diskRateOf(instance, diskIo)),
      ...(instance.network.bandwidthDownload !== undefined && { network_download_bps: instance.network.bandwidthDownload }),
      ...(instance.network.bandwidthUpload !== undefined && { network_upload_bps: instance.network.bandwidthUpload }),
    })),
  }
}

const withRate = (bytesPerSecond: number | undefined) => (bytesPerSecond === undefined ? {} : { disk_io_bps: bytesPerSecond })

const RECLAIM_HOLD_MS = 5 * 60_000
const RECLAIM_HOLD_MAX_MS = 3_600_000

async function reclaimOf({ host, instances }: ServerUses, asked: MemoryReclaimRequest): Promise<MemoryReclaimResponse> {
  const { reclaim_bytes: bytes, hold_for, dry_run: dryRun = false } = asked
  const holdMs = hold_for === undefined || hold_for === '' ? RECLAIM_HOLD_MS : parseDuration(hold_for)
  if (holdMs === undefined || holdMs < 0 || holdMs > RECLAIM_HOLD_MAX_MS) {
    throw new AppError('invalid_request', `\`hold_for\` is ${JSON.stringify(hold_for)}, but must be a duration such as 5m, at most 1h`)
  }
  const done = await instances.reclaimMemory({ bytes, holdMs: Math.ceil(holdMs), dryRun })
  const { availableBytes, isTight } = host.pressure()
  return {
    requested_reclaim_bytes: bytes,
    planned_reclaim_bytes: done.plannedBytes,
    applied_reclaim_bytes: done.appliedBytes,
    host_available_bytes: availableBytes,
    host_pressure_state: isTight ? 'pressure' : 'healthy',
    ...(done.holdUntilMs !== undefined && { hold_until: new Date(done.holdUntilMs).toISOString() }),
    actions: done.actions.map(({ instance, bytes: own, status, error }) => {
      // A guest keeps all the memory that it was given: what it has written is moved, not taken.
      const assigned = demandOf(instance).memoryBytes
      return {
        instance_id: instance.id,
        instance_name: instance.name,
        hypervisor: instance.hypervisor as MemoryReclaimResponse['actions'][number]['hypervisor'],
        assigned_memory_bytes: assigned,
        protected_floor_bytes: Math.min(assigned, FLOOR_BYTES),
        previous_target_guest_memory_bytes: assigned,
        planned_target_guest_memory_bytes: assigned,
        target_guest_memory_bytes: assigned,
        applied_reclaim_bytes: status === 'planned' ? 0 : own,
        status,
        ...(error !== undefined && { error }),
      }
    }),
  }
}

function status(type: string, capacity: number, ratio: number, allocated: number): ResourceStatus {
  const limit = Math.floor(capacity * ratio)
  return { type, capacity, effective_limit: limit, allocated, available: Math.max(0, limit - allocated), oversub_ratio: ratio }
}
