/**
 * Bytes that move for as long as a token holds. A request is let in once; a transfer of gigabytes goes on for an hour, and must not
 * outlive what let it in.
 */
import type { Readable } from 'node:stream'
import type { FastifyReply } from 'fastify'
import type { Authority, Caller } from './auth.ts'

/** Fires when the caller's token expires or is revoked, as long as the answer is not over. */
export function whileTokenHolds(
  authority: Pick<Authority, 'watch'>,
  caller: Pick<Caller, 'subject' | 'token'>,
  reply: FastifyReply,
): AbortSignal {
  const watch = authority.watch(caller)
  if (reply.raw.destroyed) watch[Symbol.dispose]()
  else reply.raw.once('close', () => watch[Symbol.dispose]())
  return watch.signal
}

/** The same chunks; throws the reason of `held` once that has fired, also while none comes. */
export async function* heldBy(held: AbortSignal, source: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array, void, void> {
  // One promise for each chunk: one for all would keep what waited for it, chunk by chunk, until the end.
  let interrupt: ((reason: unknown) => void) | undefined
  const end = (): void => interrupt?.(held.reason)
  held.addEventListener('abort', end)
  const chunks = source[Symbol.asyncIterator]()
  try {
    for (;;) {
      held.throwIfAborted()
      const { promise: ended, reject } = Promise.withResolvers<never>()
      interrupt = reject
      const next = await Promise.race([chunks.next(), ended])
      if (next.done) return
      yield next.value
    }
  } finally {
    held.removeEventListener('abort', end)
    // Not waited for: a source that stalls may stall here too.
    void Promise.resolve(chunks.return?.()).catch(() => undefined)
  }
}

/** The same stream; breaks off once `held` has fired, and its connection with it: a head that is out cannot be taken back. */
export function cutWith(held: AbortSignal, stream: Readable): Readable {
  const end = (): void => void stream.destroy(held.reason)
  if (held.aborted) end()
  else {
    held.addEventListener('abort', end)
    stream.once('close', () => held.removeEventListener('abort', end))
  }
  return stream
}
