/**
 * Instances as JSON. A person's `ps`, a console and a scheduler each ask for all of them, or for one, again and again, while few have
 * changed: what is written of a record is kept with it, and a list is those bytes one after the other. It leaves next to nothing
 * for the garbage collector, whose pauses are what a caller would wait for.
 */
import type { Instance } from '../instances/instance.ts'
import type { Attention } from '../supervision/supervision.ts'
import { JsonBytes } from './json-bytes.ts'
import { presentAttention } from './present-attention.ts'
import { presentInstance } from './present-instance.ts'

/**
 * Records are replaced, never changed, so what was written of one holds as long as it does. Only one duration grows; and what is known of
 * an instance beside its record is written each time, of the few of which there is something.
 */
interface Written {
  /** All but what opens it, that number, which comes last, and what closes it. */
  readonly head: Buffer
  /** What it is at `sinceMs`. */
  readonly durationMs: number
  readonly sinceMs: number
}

/** A number, what closes an object in an object, and a comma. */
const TAIL_MAX_BYTES = 32
/** What is kept between lists: enough for some thousands of instances. */
const SPARE_MAX_BYTES = 4 * 2 ** 20

export class WrittenInstances {
  readonly #written = new WeakMap<Instance, Written>()
  /** Memory of a list that is sent. One at a time is what one caller after the other needs. */
  #spare: Buffer | undefined

  /** `JSON.stringify` of what `presentInstance` shows of each. */
  list(instances: readonly Instance[], nowMs: number, attentionTo: (instance: Instance) => Attention = () => ({})): JsonBytes {
    const all = instances.map((instance) => this.#writtenOf(instance))
    const beside = instances.map((instance) => besideOf(attentionTo(instance)))
    const body = this.#take(
      all.reduce((bytes, { head }, at) => bytes + head.length + (beside[at]?.length ?? 0) + TAIL_MAX_BYTES, '[]'.length),
    )
    let end = body.write('[', 'latin1')
    for (const [at, written] of all.entries()) {
      if (end > 1) end += body.write(',', end, 'latin1')
      end = put(body, end, written, beside[at], nowMs)
    }
    end += body.write(']', end, 'latin1')
    return new JsonBytes(body.subarray(0, end), () => {
      if (body.length <= SPARE_MAX_BYTES) this.#spare = body
    })
  }

  /** One alone. */
  one(instance: Instance, nowMs: number, attention: Attention = {}): JsonBytes {
    const written = this.#writtenOf(instance)
    const beside = besideOf(attention)
    const body = Buffer.allocUnsafe(written.head.length + (beside?.length ?? 0) + TAIL_MAX_BYTES)
    return new JsonBytes(body.subarray(0, put(body, 0, written, beside, nowMs)))
  }

  #writtenOf(instance: Instance): Written {
    const known = this.#written.get(instance)
    if (known !== undefined) return known
    const { current, sinceMs } = instance.phases
    const { phase_durations_ms, ...lasting } = presentInstance(instance, sinceMs)
    const phase = current.toLowerCase()
    const { [phase]: durationMs = 0, ...past } = phase_durations_ms ?? {}
    const durations = JSON.stringify({ ...past, [phase]: 0 }).slice(0, -'0}'.length)
    const head = Buffer.from(`${JSON.stringify(lasting).slice(1, -1)},"phase_durations_ms":${durations}`)
    const written = { head, durationMs, sinceMs }
    this.#written.set(instance, written)
    return written
  }

  #take(bytes: number): Buffer {
    const spare = this.#spare
    this.#spare = undefined
    if (spare !== undefined && spare.length >= bytes) return spare
    // An eighth more, since the next list may be a little longer.
    return Buffer.allocUnsafeSlow(bytes + (bytes >> 3))
  }
}

/** An object. Gives where it ends. */
function put(body: Buffer, at: number, { head, durationMs, sinceMs }: Written, beside: Buffer | undefined, nowMs: number): number {
  let end = at + body.write('{', at, 'latin1')
  if (beside !== undefined) {
    body.set(beside, end)
    end += beside.length
  }
  body.set(head, end)
  end += head.length
  return end + body.write(`${durationMs + Math.max(0, nowMs - sinceMs)}}}`, end, 'latin1')
}

/** As the first members of the object. */
function besideOf(attention: Attention): Buffer | undefined {
  if (attention.health === undefined && attention.restart === undefined) return undefined
  return Buffer.from(`${JSON.stringify(presentAttention(attention)).slice(1, -1)},`)
}
