import { AppError } from '@dormouse/api/errors.ts'
import type { Instance as Shown } from '@dormouse/api/instances.ts'
import type { SseMessage, SsePlace } from '@dormouse/api/streams.ts'
import type { Instance, InstanceId } from '../../instances/instance.ts'
import type { LogBatch } from '../../instances/log-lines.ts'
import type { Handlers } from '../handler.ts'
import { graceMs, toCreateInstance, toForkInstance, toUpdateInstance, waitLimitMs } from '../instance-requests.ts'
import { type PlaceOf, pageOf } from '../list-page.ts'
import { admitRegistry, isHere } from '../loopback-registries.ts'
import { presentInstance } from '../present-instance.ts'
import { toCompression, toCompressionDelay } from '../snapshot-requests.ts'
import { encodeBatch, type SseBatch } from '../streams/sse.ts'
import type { ServerUses } from '../uses.ts'
import { WrittenInstances } from '../written-instances.ts'

type InstanceRoutes = Pick<
  Handlers,
  | 'listInstances'
  | 'createInstance'
  | 'getInstance'
  | 'updateInstance'
  | 'deleteInstance'
  | 'startInstance'
  | 'stopInstance'
  | 'standbyInstance'
  | 'restoreInstance'
  | 'forkInstance'
  | 'getInstanceLogs'
  | 'statInstancePath'
  | 'getInstanceStats'
  | 'waitForInstance'
>

