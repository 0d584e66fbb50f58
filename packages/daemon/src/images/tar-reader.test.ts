import assert from 'node:assert/strict'
import { test } from 'node:test'
import { AppError } from '@dormouse/api/errors.ts'
import fc from 'fast-check'
import { BLOCK, NO_XATTRS } from './tar-entry.ts'
import { entryOf, readTar, tarEntry, tarOf } from './tar-fixtures.ts'
import { encodeHeader, padding, TAR_END } from './tar-writer.ts'

const invalid = (archive: Buffer, says: RegExp): void =>
  assert.throws(
    () => readTar(archive),
    (error) => error instanceof AppError && error.code === 'invalid_image' && says.test(error.message),
    String(says),
  )

/** Writes over a header and mends its checksum. */
function bend(block: Buffer, change: (header: Buffer) => void): Buffer {
  const header = Buffer.from(block)
  change(header)
  header.fill(0x20, 148, 156)
  let sum = 0
  for (let i = 0; i < BLOCK; i++) sum += header[i] ?? 0
  header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1')
  return header
}
const pax = (records: Buffer): Buffer => {
  const header = bend(tarEntry({ name: 'PaxHeader', content: '' }), (block) => {
    block.write('x', 156, 'latin1')
    block.write(records.length.toString(8).padStart(11, '0'), 124, 'latin1')
  })
  return Buffer.concat([header, records, padding(records.length)])
}
const record = (key: string, value: string | Buffer): Buffer => {
  const body = Buffer.concat([Buffer.from(` ${key}=`), Buffer.from(value), Buffer.from('\n')])
  let length = body.length + 1
  while (String(length).length + body.length !== length) length = String(length).length + body.length
  return Buffer.concat([Buffer.from(String(length)), body])
}
const longName = (type: 'L' | 'K', text: string): Buffer => {
  const body = Buffer.from(`${text}\0`)
  const header = bend(tarEntry({ name: '././@LongLink', content: '' }), (block) => {
    block.write(type, 156, 'latin1')
    block.write(body.length.toString(8).padStart(11, '0'), 124, 'latin1')
  })
  return Buffer.concat([header, body, padding(body.length)])
}

test('what is written is read back: every kind, long names, large ids, old times and binary attributes', () => {
  const capability = Buffer.from([1, 0, 0, 2, 0, 0x20, 0xff, 0xfe, 0x0a, 0, 0x3d, 0x80])
  const words = [
    { name: 'etc', kind: 'dir' as const, mode: 0o1777 },
    {
      name: 'etc/ping',
      content: 'x',
      mode: 0o4755,
      xattrs: new Map([
        ['security.capability', capability],
        ['user.\xff', Buffer.alloc(0)],
      ]),
    },
    { name: `${'d'.repeat(120)}/${'n'.repeat(200)}`, content: 'long', uid: 4_000_000_000, gid: 2_097_152, mtime: -5 },
    { name: 'h', kind: 'link' as const, linkName: 'etc/ping' },
    { name: 's', kind: 'symlink' as const, linkName: 'y'.repeat(300), mode: 0o777 },
    { name: 'c', kind: 'char' as const, devMajor: 1, devMinor: 1_048_575 },
    { name: 'b', kind: 'block' as const, devMajor: 8, devMinor: 1 },
    { name: 'f', kind: 'fifo' as const },
    { name: 'ünïcode', content: Buffer.alloc(1000, 7) },
  ]
  const archive = tarOf(words)
  const expected = words
    .map((one) => entryOf(one))
    .map(({ entry, content }) => ({ ...entry, name: entry.kind === 'dir' ? `${entry.name}/` : entry.name, content }))
  assert.deepEqual(readTar(archive), expected)
})

test('an archive reads the same, wherever it is cut into chunks', () => {
  const archive = Buffer.concat([
    longName('L', `gnu/${'l'.repeat(150)}`),
    tarEntry({ name: 'short', content: 'a'.repeat(700) }),
    pax(record('SCHILY.xattr.user.a', Buffer.from([0, 1, 0xff]))),
    tarEntry({ name: 'x', content: 'b' }),
    tarEntry({ name: 'sparse', size: 10_000, storedSize: 3, sparse: [{ offset: 5000, length: 3 }], content: '' }).subarray(
      0,
      -padding(3).length || undefined,
    ),
  ])
  const whole = Buffer.concat([archive.subarray(0, archive.length - (archive.length % BLOCK)), Buffer.from('abc'), padding(3), TAR_END])
  const once = readTar(whole)
  assert.equal(once.length, 3)
  for (const step of [1, 7, 511, 512, 513, 1000]) assert.deepEqual(readTar(whole, step), once, `in steps of ${step}`)
})

