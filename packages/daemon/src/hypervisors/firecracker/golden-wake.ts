import { type AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import type { Step } from '../../lib/step.ts'
import type { GoldenBoot } from '../../memory/memory.ts'

/** A golden boot that was not loaded. */
export class LoadFailed extends Error {
  override readonly name = 'LoadFailed'
  readonly told: AppError

  constructor(told: AppError) {
    super(told.message)
    this.told = told
  }
}

export interface GoldenWake<T> {
  /** One for the machine; `again`: another one of the same shape. */
  golden(again: boolean): Promise<GoldenBoot>
  /** Throws `LoadFailed` when the golden boot may be to blame. */
  wake(golden: GoldenBoot): Promise<T>
}

/**
 * What failed once may have been that VMM's own end; twice over one memory it is the memory's. That one is made anew then; where VMs stand on
 * it it stays, and beside it there is another from then on.
 */
export async function wakeGolden<T>(uses: GoldenWake<T>, step: Step): Promise<T> {
  using golden = await goldenThatWakes(uses)
  for (let round = 0; round < 2; round++) {
    try {
      return await uses.wake(golden)
    } catch (error) {
      if (step.signal.aborted || !(error instanceof LoadFailed)) throw toldBy(error)
      step.log.warn({ err: error.told, golden: golden.key }, 'a golden boot could not be woken')
    }
  }
  await golden.discard()
  using anew = await goldenThatWakes(uses)
  try {
    return await uses.wake(anew)
  } catch (error) {
    throw toldBy(error)
  }
}

async function goldenThatWakes({ golden }: Pick<GoldenWake<unknown>, 'golden'>): Promise<GoldenBoot> {
  try {
    return await golden(false)
  } catch (error) {
    if (errorCodeOf(error) !== 'snapshot_unusable') throw error
    return await golden(true)
  }
}

const toldBy = (error: unknown): unknown => (error instanceof LoadFailed ? error.told : error)
