import { FRAME_HEADER, FRAME_PAYLOAD_MAX } from './wire.ts'

/** Frames on a byte stream: COBS between zero bytes, so that the next zero is always a fresh start. */
export interface Frame {
  readonly type: number
  readonly flags: number
  readonly stream: number
  readonly payload: Buffer
}

const ENCODED_MAX = FRAME_HEADER + FRAME_PAYLOAD_MAX + Math.floor((FRAME_HEADER + FRAME_PAYLOAD_MAX) / 254) + 1

/** A frame with its closing zero. Throws when the payload is too long, which is a bug of ours. */
export function encodeFrame(type: number, flags: number, stream: number, payload: Uint8Array): Buffer {
  if (payload.length > FRAME_PAYLOAD_MAX) throw new RangeError(`A frame holds at most ${FRAME_PAYLOAD_MAX} bytes, not ${payload.length}`)
  const raw = Buffer.allocUnsafe(FRAME_HEADER + payload.length)
  raw[0] = type
  raw[1] = flags
  raw.writeUInt16LE(payload.length, 2)
  raw.writeUInt32LE(stream, 4)
  raw.set(payload, FRAME_HEADER)

  const out = Buffer.allocUnsafe(raw.length + Math.floor(raw.length / 254) + 2)
  let at = 0
  let start = 0
  for (;;) {
    // A group: a byte that says how long, up to 254 bytes without a zero, and the zero that is left out.
    const zero = raw.indexOf(0, start)
    const end = Math.min(zero < 0 ? raw.length : zero, start + 254)
    out[at] = end - start + 1
    raw.copy(out, at + 1, start, end)
    at += 1 + end - start
    const full = end - start === 254
    start = full ? end : end + 1
    if (end === raw.length && !full) break
  }
  out[at] = 0
  return out.subarray(0, at + 1)
}

/** What stood between two zeros, as a frame of its own memory; undefined when it is no whole one and must be dropped. */
export function decodeFrame(encoded: Uint8Array): Frame | undefined {
  const raw = Buffer.allocUnsafe(encoded.length)
  let at = 0
  let length = 0
  while (at < encoded.length) {
    const run = (encoded[at++] ?? 0) - 1
    if (run < 0 || run > encoded.length - at) return undefined
    raw.set(encoded.subarray(at, at + run), length)
    at += run
    length += run
    if (run < 254 && at < encoded.length) raw[length++] = 0
  }
  if (length < FRAME_HEADER) return undefined
  const size = raw.readUInt16LE(2)
  if (size !== length - FRAME_HEADER || size > FRAME_PAYLOAD_MAX) return undefined
  return { type: raw[0] ?? 0, flags: raw[1] ?? 0, stream: raw.readUInt32LE(4), payload: raw.subarray(FRAME_HEADER, length) }
}

const ZEROS_PER_UNIT = 64

/** Cuts a byte stream at its zeros. Holds at most one frame; what is longer, or no frame, is dropped up to the next zero. */
export class FrameSplitter {
  #held: Buffer[] = []
  #size = 0
  #skipping = false
  /** Pieces that were no frames. A few are a resynchronisation, many are a guest that talks nonsense. */
  dropped = 0
  /** What looking at it all has cost: one for each piece between zeros, one for some zeros in a row. Whoever reads it sets it back. */
  work = 0;

  *push(chunk: Uint8Array): Generator<Frame> {
    let start = 0
    while (start < chunk.length) {
      if (chunk[start] === 0 && this.#size === 0 && !this.#skipping) {
        start++
        this.work += 1 / ZEROS_PER_UNIT
        continue
      }
      const zero = chunk.indexOf(0, start)
      const end = zero < 0 ? chunk.length : zero
      this.#hold(chunk.subarray(start, end))
      if (zero < 0) return
      start = end + 1
      this.work++
      const encoded = this.#held.length === 1 ? (this.#held[0] as Buffer) : Buffer.concat(this.#held)
      const skipped = this.#skipping
      this.#held = []
      this.#size = 0
      this.#skipping = false
      const frame = skipped ? undefined : decodeFrame(encoded)
      if (frame) yield frame
      else this.dropped++
    }
  }

  #hold(piece: Uint8Array): void {
    if (piece.length === 0 || this.#skipping) return
    if (this.#size + piece.length > ENCODED_MAX) {
      this.#skipping = true
      this.#held = []
      return
    }
    this.#held.push(Buffer.from(piece.buffer, piece.byteOffset, piece.length))
    this.#size += piece.length
  }
}
