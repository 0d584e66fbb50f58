/** Archives over HTTP, whole and broken: what a broken one leaves behind is nothing. */
import assert from 'node:assert/strict'
import { mkdir, mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { type IncomingMessage, request } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { configOf } from '../../packages/daemon/src/config/config.ts'
import { Daemon } from '../../packages/daemon/src/daemon.ts'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'
import { FakeHypervisor } from '../../packages/daemon/src/hypervisors/fake/fake.ts'
import { silentLogger } from '../../packages/daemon/src/log.ts'
import { makeBusyboxImage } from '../harness/busybox-image.ts'

describe('an archive that is uploaded', { timeout: 120_000 }, () => {
  let dir: string
  let daemon: Daemon
  let archive: Buffer

  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'dm-'))
    const settings = { DATA_DIR: join(dir, 'data'), RUN_DIR: join(dir, 'run'), LISTEN: 'off', HYPERVISOR: 'fake' }
    daemon = await Daemon.start({
      config: configOf(new Map(Object.entries(settings))),
      log: silentLogger,
      hypervisors: [new FakeHypervisor()],
    })
    await mkdir(join(dir, 'image'))
    const layout = await makeBusyboxImage(join(dir, 'image'))
    const path = join(dir, 'image.tar')
    await runCommand(['tar', '-C', layout.path, '-cf', path, '.'], { step: { signal: AbortSignal.timeout(30_000) } })
    archive = await readFile(path)
  })
  after(async () => {
    await daemon.stop()
    await rm(dir, { recursive: true, force: true })
  })

  const open = (path: string, headers: Record<string, string> = {}) =>
    request({
      socketPath: join(dir, 'run/dormouse.sock'),
      method: 'POST',
      path,
      agent: false,
      headers: { 'content-type': 'application/x-tar', ...headers },
    })

  function upload(
    bytes: Buffer,
    path = '/images/import?name=uploaded:1',
  ): Promise<{ status: number; body: { code?: string; message?: string; status?: string } }> {
    return new Promise((resolve, reject) => {
      const sending = open(path)
      sending.on('response', async (answer: IncomingMessage) => {
        let text = ''
        for await (const chunk of answer) text += chunk
        resolve({ status: answer.statusCode ?? 0, body: JSON.parse(text) })
      })
      sending.on('error', reject)
      sending.end(bytes)
    })
  }

  const drafts = () => readdir(daemon.paths.imageDraftsDir).catch(() => [])

  test('is an image, under the name that was given', async () => {
    const { status, body } = await upload(archive)
    assert.equal(status, 201, body.message)
    const image = await daemon.images.whenReady('uploaded:1', { signal: AbortSignal.timeout(60_000) })
    assert.match(image.digest, /^sha256:/)
    assert.deepEqual(await drafts(), [])
  })

  test('and is cut short, or is none, is refused as the mistake of its sender and leaves nothing', async () => {
    for (const [name, bytes] of Object.entries({
      'half of it': archive.subarray(0, archive.length / 2),
      'a few bytes': archive.subarray(0, 100),
      nothing: Buffer.alloc(0),
      'no tar': Buffer.alloc(100_000, 'x'),
    })) {
      const { status, body } = await upload(bytes, '/images/import?name=broken:1')
      assert.equal(status, 400, `${name}: ${JSON.stringify(body)}`)
      assert.ok(body.message, name)
      assert.deepEqual(await drafts(), [], name)
    }
    assert.equal(
      daemon.images.list().some(({ name }) => name.includes('broken')),
      false,
    )
  })

  test('by a caller who hangs up in the middle leaves nothing, and the daemon goes on', async () => {
    const sending = open('/images/import?name=cut:1', { 'content-length': String(archive.length) })
    sending.on('error', () => undefined)
    sending.write(archive.subarray(0, archive.length / 2))
    const step = { signal: AbortSignal.timeout(10_000) }
    await pollUntil('the upload to begin', async () => (await drafts()).length > 0, step)
    sending.destroy()
    await pollUntil('the draft to go', async () => (await drafts()).length === 0, step)
    assert.equal(
      daemon.images.list().some(({ name }) => name.includes('cut')),
      false,
    )
    assert.equal((await upload(archive, '/images/import?name=after:1')).status, 201)
  })

  test('under a name that is none is refused before it is read', async () => {
    const { status, body } = await upload(archive, `/images/import?name=${encodeURIComponent('Not A Name!')}`)
    assert.deepEqual([status, body.code], [400, 'invalid_name'])
  })
})
