/** What this very host's /dev/kvm is worth, found out for real: some open, make machines, and never run a stock kernel. */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { agentManners } from '../harness/guest-manners.ts'
import { makeStep, qemuUnderTest } from '../harness/qemu-driver.ts'
import { kvmProbeLimitMs } from '../harness/slow-host.ts'

test('the probe finds out within its limit what KVM is worth, says why, and leaves nothing', async (t) => {
  // As root, so that a device for root alone is tried as well.
  await using driver = await qemuUnderTest('qemu', agentManners, { goldenUser: undefined })
  const begun = performance.now()
  const probe = await driver.hypervisor.probe(makeStep())
  const ms = performance.now() - begun
  t.diagnostic(`${probe.acceleration} after ${Math.round(ms)} ms: ${probe.reason ?? 'KVM works'}`)
  assert.ok(ms < (kvmProbeLimitMs ?? 20_000) + 10_000)
  assert.equal(probe.available, true)
  if (probe.acceleration === 'tcg') assert.ok((probe.reason ?? '').length > 10)
  assert.deepEqual(await readdir(join(driver.dir, 'work')).catch(() => []), [])
  for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
    assert.ok(!(await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')).includes(driver.dir), `process ${pid} is left`)
  }
  if (!existsSync('/dev/kvm')) return
  const kept = JSON.parse(await readFile(join(driver.dir, 'kvm.json'), 'utf8'))
  assert.equal(kept.answer === 'works', probe.acceleration === 'kvm')
})

test('what was found out is not tried again by the next daemon', async () => {
  await using first = await qemuUnderTest('qemu', agentManners)
  const probe = await first.hypervisor.probe(makeStep())
  await using second = await qemuUnderTest('qemu-microvm', agentManners, { probeFile: join(first.dir, 'kvm.json') })
  assert.deepEqual(await second.hypervisor.probe(makeStep()), probe)
})
