import assert from 'node:assert/strict'
import { appendFileSync, mkdtempSync, renameSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import fc from 'fast-check'
import { CHUNK, type LogBatch, MAX_LINE, type ReadLog, readLog } from './log-lines.ts'
import { SharedReads } from './shared-reads.ts'

function logIn(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), 'log-'))
  t.after(() => rmSync(dir, { recursive: true, force: true }))
  return join(dir, 'app.log')
}

const tail = (path: string, count: number) => Array.fromAsync(linesOf(path, { tail: count, follow: false }))

async function* linesOf(path: string, options: ReadLog): AsyncGenerator<string> {
  for await (const { lines } of readLog(path, options)) yield* lines
}

const batchesOf = (path: string, count: number) => Array.fromAsync(readLog(path, { tail: count, follow: false }), ({ lines }) => [...lines])

test('the last lines come, whole and in order', async (t) => {
  const path = logIn(t)
  writeFileSync(path, 'one\ntwo\nthree\n')
  assert.deepEqual(await tail(path, 2), ['two', 'three'])
  assert.deepEqual(await tail(path, 3), ['one', 'two', 'three'])
  assert.deepEqual(await tail(path, 100), ['one', 'two', 'three'])
  assert.deepEqual(await tail(path, 0), [])
  appendFileSync(path, 'unfinished')
  assert.deepEqual(await tail(path, 2), ['three', 'unfinished'])
})

test('a log that is not there yet, or empty, has no lines', async (t) => {
  const path = logIn(t)
  assert.deepEqual(await tail(path, 10), [])
  writeFileSync(path, '')
  assert.deepEqual(await tail(path, 10), [])
})

test('what the file lacks is taken from its rotated half', async (t) => {
  const path = logIn(t)
  writeFileSync(`${path}.1`, 'one\ntwo\n')
  writeFileSync(path, 'three\nfour\n')
  assert.deepEqual(await tail(path, 3), ['two', 'three', 'four'])
  assert.deepEqual(await tail(path, 2), ['three', 'four'])
})

test('the last lines of any log are what a plain reading gives', async (t) => {
  const path = logIn(t)
  const line = fc.string({ maxLength: 40 }).map((text) => text.replace(/[\n\r]/g, '.'))
  await fc.assert(
    fc.asyncProperty(fc.array(line, { maxLength: 60 }), fc.integer({ min: 0, max: 70 }), fc.boolean(), async (lines, count, ends) => {
      writeFileSync(path, lines.join('\n') + (ends && lines.length > 0 ? '\n' : ''))
      const all = lines.length > 0 && !ends && lines.at(-1) === '' ? lines.slice(0, -1) : lines
      assert.deepEqual(await tail(path, count), count === 0 ? [] : all.slice(-count))
    }),
    { numRuns: 100 },
  )
})

test('whatever the bytes are, each line is what it would be alone', async (t) => {
  const path = logIn(t)
  const byte = fc.oneof(fc.constantFrom(0x0a, 0x0d, 0x61, 0xc3, 0xa4, 0xf0, 0x9f, 0x98, 0x80, 0xed, 0xff), fc.integer({ min: 0, max: 255 }))
  await fc.assert(
    fc.asyncProperty(fc.array(byte, { minLength: 1, maxLength: 60 }), fc.nat(CHUNK), async (bytes, before) => {
      // So that the end of a read falls anywhere in it.
      const log = Buffer.concat([Buffer.alloc(before, 'x\n'), Buffer.from(bytes), Buffer.from('\n')])
      writeFileSync(path, log)
      const alone: string[] = []
      for (let at = 0; at < log.length; ) {
        const end = log.indexOf('\n', at)
        alone.push(log.toString('utf8', at, end).replace(/\r$/, ''))
        at = end + 1
      }
      assert.deepEqual(await tail(path, 100_000), alone)
    }),
    { numRuns: 200 },
  )
})

test('lines come in batches, bounded in lines and in bytes', async (t) => {
  const path = logIn(t)
  writeFileSync(path, '\n'.repeat(100_000))
  const empty = await batchesOf(path, 100_000)
  assert.equal(empty.flat().length, 100_000)
  assert.ok(empty.length <= 1 + Math.ceil(100_000 / CHUNK), `${empty.length} batches`)
  for (const batch of empty) assert.ok(batch.length <= CHUNK)
  writeFileSync(path, `${'x'.repeat(MAX_LINE)}\n`.repeat(10))
  const long = await batchesOf(path, 10)
  assert.equal(long.flat().length, 10)
  for (const batch of long) assert.ok(batch.join('').length <= CHUNK + MAX_LINE)
})

test('a line that never ends comes in pieces of bounded size, characters whole', async (t) => {
  const path = logIn(t)
  const text = 'ä€😀'.repeat(40_000)
  writeFileSync(path, `${text}\nend\n`)
  const lines = await tail(path, 10)
  assert.equal(lines.pop(), 'end')
  assert.equal(lines.join(''), text)
  for (const line of lines) assert.ok(Buffer.byteLength(line) <= MAX_LINE)
})

