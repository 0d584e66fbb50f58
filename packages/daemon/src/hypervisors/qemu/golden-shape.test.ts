import assert from 'node:assert/strict'
import { test } from 'node:test'
import { unfitness } from './golden-shape.ts'

const facts = { vmm: '7.2.22', kernel: 'abc', board: 'microvm', acceleration: 'tcg', cpu: 'max', vcpus: 1, tscMhz: 2899 }

test('a state fits the machine that it was taken on, and says what has changed where it does not', () => {
  assert.equal(unfitness(facts, { ...facts }), undefined)
  assert.match(unfitness(facts, { ...facts, vmm: '8.0' }) ?? '', /by QEMU 7\.2\.22, this is QEMU 8\.0/)
  assert.match(unfitness(facts, { ...facts, vcpus: 2 }) ?? '', /had 1 processors, the instance has 2/)
  assert.match(unfitness(facts, { ...facts, tscMhz: 3100 }) ?? '', /counts 2899 MHz, this one counts 3100/)
  assert.match(unfitness(facts, { ...facts, more: 1 }) ?? '', /has changed since then \(more\)/)
  const { tscMhz: _, ...kvm } = facts
  assert.match(unfitness(facts, kvm) ?? '', /counts 2899 MHz, this one counts undefined/)
})

test('what slept with frames that the kernel carried goes on without, and not the other way round', () => {
  assert.equal(unfitness({ ...facts, vhost: 1 }, facts), undefined)
  assert.match(unfitness(facts, { ...facts, vhost: 1 }) ?? '', /carried by QEMU/)
})

test('a clock that lies between two whole MHz is the same clock when it is measured again', () => {
  assert.equal(unfitness(facts, { ...facts, tscMhz: 2900 }), undefined)
  assert.equal(unfitness(facts, { ...facts, tscMhz: 2898 }), undefined)
})
