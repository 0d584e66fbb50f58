/**
 * Blobs on their way to us. An upload is a draft of the store and what is known of it: it may come in one request or in many, one at
 * a time, and one that was cut goes on where the draft ends. Uploads live as long as the daemon; their drafts are removed at the start.
 */
import { randomBytes } from 'node:crypto'
import { AppError } from '@dormouse/api/errors.ts'
import type { BlobDraft, BlobStore } from '../blob-store.ts'
import { type Algorithm, algorithmOf } from '../digest.ts'
import { withIdleLimit } from '../idle-limit.ts'
import { RegistryError } from './registry-error.ts'

export interface UploadLimits {
  /** At once, in the whole daemon. */
  readonly maxUploads: number
  /** At once, of one caller. */
  readonly maxPerOwner: number
  readonly maxBlobBytes: number
  /** An upload that no request has come for is given up. */
  readonly forgottenAfterMs: number
  /** The same of one that nothing has come of. */
  readonly emptyForgottenAfterMs: number
  /** A request that gives nothing for so long is cut. Its upload stays. */
  readonly idleLimitMs: number
}

/** A part of a blob, as a request brings it. */
export interface UploadPart {
  readonly source: AsyncIterable<Uint8Array>
  /** How long it is, where the client says so. */
  readonly bytes?: number | undefined
  /** Where the part begins and ends, where the client says so. */
  readonly range?: { readonly from: number; readonly to: number } | undefined
  /** Ends the request: another one goes on with the upload. */
  readonly cut: () => void
}

interface UploadUses {
  readonly store: BlobStore
  readonly limits: UploadLimits
  /** Throws when there is no room for so many bytes more of an upload. `arriving` has them already. One after the other. */
  readonly checkRoom: (bytes: number) => Promise<void>
  /** The repository has the blob. Comes when it is verified and before it has its place. */
  readonly onVerified: (repository: string, digest: string) => Promise<void>
}

/** What is on its way, in drafts: no file of the store is of it yet. */
export interface Arriving {
  /** As long as the uploads will be, as far as that is known. */
  readonly bytes: number
  /** Of them, what is not on the disk yet. */
  readonly unwrittenBytes: number
}

/** Of a part whose length is not known, so much may come before it is asked again whether there is room. */
const CHECK_ROOM_EVERY = 16 * 1024 ** 2

export class Uploads implements AsyncDisposable {
  readonly #uses: UploadUses
  readonly #open = new Map<string, Upload>()
  #judging: Promise<unknown> = Promise.resolve()

  constructor(uses: UploadUses) {
    this.#uses = uses
  }

