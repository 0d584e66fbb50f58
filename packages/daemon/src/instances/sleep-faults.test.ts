/** What fails in the middle of standby, restore, fork and snapshots, row by row: the failure table of docs/lifecycle.md. */
import assert from 'node:assert/strict'
import { existsSync, readdirSync, renameSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { pollUntil } from '../host/poll-until.ts'
import type { FaultPoint } from '../hypervisors/fake/fake.ts'
import type { FakeMachine } from '../hypervisors/fake/fake-host.ts'
import type { Instance } from './instance.ts'
import { assertInOrder, settled, TEST_OVERLAY, TestHouse } from './test-house.ts'

/** Lets something fail, until it is disposed of. */
type Inject = (house: TestHouse) => Disposable

async function running({ instances }: TestHouse): Promise<Instance> {
  const { id } = await instances.create({ name: 'a', image: 'test', overlayBytes: TEST_OVERLAY })
  await instances.wait(id, { state: 'Running', timeoutMs: 60_000 })
  return instances.get(id)
}

/** A record that cannot be written: what a row that becomes so meets. */
function refuseRows(house: TestHouse, when: string, of = 'UPDATE ON instances'): Disposable {
  house.db.prepare(`CREATE TRIGGER injected BEFORE ${of} WHEN ${when} BEGIN SELECT RAISE(ABORT, 'injected'); END`).run()
  return { [Symbol.dispose]: () => void house.db.prepare('DROP TRIGGER injected').run() }
}

function machineOf(house: TestHouse, { id }: Pick<Instance, 'id'>): FakeMachine {
  const machine = house.host.running().find(({ spec }) => spec.id === id)
  assert.ok(machine, `no VM runs for ${id}`)
  return machine
}

/** The guest answers no one, neither on the line that is open nor on another. */
function fallSilent(house: TestHouse, machine: FakeMachine): void {
  house.host.muteGuests = true
  machine.hangUp()
}

function speakAgain(house: TestHouse, machine: FakeMachine): void {
  house.host.muteGuests = false
  machine.hangUp()
}

/** It is as it was, and can do what it could. */
async function assertSleepsWell(house: TestHouse, { id }: Pick<Instance, 'id'>, counter: number): Promise<void> {
  const { instances } = house
  if (instances.get(id).state === 'Running') await instances.standby(id)
  assert.equal((await instances.restore(id)).state, 'Running')
  assert.equal(machineOf(house, { id }).guest.counter, counter)
  await assertInOrder(house)
}

const BEFORE_STANDBY_COMMITS: readonly [string, Inject][] = [
  ['the pause fails', (house) => house.host.injectFault('pause')],
  ['the capture fails', (house) => house.host.injectFault('capture')],
  ['the files cannot be stored', (house) => house.host.injectFault('store')],
  ['the record cannot be written', (house) => refuseRows(house, "NEW.state = 'Standby'")],
]
for (const [what, inject] of BEFORE_STANDBY_COMMITS) {
  test(`a standby of which ${what} leaves the VM running as it was, and another succeeds`, async () => {
    await using house = new TestHouse()
    const instances = await house.begin()
    const { id } = await running(house)
    const machine = machineOf(house, { id })
    machine.guest.counter = 5
    {
      using _fault = inject(house)
      await assert.rejects(instances.standby(id), { code: 'internal_error' })
    }
    assert.deepEqual([instances.get(id).state, instances.get(id).sleep], ['Running', undefined])
    assert.equal(machineOf(house, { id }), machine)
    await assertInOrder(house)
    await assertSleepsWell(house, { id }, 5)
  })
}

test('a standby that hangs is cut short at the end of the daemon, and the VM runs on', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house)
  house.host.injectFault('store', 'hang')
  const asleep = assert.rejects(instances.standby(id), { code: 'shutting_down' })
  await house.end(50)
  await asleep
  await house.begin()
  await settled(house.instances)
  assert.equal(house.instances.get(id).state, 'Running')
  await assertInOrder(house)
})

