import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Paths, SOCKET_PATH_MAX } from './paths.ts'

test('a run directory that is too long for sockets below it is refused with how much too long', () => {
  assert.throws(() => new Paths({ dataDir: '/d', runDir: `/${'r'.repeat(120)}` }), { code: 'invalid_path', message: /is too long/ })
  const paths = new Paths({ dataDir: '/d', runDir: `/${'r'.repeat(70)}` })
  assert.ok(`${paths.vmRunDir('x'.repeat(24))}/0123456789abcdef`.length <= SOCKET_PATH_MAX)
})

test('nothing but a plain name becomes part of a path', () => {
  const paths = new Paths({ dataDir: '/d', runDir: '/r' })
  for (const id of ['', '.', '..', 'a/b', '../x', 'a\0b', '-rf', 'A'.repeat(200), 'a..b']) {
    assert.throws(() => paths.instanceDir(id), { code: 'invalid_path' }, id)
    assert.throws(() => paths.vmRunDir(id), { code: 'invalid_path' }, id)
  }
})

test('a digest of sha512 can be the name of a layer and of a rootfs', () => {
  const paths = new Paths({ dataDir: '/d', runDir: '/r' })
  const digest = `sha512:${'a'.repeat(128)}`
  assert.equal(paths.imageLayer(digest), `/d/images/layers/sha512-${'a'.repeat(128)}`)
  assert.equal(paths.imageRootfs(digest), `/d/images/rootfs/sha512-${'a'.repeat(128)}.squashfs`)
})
