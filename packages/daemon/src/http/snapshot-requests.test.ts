import assert from 'node:assert/strict'
import { test } from 'node:test'
import { toCompression, toCompressionDelay } from './snapshot-requests.ts'

test('a compression has its defaults, can be refused, and need not be told of', () => {
  assert.equal(toCompression(undefined, 'Standby'), undefined)
  assert.equal(toCompression({ enabled: false, algorithm: 'zstd', level: 99 }, 'Standby'), 'off')
  assert.equal(toCompression({ enabled: false }, 'Stopped'), 'off')
  assert.deepEqual(toCompression({ enabled: true }, 'Standby'), { algorithm: 'zstd', level: 1 })
  assert.deepEqual(toCompression({ enabled: true, algorithm: 'lz4' }, 'Standby'), { algorithm: 'lz4', level: 0 })
  assert.deepEqual(toCompression({ enabled: true, level: 19 }, 'Standby'), { algorithm: 'zstd', level: 19 })
})

test('a level that there is not, and a memory that there is not, are refused', () => {
  for (const asked of [
    { enabled: true, level: 0 },
    { enabled: true, level: 20 },
    { enabled: true, algorithm: 'lz4', level: 10 },
    { enabled: true, algorithm: 'lz4', level: -1 },
  ] as const)
    assert.throws(() => toCompression(asked, 'Standby'), { code: 'invalid_snapshot_compression' })
  assert.throws(() => toCompression({ enabled: true }, 'Stopped'), { code: 'invalid_snapshot_compression' })
})

test('a delay is a duration, and none of it is 0', () => {
  assert.deepEqual([undefined, '', '0s', '1.5s', '2h'].map(toCompressionDelay), [undefined, undefined, 0, 1500, 7_200_000])
  for (const wrong of ['-1s', 'soon', '5']) assert.throws(() => toCompressionDelay(wrong), { code: 'invalid_compression_delay' }, wrong)
})
