/** What a conversion takes of the host's memory, however large the image is: the most that its process ever held (VmHWM). */
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable, Transform } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { type TestContext, test } from 'node:test'
import { createZstdCompress } from 'node:zlib'
import { BlobStore } from '../../packages/daemon/src/images/blob-store.ts'
import { runJob } from '../../packages/daemon/src/images/conversion.ts'
import { DEFAULT_LIMITS } from '../../packages/daemon/src/images/limits.ts'
import { OCI_LAYER } from '../../packages/daemon/src/images/manifest.ts'
import { tarEntry } from '../../packages/daemon/src/images/tar-fixtures.ts'
import { TAR_END } from '../../packages/daemon/src/images/tar-writer.ts'
import { Paths } from '../../packages/daemon/src/paths.ts'
import { REPOSITORY } from '../harness/daemon-process.ts'
import { scratchDir } from '../harness/scratch.ts'

const LIMIT_MIB = 150
// What strips types from our sources in each process would be measured with ours; an installed daemon has none of it.
process.env.NODE_COMPILE_CACHE = join(REPOSITORY, 'build/cache/node')

test('a conversion holds less than 150 MiB, whether a layer has 400 MiB or two have 400,000 entries', async (t) => {
  const dir = await scratchDir(t)
  const block = randomBytes(1 << 20)
  const small = function* () {
    yield tarEntry({ name: 'a', content: 'b' })
  }
  const large = function* () {
    for (let n = 0; n < 400; n++) yield tarEntry({ name: `srv/file-${n}`, content: block })
  }
  // Each name is another, and the second layer takes the place of half of the first: it takes both passes.
  const many = function* (first: number) {
    for (let n = first; n < first + 200_000; n += 500)
      yield Buffer.concat(
        Array.from({ length: 500 }, (_, i) => tarEntry({ name: `srv/${(n / 500) % 20}/${n / 10_000}/module-${n + i}.js`, content: 'x' })),
      )
  }
  await peakOf(t, dir, [small()])
  for (const [what, layers] of [
    ['400 MiB in one layer', [large()]],
    ['400,000 entries in two layers', [many(0), many(100_000)]],
  ] as const) {
    const { worker, writer } = await peakOf(t, dir, layers)
    t.diagnostic(`${what}: ${worker} MiB, and tar2sqfs ${writer} MiB`)
    assert.ok(worker < LIMIT_MIB, `${what}: the conversion took ${worker} MiB`)
  }
})

/** Converts an image of these layers, and says what the process that did it, and its tar2sqfs, held at most. */
async function peakOf(t: TestContext, dir: string, tars: readonly Iterable<Buffer>[]): Promise<{ worker: number; writer: number }> {
  const dirs = { dataDir: join(dir, 'data'), runDir: join(dir, 'run') }
  const store = new BlobStore(new Paths(dirs))
  await store.prepare()
  const layers: { mediaType: string; digest: string; size: number; diffId: string }[] = []
  for (const tar of tars) layers.push(await storeLayer(store, tar))
  const peaks = { worker: 0, writer: 0 }
  const look = setInterval(() => {
    for (const worker of childrenOf(process.pid)) {
      const seen = peakMib(worker)
      // Between fork and exec it is a part of this process.
      if (seen?.name === 'MainThread') peaks.worker = Math.max(peaks.worker, seen.mib)
      for (const writer of childrenOf(worker)) {
        const of = peakMib(writer)
        if (of?.name === 'tar2sqfs') peaks.writer = Math.max(peaks.writer, of.mib)
      }
    }
  }, 10)
  t.after(() => clearInterval(look))
  await runJob(
    {
      kind: 'convert',
      dirs,
      drafts: 'test-',
      layers,
      diffIds: layers.map(({ diffId }) => diffId),
      rootfs: join(dir, 'rootfs'),
      compression: 'lz4',
      limits: DEFAULT_LIMITS,
    },
    { signal: AbortSignal.timeout(300_000) },
  )
  clearInterval(look)
  assert.ok(peaks.worker > 0 && peaks.writer > 0, 'its processes were seen')
  return peaks
}

async function storeLayer(store: BlobStore, tar: Iterable<Buffer>) {
  const draft = await store.beginDraft()
  const diff = createHash('sha256')
  const whole = function* () {
    yield* tar
    yield TAR_END
  }
  const counted = new Transform({
    transform(chunk, _encoding, pass) {
      diff.update(chunk)
      pass(null, chunk)
    },
  })
  await pipeline(Readable.from(whole()), counted, createZstdCompress(), async (compressed: AsyncIterable<Buffer>) => {
    for await (const chunk of compressed) await draft.write(chunk)
  })
  return { mediaType: `${OCI_LAYER}+zstd`, ...(await draft.publish()), diffId: `sha256:${diff.digest('hex')}` }
}

const childrenOf = (pid: number): number[] => read(`/proc/${pid}/task/${pid}/children`).split(' ').filter(Boolean).map(Number)

function peakMib(pid: number): { name: string; mib: number } | undefined {
  const status = read(`/proc/${pid}/status`)
  const [name, kib] = [/^Name:\t(.*)$/m.exec(status)?.[1], /^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1]]
  return name === undefined || kib === undefined ? undefined : { name, mib: Math.ceil(Number(kib) / 1024) }
}

function read(path: string): string {
  try {
    return readFileSync(path, 'latin1').trim()
  } catch {
    return ''
  }
}
