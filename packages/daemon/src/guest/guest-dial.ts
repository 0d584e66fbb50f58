import { isIPv4 } from 'node:net'
import { Duplex } from 'node:stream'
import { AppError } from '@dormouse/api/errors.ts'
import type { Step } from '../lib/step.ts'
import { refusalOf } from './answers.ts'
import { type FieldReader, FieldWriter } from './fields.ts'
import { addressBytes } from './guest-config.ts'
import { windowFor } from './guest-exec.ts'
import type { GuestLink, LinkStream, StreamOwner } from './guest-link.ts'
import { Input } from './input.ts'
import { Output } from './output.ts'
import { CHANNEL, OP, TAG } from './wire.ts'

export interface DialRequest {
  readonly port: number
  /** One of the guest's own; its loopback when absent. */
  readonly address?: string
  /** How long the guest tries. */
  readonly timeoutMs?: number
}

/** Resolves with the connection; rejects with the guest's words when there is none. To destroy it is to hang up. */
export async function dial(link: GuestLink, request: DialRequest, step: Step): Promise<Duplex> {
  const window = windowFor(link)
  const call = new Call(window)
  call.stream = link.request(encode(request, window), call)
  const onAbort = () => call.giveUp(new AppError('timed_out', 'Nothing answered in time', { cause: step.signal.reason }))
  step.signal.addEventListener('abort', onAbort, { once: true })
  if (step.signal.aborted) onAbort()
  try {
    return await call.connected
  } finally {
    step.signal.removeEventListener('abort', onAbort)
  }
}

function encode({ port, address, timeoutMs }: DialRequest, window: number): Buffer {
  const fields = new FieldWriter().number(TAG.OP, OP.DIAL).number(TAG.PORT, port).number(TAG.WINDOW, window)
  return fields
    .optional(address, (text) =>
      isIPv4(text) ? fields.bytes(TAG.ADDRESS4, addressBytes(text, 4)) : fields.bytes(TAG.ADDRESS6, addressBytes(text, 6)),
    )
    .optional(timeoutMs, (ms) => fields.number(TAG.TIMEOUT_MS, Math.max(1, Math.ceil(ms))))
    .finish()
}

class Call implements StreamOwner {
  stream: LinkStream | undefined
  readonly connected: Promise<Connection>
  readonly #connected = Promise.withResolvers<Connection>()
  readonly #input: Input
  readonly #output: Output
  #connection: Connection | undefined
  /** No frame is sent any more, and none comes. */
  #isOver = false

  constructor(window: number) {
    this.connected = this.#connected.promise
    this.#input = new Input((bytes, isEnd) => this.#isOver || this.stream?.data(bytes, isEnd))
    this.#output = new Output(window, (bytes) => this.#isOver || this.stream?.credit(CHANNEL.STDOUT, bytes))
  }

  reply(fields: FieldReader): { isLast: boolean } {
    const refusal = refusalOf(fields, 'The guest cannot be reached at this port')
    if (refusal) {
      this.lost(refusal)
      return { isLast: true }
    }
    this.credit(fields.number(TAG.WINDOW) ?? 0)
    this.#connection = new Connection(this.#input, this.#output, () => this.#hangUp())
    this.#connected.resolve(this.#connection)
    return { isLast: false }
  }

  data(channel: number, bytes: Buffer, isEnd: boolean): void {
    if (channel !== CHANNEL.STDOUT || !this.#output.receive(bytes, isEnd)) this.stream?.accuse('it sent more than it was given credit for')
  }

  credit(bytes: number): void {
    if (!this.#input.grant(bytes)) this.stream?.accuse('it granted more than it can take')
  }

  /** What has come is still read. */
  end(): void {
    this.#isOver = true
    this.#output.finish()
    this.#input.destroy()
  }

  lost(error: AppError): void {
    this.#isOver = true
    this.#connected.reject(error)
    if (this.#connection) this.#connection.destroy(error)
    else this.#output.destroy()
    this.#input.destroy()
  }

  giveUp(error: AppError): void {
    this.#hangUp()
    this.lost(error)
  }

  #hangUp(): void {
    if (this.#isOver) return
    this.#isOver = true
    this.stream?.abandon()
  }
}

/** Both directions as one, each with an end of its own. */
class Connection extends Duplex {
  readonly #input: Input
  readonly #output: Output
  readonly #hangUp: () => void

  constructor(input: Input, output: Output, hangUp: () => void) {
    super({ highWaterMark: output.readableHighWaterMark })
    this.#input = input
    this.#output = output
    this.#hangUp = hangUp
    output.on('data', (bytes: Buffer) => {
      if (!this.push(bytes)) output.pause()
    })
    output.on('end', () => this.push(null))
  }

  override _read(): void {
    this.#output.resume()
  }

  override _write(bytes: Buffer, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    // Who has hung up hears no more.
    if (this.#input.destroyed) done()
    else this.#input.write(bytes, (error) => done(this.#input.destroyed ? null : error))
  }

  override _final(done: () => void): void {
    if (this.#input.destroyed) done()
    else this.#input.end(done)
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.#hangUp()
    this.#input.destroy()
    this.#output.destroy()
    done(error)
  }
}
