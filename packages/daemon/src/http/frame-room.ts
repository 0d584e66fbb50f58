/**
 * Memory for the large frames of callers, which are there as a whole before they can be passed on. One bound for all sockets together,
 * and a smaller one for those of one instance. No one waits for room: whoever waited would hold half a frame meanwhile.
 */
export class FrameRoom {
  readonly #inAll: number
  readonly #inOne: number
  #used = 0
  readonly #usedBy = new Map<string, number>()

  constructor({ inAll = 256 * MIB, inOne = 64 * MIB }: { inAll?: number; inOne?: number } = {}) {
    this.#inAll = inAll
    this.#inOne = inOne
  }

  /** For one socket, which holds nothing yet. */
  shareOf(instance: string): FrameShare {
    let held = 0
    return {
      hold: (bytes) => {
        const more = bytes - held
        const ofOne = (this.#usedBy.get(instance) ?? 0) + more
        if (more > 0 && (this.#used + more > this.#inAll || ofOne > this.#inOne)) return false
        held = bytes
        this.#used += more
        if (ofOne > 0) this.#usedBy.set(instance, ofOne)
        else this.#usedBy.delete(instance)
        return true
      },
    }
  }
}

export interface FrameShare {
  /** It holds so many bytes from now on. False when there is no room for more than it held; it then goes on to hold those. */
  hold(bytes: number): boolean
}

const MIB = 1024 * 1024

/** No binary frame may be longer: taking one costs a turn of the event loop, some 20 ms for this many bytes. */
export const BINARY_FRAME_MAX = 32 * MIB
/** Text is JSON, or typed. */
export const TEXT_FRAME_MAX = MIB
