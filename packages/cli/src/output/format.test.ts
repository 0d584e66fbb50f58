import assert from 'node:assert/strict'
import test from 'node:test'
import fc from 'fast-check'
import { ago, humanBytes, humanDuration, modeText, percent, safeText } from './format.ts'
import { progressLine } from './progress.ts'

test('bytes have at most three digits and a unit of 1024', () => {
  assert.deepEqual([0, 999, 1024, 1536, 10 * 1024 ** 2, 123.4 * 1024 ** 2, 1024 ** 3 - 1, 1024 ** 3, 1.5 * 1024 ** 4].map(humanBytes), [
    '0B',
    '999B',
    '1KB',
    '1.5KB',
    '10MB',
    '123MB',
    '1.0GB',
    '1GB',
    '1.5TB',
  ])
  fc.assert(fc.property(fc.integer({ min: 0, max: 2 ** 50 }), (bytes) => /^\d{1,4}(\.\d)?[KMGTP]?B$/.test(humanBytes(bytes))))
})

test('times are one step, and a clock that runs behind is now', () => {
  const day = 86_400_000
  assert.deepEqual(
    [-5, 0, 59_999, 60_000, 3_599_000, 3_600_000, day, 13 * day, 14 * day, 60 * day, 729 * day, 800 * day].map(humanDuration),
    ['0s', '0s', '59s', '1m', '59m', '1h', '1d', '13d', '2w', '2mo', '24mo', '2y'],
  )
  assert.equal(ago('2026-01-01T00:00:00Z', Date.parse('2026-01-01T00:05:00Z')), '5m ago')
  assert.equal(ago(null, 0), '-')
  assert.equal(ago('nonsense', 0), '-')
})

test('modes are written as ls writes them', () => {
  assert.equal(modeText(0o755, 'directory'), 'drwxr-xr-x')
  assert.equal(modeText(0o4755, 'file'), '-rwsr-xr-x')
  assert.equal(modeText(0o2644, 'file'), '-rw-r-Sr--')
  assert.equal(modeText(0o1777, 'directory'), 'drwxrwxrwt')
  assert.equal(modeText(0o777, 'link'), 'lrwxrwxrwx')
})

test('percents have a decimal only when they are small', () => {
  assert.deepEqual([0, 0.012, 0.5, 2].map(percent), ['0.0%', '1.2%', '50%', '200%'])
})

test('safe text has no control characters left', () => {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: none may be left
  fc.assert(fc.property(fc.string({ unit: 'binary' }), (text) => !/[\u0000-\u001f\u007f-\u009f]/.test(safeText(text))))
})

test('a progress line shows a bar when there is room, and is never too long', () => {
  assert.equal(
    progressLine('alpine', { step: 'pulling', doneBytes: 512, totalBytes: 1024 }, 60),
    'alpine  [============>            ]   50%  512B/1KB  pulling',
  )
  assert.equal(progressLine('alpine', { step: 'pending' }, 60), 'alpine  pending')
  fc.assert(
    fc.property(
      fc.string({ maxLength: 100 }),
      fc.nat(),
      fc.nat(),
      fc.integer({ min: 1, max: 200 }),
      (title, doneBytes, totalBytes, width) => {
        assert.ok(progressLine(title, { step: 'pulling', doneBytes, totalBytes }, width).length <= width)
      },
    ),
  )
})
