import assert from 'node:assert/strict'
import { test } from 'node:test'
import { AppError } from '@dormouse/api/errors.ts'
import { CreateInstanceRequest, UpdateInstanceRequest } from '@dormouse/api/instances.ts'
import fc from 'fast-check'
import { checkInput } from './check-input.ts'

const good = { name: 'web', image: 'alpine' }

function messageOf(value: unknown, schema: Parameters<typeof checkInput>[0] = CreateInstanceRequest): string {
  try {
    checkInput(schema, value, 'The body')
  } catch (error) {
    assert.ok(error instanceof AppError)
    assert.equal(error.code, 'invalid_request')
    return error.message
  }
  return ''
}

test('a good request passes', () => {
  assert.equal(messageOf(good), '')
  assert.equal(messageOf({ ...good, network: { ports: [{ host_port: 0, guest_port: 80 }] }, tags: { 'a b': '' }, env: { A: '' } }), '')
})

test('each kind of mistake is told in words, with the field', () => {
  assert.equal(messageOf({ name: 'web' }), '`image` is missing')
  assert.equal(messageOf({}), '`name`, `image` is missing')
  assert.equal(messageOf([]), 'The body must be an object')
  assert.match(messageOf({ ...good, imgae: 'x' }), /^The body has no field `imgae`: it takes name, image, /)
  assert.equal(messageOf({ ...good, vcpus: '2' }), '`vcpus` must be a whole number')
  assert.equal(messageOf({ ...good, vcpus: 1.5 }), '`vcpus` must be a whole number')
  assert.equal(messageOf({ ...good, vcpus: 0 }), '`vcpus` must be at least 1')
  assert.equal(
    messageOf({ ...good, hypervisor: 'xen' }),
    '`hypervisor` must be one of cloud-hypervisor, firecracker, qemu, qemu-microvm, vz, fake',
  )
  assert.equal(
    messageOf({ ...good, name: 'Web!' }),
    '`name` does not fit: Lower-case letters, digits and dashes, at most 63, no dash at either end',
  )
  assert.equal(messageOf({ ...good, image: '' }), '`image` must not be empty')
  assert.equal(messageOf({ ...good, expires_at: 'tomorrow' }), '`expires_at` must be a time such as 2026-01-31T12:00:00Z')
  assert.equal(
    messageOf({ ...good, network: { ports: [{ host_port: 1, guest_port: 70000 }] } }),
    '`network.ports[0].guest_port` must be at most 65535',
  )
  assert.match(messageOf({ ...good, tags: { 'a\n': 'x' } }), /^`tags\.a\\n` cannot be a key here: Up to 50/)
  assert.match(messageOf({ ...good, env: { 'A=B': 'x' } }), /^`env\.A=B` cannot be a key here: .*no =/)
  assert.equal(messageOf({}, UpdateInstanceRequest), 'The body must hold at least one field')
})

test('a null byte never gets through to a guest', () => {
  assert.notEqual(messageOf({ ...good, cmd: ['a\0b'] }), '')
  assert.notEqual(messageOf({ ...good, env: { A: 'x\0' } }), '')
  assert.notEqual(messageOf({ ...good, env: { 'A\0': 'x' } }), '')
})

test('prototype tricks are fields like any other, and refused', () => {
  assert.match(messageOf(JSON.parse('{"name":"web","image":"a","__proto__":{"x":1}}')), /no field `__proto__`/)
  assert.match(messageOf({ ...good, constructor: 1 }), /no field `constructor`/)
})

test('a made-up field name is shown short and without control characters', () => {
  const message = messageOf({ ...good, [`\u001b[31m${'x'.repeat(500)}`]: 1 })
  assert.doesNotMatch(message, /[^ -~…]/)
  assert.ok(message.length < 600)
})

test('no value makes the check throw anything but invalid_request', () => {
  fc.assert(fc.property(fc.anything(), (value) => void messageOf(value)))
  fc.assert(
    fc.property(
      fc.record({ name: fc.anything(), image: fc.anything(), network: fc.anything(), env: fc.anything(), tags: fc.object() }),
      (value) => void messageOf(value),
    ),
  )
})

test('a request with more values than any has use for is refused before each of them is looked at', () => {
  assert.throws(() => checkInput(CreateInstanceRequest, { ...good, cmd: new Array(2_000_000).fill(1) }, 'The body'), {
    code: 'invalid_request',
    message: 'The body holds more than 10000 values',
  })
  checkInput(CreateInstanceRequest, { ...good, cmd: new Array(4_000).fill('x') }, 'The body')
})