test('GNU long names and links, and the POSIX prefix, make one name', () => {
  const name = `a/${'n'.repeat(300)}`
  const link = `b/${'m'.repeat(300)}`
  const [gnu] = readTar(
    Buffer.concat([longName('L', name), longName('K', link), tarEntry({ name: 'cut', kind: 'symlink', linkName: 'cut' }), TAR_END]),
  )
  assert.equal(gnu?.name, name)
  assert.equal(gnu?.linkName, link)
  const prefixed = bend(tarEntry({ name: 'file' }), (header) => header.write('some/dir', 345, 'latin1'))
  assert.equal(readTar(Buffer.concat([prefixed, TAR_END]))[0]?.name, 'some/dir/file')
})

test('a header of old GNU tar has no prefix, and one of v7 tar says directory by a slash', () => {
  const gnu = bend(tarEntry({ name: 'file' }), (header) => {
    header.write('ustar  \0', 257, 'latin1')
    header.write('14000000000', 345, 'latin1')
  })
  assert.equal(readTar(Buffer.concat([gnu, TAR_END]))[0]?.name, 'file')
  const v7 = bend(tarEntry({ name: 'dir/' }), (header) => {
    header.fill(0, 156, 157)
    header.fill(0, 257, 512)
  })
  assert.equal(readTar(Buffer.concat([v7, TAR_END]))[0]?.kind, 'dir')
})

test('numbers in base 256 are read, negative times among them', () => {
  const header = bend(tarEntry({ name: 'file' }), (block) => {
    block.fill(0, 108, 116)
    block[108] = 0x80
    block.writeUInt32BE(3_000_000_000, 112)
    block.fill(0xff, 136, 148)
  })
  const [entry] = readTar(Buffer.concat([header, TAR_END]))
  assert.equal(entry?.uid, 3_000_000_000)
  assert.equal(entry?.mtime, -1)
})

test('times are whole seconds, rounded down', () => {
  for (const [text, seconds] of [
    ['12.9', 12],
    ['-0.5', -1],
    ['-3', -3],
    ['-3.000', -3],
    ['0', 0],
  ] as const) {
    assert.equal(readTar(Buffer.concat([pax(record('mtime', text)), tarEntry({ name: 'f' }), TAR_END]))[0]?.mtime, seconds, text)
  }
})

test('all sparse formats of GNU tar give the same map', () => {
  const sparse = [
    { offset: 0, length: 2 },
    { offset: 4096, length: 3 },
  ]
  const data = Buffer.concat([Buffer.from('abcde'), padding(5)])
  const pairs = Buffer.concat([
    record('GNU.sparse.size', '9000'),
    record('GNU.sparse.numblocks', '2'),
    ...sparse.flatMap(({ offset, length }) => [record('GNU.sparse.offset', String(offset)), record('GNU.sparse.numbytes', String(length))]),
  ])
  const map = Buffer.concat([record('GNU.sparse.name', 'real'), record('GNU.sparse.size', '9000'), record('GNU.sparse.map', '0,2,4096,3')])
  const plain = tarEntry({ name: 'real', content: 'abcde' })
  const oldGnu = bend(plain.subarray(0, BLOCK), (header) => {
    header.write('ustar  \0', 257, 'latin1')
    header.write('S', 156, 'latin1')
    sparse.forEach(({ offset, length }, slot) => {
      header.write(`${offset.toString(8).padStart(11, '0')}\0${length.toString(8).padStart(11, '0')}\0`, 386 + slot * 24, 'latin1')
    })
    header.write(`${(9000).toString(8).padStart(11, '0')}\0`, 483, 'latin1')
  })
  const version1 = Buffer.concat([
    encodeHeader({ ...entryOf({ name: 'real' }).entry, size: 9000, storedSize: 5, sparse, xattrs: NO_XATTRS }),
    data,
  ])
  for (const [format, archive] of Object.entries({
    '0.0': Buffer.concat([pax(pairs), plain]),
    '0.1': Buffer.concat([pax(map), plain]),
    '1.0': version1,
    old: Buffer.concat([oldGnu, data]),
  })) {
    const [entry] = readTar(Buffer.concat([archive, TAR_END]))
    assert.deepEqual(
      { name: entry?.name, size: entry?.size, stored: entry?.storedSize, sparse: entry?.sparse, content: String(entry?.content) },
      { name: 'real', size: 9000, stored: 5, sparse, content: 'abcde' },
      format,
    )
  }
})

