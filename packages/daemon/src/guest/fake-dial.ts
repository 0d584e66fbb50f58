/** A connection to what a fake guest serves. Credit is kept to as a real guest keeps to it. */
import { type Duplex, duplexPair } from 'node:stream'
import type { FakeGuestSide, FakeStream } from './fake-streams.ts'
import { type FieldReader, FieldWriter } from './fields.ts'
import type { Frame } from './frames.ts'
import { CHANNEL, FLAG, FRAME, STATUS, TAG, WINDOW_GUEST } from './wire.ts'

/** Answers who connects. */
export type FakeService = (connection: Duplex) => void

export class FakeDial implements FakeStream {
  readonly #guest: FakeGuestSide
  readonly #id: number
  readonly #near: Duplex
  #credit: number
  #openDirections = 2
  isOver = false

  constructor(guest: FakeGuestSide, id: number, fields: FieldReader, service: FakeService) {
    this.#guest = guest
    this.#id = id
    this.#credit = fields.number(TAG.WINDOW) ?? 0
    const [near, far] = duplexPair()
    this.#near = near
    far.on('error', () => undefined)
    near.on('error', () => undefined)
    near.on('readable', () => this.#pump())
    near.on('end', () => {
      this.#send(FRAME.DATA, CHANNEL.STDOUT | FLAG.EOF, Buffer.alloc(0))
      this.#endDirection()
    })
    near.on('close', () => {
      this.#end(STATUS.OK)
      far.destroy()
    })
    far.on('close', () => near.destroy())
    this.#send(FRAME.REPLY, 0, new FieldWriter().number(TAG.STATUS, STATUS.OK).number(TAG.WINDOW, WINDOW_GUEST).finish())
    service(far)
  }

  take(frame: Frame): void {
    if (frame.type === FRAME.RESET) {
      this.#end(STATUS.CANCELLED)
      this.#near.destroy()
    }
    if (frame.type === FRAME.CREDIT) {
      this.#credit += frame.payload.readUInt32LE()
      this.#pump()
    }
    if (frame.type !== FRAME.DATA || this.isOver) return
    if (frame.payload.length > 0) {
      this.#near.write(frame.payload)
      const credit = Buffer.alloc(4)
      credit.writeUInt32LE(frame.payload.length)
      this.#send(FRAME.CREDIT, CHANNEL.STDIN, credit)
    }
    if (frame.flags & FLAG.EOF) {
      this.#near.end()
      this.#endDirection()
    }
  }

  abandon(): void {
    this.isOver = true
    this.#near.destroy()
  }

  #pump(): void {
    while (this.#credit > 0 && this.#near.readableLength > 0) {
      const chunk = this.#near.read(Math.min(this.#credit, this.#near.readableLength, 4096)) as Buffer
      this.#credit -= chunk.length
      this.#send(FRAME.DATA, CHANNEL.STDOUT, chunk)
    }
    // Its end is told once it has been read for.
    if (this.#near.readableLength === 0) this.#near.read(0)
  }

  #endDirection(): void {
    if (--this.#openDirections === 0) this.#end(STATUS.OK)
  }

  #end(status: number): void {
    if (this.isOver) return
    this.#send(FRAME.END, 0, new FieldWriter().number(TAG.STATUS, status).finish())
    this.isOver = true
    this.#guest.forget(this.#id)
  }

  #send(type: number, flags: number, payload: Uint8Array): void {
    if (!this.isOver) this.#guest.send(type, flags, this.#id, payload)
  }
}
