import { AppError } from '@dormouse/api/errors.ts'

/** Fields: tag (2 bytes), length (4 bytes), value; all little-endian. A number is 8 bytes, a nested message is a value. */
const HEAD = 6

/** Writes a message. Throws on what the guest would refuse, such as a NUL in a text. */
export class FieldWriter {
  readonly #parts: Buffer[] = []

  bytes(tag: number, value: Uint8Array): this {
    const head = Buffer.allocUnsafe(HEAD)
    head.writeUInt16LE(tag, 0)
    head.writeUInt32LE(value.length, 2)
    this.#parts.push(head, Buffer.from(value))
    return this
  }

  number(tag: number, value: number | bigint): this {
    const bytes = Buffer.allocUnsafe(8)
    bytes.writeBigUInt64LE(BigInt(value))
    return this.bytes(tag, bytes)
  }

  flag(tag: number, value: boolean): this {
    return this.number(tag, value ? 1 : 0)
  }

  text(tag: number, value: string): this {
    return this.bytes(tag, Buffer.from(value))
  }

  /** Nothing is written for what is undefined. */
  optional<T>(value: T | undefined, write: (value: T, fields: this) => unknown): this {
    if (value !== undefined) write(value, this)
    return this
  }

  finish(): Buffer {
    return Buffer.concat(this.#parts)
  }
}

/** A message of the guest that could not be read. */
const malformed = (what: string): AppError => new AppError('guest_unavailable', `The guest agent broke the protocol: ${what}`)

/** Reads a message of the guest: every length is checked, every text is made valid, every number has bounds. */
export class FieldReader {
  readonly #fields: { readonly tag: number; readonly value: Buffer }[] = []

  constructor(message: Buffer) {
    for (let at = 0; at < message.length; ) {
      if (message.length - at < HEAD) throw malformed('a message is cut short')
      const length = message.readUInt32LE(at + 2)
      if (length > message.length - at - HEAD) throw malformed('a field is longer than its message')
      this.#fields.push({ tag: message.readUInt16LE(at), value: message.subarray(at + HEAD, at + HEAD + length) })
      at += HEAD + length
    }
  }

  *all(): Generator<{ tag: number; value: Buffer }> {
    yield* this.#fields
  }

  bytes(tag: number): Buffer | undefined {
    return this.#fields.find((field) => field.tag === tag)?.value
  }

  /** Undefined when it is absent; throws when it is not a whole number of 0..max. */
  number(tag: number, max: number = Number.MAX_SAFE_INTEGER): number | undefined {
    const value = this.bytes(tag)
    if (value === undefined) return undefined
    const number = value.length === 8 ? value.readBigUInt64LE() : undefined
    if (number === undefined || number > BigInt(max)) throw malformed('a number is out of bounds')
    return Number(number)
  }

  flag(tag: number): boolean {
    return this.number(tag, 1) === 1
  }

  /** Bytes that are no UTF-8 become U+FFFD; longer than `max` bytes is cut. */
  text(tag: number, max = 4096): string | undefined {
    return this.bytes(tag)?.subarray(0, max).toString('utf8')
  }
}
