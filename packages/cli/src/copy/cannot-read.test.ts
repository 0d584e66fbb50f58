import assert from 'node:assert/strict'
import test from 'node:test'
import { cannotRead } from './cannot-read.ts'

const absent = Object.assign(new Error('ENOENT: no such file or directory, stat'), { code: 'ENOENT' })

test('a path that is not there is told with what to give instead, also where it is written as other programs have it', () => {
  const plain = cannotRead('image.tar', absent)
  assert.deepEqual([plain.message, plain.exitCode, plain.code], ['Cannot read image.tar: it is not there', 3, 'path_not_found'])
  assert.match(plain.hint ?? '', /of this machine/)
  assert.match(cannotRead('oci:layout:latest', absent).hint ?? '', /dormouse image import layout NAME/)
  assert.match(cannotRead('docker-archive:/tmp/a.tar:app:1', absent).hint ?? '', /import \/tmp\/a\.tar NAME/)
  assert.match(cannotRead('dir:/tmp/a', absent).hint ?? '', /OCI layout/)
  const denied = cannotRead('a', Object.assign(new Error('EACCES: permission denied'), { code: 'EACCES' }))
  assert.deepEqual([denied.exitCode, denied.message], [1, 'Cannot read a: EACCES: permission denied'])
})