test('a guest that hangs is put to sleep all the same, cannot be copied then, and wakes when it can', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house)
  fallSilent(house, machineOf(house, { id }))
  assert.equal((await instances.standby(id)).state, 'Standby')
  house.host.muteGuests = false
  // A copy of it would run on as the source before it could be told another name.
  await assert.rejects(instances.fork(id, { name: 'b', target: 'Running' }), { code: 'guest_unavailable' })
  await assert.rejects(instances.snapshot(id, { kind: 'Standby', tags: {}, isScheduled: false }), { code: 'guest_unavailable' })
  await assertInOrder(house)
  assert.equal((await instances.restore(id)).state, 'Running')
  await instances.fork(id, { name: 'b', fromRunning: true })
  await assertInOrder(house)
})

test('a workload of which a part hangs in the kernel is put to sleep with it', async () => {
  await using house = new TestHouse()
  await house.begin()
  const { id } = await running(house)
  machineOf(house, { id }).guest.hasStuckProcess = true
  await assertSleepsWell(house, { id }, 0)
})

test('a workload that could not be thawed when its standby failed is thawed as soon as its guest answers', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house)
  const machine = machineOf(house, { id })
  house.host.injectFault('store', 'hang')
  const failing = assert.rejects(instances.standby(id))
  await pollUntil('the guest to be frozen', () => machine.guest.isFrozen && machine.isPaused, { signal: AbortSignal.timeout(60_000) })
  fallSilent(house, machine)
  await house.end(0)
  await failing
  assert.equal(machine.isPaused, false)
  speakAgain(house, machine)
  await house.begin()
  await assertInOrder(house)
})

test('a VM that a failed standby cannot resume is tried again, then Unknown with the reason, and a restart or a stop leads out', async () => {
  for (const [times, wayOut] of [
    [1, undefined],
    [2, 'stop'],
    [2, 'restart'],
  ] as const) {
    await using house = new TestHouse()
    const instances = await house.begin()
    const { id } = await running(house)
    house.host.injectFault('capture')
    house.host.injectFault('resume', 'fail', { times })
    await assert.rejects(instances.standby(id))
    assert.equal(instances.get(id).state, times === 1 ? 'Running' : 'Unknown')
    if (times > 1) assert.match(instances.get(id).stateError ?? '', /stands still and could not be resumed/)
    if (wayOut === 'stop') await instances.stop(id)
    if (wayOut === 'restart') {
      await house.end()
      await house.begin()
      await house.instances.wait(id, { state: 'Running', timeoutMs: 60_000 })
    }
    assert.equal(house.instances.get(id).state, wayOut === 'stop' ? 'Stopped' : 'Running')
    await assertInOrder(house)
  }
})

test('a VM that dies while it is put to sleep leaves it Stopped, its end explained', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house)
  house.host.injectFault('capture', 'hang')
  const failing = assert.rejects(instances.standby(id))
  const machine = machineOf(house, { id })
  await pollUntil('the VM to be paused', () => machine.isPaused, { signal: AbortSignal.timeout(60_000) })
  house.host.injectFault('resume', 'fail', { times: 2 })
  await machine.end({ kind: 'signaled', signal: 'SIGSEGV', atMs: Date.now() })
  await house.end(0)
  await failing
  await house.begin()
  await settled(house.instances)
  assert.deepEqual(
    [house.instances.get(id).state, house.instances.get(id).exitMessage],
    ['Stopped', 'the VM was killed by SIGSEGV: see its vmm log'],
  )
  await assertInOrder(house)
})