test('a sparse map that lies is refused', () => {
  const lie = (map: string, size: string) =>
    Buffer.concat([
      pax(Buffer.concat([record('GNU.sparse.size', size), record('GNU.sparse.map', map)])),
      tarEntry({ name: 'f', content: 'abcde' }),
      TAR_END,
    ])
  invalid(lie('0,2,1,3', '100'), /overlap/)
  invalid(lie('0,2,98,3', '100'), /overlap|outside/)
  invalid(lie('0,2', '100'), /map says 2/)
  invalid(lie('0,2,9', '100'), /odd/)
  invalid(lie('0,x', '100'), /no number/)
})

test('an archive that is cut short is refused, in a header, a content and between a long name and its entry', () => {
  const archive = tarOf([{ name: 'file', content: 'x'.repeat(600) }])
  for (const length of [1, 511, 513, 1000, 1300]) invalid(archive.subarray(0, length), /cut short/)
  invalid(longName('L', 'x'.repeat(200)), /cut short/)
  assert.equal(readTar(archive.subarray(0, BLOCK + 1024)).length, 1, 'only the end marker is missing: harmless')
})

test('data after the end of the archive is refused, padding is not', () => {
  const archive = tarOf([{ name: 'file' }])
  invalid(Buffer.concat([archive, tarEntry({ name: 'hidden' })]), /goes on after its end/)
  invalid(Buffer.concat([archive.subarray(0, -BLOCK), tarEntry({ name: 'hidden' })]), /goes on after its end/)
  assert.equal(readTar(Buffer.concat([archive, Buffer.alloc(10_240)])).length, 1)
})

test('headers that lie are refused', () => {
  const plain = tarEntry({ name: 'file' })
  const damaged = Buffer.from(plain)
  damaged[0] = 0x7a
  invalid(Buffer.concat([damaged, TAR_END]), /checksum/)
  invalid(Buffer.concat([bend(plain, (header) => header.write('99999999999', 124, 'latin1')), TAR_END]), /size that is no number/)
  invalid(Buffer.concat([bend(plain, (header) => header.fill(0xff, 124, 136)), TAR_END]), /size below zero/)
  invalid(
    Buffer.concat([
      bend(plain, (header) => {
        header.fill(0xff, 124, 136)
        header[124] = 0x80
      }),
      TAR_END,
    ]),
    /beyond every limit/,
  )
  invalid(Buffer.concat([bend(plain, (header) => header.write('Q', 156, 'latin1')), TAR_END]), /type that is not known/)
  invalid(
    Buffer.concat([
      bend(plain, (header) => {
        header.write('x', 156, 'latin1')
        header.write('77777777', 125, 'latin1')
      }),
      TAR_END,
    ]),
    /limit is/,
  )
  invalid(Buffer.concat([pax(record('path', 'a\0b')), plain, TAR_END]), /NUL/)
})

test('PAX records that lie are refused', () => {
  const plain = tarEntry({ name: 'file' })
  for (const text of ['x', '5 a=b\n', '99 a=b\n', '6 a=bc', '4 ab\n', '-6 a=b\n', '00000000000000000000006 a=b\n', '0 =\n', ' a=b\n']) {
    assert.throws(
      () => readTar(Buffer.concat([pax(Buffer.from(text)), plain, TAR_END])),
      (error) => error instanceof AppError && error.code === 'invalid_image',
      JSON.stringify(text),
    )
  }
})

test('whatever bytes come, the reader answers with entries or with invalid_image', () => {
  const seedArchive = Buffer.concat([
    pax(
      Buffer.concat([record('GNU.sparse.map', '0,5'), record('GNU.sparse.size', '50'), record('SCHILY.xattr.user.q', Buffer.from([0xff]))]),
    ),
    tarEntry({ name: 'f', content: 'abcde' }),
    longName('L', 'n'.repeat(200)),
    tarEntry({ name: 'g', kind: 'link', linkName: 'f' }),
    TAR_END,
  ])
  const mutation = fc.record({ at: fc.nat(seedArchive.length - 1), value: fc.nat(255) })
  fc.assert(
    fc.property(
      fc.array(mutation, { minLength: 1, maxLength: 6 }),
      fc.boolean(),
      fc.integer({ min: 1, max: 1024 }),
      (mutations, mend, step) => {
        let bytes = Buffer.from(seedArchive)
        for (const { at, value } of mutations) bytes[at] = value
        if (mend) {
          const first = mutations[0]?.at ?? 0
          const block = first - (first % BLOCK)
          bytes = Buffer.concat([
            bytes.subarray(0, block),
            bend(bytes.subarray(block, block + BLOCK), () => undefined),
            bytes.subarray(block + BLOCK),
          ])
        }
        try {
          readTar(bytes, step)
        } catch (error) {
          assert.ok(error instanceof AppError && error.code === 'invalid_image', String(error))
        }
      },
    ),
    { numRuns: 2000 },
  )
})
