/**
 * Pushes of images to registries: queued → pushing → pushed, or failed. A push is a row from the answer on. One that the daemon did
 * not survive is begun again by the next, which finds at the registry what has arrived; one whose credentials came with the request
 * cannot be, since these are kept nowhere, and has failed.
 */
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import type { Push, PushImageRequest } from '@dormouse/api/images.ts'
import type { Config } from '../../config/config.ts'
import type { Events } from '../../events/events.ts'
import { createId } from '../../lib/create-id.ts'
import type { Logger } from '../../log.ts'
import type { Paths } from '../../paths.ts'
import type { Database } from '../../store/database.ts'
import type { ImageRows } from '../../store/images.ts'
import type { PushRow, PushRows, PushStatus } from '../../store/pushes.ts'
import { runJob } from '../conversion.ts'
import type { Pushed, PushJob } from '../conversion-job.ts'
import type { StoredOrigin } from '../image-work.ts'
import { type Credentials, credentialsFromFile } from '../keychain.ts'
import type { ImageLimits } from '../limits.ts'
import { parseManifest } from '../manifest.ts'
import { formatReference, parseReference, type Reference } from '../reference.ts'
import { apiHostOf } from '../resolve-image.ts'
import { WorkQueue } from '../work-queue.ts'

interface PushesUses {
  readonly db: Database
  readonly rows: ImageRows
  readonly pushes: PushRows
  readonly events: Pick<Events, 'record'>
  readonly paths: Paths
  readonly log: Logger
  readonly config: Config['images']
  readonly limits: ImageLimits
  /** The image that is ready under a name. Throws `not_found` and `image_not_ready`. */
  readonly getReady: (name: string) => { readonly digest: string; readonly name: string }
  readonly recover: () => Promise<void>
  /** In place of a process of its own; for tests. */
  readonly run?: (job: PushJob, signal: AbortSignal) => Promise<Pushed>
}

const PUSHES_AT_ONCE = 2
const KEPT = 1000

export class Pushes implements AsyncDisposable {
  readonly #uses: PushesUses
  readonly #queue = new WorkQueue<string>(PUSHES_AT_ONCE)
  readonly #closing = new AbortController()
  /** By id: settles, never rejects, when the push is over. */
  readonly #underWay = new Map<string, Promise<void>>()
  /** What came with the requests of those under way. */
  readonly #given = new Map<string, Credentials | undefined>()

  constructor(uses: PushesUses) {
    this.#uses = uses
  }