test('whoever asked for a nap, a fork or a snapshot of a VM that dies meanwhile hears of that, and never of Unknown', async () => {
  for (const ask of ['standby', 'fork', 'snapshot'] as const) {
    await using house = new TestHouse()
    const instances = await house.begin()
    const { id } = await running(house)
    house.host.injectFault('capture', 'hang')
    const asked = {
      standby: () => instances.standby(id),
      fork: () => instances.fork(id, { name: 'b', fromRunning: true }),
      snapshot: () => instances.snapshot(id, { kind: 'Standby', tags: {}, isScheduled: false }),
    }[ask]()
    const heard = asked.then(
      () => 'done',
      (error: Error & { code?: string }) => `${error.code} ${error.message} ${instances.get(id).state}`,
    )
    const machine = machineOf(house, { id })
    await pollUntil('the VM to be paused', () => machine.isPaused, { signal: AbortSignal.timeout(60_000) })
    house.host.injectFault('resume', 'fail', { times: 2 })
    await machine.end({ kind: 'signaled', signal: 'SIGKILL', atMs: Date.now() })
    const why = `The VM of a ended during its ${ask}: the VM was killed by SIGKILL: see its vmm log`
    assert.equal(await heard, `guest_unavailable ${why} Stopped`)
    assert.ok(!('unknown' in instances.get(id).phases.durations))
    await settled(instances)
    await assertInOrder(house)
  }
})

test('a stop that cannot be recorded says so, and not that its VM has ended, which it was to', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house)
  {
    using _ = refuseRows(house, "NEW.state = 'Stopped'")
    await assert.rejects(instances.stop(id, { force: true }), {
      code: 'internal_error',
      message: 'The stop of a failed at the step "settle"',
    })
    await pollUntil('its end to be taken in', () => !instances.isBusy(), { signal: AbortSignal.timeout(60_000) }, { everyMs: 1 })
  }
  assert.equal((await instances.stop(id)).state, 'Stopped')
  await assertInOrder(house)
})

test('a VM that cannot be ended when it has been put to sleep is ended before its memory is loaded again, or by the next daemon', async () => {
  for (const [faults, wayOut] of [
    [['kill'], 'restore'],
    [['kill', 'sweep'], 'restore'],
    [['kill', 'sweep'], 'restart'],
    [['kill', 'sweep'], 'stop'],
  ] as const) {
    await using house = new TestHouse()
    const instances = await house.begin()
    const { id } = await running(house)
    machineOf(house, { id }).guest.counter = 3
    for (const at of faults) house.host.injectFault(at)
    assert.equal((await instances.standby(id)).state, 'Standby')
    assert.equal(house.host.running().length, faults.length - 1)
    if (wayOut === 'restart') {
      await house.end()
      await house.begin()
      await assertInOrder(house)
    }
    if (wayOut === 'stop') {
      await instances.stop(id)
      await assertInOrder(house)
    } else await assertSleepsWell(house, { id }, 3)
  }
})

const BEFORE_RESTORE_COMMITS: readonly [string, Inject][] = [
  ['the VM does not start', (house) => house.host.injectFault('restore')],
  ['the memory cannot be loaded', (house) => house.host.injectFault('start_late')],
  ['the record cannot be written', (house) => refuseRows(house, "NEW.state = 'Paused'")],
]
for (const [what, inject] of BEFORE_RESTORE_COMMITS) {
  test(`a restore of which ${what} leaves the instance asleep as it was, and another succeeds`, async () => {
    await using house = new TestHouse()
    const instances = await house.begin()
    const { id } = await running(house)
    machineOf(house, { id }).guest.counter = 5
    const { sleep } = await instances.standby(id)
    {
      using _fault = inject(house)
      await assert.rejects(instances.restore(id), { code: 'internal_error' })
    }
    assert.deepEqual([instances.get(id).state, instances.get(id).sleep], ['Standby', sleep])
    await assertInOrder(house)
    await assertSleepsWell(house, { id }, 5)
  })
}

