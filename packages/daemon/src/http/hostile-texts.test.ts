/** Texts of callers that are read into something: whatever they are, they are taken or refused in words, and what was taken is taken again. */
import assert from 'node:assert/strict'
import { BlockList, isIPv4 } from 'node:net'
import { test } from 'node:test'
import { AppError, type ErrorCode } from '@dormouse/api/errors.ts'
import fc from 'fast-check'
import { parsePciAddress } from '../devices/pci.ts'
import { formatPlatform, parsePlatform } from '../images/platform.ts'
import { checkName } from '../instances/limits.ts'
import { checkMountPath, checkMountPaths } from '../volumes/mount-path.ts'
import { checkPolicies } from './check-policies.ts'

const anyText = fc.string({ unit: 'binary', maxLength: 40 })
const of = (...parts: string[]) => fc.array(fc.constantFrom(...parts), { maxLength: 7 }).map((found) => found.join(''))

/** How it is read into the form in which it is kept; what it is refused by; texts that are nearly right. */
const READERS: Readonly<Record<string, { read: (text: string) => string; code: ErrorCode; nearly: fc.Arbitrary<string> }>> = {
  'a mount path': {
    read: checkMountPath,
    code: 'invalid_path',
    nearly: of('/', '//', '.', '..', 'data', 'srv', 'proc', 'etc', 'dev', 'lib/modules', '\0', ' ', 'é'),
  },
  'a platform': {
    read: (text) => formatPlatform(parsePlatform(text)),
    code: 'invalid_platform',
    nearly: of('linux', 'windows', '/', 'amd64', 'arm64', 'v8', '.', '\n', 'LINUX'),
  },
  'a PCI address': {
    read: (text) => parsePciAddress(text) ?? refuse('invalid_pci_address'),
    code: 'invalid_pci_address',
    nearly: of('0000', ':', '65', '00', '.', '0', '7', 'FF', '1f', ' ', '\n', '/'),
  },
  'a name': {
    read: (text) => {
      checkName(text)
      return text
    },
    code: 'invalid_name',
    nearly: of('a', '-', '0', 'web', 'A', '.', '_', '\n'),
  },
}

function refuse(code: ErrorCode): never {
  throw new AppError(code, 'It is none')
}

for (const [what, { read, code, nearly }] of Object.entries(READERS)) {
  test(`${what} is taken in one form, and else refused in words`, () => {
    fc.assert(
      fc.property(fc.oneof(nearly, anyText), (text) => {
        let kept: string
        try {
          kept = read(text)
        } catch (error) {
          assert.ok(error instanceof AppError, String(error))
          assert.equal(error.code, code)
          assert.ok(error.message.length < 1000 && error.message.isWellFormed())
          return
        }
        assert.equal(read(kept), kept)
        assert.ok(!/[\0\n]/.test(kept) && !kept.split('/').includes('..'), kept)
      }),
      { numRuns: 1000 },
    )
  })
}

test('of two mount paths none lies within the other, in whatever order they come', () => {
  const path = of('/a', '/b', '/ab', '/data').filter((text) => text !== '')
  const verdict = (paths: string[]): boolean => {
    try {
      checkMountPaths(paths)
      return true
    } catch (error) {
      assert.ok(error instanceof AppError && error.code === 'invalid_path')
      return false
    }
  }
  fc.assert(
    fc.property(path, path, (a, b) => {
      assert.equal(verdict([a, b]), verdict([b, a]))
      assert.equal(verdict([a, b]), `${a}/` !== `${b}/` && !`${a}/`.startsWith(`${b}/`) && !`${b}/`.startsWith(`${a}/`))
    }),
  )
})

test('a network that a policy takes is one that connections can be held against', () => {
  const nearly = of(
    '10.',
    '0',
    '0.0.0',
    '255',
    '256',
    '.',
    '/',
    '/8',
    '/0',
    '/32',
    '/128',
    '/129',
    '/-1',
    'fd00',
    '::',
    'ffff',
    '%eth0',
    ' ',
  )
  fc.assert(
    fc.property(
      fc.oneof(
        nearly,
        fc.tuple(fc.oneof(fc.ipV4(), fc.ipV6()), fc.nat(200)).map(([ip, n]) => `${ip}/${n}`),
        anyText,
      ),
      (text) => {
        try {
          checkPolicies({ auto_standby: { ignore_source_cidrs: [text] } })
        } catch (error) {
          assert.ok(error instanceof AppError && error.code === 'invalid_auto_standby', String(error))
          return
        }
        const [address = '', prefix = ''] = text.split('/')
        const family = isIPv4(address) ? 'ipv4' : 'ipv6'
        const list = new BlockList()
        list.addSubnet(address, Number(prefix), family)
        assert.ok(list.check(address, family), text)
      },
    ),
    { numRuns: 2000 },
  )
})
