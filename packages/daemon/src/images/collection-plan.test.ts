import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import type { ImageNameRow } from '../store/images.ts'
import { type CollectImages, planCollection } from './collection-plan.ts'

type Image = Parameters<typeof planCollection>[0]['images'][number]

const DAY = 24 * 3_600_000
const NOW = 100 * DAY
const image = (digest: string, days: number, status: Image['status'] = 'ready'): Image => ({
  ...{ digest, status, origin: '{}', usedAtMs: NOW - days * DAY },
})
const named = (name: string, digest?: string, nextDigest?: string): ImageNameRow => ({
  ...{ name, platform: 'linux/amd64', digest, nextDigest, tags: {}, createdAtMs: 0 },
})
const planned = (
  names: ImageNameRow[],
  images: Image[],
  wanted: Partial<CollectImages> = {},
  { busy = [] as string[], layers = [] as { imageDigest: string; digest: string }[] } = {},
) => {
  const isBusy = (digest: string) => busy.includes(digest)
  const plan = planCollection({ names, images, layers, isBusy }, { which: 'unused', unusedForMs: 0, ...wanted }, NOW)
  return { ...plan, names: plan.names.map(({ name }) => name) }
}

test('what was used lately stays, and what something stands on, however long ago', () => {
  const images = [image('old', 40), image('new', 3), image('busy', 90)]
  const names = [named('o', 'old'), named('n', 'new'), named('b', 'busy')]
  assert.deepEqual(planned(names, images, { unusedForMs: 30 * DAY }, { busy: ['busy'] }).names, ['o'])
})

test('an image goes with all of its names or not at all', () => {
  const names = [named('docker.io/a', 'x'), named('mine/a', 'x')]
  const isAllowed = (name: string) => name.startsWith('docker.io/')
  assert.deepEqual(planned(names, [image('x', 40)], { isAllowed }).digests, [])
  assert.deepEqual(planned(names, [image('x', 40)]).names, ['docker.io/a', 'mine/a'])
})

test('dangling are those that failed or have no name; a name that has something better keeps it', () => {
  const images = [image('good', 9), image('bad', 9, 'failed'), image('worse', 9, 'failed'), image('unnamed', 9)]
  const names = [named('a', 'good', 'bad'), named('b', undefined, 'worse')]
  const plan = planned(names, images, { which: 'dangling' })
  assert.deepEqual([...plan.digests].sort(), ['bad', 'unnamed', 'worse'])
  assert.deepEqual(plan.names, ['b'])
  assert.deepEqual(plan.kept, [named('a', 'good')])
})

test('a name that waits for what is being pulled stays, and what it leads to until then', () => {
  const names = [named('a', 'old', 'coming')]
  assert.deepEqual(planned(names, [image('old', 40), image('coming', 0, 'pulling')], {}, { busy: ['coming'] }).digests, [])
})

test('what was pushed or imported can be had from nowhere: it goes only when that is meant, or when no name leads to it', () => {
  const images = [image('pulled', 9), { ...image('pushed', 9), origin: undefined }, { ...image('unnamed', 9), origin: undefined }]
  const names = [named('a', 'pulled'), named('b', 'pushed')]
  assert.deepEqual(planned(names, images, { onlyReplaceable: true }).digests, ['pulled', 'unnamed'])
  assert.deepEqual(planned(names, images).digests, ['pulled', 'pushed', 'unnamed'])
})

test('the least recently used go first', () => {
  const images = [image('b', 2), image('d', 4), image('a', 1), image('c', 3)]
  assert.deepEqual(planned([], images, { atMost: 2 }).digests, ['d', 'c'])
})

test('whatever there is: what stays has all its layers and names, nothing that goes leaves one, and nothing that is in use goes', () => {
  const digests = ['d0', 'd1', 'd2', 'd3']
  const oneOf = fc.constantFrom(...digests)
  const anyShelf = fc.record({
    images: fc.tuple(
      ...digests.map((digest) =>
        fc
          .record({
            days: fc.nat(60),
            status: fc.constantFrom('ready' as const, 'failed' as const, 'pending' as const),
            layers: fc.uniqueArray(fc.constantFrom('l0', 'l1', 'l2', 'l3'), { maxLength: 3 }),
          })
          .map(({ days, status, layers }) => ({ ...image(digest, days, status), layers })),
      ),
    ),
    names: fc.uniqueArray(fc.tuple(fc.constantFrom('a', 'b', 'c', 'd'), fc.option(oneOf), fc.option(oneOf)), {
      selector: ([name]) => name,
    }),
    busy: fc.subarray(digests),
    unusedForMs: fc.nat(50).map((days) => days * DAY),
    which: fc.constantFrom('dangling' as const, 'unused' as const),
  })
  fc.assert(
    fc.property(anyShelf, ({ images, names, busy, unusedForMs, which }) => {
      const rows = names.map(([name, now, next]) => named(name, now ?? undefined, next ?? undefined))
      const layers = images.flatMap(({ digest, layers }) => layers.map((layer) => ({ imageDigest: digest, digest: layer })))
      const plan = planned(rows, images, { which, unusedForMs }, { busy, layers })
      const gone = new Set(plan.digests)
      for (const digest of gone) {
        assert.ok(!busy.includes(digest))
        assert.ok(NOW - (images.find((one) => one.digest === digest)?.usedAtMs ?? NOW) >= unusedForMs)
      }
      // What is left of the names leads nowhere that is gone.
      const left = [...rows.filter(({ name }) => !plan.names.includes(name) && !plan.kept.some((row) => row.name === name)), ...plan.kept]
      for (const { digest, nextDigest } of left) for (const one of [digest, nextDigest]) assert.ok(one === undefined || !gone.has(one))
      for (const { imageDigest, digest } of layers) {
        if (!gone.has(imageDigest)) assert.ok(!plan.layers.includes(digest))
        else assert.equal(plan.layers.includes(digest), !layers.some((one) => one.digest === digest && !gone.has(one.imageDigest)))
      }
      // Names are only lost by those whose images go.
      for (const name of plan.names)
        assert.ok(rows.some((row) => row.name === name && [row.digest, row.nextDigest].some((one) => one && gone.has(one))))
    }),
  )
})