test('a guest that does not answer when its memory is loaded is waited for: Unknown with the reason, Running once it answers', async () => {
  for (const wayOut of ['answers', 'restart', 'stop'] as const) {
    await using house = new TestHouse({ settings: { BOOT_LIMIT: '2s' } })
    const instances = await house.begin()
    const { id } = await running(house)
    machineOf(house, { id }).guest.counter = 8
    await instances.standby(id)
    house.host.muteGuests = true
    await assert.rejects(instances.restore(id), { code: 'guest_unavailable' })
    assert.deepEqual([instances.get(id).state, instances.get(id).operation], ['Unknown', 'restore'])
    assert.match(instances.get(id).stateError ?? '', /does not answer/)
    // It goes on being waited for, as is seen once it speaks.
    const machine = machineOf(house, { id })
    if (wayOut === 'restart') await house.end()
    speakAgain(house, machine)
    if (wayOut === 'restart') await house.begin()
    if (wayOut === 'stop') await instances.stop(id)
    else await pollUntil('it to run', () => house.instances.get(id).state === 'Running', { signal: AbortSignal.timeout(60_000) })
    if (wayOut !== 'stop') assert.equal(machine.guest.counter, 8)
    await settled(house.instances)
    await assertInOrder(house)
  }
})

test('a VM that cannot be resumed once its memory is loaded is tried again, then Unknown, and the next daemon lets it run', async () => {
  for (const times of [1, 2]) {
    await using house = new TestHouse()
    const instances = await house.begin()
    const { id } = await running(house)
    await instances.standby(id)
    house.host.injectFault('resume', 'fail', { times })
    if (times === 1) await instances.restore(id)
    else {
      await assert.rejects(instances.restore(id))
      assert.equal(instances.get(id).state, 'Unknown')
      await house.end()
      await house.begin()
      await settled(house.instances)
    }
    assert.deepEqual([house.instances.get(id).state, house.instances.get(id).operation], ['Running', undefined])
    await assertInOrder(house)
  }
})

test('a VM that ends before its guest has answered is Stopped, its disk whole, and says that its memory was lost', async () => {
  for (const isDaemonThere of [true, false]) {
    await using house = new TestHouse()
    const instances = await house.begin()
    const { id, disk } = await running(house)
    await instances.standby(id)
    house.host.muteGuests = true
    const failing = assert.rejects(instances.restore(id))
    await pollUntil('the commit', () => instances.get(id).operation === 'restore', { signal: AbortSignal.timeout(60_000) })
    const machine = machineOf(house, { id })
    if (!isDaemonThere) await house.end(0)
    await machine.end({ kind: 'signaled', signal: 'SIGSEGV', atMs: Date.now() })
    await failing
    house.host.muteGuests = false
    if (!isDaemonThere) await house.begin()
    await settled(house.instances)
    const { state, exitMessage, disk: after } = house.instances.get(id)
    assert.deepEqual([state, after], ['Stopped', disk])
    assert.match(exitMessage ?? '', /its memory was lost while it woke: .*SIGSEGV/)
    await assertInOrder(house)
    await house.instances.start(id)
    await house.instances.wait(id, { state: 'Running', timeoutMs: 60_000 })
  }
})