  /**
   * Of one who has begun more than may be at once, or where all together are too many, the one that has lain idle longest gives way.
   * Throws TOOMANYREQUESTS when all of them are being written. `owner`: who is counted.
   */
  async begin(
    repository: string,
    options: { owner?: string; algorithm?: Algorithm | undefined; expectedBytes?: number | undefined } = {},
  ): Promise<Upload> {
    const { store } = this.#uses
    const id = randomBytes(16).toString('hex')
    const { owner = '', algorithm = 'sha256', expectedBytes = 0 } = options
    const givesWay = this.#makePlace(owner)
    // Its place is taken before anything is waited for.
    const upload = new Upload({
      ...{ id, repository, owner, algorithm, uses: this.#uses },
      forget: () => this.#open.delete(id),
      admit: (one, bytes) => this.#admit(one, bytes),
    })
    this.#open.set(id, upload)
    try {
      await givesWay?.cancel()
      await this.#admit(upload, expectedBytes)
      upload.draft = await store.beginDraft(algorithm)
      return upload
    } catch (error) {
      this.#open.delete(id)
      throw error
    }
  }

  /** The upload whose place is free from now on, where one had to give way. Throws TOOMANYREQUESTS. */
  #makePlace(owner: string): Upload | undefined {
    const { maxUploads, maxPerOwner } = this.#uses.limits
    const byOwner = Map.groupBy(this.#open.values(), (upload) => upload.owner)
    const own = byOwner.get(owner) ?? []
    if (own.length < maxPerOwner && this.#open.size < maxUploads) return undefined
    // Where all together are too many, it is one of who has most.
    const most = [...byOwner.values()].reduce((a, b) => (b.length > a.length ? b : a), own)
    const candidates = (own.length >= maxPerOwner ? own : most).filter((upload) => !upload.isBusy && upload.draft !== undefined)
    const [oldest] = candidates.sort((a, b) => a.touchedAtMs - b.touchedAtMs)
    if (oldest === undefined) {
      const [count, whose] = own.length >= maxPerOwner ? [maxPerOwner, ' of this caller'] : [maxUploads, '']
      throw new RegistryError('TOOMANYREQUESTS', `${count} uploads${whose} are under way, which is the limit: try again later`)
    }
    this.#open.delete(oldest.id)
    return oldest
  }

  /** Throws BLOB_UPLOAD_UNKNOWN. */
  get(repository: string, id: string): Upload {
    const upload = this.#open.get(id)
    if (upload?.repository === repository && upload.draft) return upload
    throw new RegistryError('BLOB_UPLOAD_UNKNOWN', 'There is no such upload: it is over, was given up, or the daemon was started anew')
  }

  get count(): number {
    return this.#open.size
  }

  get arriving(): Arriving {
    let [bytes, unwrittenBytes] = [0, 0]
    for (const { size, claimedBytes } of this.#open.values()) {
      bytes += Math.max(size, claimedBytes)
      unwrittenBytes += Math.max(0, claimedBytes - size)
    }
    return { bytes, unwrittenBytes }
  }

  /** The upload may come to have so many bytes. One after the other, so that two of which one has room are not both refused, or both let in. */
  async #admit(upload: Upload, bytes: number): Promise<void> {
    const judged = this.#judging.then(async () => {
      const before = upload.claimedBytes
      upload.claimedBytes = bytes
      try {
        await this.#uses.checkRoom(Math.max(0, bytes - upload.size))
      } catch (error) {
        upload.claimedBytes = before
        throw error
      }
    })
    this.#judging = judged.catch(() => undefined)
    await judged
  }

  /** Gives up what no one has come for. */
  async collect(nowMs: number): Promise<void> {
    const { forgottenAfterMs, emptyForgottenAfterMs } = this.#uses.limits
    for (const upload of [...this.#open.values()]) {
      const afterMs = upload.size === 0 ? emptyForgottenAfterMs : forgottenAfterMs
      if (!upload.isBusy && upload.touchedAtMs + afterMs <= nowMs) await upload.cancel()
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#open.values()].map((upload) => upload.cancel()))
  }
}

export class Upload {
  readonly id: string
  readonly repository: string
  readonly owner: string
  draft: BlobDraft | undefined
  touchedAtMs = Date.now()
  /** How long it will be, as far as its part says; what it may come to have. */
  claimedBytes = 0
  #algorithm: Algorithm
  readonly #uses: UploadUses
  readonly #forget: () => void
  /** Who has it now, and what settles when they are done. */
  #holder: { cut: () => void } | undefined
  #turn: Promise<void> = Promise.resolve()
  readonly #admit: (upload: Upload, bytes: number) => Promise<void>

  constructor(given: {
    id: string
    repository: string
    owner: string
    algorithm: Algorithm
    uses: UploadUses
    forget: () => void
    admit: (upload: Upload, bytes: number) => Promise<void>
  }) {
    this.id = given.id
    this.repository = given.repository
    this.owner = given.owner
    this.#algorithm = given.algorithm
    this.#uses = given.uses
    this.#forget = given.forget
    this.#admit = given.admit
  }

  /** How much has come: where the next part begins. */
  get size(): number {
    return this.draft?.size ?? 0
  }

  get isBusy(): boolean {
    return this.#holder !== undefined
  }

  /** Takes a part. When it breaks off, what has come of it stays. Throws RANGE_INVALID for a part that does not begin where the draft ends. */
  async append(part: UploadPart): Promise<void> {
    await this.#inTurn(part.cut, () => this.#take(part))
  }

  /** Takes the last part, where there is one, and gives the blob its place. Throws DIGEST_INVALID, and gives the upload up, when it is another. */
  async finish(digest: string, part: UploadPart): Promise<{ digest: string; size: number }> {
    return await this.#inTurn(part.cut, async () => {
      await this.#hashBy(algorithmOf(digest))
      await this.#take(part)
      const draft = this.#draft()
      try {
        return await draft.publish({ digest }, () => this.#uses.onVerified(this.repository, digest))
      } catch (error) {
        if (!(error instanceof AppError) || error.code !== 'invalid_image') throw error
        throw new RegistryError('DIGEST_INVALID', `What was uploaded does not have the digest ${digest}`, { cause: error })
      } finally {
        this.draft = undefined
        this.#forget()
      }
    })
  }

  /** Repeat is harmless. */
  async cancel(): Promise<void> {
    await this.#inTurn(
      () => undefined,
      () => this.#discard(),
    )
  }

  async #take({ source, range, bytes = 0 }: UploadPart): Promise<void> {
    const draft = this.#draft()
    const { limits } = this.#uses
    if (range && range.from !== draft.size) {
      throw new RegistryError('RANGE_INVALID', `The part begins at ${range.from}, but the upload ends at ${draft.size}`)
    }
    const end = range && range.to + 1
    let isSpoiled = false
    try {
      if (draft.size + bytes > limits.maxBlobBytes) throw tooLarge(limits)
      if (bytes > 0) await this.#admit(this, draft.size + bytes)
      for await (const chunk of withIdleLimit(source, limits.idleLimitMs)) {
        const size = draft.size + chunk.length
        if (size > limits.maxBlobBytes) throw tooLarge(limits)
        if (end !== undefined && size > end) throw new RegistryError('SIZE_INVALID', 'The part is longer than its Content-Range says')
        if (size > this.claimedBytes + CHECK_ROOM_EVERY) await this.#admit(this, size)
        isSpoiled = true
        await draft.write(chunk as Buffer)
        isSpoiled = false
      }
      if (end !== undefined && draft.size !== end)
        throw new RegistryError('SIZE_INVALID', 'The part is shorter than its Content-Range says')
      if (draft.size > this.claimedBytes) await this.#admit(this, draft.size)
    } catch (error) {
      // A connection that broke or stalled: the client may come back. After anything else the draft is not to be relied on.
      const isStalled = error instanceof AppError && error.code === 'timed_out'
      if (isSpoiled || error instanceof RegistryError || (error instanceof AppError && !isStalled)) await this.#discard()
      throw isStalled ? new RegistryError('BLOB_UPLOAD_INVALID', error.message, { cause: error }) : error
    } finally {
      // What was announced and did not come takes no one's room.
      this.claimedBytes = this.size
    }
  }

  /** The digest says how it is to be hashed, and comes last. */
  async #hashBy(algorithm: Algorithm): Promise<void> {
    if (algorithm === this.#algorithm) return
    const draft = this.#draft()
    if (draft.size > 0) {
      await this.#discard()
      throw new RegistryError('DIGEST_INVALID', `The upload was hashed with ${this.#algorithm}`, {
        detail: `Begin it with ?digest-algorithm=${algorithm}`,
      })
    }
    await draft.discard()
    this.draft = await this.#uses.store.beginDraft(algorithm)
    this.#algorithm = algorithm
  }

  /** One request at a time. The newest has it: of one that was cut the connection may seem to be there for long. */
  async #inTurn<T>(cut: () => void, work: () => Promise<T>): Promise<T> {
    const me = { cut }
    const before = this.#turn
    const { promise, resolve } = Promise.withResolvers<void>()
    this.#turn = promise
    this.#holder?.cut()
    this.#holder = me
    try {
      await before
      return await work()
    } finally {
      this.touchedAtMs = Date.now()
      if (this.#holder === me) this.#holder = undefined
      resolve()
    }
  }

  #draft(): BlobDraft {
    if (this.draft) return this.draft
    throw new RegistryError('BLOB_UPLOAD_UNKNOWN', 'The upload is over')
  }

  async #discard(): Promise<void> {
    const { draft } = this
    this.draft = undefined
    this.#forget()
    await draft?.discard()
  }
}

const tooLarge = ({ maxBlobBytes }: UploadLimits): RegistryError =>
  new RegistryError('SIZE_INVALID', `The blob is larger than ${maxBlobBytes} bytes`)
