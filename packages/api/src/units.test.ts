import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import {
  formatBandwidth,
  formatDuration,
  formatRate,
  formatSize,
  parseBandwidth,
  parseDiskRate,
  parseDuration,
  parseSize,
} from './units.ts'

test('sizes are powers of 1024, with any spelling of the unit', () => {
  for (const text of ['1GB', '1gb', '1G', '1g', '1GiB', '1 gib', ' 1GB ', '1024MB', '1048576K', '1073741824', '1073741824b']) {
    assert.equal(parseSize(text), 2 ** 30, text)
  }
})

test('decimals are taken, to the nearest byte', () => {
  assert.equal(parseSize('1.5GB'), 1.5 * 2 ** 30)
  assert.equal(parseSize('0.5k'), 512)
  assert.equal(parseSize('0.1KB'), 102)
})

test('what is no size, or reads as bits, is refused', () => {
  for (const text of [
    '',
    'GB',
    '-1GB',
    '1.GB',
    '.5GB',
    '1e3',
    '1,5GB',
    '0x10',
    '1Gb',
    '1Gb ',
    ' 1Gb',
    '5Mb',
    '1 Tb',
    'Infinity',
    '1GB1',
    '9000000EB',
    '１GB',
  ]) {
    assert.equal(parseSize(text), undefined, text)
  }
})

test('sizes are printed in the largest unit that is exact', () => {
  assert.equal(formatSize(0), '0B')
  assert.equal(formatSize(1), '1B')
  assert.equal(formatSize(2 ** 30), '1GB')
  assert.equal(formatSize(1.5 * 2 ** 30), '1536MB')
  assert.equal(formatSize(2 ** 30 + 1), '1073741825B')
})

test('every size that is printed reads back as the same size', () => {
  fc.assert(fc.property(fc.maxSafeNat(), (bytes) => parseSize(formatSize(bytes)) === bytes))
  fc.assert(
    fc.property(fc.nat(4096), fc.integer({ min: 0, max: 4 }), (count, power) => {
      const bytes = count * 1024 ** power
      return parseSize(formatSize(bytes)) === bytes
    }),
  )
})

test('no text makes parseSize throw or answer something that is no whole number', () => {
  fc.assert(
    fc.property(fc.string(), (text) => {
      const bytes = parseSize(text)
      return bytes === undefined || (Number.isSafeInteger(bytes) && bytes >= 0)
    }),
  )
})

test('bandwidth in bits is decimal, in bytes it is binary', () => {
  assert.equal(parseBandwidth('1Gbps'), 125_000_000)
  assert.equal(parseBandwidth('8 kbps'), 1000)
  assert.equal(parseBandwidth('80bps'), 10)
  assert.equal(parseBandwidth('125MB/s'), 125 * 2 ** 20)
  assert.equal(parseBandwidth('125Mb/s'), 125 * 2 ** 20)
  for (const text of ['fast', `${'9'.repeat(29)}bps`, `${'9'.repeat(400)}gbps`]) assert.equal(parseBandwidth(text), undefined, text)
})

test('disk rates take what people write after the unit', () => {
  for (const text of ['100MB/s', '100MBps', '100MB']) assert.equal(parseDiskRate(text), 100 * 2 ** 20, text)
  assert.equal(parseDiskRate('100Mbit'), undefined)
  assert.equal(parseDiskRate(formatRate(100 * 2 ** 20)), 100 * 2 ** 20)
  for (const text of ['10Mbps', '1Gbps', '8Kbps', '125MB/s', '1KB/s', '1250001B/s'])
    assert.equal(formatBandwidth(parseBandwidth(text) ?? 0), text)
})

test('durations are read as Go writes them', () => {
  assert.equal(parseDuration('0'), 0)
  assert.equal(parseDuration('300ms'), 300)
  assert.equal(parseDuration('1.5h'), 5_400_000)
  assert.equal(parseDuration('2h45m'), 9_900_000)
  assert.equal(parseDuration('-1m'), -60_000)
  assert.equal(parseDuration('.5s'), 500)
  for (const text of ['', '5', 's', '1 s', '1d', '1h-5m', '1s garbage', '+']) assert.equal(parseDuration(text), undefined, text)
})