  /** Ends what is under way; it is taken up again at the next start. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort(new AppError('shutting_down', 'The daemon is shutting down'))
    await Promise.all(this.#underWay.values())
  }

  /** Takes up what a daemon before has left. Call it once, before the rest. */
  recover(): void {
    const { pushes, log } = this.#uses
    for (const row of pushes.unfinished()) {
      if (this.#underWay.has(row.id)) continue
      if (row.needsGiven) {
        this.#settle(row, 'failed', {
          error: 'The daemon stopped while it was pushed, and its credentials were kept nowhere: push it again',
        })
      } else {
        log.info({ push: row.id, target: row.target }, 'taking an interrupted push up again')
        this.#change(row, 'queued')
        this.#start(row, undefined)
      }
    }
  }

  /** Newest first. */
  list(): Push[] {
    return this.#uses.pushes.all().map((row) => this.#present(row))
  }

  /** Throws `not_found`. */
  get(id: string): Push {
    const row = this.#uses.pushes.find(id)
    if (!row)
      throw new AppError('not_found', `There is no push ${JSON.stringify(id.slice(0, 100))}`, { hint: 'List them with: GET /pushes' })
    return this.#present(row)
  }

  /** Resolves when the push is over, or `signal` aborts. */
  async settled(id: string): Promise<Push> {
    await this.#underWay.get(id)
    return this.get(id)
  }

  /**
   * Enters a push and begins it in its turn. The same push asked for again while it is under way is the same push. Throws
   * `invalid_target`, `not_found`, `image_not_ready`, `credential_conflict` and `conflict`.
   */
  async create(request: PushImageRequest, given: Credentials | undefined): Promise<Push> {
    const { db, pushes, getReady, recover } = this.#uses
    const reference = parseTarget(request.target)
    await recover()
    const { digest, name } = getReady(request.image)
    const target = formatReference(reference)
    const insecure = request.insecure ?? false
    const other = pushes.unfinished().find((row) => row.target === target)
    if (other) {
      this.#refuseOther(other, { digest, insecure, given })
      return this.#present(other)
    }
    const facts = { error: undefined, layers: undefined, bytes: undefined, completedAtMs: undefined }
    const id = createId()
    const row: PushRow = {
      id,
      image: name,
      digest,
      target,
      insecure,
      needsGiven: given !== undefined,
      status: 'queued',
      createdAtMs: Date.now(),
      ...facts,
    }
    db.transaction(() => {
      pushes.insert(row)
      pushes.forgetOld(KEPT)
      this.#record(row, 'queued')
    })
    this.#start(row, given)
    return this.#present(row)
  }

  #refuseOther(other: PushRow, wanted: { digest: string; insecure: boolean; given: Credentials | undefined }): void {
    if (other.digest !== wanted.digest || other.insecure !== wanted.insecure) {
      throw new AppError('conflict', `${other.target} is being pushed to already, with another image or in another way`, {
        hint: `Wait until that push is over: GET /pushes/${other.id}`,
      })
    }
    if (JSON.stringify(this.#given.get(other.id)) !== JSON.stringify(wanted.given)) {
      throw new AppError('credential_conflict', `${other.target} is being pushed to already, with other credentials`, {
        hint: `Wait until that push is over: GET /pushes/${other.id}`,
      })
    }
  }

  #start(row: PushRow, given: Credentials | undefined): void {
    this.#given.set(row.id, given)
    const done = this.#queue
      .run(row.id, async () => {
        this.#closing.signal.throwIfAborted()
        this.#change(row, 'pushing')
        const { layers, bytes } = await this.#push(row, given)
        this.#settle(row, 'pushed', { layers, bytes })
      })
      .catch((error) => {
        // Not a failure: the next start takes it up again.
        if (!this.#closing.signal.aborted) this.#fail(row, error)
      })
      .catch((err) => this.#uses.log.error({ err, push: row.id }, 'the failure of a push could not be recorded'))
      .finally(() => {
        this.#underWay.delete(row.id)
        this.#given.delete(row.id)
      })
    this.#underWay.set(row.id, done)
  }

  async #push(row: PushRow, given: Credentials | undefined): Promise<Pushed> {
    const { rows, config, limits, paths } = this.#uses
    const image = rows.find(row.digest)
    const parsed = image && parseManifest(image.manifest, undefined, limits)
    if (!image || parsed?.kind !== 'manifest') throw new AppError('not_found', `The image ${row.image} is no longer here`)
    const { registry, repository, tag = 'latest' } = parseReference(row.target)
    const credentials = given ?? (await credentialsFromFile(config.keychain, registry))
    const origin = image.origin === undefined ? undefined : (JSON.parse(image.origin) as StoredOrigin)
    const job: PushJob = {
      kind: 'push',
      dirs: { dataDir: paths.dataDir, runDir: paths.runDir },
      layers: parsed.layers.map(({ mediaType, digest, size }) => ({ mediaType, digest, size })),
      config: { digest: parsed.config.digest, bytes: image.config },
      manifest: image.manifest,
      to: {
        origin: { registry, host: apiHostOf(registry), repository },
        tag,
        credentials,
        policy: {
          allowPrivateRegistries: config.allowPrivateRegistries,
          insecureRegistries: config.insecureRegistries,
          ...(row.insecure && { isPlain: true }),
        },
        // A registry that has the layers already, elsewhere, need not be sent them.
        mountFrom: origin?.registry === registry && origin.repository !== repository ? origin.repository : undefined,
      },
      limits,
    }
    const { signal } = this.#closing
    return await (this.#uses.run?.(job, signal) ?? runJob(job, { signal }))
  }

  #fail(row: PushRow, error: unknown): void {
    const isOurs = errorCodeOf(error) !== undefined && errorCodeOf(error) !== 'internal_error'
    this.#uses.log.warn({ push: row.id, target: row.target, err: error }, 'push failed')
    const message = isOurs ? (error as AppError).message : 'The image could not be pushed: see the log of the daemon'
    const hint = isOurs ? (error as AppError).hint : undefined
    this.#settle(row, 'failed', { error: hint === undefined ? message : `${message}. ${hint}` })
  }

  #settle(row: PushRow, status: PushStatus, facts: { error?: string; layers?: number; bytes?: number }): void {
    this.#change(row, status, { ...facts, completedAtMs: Date.now() })
    if (status === 'pushed') this.#uses.log.info({ push: row.id, image: row.image, target: row.target, ...facts }, 'image pushed')
  }

  #change(row: PushRow, status: PushStatus, facts: Parameters<PushRows['setStatus']>[2] = {}): void {
    const { db, pushes } = this.#uses
    db.transaction(
      () => {
        pushes.setStatus(row.id, status, facts)
        this.#record(row, status)
      },
      { evenWhenFull: true },
    )
  }

  #record({ id, target, digest }: PushRow, status: PushStatus): void {
    this.#uses.events.record({ kind: 'push.changed', subject: id, data: { status, target, digest } })
  }

  #present(row: PushRow): Push {
    const time = (ms: number): string => new Date(ms).toISOString()
    return {
      id: row.id,
      image: row.image,
      digest: row.digest,
      target: row.target,
      status: row.status,
      created_at: time(row.createdAtMs),
      completed_at: row.completedAtMs === undefined ? null : time(row.completedAtMs),
      queue_position: this.#queue.positionOf(row.id) ?? null,
      error: row.error ?? null,
      ...(row.layers === undefined ? {} : { layers: row.layers }),
      ...(row.bytes === undefined ? {} : { bytes: row.bytes }),
    }
  }
}

function parseTarget(text: string): Reference {
  let reference: Reference
  try {
    reference = parseReference(text)
  } catch (cause) {
    throw new AppError('invalid_target', cause instanceof AppError ? cause.message : `${text} is no image reference`, { cause })
  }
  if (reference.digest === undefined) return reference
  throw new AppError('invalid_target', 'The target names a digest: a tag is needed, the digest is the image’s own')
}
