/**
 * The daemon dies at each named step of a push to it, and of a push from it. The next one has no draft, no blob that no row speaks of,
 * and takes up what had its commit point behind it.
 */
import assert from 'node:assert/strict'
import { readdir } from 'node:fs/promises'
import { request } from 'node:http'
import { join } from 'node:path'
import { test } from 'node:test'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { OCI_MANIFEST } from '../../packages/daemon/src/images/manifest.ts'
import { type ImageFixture, imageOf, sha256, tarOf } from '../../packages/daemon/src/images/tar-fixtures.ts'
import { type DaemonProcess, startDaemon } from '../harness/daemon-process.ts'
import { scratchDir } from '../harness/scratch.ts'
import { startProxy } from './images-registry.ts'
import { serveRegistry } from './served-registry.ts'

const IMAGE = imageOf([tarOf([{ name: 'a', content: 'a' }])])
const limit = { timeout: 120_000 }

/** Over the unix socket. Undefined when no answer came. */
function send(socket: string, method: string, path: string, body?: Buffer, type = 'application/octet-stream'): Promise<number | undefined> {
  return new Promise((resolve) => {
    const headers = body === undefined ? {} : { 'content-type': type, 'content-length': String(body.length) }
    const sent = request({ socketPath: socket, agent: false, method, path: `/v2/${path}`, headers }, (answer) => {
      answer.resume()
      answer.on('end', () => resolve(answer.statusCode))
      answer.on('error', () => resolve(undefined))
    })
    sent.on('error', () => resolve(undefined))
    sent.end(body)
  })
}

/** Until the daemon no longer answers. True when all of it was taken. */
async function push({ socket }: DaemonProcess, image: ImageFixture): Promise<boolean> {
  for (const [digest, blob] of image.blobs) {
    if ((await send(socket, 'HEAD', `x/blobs/${digest}`)) === 200) continue
    if ((await send(socket, 'POST', `x/blobs/uploads/?digest=${digest}`, blob)) !== 201) return false
  }
  return (await send(socket, 'PUT', 'x/manifests/1', image.manifest, OCI_MANIFEST)) === 201
}

const statusOf = async ({ client }: DaemonProcess): Promise<string | undefined> =>
  (await client.call<{ status?: string }>('GET', '/images/x:1')).body.status

async function untilReady(daemon: DaemonProcess): Promise<void> {
  await pollUntil('the image to be ready', async () => (await statusOf(daemon)) === 'ready', { signal: AbortSignal.timeout(60_000) })
}

test('a daemon that dies while a blob comes leaves nothing of it', limit, async (t) => {
  const dir = await scratchDir(t)
  await using first = await startDaemon({ dir, driver: 'fake' })
  const headers = { 'content-length': '1000000' }
  const half = request({
    socketPath: first.socket,
    agent: false,
    method: 'POST',
    path: `/v2/x/blobs/uploads/?digest=${sha256(Buffer.of(1))}`,
    headers,
  })
  half.on('error', () => undefined)
  half.write(Buffer.alloc(1000))
  await pollUntil('the draft', async () => (await readdir(first.paths.imageDraftsDir)).length === 1, {
    signal: AbortSignal.timeout(30_000),
  })
  await first.kill()
  half.destroy()
  await using next = await startDaemon({ dir, driver: 'fake' })
  assert.deepEqual(await readdir(next.paths.imageDraftsDir), [])
  assert.deepEqual(await readdir(next.paths.imageLayersDir), [])
  assert.ok(await push(next, IMAGE))
  await untilReady(next)
})

for (const { at, ends } of [
  // Its row is there and its file not yet: the repository does not have it.
  { at: 'registry:blob', ends: undefined },
  { at: 'registry:manifest', ends: undefined },
  // Behind the commit point: the next daemon makes the image.
  { at: 'registry:recorded', ends: 'ready' },
]) {
  test(`a daemon that dies at ${at} is followed by one that is in order`, limit, async (t) => {
    const dir = await scratchDir(t)
    await using first = await startDaemon({ dir, driver: 'fake', env: { DORMOUSE_CRASH_AT: at } })
    assert.equal(await push(first, IMAGE), false)
    assert.equal(await first.exited, 'SIGKILL')
    await using next = await startDaemon({ dir, driver: 'fake' })
    if (ends === 'ready') await untilReady(next)
    else {
      assert.deepEqual(await readdir(next.paths.imageDraftsDir), [])
      assert.equal(await statusOf(next), undefined)
      assert.ok(await push(next, IMAGE))
      await untilReady(next)
    }
    assert.equal((await next.client.call('DELETE', '/images/x:1')).status, 204)
    for (const part of ['drafts', 'layers', 'rootfs']) assert.deepEqual(await readdir(join(next.paths.imagesDir, part)), [], part)
  })
}

test('a push to a registry that the daemon was killed over is begun again by the next', limit, async (t) => {
  const target = await serveRegistry(t)
  const proxy = await startProxy(t, target.host)
  const held = Promise.withResolvers<void>()
  let isHeld = true
  proxy.fault = (request, response) => {
    // Ours asks for a login, which is in no file here: the test has one.
    request.headers.authorization = `Bearer ${target.token}`
    if (!isHeld || request.method !== 'PATCH') return false
    response.on('close', () => request.resume())
    held.resolve()
    return true
  }
  const dir = await scratchDir(t)
  await using first = await startDaemon({ dir, driver: 'fake' })
  assert.ok(await push(first, IMAGE))
  await untilReady(first)
  const begun = await first.client.call<{ id: string }>('POST', '/pushes', { image: 'x:1', target: `${proxy.host}/x:1` })
  assert.equal(begun.status, 202)
  await held.promise
  await first.kill()
  isHeld = false
  await using next = await startDaemon({ dir, driver: 'fake' })
  const status = async (): Promise<string> => (await next.client.get<{ status: string }>(`/pushes/${begun.body.id}`)).status
  await pollUntil('the push to be over', async () => ['pushed', 'failed'].includes(await status()), { signal: AbortSignal.timeout(60_000) })
  assert.equal(await status(), 'pushed')
  assert.equal((await target.ask('HEAD', 'x/manifests/1')).headers.get('docker-content-digest'), IMAGE.digest)
})
