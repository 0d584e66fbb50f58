import assert from 'node:assert/strict'
import { test } from 'node:test'
import { AppError } from '@dormouse/api/errors.ts'
import { leadToLog } from './start.ts'

test('a start that the VMM refused leads to the log that it left, by the instance’s name', () => {
  const cause = new Error('broken pipe')
  const led = leadToLog(new AppError('internal_error', 'QEMU did not start the VM: no', { detail: { vmm_log: 'no' }, cause }), 'web')
  assert.ok(led instanceof AppError)
  assert.equal(led.hint, "The VMM's log says more: dormouse logs --source vmm web")
  assert.deepEqual([led.code, led.detail, led.cause], ['internal_error', { vmm_log: 'no' }, cause])
})

test('any other failure of a start stays as it is', () => {
  for (const error of [new AppError('port_in_use', 'taken', { hint: 'another' }), new Error('plain')])
    assert.equal(leadToLog(error, 'web'), error)
})
