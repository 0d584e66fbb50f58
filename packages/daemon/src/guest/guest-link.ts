/**
 * One connection to a guest agent: the handshake, and many streams over one pipe. The guest is taken for hostile: what it may
 * send is bounded by the credit that it was given, and whoever breaks the protocol loses the connection, never the daemon's memory.
 *
 * A daemon may have died in the middle of a frame on this same pipe, and the agent's old answers may still lie in it. So a
 * handshake begins with a zero (which ends any frame) and carries a random epoch; whatever comes back before the WELCOME with
 * that epoch belongs to the past.
 */
import { randomBytes } from 'node:crypto'
import type { Duplex } from 'node:stream'
import { AppError } from '@dormouse/api/errors.ts'
import type { Step } from '../lib/step.ts'
import { FieldReader, FieldWriter } from './fields.ts'
import { encodeFrame, type Frame, FrameSplitter } from './frames.ts'
import { Pace } from './pace.ts'
import { FLAG, FRAME, FRAME_PAYLOAD_MAX, PROTO_VERSION, REQUEST_MAX, STREAMS_MAX, TAG } from './wire.ts'

/** What a stream's owner hears. After `end` or `lost` nothing follows. */
export interface StreamOwner {
  /** The agent's answer; `isLast` when it closes the stream. Throw to accuse the guest of nonsense. */
  reply(fields: FieldReader): { readonly isLast: boolean }
  data?(channel: number, bytes: Buffer, isEnd: boolean): void
  entry?(fields: FieldReader, size: number): void
  credit?(bytes: number): void
  end?(fields: FieldReader): void
  lost(error: AppError): void
}

/** A guest's answer may not come before this; what an older daemon left in the pipe is far less. */
const STALE_BYTES_MAX = 64 << 20
const HANDSHAKE_LIMIT_MS = 30_000
/** Streams that were given up, whose closing frame the guest still owes. */
const ABANDONED_MAX = 128
/**
 * Bytes that may wait for a guest that does not read. What is data waits for the guest's own credit, so only a guest that keeps sending
 * without reading the answers comes near.
 */
const BACKLOG_MAX = 32 << 20

export class GuestLink {
  readonly welcome: FieldReader
  readonly closed: Promise<void>
  readonly #stream: Duplex
  readonly #onEvent: (fields: FieldReader) => void
  readonly #streams = new Map<number, LinkStream>()
  readonly #abandoned = new Set<number>()
  #nextId = 1
  #failure: AppError | undefined

  private constructor(stream: Duplex, welcome: FieldReader, onEvent: (fields: FieldReader) => void) {
    this.#stream = stream
    this.welcome = welcome
    this.#onEvent = onEvent
    this.closed = new Promise((resolve) => stream.once('close', resolve))
  }

  /** Shakes hands. Owns the stream from here on: it is destroyed when this throws. */
  static async open(stream: Duplex, onEvent: (fields: FieldReader) => void, step: Step): Promise<GuestLink> {
    const signal = AbortSignal.any([step.signal, AbortSignal.timeout(HANDSHAKE_LIMIT_MS)])
    const epoch = randomBytes(16)
    const splitter = new FrameSplitter()
    const pace = new Pace()
    const { promise, resolve, reject } = Promise.withResolvers<GuestLink>()
    let link: GuestLink | undefined
    let stale = 0

    const fail = (message: string, cause?: unknown) => {
      const error = new AppError('guest_unavailable', message, cause === undefined ? {} : { cause })
      if (link) link.#fail(error)
      else stream.destroy()
      reject(error)
    }
    const onAbort = () => fail('The guest agent did not answer in time', signal.reason)
    stream.on('error', (error) => fail('The connection to the guest agent broke', error))
    stream.on('close', () => fail('The connection to the guest agent was closed'))
    stream.on('end', () => stream.destroy())
    stream.on('data', (chunk: Buffer) => {
      try {
        for (const frame of splitter.push(chunk)) {
          if (link) {
            link.#take(frame)
            continue
          }
          const welcome = welcomeOf(frame, epoch)
          if (!welcome) continue
          splitter.dropped = 0
          link = new GuestLink(stream, welcome, onEvent)
          resolve(link)
        }
        stale += chunk.length
        if (!link && stale > STALE_BYTES_MAX) fail('The guest agent sends without answering')
        if (link && splitter.dropped > 0) fail('The guest agent sent what is no frame')
        const waitMs = pace.spend(splitter.work)
        splitter.work = 0
        if (waitMs > 0) {
          stream.pause()
          setTimeout(() => stream.resume(), waitMs).unref()
        }
      } catch (error) {
        fail('The guest agent broke the protocol', error)
      }
    })
    signal.addEventListener('abort', onAbort, { once: true })
    if (signal.aborted) onAbort()
    else stream.write(helloOf(epoch))
    try {
      return await promise
    } finally {
      signal.removeEventListener('abort', onAbort)
    }
  }

