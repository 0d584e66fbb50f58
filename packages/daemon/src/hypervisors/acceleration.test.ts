import assert from 'node:assert/strict'
import { chmod, chown, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { pino } from 'pino'
import { type AccelerationUses, decideAcceleration } from './acceleration.ts'

let dir: string
before(async () => {
  dir = await mkdtemp(path.join(os.tmpdir(), 'kvm-'))
})
after(() => rm(dir, { recursive: true, force: true }))

const step = { signal: AbortSignal.timeout(600_000), log: pino({ level: 'silent' }) }
let count = 0

/** A device file of our own, and a count of the boots that were tried. */
async function host(tryBoot: () => Promise<void>, changes: Partial<AccelerationUses> = {}): Promise<AccelerationUses & { tries: number }> {
  const device = path.join(dir, `kvm${count++}`)
  await writeFile(device, '', { mode: 0o666 })
  await chmod(device, 0o666)
  const uses = {
    device,
    file: `${device}.json`,
    facts: { kernel: '6.1', version: '7.2' },
    limitMs: 20_000,
    tries: 0,
    tryBoot: async () => {
      uses.tries++
      await tryBoot()
    },
    ...changes,
  }
  return uses
}

test('a host without KVM says so', async () => {
  const answer = await decideAcceleration(await host(async () => undefined, { device: path.join(dir, 'absent') }), step)
  assert.deepEqual(answer, { kind: 'tcg', groups: [], reason: 'This host has no KVM' })
})

test('KVM is used once a guest has booted with it, and that is not tried twice', async () => {
  const uses = await host(async () => undefined)
  assert.equal((await decideAcceleration(uses, step)).kind, 'kvm')
  assert.equal((await decideAcceleration(uses, step)).kind, 'kvm')
  assert.equal(uses.tries, 1)
})

test('a guest that does not boot means TCG, with the reason, and that is kept once it has failed three times', async () => {
  const uses = await host(async () => {
    throw new Error('it went into the woods\nand more')
  })
  const answer = await decideAcceleration(uses, step)
  assert.deepEqual(answer, { kind: 'tcg', groups: [], reason: 'KVM is there, but no guest boots with it (it went into the woods)' })
  for (const tries of [2, 3, 3, 3]) {
    assert.deepEqual(await decideAcceleration(uses, step), answer)
    assert.equal(uses.tries, tries)
  }
})

test('a host that was too busy once for a KVM that works is found out', async () => {
  let isBusy = true
  const uses = await host(async () => {
    if (isBusy) throw new Error('too slow')
  })
  assert.equal((await decideAcceleration(uses, step)).kind, 'tcg')
  isBusy = false
  for (let asked = 0; asked < 2; asked++) assert.equal((await decideAcceleration(uses, step)).kind, 'kvm')
  assert.equal(uses.tries, 2)
})

test('another kernel or VMM is tried again, and so is an answer that cannot be read', async () => {
  const uses = await host(async () => undefined)
  await decideAcceleration(uses, step)
  await decideAcceleration({ ...uses, tryBoot: uses.tryBoot, facts: { ...uses.facts, kernel: '6.2' } }, step)
  assert.equal(uses.tries, 2)
  await writeFile(uses.file, '{"facts":')
  await decideAcceleration(uses, step)
  assert.equal(uses.tries, 3)
})

test('a caller who gives up teaches nothing about KVM', async () => {
  const cancel = new AbortController()
  const uses = await host(async () => {
    cancel.abort(new Error('cancelled'))
    throw new Error('cancelled')
  })
  await decideAcceleration(uses, { ...step, signal: cancel.signal })
  await assert.rejects(readFile(uses.file), { code: 'ENOENT' })
})

test('a device for a group is lent by that group, one for root alone is not lent', async (t) => {
  if (process.geteuid?.() !== 0) return t.skip('only root can give a file to a group')
  const uses = await host(async () => undefined, { user: { uid: 12345, gid: 12345 } })
  await chown(uses.device, 0, 4321)
  await chmod(uses.device, 0o660)
  assert.deepEqual((await decideAcceleration(uses, step)).groups, [4321])
  await chown(uses.device, 0, 0)
  const answer = await decideAcceleration(uses, step)
  assert.match(answer.reason ?? '', /is for root alone/)
})
