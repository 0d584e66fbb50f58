import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import {
  ACCESSES,
  type Admission,
  admit,
  CAPABILITIES,
  type Capability,
  INSTANCE_STATES,
  type InstanceState,
  isLive,
  isResting,
  OPERATIONS,
  type Operation,
  type Subject,
  TRANSITIONS,
  type Transition,
} from './instance-states.ts'

const all = new Set(CAPABILITIES)
const subject = (state: InstanceState, pending: Transition[] = []): Subject => ({ state, capabilities: all, pending })
const answer = (operation: Operation, state: InstanceState, pending: Transition[] = []) => admit(operation, subject(state, pending)).answer

test('every operation has an answer in every state', () => {
  for (const operation of [...TRANSITIONS, ...ACCESSES]) {
    for (const state of INSTANCE_STATES) {
      const rule = OPERATIONS[operation][state]
      assert.ok(['accepted', 'already', 'denied'].includes(rule.answer), `${operation} in ${state}`)
      if (rule.answer === 'denied') assert.match(rule.reason, /^it is |^its /, `${operation} in ${state}`)
    }
  }
})

test('repeating what is done already is harmless', () => {
  assert.equal(answer('start', 'Running'), 'already')
  assert.equal(answer('start', 'Initializing'), 'already')
  assert.equal(answer('stop', 'Stopped'), 'already')
  assert.equal(answer('standby', 'Standby'), 'already')
  assert.equal(answer('restore', 'Running'), 'already')
})

test('a sleeper that cannot be restored is never a dead end', () => {
  assert.deepEqual(admit('stop', subject('Standby')), { answer: 'accepted', to: 'Stopped' })
})

test('an instance in any state can be deleted, looked at, and have its logs read', () => {
  for (const state of INSTANCE_STATES) {
    for (const operation of ['delete', 'logs', 'stats', 'wait', 'update'] as const)
      assert.equal(answer(operation, state), 'accepted', `${operation} in ${state}`)
  }
})

test('commands and files need a running guest', () => {
  for (const operation of ['exec', 'copy', 'stat'] as const) {
    for (const state of INSTANCE_STATES)
      assert.equal(answer(operation, state), state === 'Running' ? 'accepted' : 'denied', `${operation} in ${state}`)
  }
})

test('no one enters a guest that is yet to wake, nor one that is about to go; a fork or a snapshot keeps no one out', () => {
  for (const operation of ['exec', 'copy', 'stat'] as const) {
    for (const state of ['Standby', 'Paused'] as const) {
      assert.deepEqual(
        admit(operation, subject(state, ['restore'])),
        { answer: 'denied', reason: 'it is not running yet: wait for Running' },
        `${operation} in ${state}`,
      )
    }
    for (const pending of ['standby', 'stop', 'delete'] as const) assert.equal(answer(operation, 'Running', [pending]), 'denied')
    for (const pending of ['fork', 'snapshot'] as const) assert.equal(answer(operation, 'Running', [pending]), 'accepted')
  }
})

test('an instance of unknown state can be stopped and deleted, not started', () => {
  assert.equal(answer('stop', 'Unknown'), 'accepted')
  assert.equal(answer('delete', 'Unknown'), 'accepted')
  assert.equal(answer('start', 'Unknown'), 'denied')
})

test('a start during a stop is accepted behind it, a second stop joins it', () => {
  assert.equal(answer('start', 'Running', ['stop']), 'accepted')
  assert.equal(answer('stop', 'Running', ['stop']), 'already')
})

test('states that are seen inside an operation only are judged by where it leads', () => {
  assert.equal(answer('start', 'Shutdown', ['stop']), 'accepted')
  assert.equal(answer('exec', 'Shutdown', ['stop']), 'denied')
  assert.equal(answer('stop', 'Created', ['start']), 'accepted')
})

test('after a delete nothing is taken but another delete', () => {
  for (const operation of [...TRANSITIONS, ...ACCESSES]) {
    assert.equal(answer(operation, 'Running', ['delete']), operation === 'delete' ? 'already' : 'denied', operation)
  }
})

test('what the driver cannot do is denied by the name of the capability', () => {
  const admission = admit('standby', { state: 'Running', capabilities: new Set() })
  assert.equal(admission.answer, 'denied')
  assert.match((admission as { reason: string }).reason, /no standby/)
})

