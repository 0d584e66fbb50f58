import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { test } from 'node:test'
import { constants, gzipSync, zstdCompressSync } from 'node:zlib'
import { AppError, type ErrorCode } from '@dormouse/api/errors.ts'
import fc from 'fast-check'
import { compressionOf, decompress } from './decompress.ts'
import { DEFAULT_LIMITS, type ImageLimits } from './limits.ts'

async function* inSteps(bytes: Buffer, step: number): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += step) yield bytes.subarray(at, at + step)
}

async function unpack(bytes: Buffer, step = 1 << 16, limits: Partial<ImageLimits> = {}): Promise<Buffer> {
  const chunks: Buffer[] = []
  for await (const chunk of decompress(inSteps(bytes, step), { ...DEFAULT_LIMITS, ...limits })) chunks.push(chunk)
  return Buffer.concat(chunks)
}

const refuses = (bytes: Buffer, code: ErrorCode, says: RegExp, limits: Partial<ImageLimits> = {}): Promise<void> =>
  assert.rejects(
    unpack(bytes, 1 << 16, limits),
    (error) => error instanceof AppError && error.code === code && says.test(error.message),
    String(says),
  )

const one = randomBytes(3000)
const two = Buffer.from('the second part')

function skippable(length: number): Buffer {
  const frame = Buffer.alloc(8 + length, 0xaa)
  frame.writeUInt32LE(0x184d2a57, 0)
  frame.writeUInt32LE(length, 4)
  return frame
}

test('plain, gzip and zstd are told apart by their first bytes', () => {
  assert.equal(compressionOf(gzipSync(one)), 'gzip')
  assert.equal(compressionOf(zstdCompressSync(one)), 'zstd')
  assert.equal(compressionOf(skippable(3)), 'zstd')
  assert.equal(compressionOf(Buffer.from('usr/\0\0')), 'none')
  assert.equal(compressionOf(Buffer.alloc(0)), 'none')
})

test('several members or frames after each other are one stream, wherever the chunks are cut', async () => {
  const whole = Buffer.concat([one, two])
  for (const step of [1, 13, 1024, 1 << 20]) {
    assert.deepEqual(await unpack(Buffer.concat([gzipSync(one), gzipSync(two)]), step), whole, `gzip in steps of ${step}`)
    const frames = Buffer.concat([skippable(5), zstdCompressSync(one), skippable(0), zstdCompressSync(two), skippable(40)])
    assert.deepEqual(await unpack(frames, step), whole, `zstd in steps of ${step}`)
    assert.deepEqual(await unpack(whole, step), whole, `plain in steps of ${step}`)
  }
})

test('zeros after gzip are padding, anything else is refused', async () => {
  assert.deepEqual(await unpack(Buffer.concat([gzipSync(one), Buffer.alloc(2000)]), 100), one)
  await refuses(Buffer.concat([gzipSync(one), Buffer.from('trailing')]), 'invalid_image', /damaged|goes on/)
  await refuses(Buffer.concat([gzipSync(one), Buffer.alloc(100), Buffer.from('trailing')]), 'invalid_image', /goes on after/)
  await refuses(Buffer.concat([zstdCompressSync(one), Buffer.from('trailing')]), 'invalid_image', /damaged|goes on/)
})

test('compressed data that is cut short or damaged is refused', async () => {
  for (const bytes of [gzipSync(one), zstdCompressSync(one)]) {
    await refuses(bytes.subarray(0, bytes.length - 5), 'invalid_image', /cut short/)
    await refuses(bytes.subarray(0, 12), 'invalid_image', /cut short/)
  }
  const bent = gzipSync(one)
  bent[bent.length - 6] = (bent[bent.length - 6] ?? 0) ^ 0xff
  await refuses(bent, 'invalid_image', /damaged/)
})

test('a bomb is stopped by bytes and by ratio', async () => {
  const zeros = Buffer.alloc(4 << 20)
  for (const bytes of [gzipSync(zeros), zstdCompressSync(zeros)]) {
    await refuses(bytes, 'image_too_large', /more than 1048576 bytes/, { maxImageBytes: 1 << 20 })
    await refuses(bytes, 'image_too_large', /bomb/, { ratioFloorBytes: 1 << 20, maxRatio: 50 })
  }
  assert.equal((await unpack(gzipSync(zeros))).length, zeros.length, 'small things may compress well')
})

test('a zstd window that would take too much memory is refused', async () => {
  const params = {
    [constants.ZSTD_c_windowLog]: 27,
    [constants.ZSTD_c_enableLongDistanceMatching]: 1,
    [constants.ZSTD_c_contentSizeFlag]: 0,
  }
  const { createZstdCompress } = await import('node:zlib')
  const compressor = createZstdCompress({ params })
  const chunks: Buffer[] = []
  compressor.on('data', (chunk: Buffer) => chunks.push(chunk))
  for (let i = 0; i < 70; i++) compressor.write(Buffer.alloc(1 << 20, i))
  await new Promise((resolve) => compressor.end(resolve))
  await refuses(Buffer.concat(chunks), 'invalid_image', /window/)
})

test('the source is closed when the reader leaves early, and its error comes through', async () => {
  let closed = false
  const endless = (async function* () {
    try {
      for (;;) yield one
    } finally {
      closed = true
    }
  })()
  for await (const _ of decompress(endless, DEFAULT_LIMITS)) break
  assert.ok(closed)
  const failing = (async function* () {
    yield gzipSync(one).subarray(0, 100)
    throw new Error('the disk is on fire')
  })()
  await assert.rejects(async () => {
    for await (const _ of decompress(failing, DEFAULT_LIMITS));
  }, /on fire/)
})

test('whatever bytes come, the answer is data or invalid_image, and it comes', async () => {
  const base = Buffer.concat([gzipSync(two), gzipSync(one.subarray(0, 200))])
  const zbase = Buffer.concat([zstdCompressSync(two), skippable(3), zstdCompressSync(one.subarray(0, 200))])
  await fc.assert(
    fc.asyncProperty(fc.boolean(), fc.nat(), fc.nat(255), fc.nat(), fc.integer({ min: 1, max: 64 }), async (zstd, at, value, cut, step) => {
      const bytes = Buffer.from(zstd ? zbase : base)
      bytes[at % bytes.length] = value
      const part = cut % 3 === 0 ? bytes.subarray(0, cut % bytes.length) : bytes
      await unpack(part, step).catch((error) => assert.ok(error instanceof AppError && error.code === 'invalid_image', String(error)))
    }),
    { numRuns: 150 },
  )
})
