/**
 * The VMM dies (SIGKILL, as by the OOM killer) at the steps of standby, restore, fork and snapshot, with a real VM: the one who asked is told that
 * it is gone, the instance ends in a true state, and nothing is left over. What its disk or its sleeping state held is there.
 */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { atRest } from './house-in-order.ts'
import { InstanceStory, type Look, type RefusedAnswer } from './instance-story.ts'
import { StepGate } from './step-gate.ts'

let story: InstanceStory
let seen: Look
let gate: StepGate

interface Case {
  readonly at: string
  readonly path: string
  readonly body: object
  /** What became of it all the same, since its memory was on disk by then. */
  readonly succeeds?: 'Standby' | 'Stopped'
}

const each = (operation: string, steps: string, the: Omit<Case, 'at'>): Case[] =>
  steps.split(' ').map((step) => ({ at: `${operation}:${step}`, ...the }))

const CASES: readonly Case[] = [
  ...each('standby', 'freeze pause capture', { path: 'standby', body: {} }),
  ...each('standby', 'publish kill', { path: 'standby', body: {}, succeeds: 'Standby' }),
  ...each('restore', 'resume wake', { path: 'restore', body: {} }),
  ...each('fork', 'prepare_disk freeze capture pivot resume', { path: 'fork', body: { name: 'b', from_running: true } }),
  ...each('snapshot', 'pause pivot', { path: 'snapshots', body: { kind: 'Standby' } }),
  ...each('snapshot', 'publish', { path: 'snapshots', body: { kind: 'Standby' }, succeeds: 'Stopped' }),
]

before(async () => {
  const steps = [...new Set(CASES.map(({ at }) => at))].join(',')
  story = await InstanceStory.begin({ driver: 'qemu-microvm', env: { DORMOUSE_STOP_AT: steps } })
  gate = new StepGate(`${story.dir}/daemon.log`)
  await story.run('a', { cmd: ['/bin/wakeful', '80'] })
})
after(async () => {
  await gate?.[Symbol.asyncDispose]()
  await story?.[Symbol.asyncDispose]()
})

for (const { at, path, body, succeeds } of CASES) {
  test(`a VMM that dies at ${at}: ${succeeds === undefined ? 'it is told' : 'it is done all the same'}, and ${succeeds ?? 'Stopped'} is the truth`, {
    timeout: 60_000,
  }, async () => {
    const a = await wake()
    seen = await story.look(a)
    if (path === 'restore') await story.standby('a')
    const { daemon } = story
    const asked = daemon.client.call<RefusedAnswer & { id?: string }>('POST', `/instances/a/${path}`, body)
    await gate.until(at)
    process.kill(await story.vmmOf(a), 'SIGKILL')
    gate.pass()
    const { status, body: said } = await asked
    if (succeeds === undefined) {
      assert.deepEqual([status, said.code], [503, 'guest_unavailable'], said.message)
      assert.match(said.message, /^The VM of a ended during its (standby|restore|fork|snapshot): the VM was killed by SIGKILL/)
    } else {
      assert.ok(status < 300, said.message)
      // It was answered for what it is; how the VM ended is another thing.
      await daemon.client.get(`/instances/a/wait?state=${succeeds}&timeout=20s`)
    }
    const instances = await atRest(daemon.client)
    assert.deepEqual(
      instances.map(({ name, state }) => `${name} ${state}`),
      [`a ${succeeds ?? 'Stopped'}`],
    )
    const [left] = instances
    // Whoever waits for it must not be told Unknown on the way.
    const { phase_durations_ms: phases } = await daemon.client.get<{ phase_durations_ms: object }>('/instances/a')
    assert.ok(!('unknown' in phases), JSON.stringify(phases))
    if (left?.state === 'Stopped')
      assert.match(left.exit_message ?? '', path === 'restore' ? /its memory was lost while it woke: .*SIGKILL/ : /SIGKILL/)
    await story.assertInOrder()
    if (path === 'snapshots' && succeeds !== undefined) await daemon.client.delete(`/snapshots/${said.id}`)
  })
}

/** `a` runs, woken or booted. */
async function wake() {
  const { state } = await story.get('a')
  if (state === 'Standby') {
    const awake = await story.restore('a')
    const now = await story.look(awake)
    assert.deepEqual([now.boot, now.born], [seen.boot, seen.born])
    return awake
  }
  if (state === 'Stopped') {
    await story.daemon.client.post('/instances/a/start?wait=running', {})
    await story.untilItListens(await story.get('a'))
  }
  return story.expect('a', 'Running')
}