const POINTS_THAT_FAIL: readonly [FaultPoint, number, number][] = [
  // What the source's disk has of layers afterwards: a pivot that was not made is taken back.
  ['prepare_pivot', 0, 1],
  ['pause', 0, 1],
  ['capture', 0, 1],
  ['commit_pivot', 0, 1],
  ['resume', 0, 2],
  ['store', 0, 2],
  ['consolidate', 96 << 20, 2],
]
for (const [at, deltaBytes, layers] of POINTS_THAT_FAIL) {
  test(`a fork and a snapshot of one that runs, which fail at ${at}, leave the source as it was and nothing else`, async () => {
    for (const deed of ['fork', 'snapshot'] as const) {
      await using house = new TestHouse()
      const instances = await house.begin()
      const source = await running(house)
      const machine = machineOf(house, source)
      machine.guest.counter = 5
      machine.guest.connections = 2
      house.host.deltaBytes = deltaBytes
      house.host.injectFault(at)
      const done =
        deed === 'fork'
          ? instances.fork(source.id, { name: 'b', fromRunning: true })
          : instances.snapshot(source.id, { kind: 'Standby', name: 'one', tags: {}, isScheduled: false })
      await assert.rejects(done, { code: 'internal_error' })
      assert.equal(instances.get(source.id).state, 'Running')
      assert.equal(instances.get(source.id).disk.length, layers)
      assert.deepEqual([machineOf(house, source), machine.guest.connections], [machine, 2])
      assert.deepEqual([instances.list().length, house.snapshots.list().length], [1, 0])
      await assertInOrder(house)
      // The names are free.
      assert.equal((await instances.fork(source.id, { name: 'b', fromRunning: true })).state, 'Running')
      await instances.snapshot(source.id, { kind: 'Standby', name: 'one', tags: {}, isScheduled: false })
      await assertInOrder(house)
    }
  })
}

test('a guest that does not answer cannot be copied while it runs, and the error says what can be done', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id, disk } = await running(house)
  const machine = machineOf(house, { id })
  fallSilent(house, machine)
  const copied = instances.fork(id, { name: 'b', fromRunning: true })
  await assert.rejects(copied, { code: 'guest_unavailable', hint: /standby/ })
  speakAgain(house, machine)
  assert.deepEqual(instances.get(id).disk, disk)
  await assertInOrder(house)
})

const CHILDREN_THAT_FAIL: readonly [string, Inject][] = [
  ['its VM does not start', (house) => house.host.injectFault('restore')],
  ['its memory cannot be loaded', (house) => house.host.injectFault('start_late')],
  ['what it stands on cannot be recorded', (house) => refuseRows(house, "NEW.name = 'b' AND OLD.disk = '[]'")],
  ['its layer cannot be recorded', (house) => refuseRows(house, "NEW.name = 'b' AND OLD.disk <> '[]' AND NEW.disk <> OLD.disk")],
  ['its VM cannot be recorded', (house) => refuseRows(house, "NEW.name = 'b' AND NEW.state = 'Paused'")],
  ['it cannot be resumed', (house) => house.host.injectFault('resume', 'fail', { times: 3 })],
  ['its guest never answers', (house) => house.host.injectFault('connect_guest', 'fail', { times: 1e6 })],
]
for (const [what, inject] of CHILDREN_THAT_FAIL) {
  test(`a fork of which ${what} leaves nothing, whatever it was made of`, async () => {
    for (const from of ['Running', 'Standby', 'snapshot'] as const) {
      await using house = new TestHouse({ settings: { BOOT_LIMIT: '2s' } })
      const instances = await house.begin()
      const source = await running(house)
      const kept = await instances.snapshot(source.id, { kind: 'Standby', tags: {}, isScheduled: false })
      if (from === 'Standby') await instances.standby(source.id)
      // Its first resume would be the source's.
      if (from === 'Running' && what === 'it cannot be resumed') continue
      {
        using _fault = inject(house)
        const request = { name: 'b', fromRunning: true, target: 'Running' } as const
        await assert.rejects(from === 'snapshot' ? instances.forkSnapshot(kept, request) : instances.fork(source.id, request))
      }
      house.host.clearFaults()
      assert.deepEqual(
        instances.list().map(({ name }) => name),
        ['a'],
      )
      assert.equal(instances.get(source.id).state, from === 'Standby' ? 'Standby' : 'Running')
      await assertInOrder(house)
      const fork = await instances.forkSnapshot(kept, { name: 'b' })
      assert.equal(fork.state, 'Running')
      await assertInOrder(house)
    }
  })
}

