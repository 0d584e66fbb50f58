import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parseMount } from './mounts.ts'

test('a volume is mounted for writing, for reading, or below an overlay', () => {
  const mount = { volume_id: 'data', mount_path: '/srv/data' }
  assert.deepEqual(parseMount('data:/srv/data'), mount)
  assert.deepEqual(parseMount('data:/srv/data:rw'), mount)
  assert.deepEqual(parseMount('data:/srv/data:ro'), { ...mount, readonly: true })
  const over = { ...mount, readonly: true, overlay: true, overlay_size: '2g' }
  assert.deepEqual(parseMount('data:/srv/data:overlay=2g'), over)
  assert.deepEqual(parseMount('data:/srv/data:ro:overlay=2g'), over)
})

test('what is no mount says how one is written', () => {
  for (const spec of ['', 'data', ':/data', 'data:srv', '/home:/data', './x:/data', 'data:/data:z', 'data:/data:overlay=much']) {
    assert.throws(() => parseMount(spec), /Cannot mount|is not a size/, spec)
  }
})
