import assert from 'node:assert/strict'
import test from 'node:test'
import { parseCopyEnd } from './instance-path.ts'
import { parseChoice, parseCount, parseDurationOption, parseSizeOption, parseTags, parseTail } from './values.ts'

test('durations are Go durations, with days and weeks, or seconds', () => {
  assert.equal(parseDurationOption('7d'), 7 * 86_400_000)
  assert.equal(parseDurationOption('1w1.5d2h'), (168 + 36 + 2) * 3_600_000)
  assert.equal(parseDurationOption('1h30m'), 5_400_000)
  assert.equal(parseDurationOption('10'), 10_000)
  assert.equal(parseDurationOption('0.5'), 500)
  for (const text of ['', '-5s', 'soon', '5 s', 'd', '7days']) assert.throws(() => parseDurationOption(text), /is not a duration/, text)
})

test('sizes are handed on as they were written', () => {
  assert.equal(parseSizeOption('512m'), '512m')
  assert.equal(parseSizeOption(' 1.5GB '), '1.5GB')
  for (const text of ['', 'big', '1Gb', '-1m']) assert.throws(() => parseSizeOption(text), /is not a size/, text)
})

test('tags are pairs, and a value may hold an equals sign', () => {
  assert.deepEqual(parseTags(['team=a', 'note=x=y', 'empty=']), { team: 'a', note: 'x=y', empty: '' })
  assert.equal(parseTags([]), undefined)
  assert.throws(() => parseTags(['=x']), /is not key=value/)
  assert.throws(() => parseTags(['alone']), /is not key=value/)
})

test('counts are whole and positive, a tail may be 0 or all', () => {
  assert.equal(parseCount('4'), 4)
  for (const text of ['0', '1.5', 'x', '-1']) assert.throws(() => parseCount(text), /whole number/, text)
  assert.equal(parseTail('0'), 0)
  assert.equal(parseTail('all'), 100_000)
  assert.equal(parseTail('99999999999'), 100_000)
  assert.throws(() => parseTail('-1'), /number of lines/)
})

test('a choice is found whatever its case, and a wrong one is told the right ones', () => {
  assert.equal(parseChoice('running', ['Running', 'Stopped'], 'state'), 'Running')
  assert.throws(() => parseChoice('asleep', ['Running', 'Stopped'], 'state'), { hint: 'Give one of: Running, Stopped' })
})

test('a colon before the first slash is an instance, else it is a path of this host', () => {
  assert.deepEqual(parseCopyEnd('web:/etc'), { kind: 'guest', instance: 'web', path: '/etc' })
  assert.deepEqual(parseCopyEnd('web:etc/a:b'), { kind: 'guest', instance: 'web', path: '/etc/a:b' })
  assert.deepEqual(parseCopyEnd('./web:etc'), { kind: 'host', path: './web:etc' })
  assert.deepEqual(parseCopyEnd('/a/b:c'), { kind: 'host', path: '/a/b:c' })
  assert.deepEqual(parseCopyEnd('dir'), { kind: 'host', path: 'dir' })
  assert.deepEqual(parseCopyEnd('-'), { kind: 'stream' })
  assert.throws(() => parseCopyEnd(':/x'), /is not NAME:PATH/)
  assert.throws(() => parseCopyEnd('web:'), /is not NAME:PATH/)
})
