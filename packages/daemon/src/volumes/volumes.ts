/**
 * Volumes: disks that outlive the instances they are attached to. Made, found, grown at rest and deleted here; attaching one changes an
 * instance, and is that room's affair. A volume's disk is a chain of layers like an instance's own (docs/decisions/0046), so that forks
 * and snapshots share what was there.
 */
import { AppError } from '@dormouse/api/errors.ts'
import { formatSize } from '@dormouse/api/units.ts'
import type { Disks } from '../disks/disks.ts'
import { isPlain, nameLayer } from '../disks/layer.ts'
import type { Events } from '../events/events.ts'
import { fillDisk } from '../images/fill-disk.ts'
import { createId } from '../lib/create-id.ts'
import type { Step } from '../lib/step.ts'
import type { Logger } from '../log.ts'
import type { Database } from '../store/database.ts'
import type { Attachment, Instance } from '../store/instance-record.ts'
import { type Holder, type Volume, VolumeRows } from '../store/volumes.ts'
import { assertCompatible, layerLimit } from './attachments.ts'

export type { Holder, Volume } from '../store/volumes.ts'
export { followAttachments, layerLimit } from './attachments.ts'
export { checkMountPath, checkMountPaths } from './mount-path.ts'

export interface VolumesUses {
  readonly db: Database
  readonly events: Events
  readonly disks: Disks
  readonly log: Logger
  /** Whom what looks into a volume's disk runs as; absent when the daemon is not root. */
  readonly user?: { readonly uid: number; readonly gid: number }
  /** dormouse-fill, which puts archives into them, and where a layer lies. */
  readonly fillProgram: string
  readonly diskPath: (layer: string) => string
  /** Looks at the disk; what it gives judges at once whether there is room for so many bytes more. */
  readonly admit: (what: string, bytes: number) => Promise<() => void>
  readonly crashPoint?: (operation: string, step: string) => Promise<void>
}

export interface CreateVolume {
  readonly name: string
  readonly bytes: number
  readonly id?: string
  readonly tags?: Readonly<Record<string, string>>
}

/** A disk for one attachment: the volume's own layers, with what had to be put on top. */
export interface PreparedDisk {
  readonly volume: Volume
  readonly disk: readonly string[]
}

const NAME_MAX = 128
const MAKE_LIMIT_MS = 60_000
const FILL_LIMIT_MS = 3_600_000
/** Each takes a process that reads and one that writes. */
const FILLINGS_MAX = 4
const FLATTEN_LIMIT_MS = 1_800_000
/** One more comes on top with every reader. */
const MANY_LAYERS = 8

export class Volumes {
  readonly #uses: VolumesUses
  readonly rows: VolumeRows
  #fillings = 0

  constructor(uses: VolumesUses) {
    this.#uses = uses
    this.rows = new VolumeRows(uses.db)
  }

  /** Newest first. */
  list(filter: { readonly tags?: Readonly<Record<string, string>> } = {}): readonly Volume[] {
    const wanted = Object.entries(filter.tags ?? {})
    return this.rows.list().filter(({ tags }) => wanted.every(([key, value]) => Object.hasOwn(tags, key) && tags[key] === value))
  }

  /** By id, then by name. Throws `not_found`, or `ambiguous` when several have the name. */
  resolve(text: string): Volume {
    const exact = this.rows.find(text)
    if (exact) return exact
    const [named, second] = this.rows.findByName(text)
    if (second !== undefined) throw new AppError('ambiguous', `More than one volume is named ${text}`, { hint: 'Give the id' })
    if (named) return named
    throw new AppError('not_found', `There is no volume ${JSON.stringify(text.slice(0, 128))}`, {
      hint: 'List them with: dormouse volume ls',
    })
  }

  /** Who has it. */
  holders(id?: string): readonly Holder[] {
    return this.rows.holders(id)
  }

  /** Of all volumes together, each at its full size. */
  sizeBytes(): number {
    return this.rows.sizeBytes()
  }

  /** What volumes may take of the host's disk, each at its full size. */
  demandBytes(): number {
    return this.rows.demandBytes()
  }

  /** An empty volume, with a filesystem. Its row is the commit point. */
  async create(request: CreateVolume): Promise<Volume> {
    const { disks } = this.#uses
    return this.#make('volume_create', request, (layer, step) => disks.createOverlay(layer, request.bytes, { step }))
  }

