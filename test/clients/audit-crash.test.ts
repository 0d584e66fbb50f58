/** What a daemon that is killed leaves of its audit log and its revocations. */
import assert from 'node:assert/strict'
import test, { type TestContext } from 'node:test'
import { startDaemon } from '../harness/daemon-process.ts'
import { scratchDir } from '../harness/scratch.ts'

interface Entry {
  readonly operation: string
  readonly result: string
  readonly status: number | null
  readonly resource_id: string | null
}

const start = (t: TestContext, dir: string, env: Record<string, string> = {}) =>
  startDaemon({ dir, driver: 'fake', env }).then((daemon) => {
    t.after(() => daemon[Symbol.asyncDispose]())
    return daemon
  })

test('a change that was begun has its row, however the daemon ends over it', async (t) => {
  const dir = await scratchDir(t)
  const killed = await start(t, dir, { DORMOUSE_CRASH_AT: 'volume_create:record' })
  await killed.client.call('POST', '/volumes', { name: 'data', size_gb: 1 }).catch(() => undefined)
  assert.equal(await killed.exited, 'SIGKILL')
  const next = await start(t, dir)
  const entries = await next.client.get<Entry[]>('/audit')
  const volumes = await next.client.get<unknown[]>('/volumes')
  // It died before anything was durable, or after: the row is there whenever the volume is.
  if (volumes.length > 0) assert.equal(entries.length, 1)
  for (const { operation, result, status } of entries) assert.deepEqual([operation, result, status], ['createVolume', 'interrupted', null])
})

test('what was answered and is durable has its row, and a token that was revoked stays so', async (t) => {
  const dir = await scratchDir(t)
  const killed = await start(t, dir, { DORMOUSE_LISTEN: '127.0.0.1:0' })
  const { id, token } = await killed.client.post<{ id: string; token: string }>('/tokens', { subject: 'ci' })
  await killed.client.call('DELETE', `/tokens/${id}`)
  await killed.kill()
  const next = await start(t, dir, { DORMOUSE_LISTEN: '127.0.0.1:0' })
  const port = /"tcp":\{"host":"127\.0\.0\.1","port":(\d+)\}/g
  const [, last] = [...(await next.log()).matchAll(port)].at(-1) ?? []
  const answer = await fetch(`http://127.0.0.1:${last}/instances`, { headers: { authorization: `Bearer ${token}` } })
  assert.deepEqual([answer.status, ((await answer.json()) as { message: string }).message], [401, 'The token has been revoked'])
  const entries = (await next.client.get<Entry[]>('/audit')).filter(({ result }) => result !== 'refused')
  assert.deepEqual(
    entries.map(({ operation }) => operation),
    ['revokeToken', 'createToken'],
  )
  // How it went of the last one may not have been written yet.
  assert.ok(['done', 'interrupted'].includes(entries[0]?.result ?? ''))
  assert.deepEqual([entries[1]?.result, entries[1]?.resource_id], ['done', id])
})
