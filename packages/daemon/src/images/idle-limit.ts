import { AppError } from '@dormouse/api/errors.ts'

/** The same chunks; throws `timed_out` when the next one does not come within `limitMs`, so that who stalls holds nothing for ever. */
export async function* withIdleLimit(source: AsyncIterable<Uint8Array>, limitMs: number): AsyncGenerator<Uint8Array, void, void> {
  const chunks = source[Symbol.asyncIterator]()
  try {
    for (;;) {
      const { promise: stalled, reject } = Promise.withResolvers<never>()
      const timer = setTimeout(() => reject(new AppError('timed_out', `Nothing of the upload has come for ${limitMs / 1000}s`)), limitMs)
      const next = await Promise.race([chunks.next(), stalled]).finally(() => clearTimeout(timer))
      if (next.done) return
      yield next.value
    }
  } finally {
    // Not waited for: a source that stalls may stall here too.
    void Promise.resolve(chunks.return?.()).catch(() => undefined)
  }
}