test('live and resting states are apart', () => {
  for (const state of INSTANCE_STATES) assert.notEqual(isLive(state), isResting(state), state)
})

// A model of the worker: it takes requests by admit(), and finishes them in order.
test('along any sequence of requests, what is accepted can be done when its turn comes', () => {
  const request = fc.constantFrom<Operation | 'finish'>(...TRANSITIONS, ...ACCESSES, 'finish', 'finish')
  const settled = fc.constantFrom<InstanceState>('Running', 'Stopped', 'Standby', 'Initializing', 'Unknown')
  fc.assert(
    fc.property(settled, fc.array(request, { maxLength: 40 }), (begin, requests) => {
      let state = begin
      let pending: { verb: Transition; admission: Admission }[] = []
      let isDeleted = false
      for (const one of requests) {
        if (isDeleted) return
        if (one !== 'finish') {
          const admission = admit(
            one,
            subject(
              state,
              pending.map(({ verb }) => verb),
            ),
          )
          const isTransition = (TRANSITIONS as readonly string[]).includes(one)
          if (admission.answer === 'accepted' && isTransition) pending.push({ verb: one as Transition, admission })
          if (admission.answer === 'denied') assert.ok(admission.reason.length > 0)
          continue
        }
        const [next, ...rest] = pending
        if (!next) continue
        pending = rest
        // Its turn: with nothing before it, it is still accepted in the state that the others have left.
        const now = admit(next.verb, subject(state))
        assert.notEqual(now.answer, 'denied', `${next.verb} in ${state} was accepted and is now denied`)
        if (next.verb === 'delete') isDeleted = true
        else if (now.answer === 'accepted' && now.to !== undefined) state = now.to
      }
    }),
    { numRuns: 2000 },
  )
})

test('no transition is accepted twice in a row', () => {
  for (const verb of ['start', 'stop', 'standby', 'restore', 'delete'] as const) {
    for (const state of INSTANCE_STATES) {
      if (answer(verb, state) === 'accepted') assert.equal(answer(verb, state, [verb]), 'already', `${verb} in ${state}`)
    }
  }
})

test('a volume comes and goes at rest, or at once where the driver can; a sleeper keeps what it has', () => {
  for (const operation of ['attach_volume', 'detach_volume'] as const) {
    const answer = (state: InstanceState, ...capabilities: Capability[]) => admit(operation, { state, capabilities: new Set(capabilities) })
    assert.equal(answer('Stopped').answer, 'accepted')
    assert.equal(answer('Running', 'disk_hotplug').answer, 'accepted')
    assert.deepEqual(answer('Running'), { answer: 'denied', reason: 'its hypervisor cannot do this (no disk_hotplug)' })
    for (const state of ['Standby', 'Initializing', 'Created', 'Unknown'] as const)
      assert.equal(answer(state, 'disk_hotplug').answer, 'denied', state)
  }
})

test('with a device of the host inside, memory is neither kept nor copied; all else is as ever', () => {
  const capabilities: ReadonlySet<Capability> = new Set(CAPABILITIES)
  for (const operation of Object.keys(OPERATIONS) as Operation[]) {
    for (const state of INSTANCE_STATES) {
      const [plain, held] = [false, true].map((holdsDevice) => admit(operation, { state, capabilities, holdsDevice }))
      const needs = plain?.answer === 'accepted' ? plain.needs : undefined
      if (needs === 'standby' || needs === 'fork' || needs === 'snapshots') assert.match(JSON.stringify(held), /denied.*device of the host/)
      else assert.deepEqual(held, plain)
    }
  }
})

test('no one enters a guest that was made with skip_guest_agent, in any state; all else is as ever', () => {
  for (const operation of Object.keys(OPERATIONS) as Operation[]) {
    for (const state of INSTANCE_STATES) {
      const [plain, closed] = [false, true].map((skipsGuestAgent) => admit(operation, { ...subject(state), skipsGuestAgent }))
      if (operation === 'exec' || operation === 'copy' || operation === 'stat') {
        assert.match(JSON.stringify(closed), /denied.*it was made with skip_guest_agent/, `${operation} in ${state}`)
      } else assert.deepEqual(closed, plain, `${operation} in ${state}`)
    }
  }
  assert.match(JSON.stringify(admit('exec', { ...subject('Running', ['delete']), skipsGuestAgent: true })), /it is being deleted/)
})