  /** Opens a stream with a request. Throws when the link is gone or the request cannot be sent at all. */
  request(fields: Buffer, owner: StreamOwner): LinkStream {
    if (this.#failure) throw this.#failure
    if (this.#stream.destroyed) throw new AppError('guest_unavailable', 'The connection to the guest agent was closed')
    if (fields.length > REQUEST_MAX)
      throw new AppError('invalid_request', `The request to the guest has ${fields.length} bytes, the most is ${REQUEST_MAX}`)
    if (this.#streams.size + this.#abandoned.size >= STREAMS_MAX)
      throw new AppError('conflict', `The guest has ${STREAMS_MAX} streams open already`)
    const stream = new LinkStream(this, this.#nextId++, owner)
    this.#streams.set(stream.id, stream)
    for (let at = 0; at === 0 || at < fields.length; at += FRAME_PAYLOAD_MAX) {
      const part = fields.subarray(at, at + FRAME_PAYLOAD_MAX)
      this.send(FRAME.REQUEST, at + part.length < fields.length ? FLAG.MORE : 0, stream.id, part)
    }
    return stream
  }

  get openStreams(): number {
    return this.#streams.size
  }

  send(type: number, flags: number, stream: number, payload: Uint8Array, written?: () => void): void {
    if (this.#stream.destroyed || !this.#stream.writable) {
      written?.()
      return
    }
    this.#stream.write(encodeFrame(type, flags, stream, payload), written)
    if (this.#stream.writableLength > BACKLOG_MAX) this.#fail(new AppError('guest_unavailable', 'The guest agent does not read'))
  }

  /** From here on frames of the stream are expected and dropped, until its closing one. */
  abandon(stream: LinkStream): void {
    if (!this.#streams.delete(stream.id)) return
    this.#abandoned.add(stream.id)
    this.send(FRAME.RESET, 0, stream.id, Buffer.alloc(0))
    if (this.#abandoned.size > ABANDONED_MAX) this.#fail(new AppError('guest_unavailable', 'The guest agent does not close its streams'))
  }

  /** A violation that only a stream's owner could see. */
  accuse(what: string): void {
    this.#fail(new AppError('guest_unavailable', `The guest agent broke the protocol: ${what}`))
  }

  async close(reason = new AppError('guest_unavailable', 'The connection to the guest agent was closed')): Promise<void> {
    this.#fail(reason)
    await this.closed
  }

  #fail(error: AppError): void {
    if (this.#failure) return
    this.#failure = error
    this.#stream.destroy()
    for (const stream of this.#streams.values()) stream.owner.lost(error)
    this.#streams.clear()
    this.#abandoned.clear()
  }

  #take(frame: Frame): void {
    if (this.#failure) return
    // A second welcome to one handshake would have no reason, but is no harm.
    if (frame.type === FRAME.WELCOME) return
    if (frame.type === FRAME.EVENT) {
      this.#onEvent(new FieldReader(frame.payload))
      return
    }
    if (this.#abandoned.has(frame.stream)) {
      this.#takeAbandoned(frame)
      return
    }
    const stream = this.#streams.get(frame.stream)
    const wrong = stream ? this.#hand(frame, stream) : `it speaks of stream ${frame.stream}, which is not open`
    if (wrong !== undefined) this.accuse(wrong)
  }

  /** Gives a frame to the owner of its stream. What comes back is an accusation. */
  #hand(frame: Frame, stream: LinkStream): string | undefined {
    const { owner } = stream
    switch (frame.type) {
      case FRAME.REPLY:
        if (stream.isAnswered) return 'it answered a request twice'
        stream.isAnswered = true
        if (owner.reply(new FieldReader(frame.payload)).isLast) this.#streams.delete(stream.id)
        return undefined
      case FRAME.DATA:
        if (!stream.isAnswered || !owner.data) return 'it sent data that no one asked for'
        owner.data(frame.flags & FLAG.CHANNEL, frame.payload, (frame.flags & FLAG.EOF) !== 0)
        return undefined
      case FRAME.ENTRY:
        if (!stream.isAnswered || !owner.entry) return 'it sent an entry that no one asked for'
        owner.entry(new FieldReader(frame.payload), frame.payload.length)
        return undefined
      case FRAME.CREDIT:
        if (frame.payload.length !== 4) return 'it sent a credit of no size'
        owner.credit?.(frame.payload.readUInt32LE())
        return undefined
      case FRAME.END:
        if (!stream.isAnswered || !owner.end) return 'it ended what it had not begun'
        owner.end(new FieldReader(frame.payload))
        this.#streams.delete(stream.id)
        return undefined
      // A newer guest may say more than we understand.
      default:
        return undefined
    }
  }

  #takeAbandoned(frame: Frame): void {
    const closes =
      frame.type === FRAME.END ||
      (frame.type === FRAME.REPLY && !(new FieldReader(frame.payload).number(TAG.STATUS) === 0 && isOpening(frame)))
    if (closes) this.#abandoned.delete(frame.stream)
  }
}

/** One request and what follows it. */
export class LinkStream {
  readonly id: number
  readonly owner: StreamOwner
  isAnswered = false
  readonly #link: GuestLink

  constructor(link: GuestLink, id: number, owner: StreamOwner) {
    this.#link = link
    this.id = id
    this.owner = owner
  }

  data(bytes: Uint8Array, isEnd: boolean): void {
    this.#link.send(FRAME.DATA, isEnd ? FLAG.EOF : 0, this.id, bytes)
  }

  credit(channel: number, bytes: number): void {
    const payload = Buffer.allocUnsafe(4)
    payload.writeUInt32LE(bytes)
    this.#link.send(FRAME.CREDIT, channel, this.id, payload)
  }

  /** Resolves once it was handed to the pipe: no one may ask for more than the guest reads. */
  control(fields: Buffer): Promise<void> {
    return new Promise((resolve) => this.#link.send(FRAME.CONTROL, 0, this.id, fields, () => resolve()))
  }

  /** Asks the guest to break it off; its closing frame still comes to the owner. */
  reset(): void {
    this.#link.send(FRAME.RESET, 0, this.id, Buffer.alloc(0))
  }

  /** The owner hears no more. Repeat is harmless. */
  abandon(): void {
    this.#link.abandon(this)
  }

  accuse(what: string): void {
    this.#link.accuse(what)
  }
}

/** Does this REPLY open a stream that an END will close? It then names a window; the reply of a plain request never does. */
const isOpening = (frame: Frame): boolean => new FieldReader(frame.payload).bytes(TAG.WINDOW) !== undefined

function helloOf(epoch: Buffer): Buffer {
  const fields = new FieldWriter()
    .number(TAG.VERSION_MIN, PROTO_VERSION)
    .number(TAG.VERSION_MAX, PROTO_VERSION)
    .bytes(TAG.EPOCH, epoch)
    .finish()
  return Buffer.concat([Buffer.of(0), encodeFrame(FRAME.HELLO, 0, 0, fields)])
}

/** The welcome of this handshake; undefined for all that lay in the pipe before it. */
function welcomeOf(frame: Frame, epoch: Buffer): FieldReader | undefined {
  if (frame.type !== FRAME.WELCOME) return undefined
  const fields = new FieldReader(frame.payload)
  if (!fields.bytes(TAG.EPOCH)?.equals(epoch)) return undefined
  if (fields.number(TAG.VERSION) !== PROTO_VERSION) {
    throw new AppError('guest_unavailable', 'The guest agent speaks another version of the protocol', {
      hint: 'It was started by another version of dormouse: stop and start the instance',
    })
  }
  return fields
}
