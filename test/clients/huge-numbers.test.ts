/** Numbers that no one means, against the whole daemon: what it takes it can tell again, now and after a restart. */
import assert from 'node:assert/strict'
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { makeBusyboxImage } from '../harness/busybox-image.ts'
import { startDaemon } from '../harness/daemon-process.ts'
import { importImage } from '../harness/import-image.ts'

interface Body {
  readonly code?: string
  readonly id?: string
  readonly size?: string
  readonly expires_at?: string | null
}

const WRONG: readonly (readonly [code: string, change: object])[] = [
  ['invalid_ttl', { ttl: '99999999999h' }],
  ['invalid_ttl', { ttl: `${'9'.repeat(60)}s` }],
  ['invalid_expires_at', { expires_at: '9999-12-31T23:59:59-23:00' }],
  ['invalid_size', { size: '8191PB' }],
  ['invalid_size', { size: '9'.repeat(32) }],
  ['invalid_overlay_size', { overlay_size: '7EB' }],
  ['invalid_request', { vcpus: Number.MAX_SAFE_INTEGER }],
  ['invalid_snapshot_policy', { snapshot_policy: { standby_compression_delay: '99999999999h' } }],
]

test('no number that a caller sends keeps the daemon from telling of its instances', { timeout: 120_000 }, async () => {
  const dir = await mkdtemp(join(tmpdir(), 'dm-'))
  try {
    await using daemon = await startDaemon({ dir, driver: 'fake' })
    await mkdir(join(dir, 'image'))
    const { path } = await makeBusyboxImage(join(dir, 'image'))
    await importImage(daemon, path, 'numbers:1')
    const ask = async (client: typeof daemon.client, method: string, url: string, body?: object) => {
      const { status, body: told } = await client.call(method, url, body)
      return { status, body: told as Body }
    }
    const asked = { name: 'web', image: 'numbers:1', vcpus: 1, overlay_size: '32MB' }
    for (const [code, change] of WRONG) {
      const { status, body } = await ask(daemon.client, 'POST', '/instances', { ...asked, ...change })
      assert.deepEqual([status, body.code], [400, code], JSON.stringify(change))
    }
    // The longest that can be asked for, and a size with decimals.
    const made = await ask(daemon.client, 'POST', '/instances', { ...asked, size: '0.2GB', ttl: '2562047h' })
    assert.deepEqual([made.status, made.body.size], [201, '205MB'])
    assert.match(made.body.expires_at ?? '', /^2\d\d\d-/)
    assert.equal((await ask(daemon.client, 'POST', '/instances/web/stop')).status, 200)
    for (const [code, change] of WRONG) {
      const { status, body } = await ask(daemon.client, 'PATCH', '/instances/web', change)
      assert.deepEqual([status, body.code], [400, code], JSON.stringify(change))
    }
    assert.equal((await ask(daemon.client, 'PATCH', '/instances/web', { expires_at: '9999-12-31T23:59:59.999Z' })).status, 200)
    await daemon.stop()

    await using next = await startDaemon({ dir, driver: 'fake' })
    const { status, body } = await next.client.call('GET', '/instances')
    assert.equal(status, 200)
    assert.deepEqual(
      (body as Body[]).map(({ expires_at }) => expires_at),
      ['9999-12-31T23:59:59.999Z'],
    )
  } finally {
    await rm(dir, { recursive: true, force: true })
  }
})
