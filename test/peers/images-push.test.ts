/** Pushes from the daemon to a real registry, and to one that misbehaves. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { AppError } from '@dormouse/api/errors.ts'
import type { Push } from '@dormouse/api/images.ts'
import { imageOf, layoutOf, tarOf } from '../../packages/daemon/src/images/tar-fixtures.ts'
import { type FaultyProxy, startProxy, startRegistry, startTokenServer } from './images-registry.ts'
import { command, openRoom, type Room, writeFiles } from './images-room.ts'
import { serveRegistry } from './served-registry.ts'

const IMAGE = imageOf([tarOf([{ name: 'noise', content: randomBytes(900_000) }]), tarOf([{ name: 'hello', content: 'hello' }])])
const limit = { timeout: 120_000 }
const [LARGE = { digest: '', size: 0 }] = IMAGE.layers

async function roomWithImage(t: TestContext): Promise<Room> {
  const room = await openRoom(t)
  const dir = await writeFiles(join(room.dir, 'layout'), layoutOf(IMAGE))
  await room.images.importArchive({ path: dir }, 'app:1')
  return room
}

async function push(room: Room, target: string, more: Partial<Parameters<Room['images']['push']>[0]> = {}): Promise<Push> {
  const begun = await room.images.push({ image: 'app:1', target, ...more })
  return await room.images.pushSettled(begun.id)
}

const code = (expected: string) => (error: unknown) => error instanceof AppError && error.code === expected
const lines = (proxy: FaultyProxy, method: string): string[] =>
  proxy.requests.map(({ line }) => line).filter((line) => line.startsWith(method))

test('an image is pushed as it is, and what is there is not sent again', limit, async (t) => {
  const registry = await startRegistry(t)
  const proxy = await startProxy(t, registry)
  const room = await roomWithImage(t)
  const begun = await room.images.push({ image: 'app:1', target: `${proxy.host}/team/app:2` })
  assert.deepEqual(
    [begun.status, begun.target, begun.image, begun.error],
    ['queued', `${proxy.host}/team/app:2`, 'docker.io/library/app:1', null],
  )
  const over = await room.images.pushSettled(begun.id)
  assert.deepEqual([over.status, over.error, over.layers, over.digest], ['pushed', null, 2, IMAGE.digest])
  assert.equal(
    over.bytes,
    IMAGE.layers.reduce((sum, { size }) => sum + size, 0),
  )
  assert.ok(over.completed_at)
  const raw = await command(['skopeo', 'inspect', '--raw', '--tls-verify=false', `docker://${registry}/team/app:2`])
  assert.deepEqual(Buffer.from(raw), IMAGE.manifest)
  await command(['skopeo', 'copy', '--src-tls-verify=false', `docker://${registry}/team/app:2`, `oci:${join(room.dir, 'back')}:x`])

  proxy.requests.length = 0
  assert.equal((await push(room, `${proxy.host}/team/app:3`)).status, 'pushed')
  assert.deepEqual(lines(proxy, 'POST'), [])
  assert.deepEqual(lines(proxy, 'PUT'), ['PUT /v2/team/app/manifests/3'])
  assert.deepEqual(
    room.images.pushes().map(({ target }) => target),
    [`${proxy.host}/team/app:3`, `${proxy.host}/team/app:2`],
  )
})

test('layers that the registry has elsewhere are mounted', limit, async (t) => {
  const registry = await startRegistry(t)
  const proxy = await startProxy(t, registry)
  const room = await roomWithImage(t)
  await push(room, `${proxy.host}/base:1`)
  await room.images.remove('app:1')
  await room.images.pull({ name: `${proxy.host}/base:1` })
  await room.images.whenReady(`${proxy.host}/base:1`, { signal: AbortSignal.timeout(60_000) })
  proxy.requests.length = 0
  const begun = await room.images.push({ image: `${proxy.host}/base:1`, target: `${proxy.host}/copy:1` })
  assert.equal((await room.images.pushSettled(begun.id)).status, 'pushed')
  assert.equal(lines(proxy, 'POST').length, 3)
  assert.ok(lines(proxy, 'POST').every((line) => line.includes('from=base')))
  assert.deepEqual(lines(proxy, 'PATCH'), [])
})

test('a registry that is in trouble or busy is waited for, as long as it asks', limit, async (t) => {
  const registry = await startRegistry(t)
  const proxy = await startProxy(t, registry)
  const room = await roomWithImage(t)
  let patches = 0
  let puts = 0
  proxy.fault = (request, response) => {
    if (request.method === 'PUT' && request.url?.includes('/manifests/')) {
      if (puts++ > 0) return false
      response.writeHead(429, { 'retry-after': '1' }).end()
      return true
    }
    if (request.method !== 'PATCH' || Number(request.headers['content-length'] ?? 0) < 100_000) return false
    patches++
    if (patches > 1) return false
    response.writeHead(503, { 'retry-after': '0' }).end()
    request.resume()
    return true
  }
  const over = await push(room, `${proxy.host}/app:1`)
  assert.deepEqual([over.status, over.error], ['pushed', null])
  assert.equal(patches, 2)
  assert.equal(puts, 2)
  await command(['skopeo', 'copy', '--src-tls-verify=false', `docker://${registry}/app:1`, `oci:${join(room.dir, 'back')}:x`])
})

test('a registry that says how much it has is sent the rest: our own', limit, async (t) => {
  const served = await serveRegistry(t)
  const proxy = await startProxy(t, served.host)
  const room = await roomWithImage(t)
  const half = Math.floor(LARGE.size / 2)
  const parts: (string | undefined)[] = []
  proxy.fault = (request, response) => {
    if (request.method !== 'PATCH' || Number(request.headers['content-length'] ?? 0) < 100_000) return false
    parts.push(request.headers['content-range'])
    if (parts.length > 1) return false
    // Hands half of it on, then breaks the connection.
    const chunks: Buffer[] = []
    request.on('data', (chunk: Buffer) => chunks.push(chunk))
    request.on('end', async () => {
      await served.ask('PATCH', String(request.url).replace('/v2/', ''), { body: Buffer.concat(chunks).subarray(0, half) })
      response.destroy()
    })
    return true
  }
  const over = await push(room, `${proxy.host}/team/app:1`, { credentials: { registry_token: served.token } })
  assert.deepEqual([over.status, over.error], ['pushed', null])
  assert.deepEqual(parts, [undefined, `${half}-${LARGE.size - 1}`])
  assert.equal((await served.room.images.whenReady('team/app:1', { signal: AbortSignal.timeout(60_000) })).digest, IMAGE.digest)
})

test('logins: by the request, by password and by token server; a wrong one is told as such', limit, async (t) => {
  const room = await roomWithImage(t)
  const basic = await startRegistry(t, { basic: true })
  const refusedPush = await push(room, `${basic}/app:1`)
  assert.equal(refusedPush.status, 'failed')
  assert.match(refusedPush.error ?? '', /wants credentials for a push/)
  const tokens = await startTokenServer(t)
  const guarded = await startRegistry(t, { tokens })
  const credentials = { username: 'me', password: 'secret' }
  assert.equal((await push(room, `${guarded}/team/app:1`, { credentials })).status, 'pushed')
  assert.ok(tokens.asked.some(({ scope }) => scope === 'repository:team/app:pull,push'))
  const wrong = await push(room, `${guarded}/team/app:2`, { credentials: { username: 'me', password: 'wrong' } })
  assert.match(wrong.error ?? '', /refused the credentials/)
})

test('a push is refused where it cannot be', limit, async (t) => {
  const room = await roomWithImage(t)
  const ask = (image: string, target: string) => room.images.push({ image, target })
  await assert.rejects(ask('absent', 'localhost:1/x'), code('not_found'))
  await assert.rejects(ask('no such', 'localhost:1/x'), code('invalid_name'))
  await assert.rejects(ask('app:1', 'UPPER'), code('invalid_target'))
  await assert.rejects(ask('app:1', `localhost:1/x@${IMAGE.digest}`), code('invalid_target'))
  assert.throws(() => room.images.getPush('absent'), code('not_found'))
  assert.deepEqual(room.images.pushes(), [])
})

test('a registry in a private network, or one that leads there, gets nothing', limit, async (t) => {
  const room = await roomWithImage(t)
  for (const target of ['10.1.2.3:5000/x:1', '169.254.169.254/x:1']) {
    const over = await push(room, target, { insecure: true })
    assert.equal(over.status, 'failed')
    assert.match(over.error ?? '', /is not allowed/)
  }
  const registry = await startRegistry(t)
  const proxy = await startProxy(t, registry)
  proxy.fault = (request, response) => {
    if (request.method !== 'POST') return false
    response.writeHead(202, { location: 'http://169.254.169.254/upload' }).end()
    return true
  }
  const over = await push(room, `${proxy.host}/x:1`)
  assert.equal(over.status, 'failed')
  assert.match(over.error ?? '', /not allowed/)
})

test('what a registry says no with is told', limit, async (t) => {
  const registry = await startRegistry(t)
  const proxy = await startProxy(t, registry)
  const room = await roomWithImage(t)
  proxy.fault = (request, response) => {
    if (request.method !== 'PUT' || !request.url?.includes('/manifests/')) return false
    response.writeHead(400, { 'content-type': 'application/json' })
    response.end(JSON.stringify({ errors: [{ code: 'TAG_INVALID', message: 'tags are\nimmutable here' }] }))
    return true
  }
  const over = await push(room, `${proxy.host}/x:1`)
  assert.match(over.error ?? '', /answered 400 to the manifest 1 .*\(TAG_INVALID: tags are\?immutable here\)/)
})

/** A registry that answers nothing until it is let go. */
async function heldRegistry(t: TestContext): Promise<{ proxy: FaultyProxy; reached: Promise<void>; letGo: () => void }> {
  const proxy = await startProxy(t, await startRegistry(t))
  const reached = Promise.withResolvers<void>()
  const free = Promise.withResolvers<void>()
  let isFree = false
  proxy.fault = (_, response) => {
    if (isFree) return false
    reached.resolve()
    void free.promise.then(() => response.writeHead(503, { 'retry-after': '0' }).end())
    return true
  }
  const letGo = (): void => {
    isFree = true
    free.resolve()
  }
  return { proxy, reached: reached.promise, letGo }
}