test('a duration longer than Go can count is none', () => {
  assert.equal(parseDuration('2562047h47m16.854s'), 9_223_372_036_854)
  for (const text of ['2562048h', '-2562048h', '99999999999h', `${'9'.repeat(400)}s`]) assert.equal(parseDuration(text), undefined, text)
})

test('durations are printed as Go prints them', () => {
  assert.equal(formatDuration(0), '0s')
  assert.equal(formatDuration(300_000), '5m0s')
  assert.equal(formatDuration(1500), '1.5s')
  assert.equal(formatDuration(250), '250ms')
  assert.equal(formatDuration(-9_900_000), '-2h45m0s')
})

test('every duration of whole milliseconds reads back as the same', () => {
  fc.assert(fc.property(fc.integer({ min: -1e12, max: 1e12 }), (ms) => parseDuration(formatDuration(ms)) === ms))
})

/** Put together of what the readers look for, so that most of it is nearly right. */
const nearly = fc
  .array(
    fc.oneof(
      fc.constantFrom('', ' ', '.', '-', '+', '/', '/s', 'ps', 'bps', 'b', 'B', 'K', 'kb', 'Mb', 'MB', 'GiB', 'g', 'E', 'EB'),
      fc.constantFrom('ns', 'us', 'µs', 'ms', 's', 'm', 'h', 'd', 'e', '_', ',', '\0', '\n', '٣', '１', 'Infinity', 'NaN', '0x1'),
      fc.constantFrom('0', '1', '1.5', '.5', '0.1', '1024', '9007199254740993', '9'.repeat(40), '0'.repeat(40)),
      fc.nat().map(String),
    ),
    { maxLength: 6 },
  )
  .map((parts) => parts.join(''))

test('no text makes a reader throw, or give a number that cannot be counted with', () => {
  const isCount = (value: number | undefined) => value === undefined || (Number.isSafeInteger(value) && value >= 0)
  fc.assert(
    fc.property(fc.oneof(nearly, fc.string({ unit: 'binary' })), (text) => {
      assert.ok([parseSize, parseBandwidth, parseDiskRate].every((read) => isCount(read(text))))
      const ms = parseDuration(text)
      assert.ok(ms === undefined || Math.abs(ms) <= 9_223_372_036_854)
    }),
    { numRuns: 2000 },
  )
})

test('what is read and printed reads as the same, and is printed in the same way again', () => {
  const forms = [
    [parseSize, formatSize],
    [parseBandwidth, formatBandwidth],
    [parseDiskRate, formatRate],
  ] as const
  fc.assert(
    fc.property(nearly, (text) => {
      for (const [read, print] of forms) {
        const value = read(text)
        if (value === undefined) continue
        assert.equal(read(print(value)), value, `${text} is ${value}, printed as ${print(value)}`)
      }
      const ms = parseDuration(text)
      if (ms === undefined) return
      const printed = formatDuration(ms)
      const again = parseDuration(printed)
      assert.ok(again !== undefined, `${text} is printed as ${printed}`)
      assert.equal(formatDuration(again), printed)
      // To the microsecond, as far as a double goes.
      assert.ok(Math.abs(again - ms) <= Math.max(1e-3, Math.abs(ms) * 1e-12), `${text} is ${ms}, and then ${again}`)
    }),
    { numRuns: 3000 },
  )
})

test('every rate reads back as it was printed', () => {
  fc.assert(fc.property(fc.nat({ max: 2 ** 50 }), (bytes) => parseBandwidth(formatBandwidth(bytes)) === bytes))
  fc.assert(fc.property(fc.maxSafeNat(), (bytes) => parseDiskRate(formatRate(bytes)) === bytes))
})

test('a larger size is a larger number', () => {
  const size = fc.tuple(fc.nat(4000), fc.constantFrom('B', 'KB', 'MB', 'GB', 'TB'))
  fc.assert(
    fc.property(size, ([count, unit]) => {
      const [less, more] = [parseSize(`${count}${unit}`), parseSize(`${count + 1}${unit}`)]
      assert.ok(less !== undefined && more !== undefined && less < more)
    }),
  )
})