  /**
   * A volume with what a tar holds, compressed or not, that arrives as `source`. Throws `invalid_archive` or `archive_too_large`, and then
   * nothing is left.
   */
  async createFromArchive(request: CreateVolume, source: AsyncIterable<Uint8Array>, step: Pick<Step, 'signal'>): Promise<Volume> {
    if (this.#fillings >= FILLINGS_MAX) {
      throw new AppError('rate_limited', 'Other volumes are being filled from archives', { retryAfterSeconds: 5 })
    }
    const { disks, user, fillProgram, diskPath } = this.#uses
    this.#fillings++
    try {
      return await this.#make('volume_import', request, async (layer, making) => {
        await disks.createOverlay(layer, request.bytes, { step: making, owner: user })
        const signal = AbortSignal.any([step.signal, AbortSignal.timeout(FILL_LIMIT_MS)])
        await fillDisk({ file: diskPath(layer), maxBytes: request.bytes, program: fillProgram, user }, source, { signal })
        await disks.takeBack(layer)
      })
    } finally {
      this.#fillings--
    }
  }

  /** Throws `conflict`, naming who has it, while it is attached. Its row is the commit point; layers that others stand on stay. */
  async delete(id: string): Promise<void> {
    const { db, events, disks } = this.#uses
    await this.#reach('volume_delete', 'record')
    const volume = db.transaction(
      () => {
        const found = this.resolve(id)
        const [holder, ...others] = this.holders(found.id)
        if (holder !== undefined) {
          const more = others.length === 0 ? '' : ` and ${others.length} more`
          throw new AppError('conflict', `The volume ${found.name} is attached to the instance ${holder.instanceName}${more}`, {
            hint: `Detach it first: dormouse volume detach ${holder.instanceName} ${found.id}`,
            detail: { instance: holder.instanceId },
          })
        }
        this.rows.delete(found.id)
        events.record({ kind: 'volume.deleted', subject: found.id, data: { name: found.name } })
        return found
      },
      { evenWhenFull: true },
    )
    await this.#reach('volume_delete', 'files')
    await disks.release(volume.disk).catch((err: unknown) => this.#uses.log.warn({ err, volume: volume.id }, 'left for the next sweep'))
  }

  /**
   * A disk of its own for one that attaches it, by whom what it is over is never written: a reader's is a layer that catches what the
   * guest's kernel writes, a journal that was left open for one. The layers that were `made` are its caller's until a row names them.
   */
  async prepare(
    volume: Volume,
    wanted: Pick<Attachment, 'readOnly' | 'overlayBytes'>,
  ): Promise<PreparedDisk & { readonly made: readonly string[] }> {
    assertCompatible(volume, wanted, this.holders(volume.id))
    const now = await this.#shorten(volume)
    const { disks } = this.#uses
    const [top] = now.disk
    if (top === undefined) throw new AppError('internal_error', `The volume ${volume.name} has no disk on record`)
    if (!wanted.readOnly && !disks.isShared(top, `volume ${volume.id}`)) return { volume: now, disk: now.disk, made: [] }
    await disks.assertSound(top)
    const layer = await disks.newLayer(now.bytes, { limitBytes: layerLimit(wanted) })
    await disks.flush([layer])
    return { volume: now, disk: [layer, ...now.disk], made: [layer] }
  }

  /** In the transaction that records it: throws `conflict` when the volume has become another since it was prepared. */
  assertUnchanged({ volume }: PreparedDisk): void {
    const now = this.rows.find(volume.id)
    if (now === undefined) throw new AppError('not_found', `The volume ${volume.name} was deleted meanwhile`)
    if (now.disk.join() !== volume.disk.join())
      throw new AppError('conflict', `The volume ${volume.name} has changed meanwhile`, { hint: 'Ask again' })
  }

  /**
   * What a fork has of a volume that its source has: the same to read, a new volume to write. Call it in the transaction that records the
   * fork. The layers that it is given are never written again.
   */
  attachmentOfFork({ moving: _moving, ...attachment }: Attachment, fork: Pick<Instance, 'id' | 'name'>): Attachment {
    if (attachment.readOnly) return attachment
    const source = this.rows.find(attachment.volumeId)
    const volume: Volume = {
      id: createId(),
      name: this.#freeName(`${attachment.volumeName.slice(0, NAME_MAX - fork.name.length - 1)}-${fork.name}`),
      createdAtMs: Date.now(),
      bytes: attachment.bytes,
      tags: source?.tags ?? {},
      disk: [],
      madeFor: fork.id,
    }
    this.rows.insert(volume)
    this.#uses.events.record({
      kind: 'volume.created',
      subject: volume.id,
      data: { name: volume.name, bytes: volume.bytes, source: attachment.volumeId },
    })
    return { ...attachment, volumeId: volume.id, volumeName: volume.name }
  }

  #freeName(wanted: string): string {
    let name = wanted
    for (let number = 2; this.rows.findByName(name).length > 0; number++) name = `${wanted.slice(0, NAME_MAX - 8)}-${number}`
    return name
  }

  /** Makes a volume that no one has larger; its filesystem follows when it is next mounted for writing. */
  async growAtRest(volume: Volume, bytes: number): Promise<Volume> {
    const { db, events, disks } = this.#uses
    const judge = await this.#uses.admit(`the volume ${volume.name}`, bytes - volume.bytes)
    // Before the files as well: they may not be able to become as large as that.
    judge()
    await this.#reach('volume_grow', 'files')
    const disk = await this.enlarge(volume.disk, bytes, `volume ${volume.id}`)
    const made = disk.filter((layer) => !volume.disk.includes(layer))
    try {
      await this.#reach('volume_grow', 'record')
      return db.transaction(() => {
        judge()
        this.assertUnchanged({ volume, disk })
        const [holder] = this.holders(volume.id)
        if (holder !== undefined)
          throw new AppError('conflict', `The volume ${volume.name} was attached to ${holder.instanceName} meanwhile`)
        const grown = { ...volume, bytes, disk }
        this.rows.update(grown)
        events.record({ kind: 'volume.changed', subject: volume.id, data: { bytes } })
        return grown
      })
    } catch (error) {
      await disks.release(made)
      throw error
    }
  }

  /** The chain of a disk that no VM has, `bytes` large: its one raw layer, or a larger one on top. What it stands on stays as it is. */
  async enlarge(disk: readonly string[], bytes: number, owner: string): Promise<readonly string[]> {
    const { disks } = this.#uses
    const [top] = disk
    if (top === undefined) throw new AppError('internal_error', 'There is no disk to be made larger')
    if (isPlain(disk) && !disks.isShared(top, owner)) {
      await disks.extend(top, bytes)
      return disk
    }
    await disks.assertSound(top)
    const layer = await disks.newLayer(bytes, {})
    await disks.flush([layer])
    return [layer, ...disk]
  }

  /** The contents of a chain that no VM has as one raw layer, which is its caller's until a row names it. */
  async flatten(disk: readonly string[], step: Step): Promise<string> {
    const { disks, user } = this.#uses
    const flat = await disks.flatten(disk, { step, owner: user })
    // One that is a raw layer alone is answered as it is.
    if (!disk.includes(flat)) await disks.takeBack(flat)
    return flat
  }

  async #make(operation: string, request: CreateVolume, fill: (layer: string, step: Step) => Promise<void>): Promise<Volume> {
    const { db, events, disks } = this.#uses
    const { name, bytes, id = createId(), tags = {} } = request
    const assertIdFree = (): void => {
      if (this.rows.find(id) !== undefined) throw new AppError('already_exists', `There is a volume with the id ${id} already`)
    }
    assertIdFree()
    const judgeEarly = await this.#uses.admit(`the volume ${name}`, bytes)
    judgeEarly()
    const layer = nameLayer('raw')
    await using undo = new AsyncDisposableStack()
    undo.defer(async () => void (await disks.release([layer])))
    await this.#reach(operation, 'files')
    await fill(layer, { signal: AbortSignal.timeout(MAKE_LIMIT_MS), log: this.#uses.log })
    await disks.flush([layer])
    const judge = await this.#uses.admit(`the volume ${name}`, bytes)
    await this.#reach(operation, 'record')
    const volume: Volume = { id, name, createdAtMs: Date.now(), bytes, tags, disk: [layer] }
    db.transaction(() => {
      judge()
      assertIdFree()
      this.rows.insert(volume)
      events.record({ kind: 'volume.created', subject: id, data: { name, bytes } })
    })
    undo.move()
    this.#uses.log.info({ volume: id, name, size: formatSize(bytes) }, 'volume created')
    return volume
  }

  /** One that has many layers has one afterwards. Only of a volume that no one has: readers stand on the layers that there are. */
  async #shorten(volume: Volume): Promise<Volume> {
    if (volume.disk.length < MANY_LAYERS || this.holders(volume.id).length > 0) return volume
    const { disks, db, log } = this.#uses
    const flat = await this.flatten(volume.disk, { signal: AbortSignal.timeout(FLATTEN_LIMIT_MS), log })
    const shortened = { ...volume, disk: [flat] }
    try {
      db.transaction(() => {
        this.assertUnchanged({ volume, disk: [flat] })
        if (this.holders(volume.id).length > 0) throw new AppError('conflict', `The volume ${volume.name} was attached meanwhile`)
        this.rows.update(shortened)
      })
    } catch (error) {
      await disks.release([flat])
      throw error
    }
    await disks.release(volume.disk)
    return shortened
  }

  async #reach(operation: string, step: string): Promise<void> {
    await this.#uses.crashPoint?.(operation, step)
  }
}
