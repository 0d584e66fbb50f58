import assert from 'node:assert/strict'
import { test } from 'node:test'
import { BackgroundJobs, type Job } from './background-jobs.ts'

/** A job whose preparing is ended from outside, and what became of it. */
function job(more: Partial<Job> = {}) {
  const began = Promise.withResolvers<AbortSignal>()
  const prepared = Promise.withResolvers<void>()
  const committed = Promise.withResolvers<void>()
  const failed = Promise.withResolvers<unknown>()
  const made: Job = {
    prepare: async (signal) => {
      began.resolve(signal)
      await prepared.promise
      return async () => committed.resolve()
    },
    onError: failed.resolve,
    ...more,
  }
  return { made, began: began.promise, prepared, committed: committed.promise, failed: failed.promise }
}

test('one prepares at a time, in the order in which they were begun, and one of a key at most', async () => {
  await using jobs = new BackgroundJobs()
  const [a, again, b] = [job(), job(), job()]
  jobs.begin('a', a.made)
  jobs.begin('a', again.made)
  jobs.begin('b', b.made)
  await a.began
  let isNext = false
  void b.began.then(() => {
    isNext = true
  })
  await new Promise(setImmediate)
  assert.equal(isNext, false)
  a.prepared.resolve()
  await Promise.all([a.committed, b.began])
  b.prepared.resolve()
  await b.committed
  jobs.begin('a', again.made)
  await again.began
  again.prepared.resolve()
  await again.committed
})

test('who cancels waits until nothing prepares any more, and a job that waits for its turn never begins', async () => {
  await using jobs = new BackgroundJobs()
  const [a, b, c] = [job(), job(), job()]
  jobs.begin('a', a.made)
  jobs.begin('b', b.made)
  jobs.begin('c', c.made)
  const signal = await a.began
  await jobs.cancel('b')
  const cancelled = jobs.cancel('a')
  assert.equal(signal.aborted, true)
  a.prepared.resolve()
  await cancelled
  await c.began
  c.prepared.resolve()
  await c.committed
  assert.equal(await Promise.race([b.began, 'never']), 'never')
})

test('a failure is told, and the next one comes; one that was cancelled is no failure', async () => {
  await using jobs = new BackgroundJobs()
  const [a, b] = [job(), job()]
  jobs.begin('a', a.made)
  jobs.begin('b', b.made)
  a.prepared.reject(new Error('no'))
  assert.match(String(await a.failed), /no/)
  await b.began
  const cancelled = jobs.cancel('b')
  b.prepared.reject(new Error('it was told to'))
  await cancelled
  assert.equal(await Promise.race([b.failed, 'untold']), 'untold')
})

test('a job begins no sooner than it may, and not at all once it has been cancelled', async () => {
  await using jobs = new BackgroundJobs()
  const notBeforeMs = Date.now() + 60
  const [a, b] = [job({ notBeforeMs }), job({ notBeforeMs: Date.now() + 30 })]
  jobs.begin('a', a.made)
  jobs.begin('b', b.made)
  await jobs.cancel('b')
  await a.began
  assert.ok(Date.now() >= notBeforeMs)
  assert.equal(await Promise.race([b.began, 'never']), 'never')
  a.prepared.resolve()
  await a.committed
})

test('after the end nothing begins', async () => {
  const jobs = new BackgroundJobs()
  const [a, b] = [job(), job()]
  jobs.begin('a', a.made)
  const signal = await a.began
  const ended = jobs[Symbol.asyncDispose]()
  assert.equal(signal.aborted, true)
  a.prepared.resolve()
  await ended
  jobs.begin('b', b.made)
  assert.equal(await Promise.race([b.began, 'never']), 'never')
})
