import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Agenda, type Passing } from './agenda.ts'

/** Time that passes when it is told to. */
class FakePassing implements Passing {
  ms = 0
  readonly timers = new Set<{ readonly atMs: number; readonly then: () => void }>()
  /** How many there have ever been at once. */
  most = 0

  now(): number {
    return this.ms
  }

  after(ms: number, then: () => void): Disposable {
    const timer = { atMs: this.ms + ms, then }
    this.timers.add(timer)
    this.most = Math.max(this.most, this.timers.size)
    return { [Symbol.dispose]: () => this.timers.delete(timer) }
  }

  pass(ms: number): void {
    for (const endMs = this.ms + ms; ; ) {
      const [next] = [...this.timers].filter(({ atMs }) => atMs <= endMs).sort((a, b) => a.atMs - b.atMs)
      this.ms = next?.atMs ?? endMs
      if (next === undefined) return
      this.timers.delete(next)
      next.then()
    }
  }
}

test('each is done once, in the order of their times, and by one timer for all', () => {
  const passing = new FakePassing()
  const agenda = new Agenda<number>(passing)
  const done: number[] = []
  for (let key = 999; key >= 0; key--) agenda.set(key, key * 10, () => done.push(key))
  passing.pass(5000)
  assert.deepEqual(done, [...Array(501).keys()].slice(0, done.length))
  assert.ok(done.length >= 498)
  passing.pass(5000)
  assert.equal(done.length, 1000)
  assert.deepEqual([passing.most, passing.timers.size], [1, 0])
})

test('what is set anew is done at its new time only, what is cleared is not done', () => {
  const passing = new FakePassing()
  const agenda = new Agenda<string>(passing)
  const done: string[] = []
  agenda.set('a', 100, () => done.push('first'))
  agenda.set('a', 1000, () => done.push('second'))
  agenda.set('b', 100, () => done.push('b'))
  agenda.clear('b')
  agenda.set('c', 3000, () => done.push('late'))
  agenda.set('c', 50, () => done.push('early'))
  passing.pass(500)
  assert.deepEqual(done, ['early'])
  passing.pass(10_000)
  assert.deepEqual(done, ['early', 'second'])
})

test('who is done may set itself or another, which may be due at once', () => {
  const passing = new FakePassing()
  const agenda = new Agenda<string>(passing)
  const done: number[] = []
  const again = (): void => {
    done.push(passing.ms)
    if (done.length < 3) agenda.set('a', 0, again)
  }
  agenda.set('a', 10, again)
  agenda.set('b', 10, () => agenda.clear('a'))
  passing.pass(25)
  assert.equal(done.length, 1)
  agenda.set('a', 0, again)
  passing.pass(1000)
  assert.equal(done.length, 3)
})

test('a wait that is longer than a timer can be is waited out', () => {
  const passing = new FakePassing()
  const agenda = new Agenda<string>(passing)
  let isDone = false
  const days60 = 60 * 86_400_000
  agenda.set('a', days60, () => (isDone = true))
  passing.pass(days60 - 1000)
  assert.equal(isDone, false)
  passing.pass(2000)
  assert.equal(isDone, true)
})

test('after its end nothing is done', () => {
  const passing = new FakePassing()
  const agenda = new Agenda<string>(passing)
  agenda.set('a', 10, () => assert.fail('it was done'))
  agenda[Symbol.dispose]()
  passing.pass(1000)
  assert.equal(passing.timers.size, 0)
})
