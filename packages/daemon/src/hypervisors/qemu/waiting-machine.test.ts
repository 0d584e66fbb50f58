import assert from 'node:assert/strict'
import { existsSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { setImmediate } from 'node:timers/promises'
import { AppError } from '@dormouse/api/errors.ts'
import { silentLogger } from '../../log.ts'
import type { VmHandle } from '../hypervisor.ts'
import type { Shim } from '../shim.ts'
import type { VmSpec } from '../vm-spec.ts'
import { RehearsedMachine } from './rehearsed-machine.ts'

test('a VM that cannot become an instance’s says so once, whatever fails first, and leaves its place', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'dm-'))
  t.after(() => rmSync(dir, { recursive: true }))
  const runDir = join(dir, 'pool/one')
  mkdirSync(runDir, { recursive: true })
  let at = runDir
  const shim = {
    ended: new Promise(() => undefined),
    get runDir() {
      return at
    },
    moved: (to: string) => {
      at = to
    },
    claim: () => Promise.reject(new AppError('internal_error', 'no log can be opened')),
    // It is still on its way when that is known, and then fails as well.
    give: async () => {
      await setImmediate()
      await setImmediate()
      throw new AppError('internal_error', 'no disk can be opened')
    },
    kill: async () => undefined,
    [Symbol.dispose]: () => undefined,
  } as unknown as Shim
  const machine = new RehearsedMachine(shim, { runDir } as VmHandle, { files: [], blockDevice: (role) => role })
  const spec = {
    runDir: join(dir, 'vm/a'),
    disks: [{ role: 'rootfs', path: '/image', format: 'raw', readOnly: true }],
    logs: { app: 'a', vmm: 'v', journal: 'j', maxBytes: 1 },
  } as unknown as VmSpec
  const step = { signal: AbortSignal.timeout(60_000), log: silentLogger }
  // A rejection that no one handles ends the daemon, and this test.
  await assert.rejects(machine.become(spec, step), { message: 'no log can be opened' })
  await setImmediate()
  await machine.end()
  assert.deepEqual([existsSync(runDir), existsSync(spec.runDir)], [false, false])
})