test('a fork that could be neither woken nor ended is not taken for its source by the next daemon', async () => {
  await using house = new TestHouse({ settings: { BOOT_LIMIT: '2s' } })
  const instances = await house.begin()
  const source = await running(house)
  await instances.standby(source.id)
  // What clears away after the standby would take the fault that is meant for the fork.
  await settled(instances)
  house.host.injectFault('connect_guest', 'fail', { times: 1e6 })
  house.host.injectFault('sweep')
  await assert.rejects(instances.fork(source.id, { name: 'b', target: 'Running' }), { code: 'guest_unavailable' })
  const { id, state } = instances.resolve('b')
  assert.equal(state, 'Unknown')
  await house.end()
  house.host.clearFaults()
  await house.begin()
  await settled(house.instances)
  assert.deepEqual([house.instances.get(id).state, machineOf(house, { id }).guest.identity.hostname], ['Running', 'b'])
  await assertInOrder(house)
})

test('of two forks that want one name, one has it', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house)
  const request = { name: 'b', fromRunning: true }
  const outcomes = await Promise.allSettled([
    instances.fork(id, request),
    instances.fork(id, request),
    instances.create({ ...request, image: 'test', overlayBytes: TEST_OVERLAY }),
  ])
  assert.equal(outcomes.filter(({ status }) => status === 'fulfilled').length, 1)
  for (const outcome of outcomes) if (outcome.status === 'rejected') assert.equal(outcome.reason.code, 'name_conflict')
  await settled(instances)
  await assertInOrder(house)
})

test('forks that wait while their source is deleted are told, and leave nothing', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house)
  // It holds the source up.
  const forks = ['b', 'c', 'd'].map((name) => instances.fork(id, { name, fromRunning: true }))
  const [deleted, ...outcomes] = await Promise.allSettled([instances.delete(id, { graceful: false }), ...forks])
  assert.equal(deleted.status, 'fulfilled')
  for (const outcome of outcomes) if (outcome.status === 'rejected') assert.match(String(outcome.reason.code), /not_found|invalid_state/)
  await settled(instances)
  for (const { state } of instances.list()) assert.equal(state, 'Running')
  await assertInOrder(house)
})

test('forks that wait while their source is stopped go on from its disk', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house)
  const machine = machineOf(house, { id })
  // Reserving a fork looks at the host first, so that the stop is in the queue before it.
  const forks = ['b', 'c'].map((name) => instances.fork(id, { name, fromRunning: true, target: 'Running' }))
  await Promise.all([instances.stop(id), ...forks])
  assert.equal(instances.get(id).state, 'Stopped')
  for (const name of ['b', 'c']) assert.notEqual(machineOf(house, instances.resolve(name)).guest.bootNonce, machine.guest.bootNonce)
  await settled(instances)
  await assertInOrder(house)
})

test('a snapshot cannot be deleted while it is gone on from, and a fork of one that was deleted leaves nothing', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house)
  const kept = await instances.snapshot(id, { kind: 'Standby', tags: {}, isScheduled: false })
  {
    using held = house.snapshots.hold(kept.id)
    const fork = instances.forkSnapshot(held.snapshot, { name: 'b' })
    await assert.rejects(house.snapshots.delete(kept.id), { code: 'in_use' })
    await fork
  }
  const late = assert.rejects(instances.forkSnapshot(kept, { name: 'c' }), { code: 'not_found' })
  await house.snapshots.delete(kept.id)
  await late
  await settled(instances)
  await assertInOrder(house)
})

test('a snapshot can be deleted on a full disk', async () => {
  let room = (): void => undefined
  const ballast = {
    spend<T>(work: () => T): T {
      try {
        return work()
      } catch {
        room()
        return work()
      }
    },
  }
  await using house = new TestHouse({ ballast })
  const instances = await house.begin()
  const { id } = await running(house)
  const kept = await instances.snapshot(id, { kind: 'Standby', tags: {}, isScheduled: false })
  const { db, events } = house
  // SQLite says the same of a database that may not grow as of a disk that is full.
  const limit = (pages: string) => db.prepare(`PRAGMA max_page_count = ${pages}`).get()
  room = () => limit('1000000')
  limit(String(db.prepare('PRAGMA page_count').get()?.page_count))
  const tell = () => db.transaction(() => events.record({ kind: 'snapshot.deleted', subject: kept.id, data: { instance: id } }))
  const fill = () => {
    for (;;) tell()
  }
  assert.throws(fill, { code: 'insufficient_resources' })
  await house.snapshots.delete(kept.id)
  assert.deepEqual(house.snapshots.list(), [])
  await assertInOrder(house)
})

