import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type Caller, hostCaller } from './auth.ts'
import { Tickets } from './tickets.ts'

const caller = { subject: 'ann', scopes: new Set(['instance:read']), token: undefined }

test('a ticket is good once, for its path, as its maker', () => {
  const tickets = new Tickets()
  const { ticket } = tickets.make(caller, '/events')
  assert.equal(tickets.redeem(ticket, '/events'), caller)
  assert.throws(() => tickets.redeem(ticket, '/events'), { code: 'unauthorized', hint: /POST \/tickets/ })
})

test('at another path it is refused, and used up', () => {
  const tickets = new Tickets()
  const { ticket } = tickets.make(caller, '/instances/web/logs')
  assert.throws(() => tickets.redeem(ticket, '/instances/web/exec'), { code: 'unauthorized', message: /another path/ })
  assert.throws(() => tickets.redeem(ticket, '/instances/web/logs'), { code: 'unauthorized' })
})

test('it holds for thirty seconds', () => {
  let now = 1_000_000
  const tickets = new Tickets(() => now)
  const [early, late] = [tickets.make(caller, '/events'), tickets.make(caller, '/events')]
  assert.equal(early.expires_at, new Date(1_030_000).toISOString())
  now += 29_999
  assert.equal(tickets.redeem(early.ticket, '/events'), caller)
  now += 1
  assert.throws(() => tickets.redeem(late.ticket, '/events'), { code: 'unauthorized' })
})

const of = (id: string): Caller => ({ ...caller, token: { id, issuedAtMs: 0, expiresAtMs: 0 } })

test('only so many are out, and those that expired make room', () => {
  let now = 0
  const tickets = new Tickets(() => now)
  for (let n = 0; n < 10_000; n++) tickets.make(of(`${n % 10}`), '/events')
  assert.throws(() => tickets.make(of('another'), '/events'), { code: 'rate_limited' })
  now += 30_000
  tickets.make(of('another'), '/events')
})

test('one caller takes none from another; what is used or over no longer counts', () => {
  let now = 0
  const tickets = new Tickets(() => now)
  const mine = Array.from({ length: 1000 }, () => tickets.make(of('mine'), '/events').ticket)
  assert.throws(() => tickets.make(of('mine'), '/events'), { code: 'rate_limited', message: /of this caller/ })
  tickets.make(of('yours'), '/events')
  tickets.make(hostCaller, '/events')
  tickets.redeem(mine[0], '/events')
  tickets.make(of('mine'), '/events')
  assert.throws(() => tickets.make(of('mine'), '/events'), { code: 'rate_limited' })
  now += 30_000
  for (let n = 0; n < 1000; n++) tickets.make(of('mine'), '/events')
})

test('what is no ticket is none', () => {
  const tickets = new Tickets()
  tickets.make(caller, '/events')
  for (const wrong of [undefined, '', 'x', 'x'.repeat(43), ['a', 'b'], {}, 'x'.repeat(100_000)]) {
    assert.throws(() => tickets.redeem(wrong, '/events'), { code: 'unauthorized' })
  }
})
