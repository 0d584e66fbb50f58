import { rm } from 'node:fs/promises'
import { isDeepStrictEqual } from 'node:util'
import type { Compression } from '@dormouse/api/compression.ts'
import { AppError } from '@dormouse/api/errors.ts'
import { bytesIn } from '../../host/bytes-in.ts'
import { publishDirectory } from '../../host/files.ts'
import { type CaptureManifest, readManifest } from '../../memory/capture-files.ts'
import type { Snapshot } from '../../store/snapshots.ts'
import { chooseCompression } from '../compression-choice.ts'
import { layersOf } from '../instance-disks.ts'
import type { InstanceWork } from '../instance-work.ts'
import { takePoint } from './take-point.ts'

export type SnapshotRequest = Pick<Snapshot, 'id' | 'kind' | 'name' | 'tags' | 'isScheduled'> & {
  readonly compression?: Compression | 'off'
}

/**
 * A kept point of the instance, which goes on. The snapshot's row is the commit point: what was written for one without a row is
 * swept. Returns with the snapshot whole and flushed.
 */
export async function snapshot(work: InstanceWork, { compression: asked, ...request }: SnapshotRequest): Promise<void> {
  const { uses, instance } = work
  await work.step('intent', 10_000)
  assertKind(instance, request.kind)
  if (request.name !== undefined && uses.snapshots.findByName(instance.id, request.name)) {
    throw new AppError('conflict', `${instance.name} has a snapshot named ${request.name} already`, { hint: 'Take another name, or none' })
  }
  const target = uses.paths.snapshotDir(request.id)
  const draft = `${target}.draft`
  await using undo = new AsyncDisposableStack()
  undo.defer(() => rm(draft, { recursive: true, force: true }))
  const compression = request.kind === 'Standby' ? chooseCompression(asked, instance, uses.settings.compression) : undefined
  const point = await takePoint(work, { dir: draft, close: async () => 1, keepsDelta: compression !== undefined })
  undo.defer(async () => void (await uses.disks.release(layersOf(point.instance))))
  undo.defer(async () => void (await point.fresh?.settle()))

  if (point.capture !== undefined) {
    await work.step('publish', 30_000)
    await publishDirectory(point.capture.dir, target)
    undo.defer(() => rm(target, { recursive: true, force: true }))
  }
  const bytes = (await bytesIn(target)) + (await uses.disks.allocatedBytes(layersOf(point.instance)))
  await work.step('record', 10_000)
  const { base } = point.capture ?? {}
  const createdAtMs = Date.now()
  const row = { ...request, createdAtMs, instance: point.instance, disk: point.instance.disk, bytes }
  const compressed = point.capture === undefined ? NOT_COMPRESSED : compressedOf(await readManifest(target), compression)
  uses.db.transaction(() => {
    uses.snapshots.insert({ ...row, ...compressed, ...(base === undefined ? {} : { base }) })
    uses.events.record({ kind: 'snapshot.published', subject: request.id, data: { instance: instance.id, name: request.name } })
  })
  undo.move()
  await point.fresh?.settle()
  await rm(draft, { recursive: true, force: true }).catch(work.leaveForSweep('snapshot draft'))
}

type Compressed = Pick<Snapshot, 'compression' | 'compressionState' | 'compressedBytes' | 'uncompressedBytes'>

const NOT_COMPRESSED: Compressed = { compressionState: 'none' }

/** What is told of it from the beginning: of a sleeper that was compressed, its snapshot is too. The work itself is `snapshots/`. */
function compressedOf({ base, delta }: CaptureManifest, wanted: Compression | undefined): Compressed {
  const isSelfContained = !base.startsWith('base/')
  if (wanted !== undefined && !(isSelfContained && isDeepStrictEqual(delta?.compression, wanted))) {
    return { compression: wanted, compressionState: 'compressing' }
  }
  if (delta?.compression === undefined) return NOT_COMPRESSED
  const { compression, bytes: compressedBytes, plainBytes: uncompressedBytes = compressedBytes } = delta
  return { compression, compressionState: 'compressed', compressedBytes, uncompressedBytes }
}

function assertKind({ name, state }: InstanceWork['instance'], kind: Snapshot['kind']): void {
  if ((kind === 'Stopped') === (state === 'Stopped')) return
  throw new AppError('conflict', `A snapshot of the kind ${kind} cannot be taken of ${name} while it is ${state}`, {
    hint: kind === 'Stopped' ? 'Stop it first, or ask for the kind Standby' : 'Ask for the kind Stopped, or start it first',
  })
}