for (const sharesBlocks of [false, true]) {
  test(`a snapshot that cannot be recorded leaves nothing but its source, on a file system that ${sharesBlocks ? 'shares' : 'copies'} blocks`, async () => {
    for (const state of ['Running', 'Standby', 'Stopped'] as const) {
      await using house = new TestHouse({ sharesBlocks })
      const instances = await house.begin()
      const { id } = await running(house)
      house.host.deltaBytes = 96 << 20
      if (state === 'Standby') await instances.standby(id)
      if (state === 'Stopped') await instances.stop(id)
      const request = { kind: state === 'Stopped' ? 'Stopped' : 'Standby', tags: {}, isScheduled: false } as const
      {
        using _refusing = refuseRows(house, '1', 'INSERT ON snapshots')
        await assert.rejects(instances.snapshot(id, request), { code: 'internal_error' })
      }
      assert.deepEqual([instances.get(id).state, house.snapshots.list()], [state, []])
      await assertInOrder(house)
      const kept = await instances.snapshot(id, request)
      await assertInOrder(house)
      await house.snapshots.delete(kept.id)
      await assertInOrder(house)
    }
  })
}

test('a snapshot that cannot be gone back to leaves the instance as it was, with what it has written since', async () => {
  const FAULTS: readonly Inject[] = [
    (house) => house.host.injectFault('restore'),
    (house) => house.host.injectFault('start_late'),
    (house) => refuseRows(house, "NEW.state = 'Paused'"),
    (house) => {
      rmSync(join(house.paths.snapshotDir(house.snapshots.list()[0]?.id ?? ''), 'state'))
      return { [Symbol.dispose]: () => undefined }
    },
  ]
  for (const from of ['Stopped', 'Standby'] as const) {
    for (const inject of FAULTS) {
      await using house = new TestHouse()
      const instances = await house.begin()
      const { id } = await running(house)
      const kept = await instances.snapshot(id, { kind: 'Standby', tags: {}, isScheduled: false })
      await (from === 'Stopped' ? instances.stop(id) : instances.standby(id))
      const before = instances.get(id)
      {
        using _fault = inject(house)
        await assert.rejects(instances.restoreSnapshot(id, kept, 'Running'))
      }
      assert.deepEqual(instances.get(id), before)
      if (inject === FAULTS.at(-1)) continue
      await assertInOrder(house)
      assert.equal((await instances.restoreSnapshot(id, kept, 'Running')).state, 'Running')
      await assertInOrder(house)
    }
  }
})

test('a snapshot of a fork that has never been awake wakes as the fork, not as its source', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const source = await running(house)
  const fork = await instances.fork(source.id, { name: 'b', fromRunning: true, target: 'Standby' })
  const kept = await instances.snapshot(fork.id, { kind: 'Standby', tags: {}, isScheduled: false })
  await instances.restoreSnapshot(fork.id, kept, 'Running')
  assert.equal(machineOf(house, fork).guest.identity.hostname, 'b')
  await assertInOrder(house)
})

/** Asleep on a delta that is worth a base of its own, whose making hangs until it is cancelled. */
async function consolidating(house: TestHouse): Promise<Instance> {
  const { id } = await running(house)
  machineOf(house, { id }).guest.counter = 6
  house.host.deltaBytes = 8 << 20
  house.host.injectFault('consolidate', 'hang')
  await house.instances.standby(id)
  const begins = () => existsSync(house.paths.basesDir) && readdirSync(house.paths.basesDir).length > 0
  await pollUntil('the consolidation to begin', begins, { signal: AbortSignal.timeout(60_000) })
  return house.instances.get(id)
}

