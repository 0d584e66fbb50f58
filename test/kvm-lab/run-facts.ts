/** Where a result was got. */
export interface Facts {
  readonly machine: string
  readonly kernel: string
  readonly distribution: string
  readonly node: string
  readonly qemu: string
  readonly others: readonly string[]
  readonly guestKernel: string
  /** From the start of QEMU to a guest that is parked, with KVM. */
  readonly bootMs: number
  /** Limits were so many times as long as the tests say. */
  readonly factor: number
}

export const FACTS = 'lab: facts '

/** Figures of a bench, as they come. */
export const BENCH = 'lab: bench '
