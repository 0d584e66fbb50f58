import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { buffer } from 'node:stream/consumers'
import test from 'node:test'
import { packedSize, packTree } from './pack-tree.ts'
import { tarEnd, tarHeader, tarPadding } from './tar.ts'

test('the system tar unpacks what is packed, byte for byte', async (t) => {
  const dir = await mkdtemp(join(tmpdir(), 'dm-'))
  t.after(() => rm(dir, { recursive: true }))
  const deep = join('blobs', 'x'.repeat(90), 'y'.repeat(90))
  await mkdir(join(dir, 'in', deep), { recursive: true })
  await mkdir(join(dir, 'out'))
  const files: Record<string, string> = {
    'index.json': '{}',
    empty: '',
    [join(deep, 'ünïcode')]: 'z'.repeat(1000),
    'blobs/block': 'b'.repeat(512),
  }
  for (const [name, text] of Object.entries(files)) await writeFile(join(dir, 'in', name), text)

  const packed = await buffer(packTree(join(dir, 'in')))
  execFileSync('tar', ['-x', '-C', join(dir, 'out')], { input: packed })
  for (const [name, text] of Object.entries(files)) assert.equal(await readFile(join(dir, 'out', name), 'utf8'), text, name)
  assert.ok(Math.abs(packed.length - (await packedSize(join(dir, 'in')))) <= 4096)
})

test('long link targets and sizes beyond eight gigabytes have their records', () => {
  const target = `/${'t'.repeat(150)}`
  const link = tarHeader({ path: 'l', kind: 'link', mode: 0o777, size: 0, mtimeSeconds: 0, linkTarget: target })
  const listed = execFileSync('tar', ['-tv'], { input: Buffer.concat([link, tarEnd()]) }).toString()
  assert.match(listed, new RegExp(`l -> ${target}`))
  const huge = tarHeader({ path: 'h', kind: 'file', mode: 0o644, size: 9 * 1024 ** 3, mtimeSeconds: 0 })
  assert.match(huge.toString('latin1'), /19 size=9663676416\n/)
  assert.equal(tarPadding(512).length, 0)
  assert.equal(tarPadding(513).length, 511)
})