test('a follower reads on as the log grows, over a rotation, and after it was cut', async (t) => {
  const path = logIn(t)
  writeFileSync(path, 'old\nlast\n')
  const end = new AbortController()
  const seen: string[] = []
  const next: Record<string, () => void> = {
    last: () => appendFileSync(path, 'grown\n'),
    grown: () => {
      appendFileSync(path, 'before the turn\n')
      renameSync(path, `${path}.1`)
      writeFileSync(path, 'after the turn\n')
    },
    'after the turn': () => appendFileSync(path, 'half'),
    'half and half': () => {
      truncateSync(path, 0)
      setTimeout(() => appendFileSync(path, 'cut\n'), 50)
    },
    cut: () => end.abort(),
  }
  for await (const line of linesOf(path, { tail: 1, follow: true, signal: end.signal })) {
    seen.push(line)
    next[line]?.()
    if (line === 'after the turn') setTimeout(() => appendFileSync(path, ' and half\n'), 30)
  }
  assert.deepEqual(seen, ['last', 'grown', 'before the turn', 'after the turn', 'half and half', 'cut'])
})

test('a follower may be there before the log is', async (t) => {
  const path = logIn(t)
  const end = new AbortController()
  setTimeout(() => writeFileSync(path, 'first\n'), 30)
  const seen: string[] = []
  for await (const line of linesOf(path, { tail: 10, follow: true, signal: end.signal })) {
    seen.push(line)
    end.abort()
  }
  assert.deepEqual(seen, ['first'])
})

test('a follower ends when it is told that no more will come, with all that was written', async (t) => {
  const path = logIn(t)
  writeFileSync(path, 'one\n')
  let isOver = false
  let tell: (() => void) | undefined
  const options = {
    tail: 10,
    follow: true,
    isOver: () => isOver,
    onChange: (listener: () => void) => {
      tell = listener
      return { [Symbol.dispose]: () => undefined }
    },
  }
  const seen: string[] = []
  for await (const line of linesOf(path, options)) {
    seen.push(line)
    if (line !== 'one') continue
    setTimeout(() => {
      appendFileSync(path, 'two\nunfinished')
      isOver = true
      tell?.()
    }, 30)
  }
  assert.deepEqual(seen, ['one', 'two', 'unfinished'])
})

test('a flood is read only as fast as it is taken', async (t) => {
  const path = logIn(t)
  const line = `${'x'.repeat(1000)}\n`
  writeFileSync(path, line.repeat(20_000))
  const before = process.memoryUsage().rss
  let count = 0
  for await (const _ of linesOf(path, { tail: 20_000, follow: false })) {
    if (++count % 5000 === 0) await new Promise((resolve) => setImmediate(resolve))
  }
  assert.equal(count, 20_000)
  assert.ok(process.memoryUsage().rss - before < 64 << 20)
})

test('whoever comes back with a place goes on there, over a rotation too', async (t) => {
  const path = logIn(t)
  const rest = (from: string) => Array.fromAsync(linesOf(path, { tail: 0, from, follow: false }))
  writeFileSync(path, 'one\ntwo\nthr')
  const places: string[] = []
  for await (const { lines, place } of readLog(path, { tail: 10, follow: false })) {
    places.push(place)
    assert.ok(places.length < 4, lines.join())
  }
  const [begin = '', afterTwo = '', end = ''] = places
  assert.deepEqual(await rest(begin), ['one', 'two', 'thr'])
  appendFileSync(path, 'ee\nfour\n')
  assert.deepEqual(await rest(afterTwo), ['three', 'four'])
  assert.deepEqual(await rest(end), ['ee', 'four'])
  renameSync(path, `${path}.1`)
  assert.deepEqual(await rest(afterTwo), ['three', 'four'])
  writeFileSync(path, 'five\n')
  assert.deepEqual(await rest(afterTwo), ['three', 'four', 'five'])
  renameSync(path, `${path}.1`)
  writeFileSync(path, 'six\n')
  for (const from of [afterTwo, 'none-0', 'x', '../etc']) assert.deepEqual(await rest(from), ['five', 'six'], from)
})

test('a line that a rotation falls into stays one line', async (t) => {
  const path = logIn(t)
  writeFileSync(`${path}.1`, 'one\nha')
  writeFileSync(path, 'lf\ntwo\n')
  assert.deepEqual(await tail(path, 4), ['one', 'half', 'two'])
})

test('those who share what they read are given the same, wherever they begin, and the same batches where they stand together', async (t) => {
  const path = logIn(t)
  const line = fc.oneof(
    fc.string({ maxLength: 30 }),
    fc.nat(CHUNK * 2).map((length) => 'x'.repeat(length)),
  )
  await fc.assert(
    fc.asyncProperty(
      fc.array(
        line.map((text) => text.replace(/[\n\r]/g, '.')),
        { minLength: 1, maxLength: 200 },
      ),
      async (lines) => {
        writeFileSync(path, `${lines.join('\n')}\n`)
        const shared = new SharedReads()
        const [all, again, last] = await Promise.all(
          [lines.length, lines.length, 3].map((count) => Array.fromAsync(readLog(path, { tail: count, follow: false, shared }))),
        )
        const textOf = (batches: readonly LogBatch[] = []) => batches.flatMap((batch) => [...batch.lines])
        assert.deepEqual(textOf(all), lines)
        assert.deepEqual(textOf(again), lines)
        assert.deepEqual(textOf(last), lines.slice(-3))
      },
    ),
    { numRuns: 50 },
  )
  writeFileSync(path, 'a\nb\n')
  const shared = new SharedReads()
  const [one, other] = await Promise.all([1, 2].map(() => Array.fromAsync(readLog(path, { tail: 2, follow: false, shared }))))
  assert.equal(one?.[1], other?.[1])
})
