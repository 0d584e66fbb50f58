/** The clocks of guests that were made, that slept, and of forks: the time of day is the host's, and what must never go back goes on from where it was. */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { InstanceStory, type Look } from './instance-story.ts'

let story: InstanceStory
before(async () => {
  story = await InstanceStory.begin({ driver: 'qemu', env: { DORMOUSE_LOG_LEVEL: 'debug' } })
})
after(() => story?.[Symbol.asyncDispose]())

const CLOCK_LIMIT_MS = 100
const ASLEEP_MS = 1500

/** What was said between two moments of the host was true at one of them or between. */
function assertTimeOfDay({ nowMs, askedMs, heardMs }: Look, mayBeLateMs = 0): void {
  const off = nowMs < askedMs ? Math.min(0, nowMs - askedMs + mayBeLateMs) : Math.max(0, nowMs - heardMs)
  assert.ok(Math.abs(off) <= CLOCK_LIMIT_MS, `the guest's clock is ${off} ms off`)
}

for (const hypervisor of ['qemu', 'qemu-microvm'] as const) {
  test(`after a start and a sleep the clocks of ${hypervisor} are right: within ${CLOCK_LIMIT_MS} ms of the host's, and on from where they were`, {
    timeout: 180_000,
  }, async (t) => {
    const instance = await story.run('clocks', { hypervisor })
    const source = await story.sh('clocks', 'cat /sys/devices/system/clocksource/clocksource0/current_clocksource')
    const { runtimes } = await story.daemon.client.get<{ runtimes: { name: string; acceleration?: string }[] }>('/capabilities')
    const acceleration = runtimes.find(({ name }) => name === hypervisor)?.acceleration
    t.diagnostic(`${source} under ${acceleration}`)
    // A processor whose counter never stops is believed by itself.
    assert.ok((acceleration === 'kvm' ? ['kvm-clock', 'tsc'] : ['tsc']).includes(source), `${source} under ${acceleration}`)
    let last = await story.look(instance)
    // A workload starts but once, so the word that starts it is not said again where it was long on its way.
    const [started] = await story.logged('guest started', instance)
    assert.ok(started?.onItsWayMs !== undefined)
    t.diagnostic(`${Math.round(started.onItsWayMs)} ms on its way were the words of its start`)
    assertTimeOfDay(last, started.onItsWayMs)
    for (let nap = 0; nap < 3; nap++) {
      await story.standby('clocks')
      // Time is what is measured here, not waited for.
      const asleepFrom = Date.now()
      await sleep(ASLEEP_MS)
      const asleepMs = Date.now() - asleepFrom
      await story.restore('clocks')
      const now = await story.look(instance)
      t.diagnostic(
        `${Math.round(now.nowMs - now.heardMs)} to ${Math.round(now.nowMs - now.askedMs)} ms from the host's after nap ${nap + 1}`,
      )
      assertTimeOfDay(now)
      const [passed, most] = [now.monotonicMs - last.monotonicMs, now.heardMs - last.askedMs - asleepMs]
      assert.ok(passed > 0 && passed <= most + CLOCK_LIMIT_MS, `${passed} ms have passed for it, of at most ${most} that it ran`)
      assert.equal(now.stepsBack, 0)
      last = now
    }
    const fork = await story.fork('clocks', { name: 'clocks-fork', from_running: true, target_state: 'Running' })
    for (const one of [fork, instance]) {
      const now = await story.look(one)
      assertTimeOfDay(now)
      assert.ok(now.monotonicMs > last.monotonicMs)
      assert.equal(now.stepsBack, 0)
    }
    await story.remove('clocks', 'clocks-fork')
  })
}