export function instanceRoutes({
  instances,
  images,
  supervision,
}: Pick<ServerUses, 'instances' | 'images' | 'supervision'>): InstanceRoutes {
  const written = new WrittenInstances()
  const show = (instance: Instance): Shown => {
    const nowMs = Date.now()
    return presentInstance(instance, nowMs, supervision.of(instance, nowMs))
  }

  /** `?wait=running`: the answer waits until it runs, has come to rest, or the time is up; it tells the state as it then is. */
  const settled = async (instance: Instance, query: { wait?: 'running'; timeout?: string }, signal: AbortSignal): Promise<Shown> => {
    if (query.wait === undefined) return show(instance)
    await instances.wait(instance.id, { state: 'Running', timeoutMs: waitLimitMs(query.timeout), signal })
    return show(instances.get(instance.id))
  }

  return {
    listInstances: ({ query, setHeader }) => {
      const { state, tags, limit, cursor } = query
      const listed = instances.list({ ...(state !== undefined && { state }), ...(tags !== undefined && { tags }) })
      const page = pageOf(listed, PLACE, { limit, cursor })
      if (page.nextCursor !== undefined) setHeader('x-next-cursor', page.nextCursor)
      const nowMs = Date.now()
      return written.list(page.items, nowMs, (instance) => supervision.of(instance, nowMs))
    },

    createInstance: async ({ body, query, signal, caller }) => {
      // One that is here is asked of no registry.
      if (!isHere(images, body.image)) admitRegistry(caller, images, body.image)
      // A bad `timeout` must not be found out once the instance is there.
      waitLimitMs(query.timeout)
      return settled(await instances.create(toCreateInstance(body, Date.now())), query, signal)
    },

    getInstance: ({ params }) => {
      const instance = instances.resolve(params.id)
      const nowMs = Date.now()
      return written.one(instance, nowMs, supervision.of(instance, nowMs))
    },

    updateInstance: async ({ params, body }) =>
      show(await instances.update(instances.resolve(params.id).id, toUpdateInstance(body, Date.now()))),

    deleteInstance: async ({ params, query }) => {
      await instances.delete(instances.resolve(params.id).id, { graceful: query.graceful_shutdown ?? true })
      return undefined
    },

    startInstance: async ({ params, body, query, signal }) => {
      waitLimitMs(query.timeout)
      const { entrypoint, cmd } = body
      const overrides = { ...(entrypoint?.length && { entrypoint }), ...(cmd?.length && { cmd }) }
      return settled(await instances.start(instances.resolve(params.id).id, overrides), query, signal)
    },

    stopInstance: async ({ params, body }) => {
      const grace = graceMs(body.timeout)
      const options = { ...(body.force === true && { force: true }), ...(grace !== undefined && { graceMs: grace }) }
      return show(await instances.stop(instances.resolve(params.id).id, options))
    },

    standbyInstance: async ({ params, body }) => {
      const compression = toCompression(body.compression, 'Standby')
      const compressionDelayMs = toCompressionDelay(body.compression_delay)
      const options = { ...(compression && { compression }), ...(compressionDelayMs !== undefined && { compressionDelayMs }) }
      return show(await instances.standby(instances.resolve(params.id).id, options))
    },

    restoreInstance: async ({ params, query, signal }) => {
      waitLimitMs(query.timeout)
      return settled(await instances.restore(instances.resolve(params.id).id), query, signal)
    },

    forkInstance: async ({ params, body, query, signal }) => {
      waitLimitMs(query.timeout)
      return settled(await instances.fork(instances.resolve(params.id).id, toForkInstance(body)), query, signal)
    },

    getInstanceLogs: async ({ params, query, header, signal }) => {
      const { tail = 100, follow = false, source = 'app' } = query
      const from = header('last-event-id')
      const lines = await instances.logs(instances.resolve(params.id).id, {
        source: source === 'hypeman' ? 'daemon' : source,
        tail,
        ...(from !== undefined && { from }),
        follow,
        untilStopped: query.until === 'stopped',
        signal,
      })
      return asMessages(lines)
    },

    statInstancePath: async ({ params, query, signal, log }) => {
      const step = { signal: AbortSignal.any([signal, AbortSignal.timeout(STAT_LIMIT_MS)]), log }
      const guest = await instances.guest(instances.resolve(params.id).id, step, 'stat')
      return guest.stat(query.path, { followLinks: query.follow_links ?? false }, step)
    },

    getInstanceStats: async ({ params }) => {
      const stats = await instances.stats(instances.resolve(params.id).id)
      const { instance } = stats
      const allocated = instance.memoryBytes + instance.hotplugBytes
      return {
        instance_id: instance.id,
        instance_name: instance.name,
        cpu_seconds: stats.cpuSeconds,
        memory_rss_bytes: stats.memoryRssBytes,
        memory_vms_bytes: stats.memoryVmsBytes,
        network_rx_bytes: stats.networkRxBytes,
        network_tx_bytes: stats.networkTxBytes,
        allocated_vcpus: instance.vcpus,
        allocated_memory_bytes: allocated,
        memory_utilization_ratio: allocated > 0 ? stats.memoryRssBytes / allocated : null,
      }
    },

    waitForInstance: async ({ params, query, signal }) => {
      if (query.state === 'Unknown') throw new AppError('invalid_state', '`state` is Unknown, which nothing can be waited into')
      const timeoutMs = waitLimitMs(query.timeout)
      const id: InstanceId = instances.resolve(params.id).id
      const result = await instances.wait(id, { state: query.state, timeoutMs, signal })
      return {
        state: result.state,
        timed_out: result.timedOut,
        state_error: result.stateError ?? null,
        ...(result.reason !== undefined && { reason: result.reason }),
      }
    },
  }
}

const PLACE: PlaceOf<Instance> = { key: ({ id }) => id, createdAt: ({ createdAtMs }) => new Date(createdAtMs).toISOString() }

const STAT_LIMIT_MS = 15_000

async function* asMessages(batches: AsyncIterable<LogBatch>): AsyncGenerator<SseBatch> {
  let isFirst = true
  for await (const batch of batches) {
    yield isFirst ? messagesOf(batch) : encodedOf(batch)
    isFirst = false
  }
}

/** The last of them carries the id to go on from. Without lines a comment tells it: the published clients expect a value in every message. */
function messagesOf({ lines, place }: LogBatch): (SseMessage | SsePlace)[] {
  if (lines.length === 0) return [{ place }]
  return lines.map((line, at) => (at < lines.length - 1 ? { data: JSON.stringify(line) } : { id: place, data: JSON.stringify(line) }))
}

const encoded = new WeakMap<LogBatch, Uint8Array>()

/** Those who follow one log are given the same batches: each is written once. */
function encodedOf(batch: LogBatch): Uint8Array {
  const known = encoded.get(batch)
  if (known !== undefined) return known
  const bytes = encodeBatch(messagesOf(batch))
  encoded.set(batch, bytes)
  return bytes
}
