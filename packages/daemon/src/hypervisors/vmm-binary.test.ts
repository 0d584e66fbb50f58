import assert from 'node:assert/strict'
import { chmod, mkdtemp, rename, rm, writeFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { pino } from 'pino'
import { findVmmBinary, isStill, type KnownVmm, versionIn, type WhereToLook } from './vmm-binary.ts'

let dir: string
before(async () => {
  dir = await mkdtemp(path.join(os.tmpdir(), 'vmm-binary-'))
})
after(() => rm(dir, { recursive: true, force: true }))

const VMM: KnownVmm = {
  title: 'Test VMM',
  program: 'dormouse-no-such-vmm',
  setting: 'DORMOUSE_TEST_VMM',
  home: 'https://vmm.example/releases',
  versions: ['53', '1.12'],
}
const step = () => ({ signal: AbortSignal.timeout(20_000), log: pino({ level: 'silent' }) })

async function saying(name: string, words: string): Promise<string> {
  const file = path.join(dir, name)
  await writeFile(file, `#!/bin/sh\necho '${words}'\n`)
  await chmod(file, 0o755)
  return file
}

test('a version is read as VMMs say it', () => {
  assert.equal(versionIn('cloud-hypervisor v53.0.0\n'), '53.0.0')
  assert.equal(versionIn('cloud-hypervisor v53.0-12-gabcdef'), '53.0-12-gabcdef')
  assert.equal(versionIn('Firecracker v1.12.1\n\nSupported snapshot data format versions: v6.0.0\n'), '1.12.1')
  assert.equal(versionIn('no version'), undefined)
})

test('one that is named, or in the path, is found, and its version said', async () => {
  const file = await saying('good', 'Test VMM v53.0.0')
  const found = async (where: WhereToLook) => {
    const { stamp: _, ...binary } = await findVmmBinary(VMM, where, step())
    return binary
  }
  for (const named of [file, path.relative('', file)])
    assert.deepEqual(await found({ file: named, searchPath: '' }), { file, version: '53.0.0' })
  const inPath = await saying(VMM.program, 'Test VMM v1.12.3')
  assert.deepEqual(await found({ file: undefined, searchPath: `relative:/nowhere:${dir}` }), { file: inPath, version: '1.12.3' })
})

test('one that is exchanged, or gone, is another', async () => {
  const file = await saying('upgraded', 'Test VMM v53.0.0')
  const binary = await findVmmBinary(VMM, { file, searchPath: '' }, step())
  assert.equal(await isStill(binary), true)
  await rename(await saying('newer', 'Test VMM v53.1.0'), file)
  assert.equal(await isStill(binary), false)
  assert.equal((await findVmmBinary(VMM, { file, searchPath: '' }, step())).version, '53.1.0')
  await rm(file)
  assert.equal(await isStill(binary), false)
})

test('one that is absent, of another version or no program is told with where to get it', async () => {
  const rejected = async (file: string | undefined, message: RegExp): Promise<void> =>
    assert.rejects(findVmmBinary(VMM, { file, searchPath: '/nowhere' }, step()), (error: Error & { code?: string; hint?: string }) => {
      assert.equal(error.code, 'dependency_missing')
      assert.match(error.message, message)
      assert.match(error.hint ?? '', /vmm\.example/)
      return true
    })
  await rejected(undefined, /not installed/)
  await rejected(path.join(dir, 'absent'), /is not at/)
  await rejected(dir, /is not at/)
  await rejected(await saying('old', 'Test VMM v5.3.0'), /5\.3\.0 .* not a version that is supported/)
  await rejected(await saying('between', 'Test VMM v53.0-12-gabcdef-dirty'), /53\.0-12-gabcdef-dirty .* is not a release/)
  await rejected(await saying('mute', 'hello'), /does not say/)
})