test('a target takes one push at a time: the same again is the same, another is a conflict', limit, async (t) => {
  const { proxy, reached, letGo } = await heldRegistry(t)
  const room = await roomWithImage(t)
  const target = `${proxy.host}/x:1`
  const credentials = { username: 'a', password: 'b' }
  const begun = await room.images.push({ image: 'app:1', target, credentials })
  await reached
  assert.equal((await room.images.push({ image: 'app:1', target, credentials })).id, begun.id)
  await assert.rejects(room.images.push({ image: 'app:1', target }), code('credential_conflict'))
  await assert.rejects(room.images.push({ image: 'app:1', target, credentials, insecure: true }), code('conflict'))
  // It is needed until then.
  await assert.rejects(room.images.remove('app:1'), code('conflict'))
  letGo()
  assert.equal((await room.images.pushSettled(begun.id)).status, 'pushed')
  await room.images.remove('app:1')
})

test('those that wait are told their place', limit, async (t) => {
  const { proxy, reached, letGo } = await heldRegistry(t)
  const room = await roomWithImage(t)
  const ids: string[] = []
  for (const tag of ['1', '2', '3', '4']) ids.push((await room.images.push({ image: 'app:1', target: `${proxy.host}/x:${tag}` })).id)
  await reached
  assert.deepEqual(
    ids.map((id) => room.images.getPush(id).queue_position),
    [null, null, 1, 2],
  )
  letGo()
  for (const id of ids) assert.equal((await room.images.pushSettled(id)).status, 'pushed')
})

test('a push that the daemon did not survive is begun again by the next, unless its credentials came with it', limit, async (t) => {
  const { proxy, reached, letGo } = await heldRegistry(t)
  const room = await roomWithImage(t)
  const plain = await room.images.push({ image: 'app:1', target: `${proxy.host}/x:1` })
  const given = await room.images.push({ image: 'app:1', target: `${proxy.host}/x:2`, credentials: { username: 'a', password: 'b' } })
  await reached
  const next = await room.restart()
  letGo()
  assert.equal((await next.images.pushSettled(plain.id)).status, 'pushed')
  const lost = next.images.getPush(given.id)
  assert.equal(lost.status, 'failed')
  assert.match(lost.error ?? '', /credentials were kept nowhere/)
  assert.ok(lost.completed_at)
})

test('an image that has lost a layer is not pushed in part', limit, async (t) => {
  const registry = await startRegistry(t)
  const room = await roomWithImage(t)
  await rm(room.paths.imageLayer(LARGE.digest))
  const over = await push(room, `${registry}/x:1`)
  assert.equal(over.status, 'failed')
  assert.match(over.error ?? '', /no longer on this host/)
})