test('a sleeping state is consolidated while it sleeps, and wakes from its own base', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house)
  machineOf(house, { id }).guest.counter = 6
  house.host.deltaBytes = 8 << 20
  const { sleep } = await instances.standby(id)
  const isDone = () => instances.get(id).sleep?.base !== sleep?.base
  await pollUntil('the consolidation', isDone, { signal: AbortSignal.timeout(60_000) })
  await settled(instances)
  await assertInOrder(house)
  await assertSleepsWell(house, { id }, 6)
})

test('a consolidation that fails leaves the sleeping state as it was', async () => {
  await using house = new TestHouse()
  const instances = await house.begin()
  const { id } = await running(house)
  machineOf(house, { id }).guest.counter = 6
  house.host.deltaBytes = 8 << 20
  const faults: readonly (() => Disposable)[] = [
    () => house.host.injectFault('consolidate'),
    () => refuseRows(house, "OLD.state = 'Standby' AND NEW.state = 'Standby'"),
  ]
  for (const inject of faults) {
    {
      using _fault = inject()
      const { sleep } = await instances.standby(id)
      await instances.consolidated()
      assert.deepEqual(instances.get(id).sleep, sleep)
      await assertInOrder(house)
    }
    await assertSleepsWell(house, { id }, 6)
  }
})

for (const deed of ['restore', 'stop', 'delete', 'restore_snapshot', 'fork', 'end'] as const) {
  test(`a consolidation that is under way at a ${deed} is in no one's way, and leaves nothing`, async () => {
    await using house = new TestHouse()
    await house.begin()
    const { id, sleep } = await consolidating(house)
    const { instances } = house
    switch (deed) {
      case 'restore':
        await assertSleepsWell(house, { id }, 6)
        break
      case 'stop':
        assert.equal((await instances.stop(id)).state, 'Stopped')
        break
      case 'delete':
        await instances.delete(id)
        break
      case 'restore_snapshot': {
        const kept = await instances.snapshot(id, { kind: 'Standby', tags: {}, isScheduled: false })
        assert.equal((await instances.restoreSnapshot(id, kept, 'Running')).state, 'Running')
        break
      }
      case 'fork':
        assert.equal((await instances.fork(id, { name: 'b', target: 'Running' })).state, 'Running')
        await instances.stop(id)
        break
      case 'end':
        await house.end()
        house.host.deltaBytes = 0
        await house.begin()
        assert.equal(house.instances.get(id).state, 'Standby')
        assert.equal(sleep?.base, 'zero')
    }
    house.host.clearFaults()
    await settled(house.instances)
    await assertInOrder(house)
  })
}

test('a sleeper whose disk or sleeping state cannot be found is Unknown, and asleep again once they are there', async () => {
  for (const missing of ['disk', 'sleep'] as const) {
    await using house = new TestHouse()
    const instances = await house.begin()
    const { id, disk } = await running(house)
    machineOf(house, { id }).guest.counter = 4
    const { sleep } = await instances.standby(id)
    const path = missing === 'disk' ? house.paths.disk(String(disk[0])) : house.paths.instanceSleep(id, sleep?.generation ?? '')
    await house.end()
    renameSync(path, join(house.dir, 'elsewhere'))
    for (let starts = 0; starts < 2; starts++) {
      await house.begin()
      assert.equal(house.instances.get(id).state, 'Unknown')
      assert.match(house.instances.get(id).stateError ?? '', missing === 'disk' ? /its disk is missing/ : /its sleeping state is missing/)
      await house.end()
    }
    renameSync(join(house.dir, 'elsewhere'), path)
    await house.begin()
    assert.equal(house.instances.get(id).state, 'Standby')
    await assertSleepsWell(house, { id }, 4)
  }
})
