import assert from 'node:assert/strict'
import { test } from 'node:test'
import { INSTANCE_STATES } from '@dormouse/api/instance-states.ts'
import fc from 'fast-check'
import type { OperationName } from '../store/instance-record.ts'
import { type Facts, type Recovery, recover, type VmFact } from './recovery.ts'

const VM_FACTS: readonly VmFact[] = ['none', 'running', 'ended', 'unclear']
const facts = (vm: VmFact, hasDisk = true): Facts => ({ vm, hasDisk })

const CUT_SHORT: readonly [OperationName, Recovery['action']][] = [
  ['create', 'undo_create'],
  ['start', 'undo_start'],
  ['stop', 'finish_stop'],
  ['delete', 'finish_delete'],
  ['update', 'finish_update'],
]
for (const [operation, action] of CUT_SHORT) {
  test(`a ${operation} that was cut short is answered by ${action}, whatever the facts`, () => {
    for (const state of INSTANCE_STATES) {
      for (const vm of VM_FACTS) {
        for (const hasDisk of [true, false]) assert.equal(recover({ state, operation }, facts(vm, hasDisk)).action, action)
      }
    }
  })
}

test('a VM that runs is adopted, whatever was on record', () => {
  for (const state of INSTANCE_STATES) assert.equal(recover({ state }, facts('running')).action, 'adopt')
})

test('a VM that is gone leaves a Stopped instance that says how it ended', () => {
  for (const state of INSTANCE_STATES) assert.equal(recover({ state }, facts('ended')).action, 'settle_ended')
})

test('a VM that could not be looked at makes the instance Unknown, with the reason', () => {
  const recovery = recover({ state: 'Running' }, { vm: 'unclear', hasDisk: true, why: 'the shim is silent' })
  assert.deepEqual(recovery, { action: 'mark_unknown', why: 'the shim is silent' })
})

test('an instance without its disk is Unknown, never hidden; one that runs all the same is adopted', () => {
  assert.deepEqual(recover({ state: 'Stopped' }, facts('none', false)), { action: 'mark_unknown', why: 'its disk is missing' })
  assert.equal(recover({ state: 'Running' }, facts('ended', false)).action, 'mark_unknown')
  assert.equal(recover({ state: 'Running' }, facts('running', false)).action, 'adopt')
})

test('an instance at rest is left alone', () => {
  assert.equal(recover({ state: 'Stopped' }, facts('none')).action, 'rest')
  assert.equal(recover({ state: 'Standby' }, { ...facts('none'), hasSleep: true }).action, 'rest')
})

test('one at rest whose devices the host has not back gives them back; one that is settled or adopted does so on its way', () => {
  const left = { ...facts('none'), holdsDevices: true }
  assert.equal(recover({ state: 'Stopped' }, left).action, 'give_back_devices')
  assert.equal(recover({ state: 'Running' }, left).action, 'settle_ended')
  assert.equal(recover({ state: 'Created', operation: 'start' }, left).action, 'undo_start')
})

test('a restore behind its commit point is finished while its VM runs; else its memory is lost and its disk is not', () => {
  for (const state of ['Paused', 'Unknown'] as const) {
    assert.equal(recover({ state, operation: 'restore' }, facts('running')).action, 'finish_restore')
    assert.equal(recover({ state, operation: 'restore' }, facts('ended')).action, 'settle_ended')
    assert.equal(recover({ state, operation: 'restore' }, facts('unclear')).action, 'mark_unknown')
    assert.equal(recover({ state, operation: 'restore' }, facts('ended', false)).action, 'mark_unknown')
  }
})

test('a sleeping state that is there is never given up, whatever its instance was taken for', () => {
  for (const state of INSTANCE_STATES) {
    const { action } = recover({ state }, { ...facts('none'), hasSleep: true })
    assert.equal(action, state === 'Standby' ? 'rest' : 'settle_asleep')
  }
})

test('a sleeper without its sleeping state is Unknown, with the reason', () => {
  for (const state of ['Standby', 'Unknown'] as const) {
    const recovery = recover({ state }, { ...facts('none'), hasSleep: false })
    assert.deepEqual(recovery, { action: 'mark_unknown', why: 'its sleeping state is missing' })
  }
})

test('an instance that was live and has no VM on record is settled', () => {
  for (const state of ['Created', 'Initializing', 'Running', 'Paused', 'Shutdown', 'Unknown'] as const) {
    assert.equal(recover({ state }, facts('none')).action, 'settle_ended')
  }
})

test('no VM that runs is ever ended for an instance that nothing was being done to', () => {
  const any = fc.record({ state: fc.constantFrom(...INSTANCE_STATES), hasDisk: fc.boolean() })
  fc.assert(fc.property(any, ({ state, hasDisk }) => recover({ state }, facts('running', hasDisk)).action === 'adopt'))
})
