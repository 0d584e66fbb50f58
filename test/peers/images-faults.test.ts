/** A registry that misbehaves: a proxy before the real one cuts, bends, refuses and leads astray. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { type TestContext, test } from 'node:test'
import { gzipSync, zstdCompressSync } from 'node:zlib'
import { AppError, type ErrorCode } from '@dormouse/api/errors.ts'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { fakeUses } from '../../packages/daemon/src/http/fake-uses.ts'
import { HttpServer } from '../../packages/daemon/src/http/server.ts'
import { type ImageFixture, imageOf, sha256, tarOf } from '../../packages/daemon/src/images/tar-fixtures.ts'
import { processesNaming } from '../harness/processes.ts'
import { type FaultyProxy, pushFixture, startProxy, startRegistry } from './images-registry.ts'
import { assertNothingLeft, filesOf, openRoom, pullReady, type Room, step } from './images-room.ts'

const content = randomBytes(2 << 20)
const big = (): ImageFixture => imageOf([tarOf([{ name: 'big', content }])], { compress: zstdCompressSync })
const layerOf = (image: ImageFixture) => image.layers[0] ?? assert.fail()

const says =
  (code: ErrorCode, pattern = /./) =>
  (error: unknown) => {
    assert.ok(error instanceof AppError, String(error))
    assert.equal(error.code, code, error.message)
    assert.match(error.message, pattern)
    return true
  }

async function behindProxy(
  t: TestContext,
  image: ImageFixture,
  config: Parameters<typeof openRoom>[1] = {},
): Promise<{ room: Room; proxy: FaultyProxy; name: string; registry: string }> {
  const registry = await startRegistry(t)
  const proxy = await startProxy(t, registry)
  await pushFixture(registry, 'lib/x', 'v1', image)
  return { room: await openRoom(t, config), proxy, registry, name: `${proxy.host}/lib/x:v1` }
}

/** The pull is accepted and fails; nothing but its row is left, and that goes with the name. */
async function failsWith(room: Room, name: string, code: ErrorCode, pattern: RegExp): Promise<void> {
  await assert.rejects(pullReady(room, { name }), says(code, pattern))
  assert.equal(room.images.getImage(name).status, 'failed')
  assert.match(room.images.getImage(name).error ?? '', pattern)
  await assertNothingLeft(room, { failedRows: 1 })
  await room.images.remove(name)
  await assertNothingLeft(room)
}

test('a download that is cut again and again is taken up where it stopped', async (t) => {
  const image = big()
  const { room, proxy, name } = await behindProxy(t, image)
  proxy.cutBlobsAfter = 700_000
  const ready = await pullReady(room, { name })
  assert.equal(ready.digest, image.digest)
  const tries = proxy.requests.filter(({ line }) => line.endsWith(layerOf(image).digest))
  assert.ok(tries.length >= 3, `${tries.length} tries`)
  const offsets = tries.map(({ range }) => Number(/^bytes=(\d+)-$/.exec(range ?? 'bytes=0-')?.[1]))
  for (const [index, offset] of offsets.entries()) if (index > 0) assert.ok(offset > (offsets[index - 1] ?? 0), `offsets grow: ${offsets}`)
})

test('a registry that knows no ranges sends all again, and what is there already is skipped', async (t) => {
  const image = big()
  const { room, proxy, name } = await behindProxy(t, image)
  let times = 0
  proxy.fault = (request, response) => {
    if (!request.url?.endsWith(layerOf(image).digest)) return false
    const blob = image.blobs.get(layerOf(image).digest) ?? assert.fail()
    response.writeHead(200, { 'content-length': String(blob.length) })
    if (times++ < 2) response.write(blob.subarray(0, 500_000 * times), () => request.socket.destroy())
    else response.end(blob)
    return true
  }
  assert.equal((await pullReady(room, { name })).digest, image.digest)
  assert.equal(times, 3)
})

test('a registry that is down for good ends the pull after some tries, and what was whole is kept for the next', async (t) => {
  const image = imageOf([tarOf([{ name: 'a', content: randomBytes(5000) }]), tarOf([{ name: 'b', content: randomBytes(5000) }])])
  const { room, proxy, name } = await behindProxy(t, image)
  const second = image.layers[1]?.digest ?? '?'
  proxy.fault = (request) => {
    if (request.url?.endsWith(second)) request.socket.destroy()
    return request.url?.endsWith(second) ?? false
  }
  await assert.rejects(pullReady(room, { name }), says('registry_unavailable', /broke off|could not be reached/))
  const left = await filesOf(room)
  assert.deepEqual({ ...left, layers: left.layers.length }, { drafts: [], rootfs: [], layers: 1 })
  proxy.fault = undefined
  proxy.requests.length = 0
  await pullReady(room, { name })
  assert.equal(proxy.requests.filter(({ line }) => line.endsWith(image.layers[0]?.digest ?? '?')).length, 0)
})

test('a layer with another digest, a longer and a shorter one are refused', async (t) => {
  const image = big()
  const { room, proxy, name } = await behindProxy(t, image)
  const bent = (change: (blob: Buffer) => Buffer) => {
    proxy.bend = (request, body) => (request.url?.endsWith(layerOf(image).digest) ? change(Buffer.from(body)) : body)
  }
  bent((blob) => {
    blob[blob.length - 1000] = (blob[blob.length - 1000] ?? 0) ^ 1
    return blob
  })
  await failsWith(room, name, 'invalid_image', /is damaged: its digest is/)
  bent((blob) => Buffer.concat([blob, Buffer.from('trailing')]))
  await failsWith(room, name, 'invalid_image', /where \d+ were declared/)
  bent((blob) => blob.subarray(0, blob.length - 10))
  await failsWith(room, name, 'invalid_image', /where \d+ were declared/)
})

test('a layer that goes on and on without saying its length is cut off', async (t) => {
  const image = big()
  const { room, proxy, name } = await behindProxy(t, image)
  let sent = 0
  proxy.fault = (request, response) => {
    if (!request.url?.endsWith(layerOf(image).digest)) return false
    response.writeHead(200)
    const more = (): void => {
      sent += 1 << 20
      if (!response.destroyed) response.write(Buffer.alloc(1 << 20, 1), more)
    }
    response.write(image.blobs.get(layerOf(image).digest), more)
    return true
  }
  await failsWith(room, name, 'invalid_image', /more than \d+ bytes/)
  assert.ok(sent < 64 << 20)
})

test('another part of a blob than was asked for is refused', async (t) => {
  const image = big()
  const { room, proxy, name } = await behindProxy(t, image)
  let times = 0
  proxy.fault = (request, response) => {
    if (!request.url?.endsWith(layerOf(image).digest)) return false
    const blob = image.blobs.get(layerOf(image).digest) ?? assert.fail()
    if (times++ === 0) {
      response.writeHead(200, { 'content-length': String(blob.length) })
      response.write(blob.subarray(0, 1000), () => request.socket.destroy())
    } else response.writeHead(206, { 'content-range': `bytes 0-${blob.length - 1}/${blob.length}` }).end(blob)
    return true
  }
  await failsWith(room, name, 'invalid_image', /another part/)
})

test('a layer that unpacks to another diff id than the configuration says is refused', async (t) => {
  const image = imageOf([tarOf([{ name: 'a', content: 'x' }])])
  const config = Buffer.from(
    image.config.toString().replace(/"diff_ids":\["sha256:[0-9a-f]{64}/, `"diff_ids":["${sha256(Buffer.from('other'))}`),
  )
  const manifest = JSON.parse(image.manifest.toString())
  manifest.config = { ...manifest.config, digest: sha256(config), size: config.length }
  const lying = {
    ...image,
    config,
    manifest: Buffer.from(JSON.stringify(manifest)),
    blobs: new Map([...image.blobs, [sha256(config), config]]),
  }
  const { room, name } = await behindProxy(t, { ...lying, digest: sha256(lying.manifest) })
  await failsWith(room, name, 'invalid_image', /unpacks to sha256/)
})

test('a manifest or a configuration that is something else is refused at once', async (t) => {
  const { room, proxy, name } = await behindProxy(t, big())
  proxy.bend = (request, body) => (request.url?.includes('/manifests/') ? Buffer.concat([body, Buffer.from(' ')]) : body)
  await assert.rejects(room.images.pull({ name }), says('invalid_image', /digest/))
  proxy.bend = (request, body) => (request.url?.includes('/blobs/') ? Buffer.from(body.toString().replace('true', 'evil')) : body)
  await assert.rejects(room.images.pull({ name }), says('invalid_image', /something else/))
  await assertNothingLeft(room)
})

test('401, 403, 404 and 429 of the manifest are answered at once by their codes', async (t) => {
  const { room, proxy, name } = await behindProxy(t, big())
  for (const [status, code] of [
    [401, 'registry_unauthorized'],
    [403, 'registry_refused'],
    [404, 'not_found'],
    [429, 'rate_limited'],
    [502, 'registry_unavailable'],
  ] as const) {
    proxy.fault = (_request, response) => {
      response.writeHead(status, { 'retry-after': '33' }).end()
      return true
    }
    await assert.rejects(room.images.pull({ name }), (error) => {
      if (status === 429) assert.equal((error as AppError).retryAfterSeconds, 33)
      return says(code)(error)
    })
  }
  await assertNothingLeft(room)
})

test('what a registry says of its limits is the answer of our API, with the time to wait', async (t) => {
  const { room, proxy, name } = await behindProxy(t, big())
  await using server = new HttpServer({ ...fakeUses(), images: room.images })
  proxy.fault = (_request, response) => {
    response.writeHead(429, { 'retry-after': '33' }).end()
    return true
  }
  const { statusCode, headers, body } = await server.host.inject({ method: 'POST', url: '/images', payload: { name } })
  assert.deepEqual([statusCode, headers['retry-after'], JSON.parse(body).code], [429, '33', 'rate_limited'])
  await assertNothingLeft(room)
})

test('401, 403 and 404 of a layer end the pull by their codes', async (t) => {
  const image = big()
  const { room, proxy, name } = await behindProxy(t, image)
  for (const [status, code] of [
    [401, 'registry_unauthorized'],
    [403, 'registry_refused'],
    [404, 'not_found'],
  ] as const) {
    proxy.fault = (request, response) => {
      if (!request.url?.endsWith(layerOf(image).digest)) return false
      response.writeHead(status).end()
      return true
    }
    await failsWith(room, name, code, /./)
  }
})

test('429 of a layer is waited out when it is short, and ends the pull when it is long', async (t) => {
  const image = big()
  const { room, proxy, name } = await behindProxy(t, image)
  let refusals = 0
  const refuse = (seconds: string, times: number): void => {
    refusals = 0
    proxy.fault = (request, response) => {
      if (!request.url?.endsWith(layerOf(image).digest) || refusals >= times) return false
      refusals++
      response.writeHead(429, { 'retry-after': seconds }).end()
      return true
    }
  }
  refuse('1', 2)
  const startedAt = performance.now()
  await pullReady(room, { name })
  assert.equal(refusals, 2)
  assert.ok(performance.now() - startedAt >= 1900)
  await room.images.remove(name)
  refuse('3600', 99)
  await assert.rejects(pullReady(room, { name }), says('rate_limited'))
  assert.equal(refusals, 1)
})

test('a blob may be elsewhere, and gets no credentials there; a private address is refused unless the configuration allows it', async (t) => {
  const image = big()
  const { room, proxy, registry, name } = await behindProxy(t, image)
  const cdn = await startProxy(t, registry)
  proxy.fault = (request, response) => {
    if (request.headers.authorization === undefined) {
      response.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end()
      return true
    }
    if (!request.url?.includes('/blobs/')) return false
    response.writeHead(307, { location: `http://${cdn.host}${request.url}` }).end()
    return true
  }
  const ready = await room.images.pull({ name, credentials: { username: 'me', password: 'x' } })
  await room.images.whenReady(ready.name, step())
  assert.ok(cdn.requests.length >= 2)
  assert.ok(cdn.requests.every(({ authorization }) => authorization === undefined))
  await room.images.remove(name)

  proxy.fault = (request, response) => {
    if (!request.url?.endsWith(layerOf(image).digest)) return false
    response.writeHead(307, { location: 'https://10.0.0.1/blob' }).end()
    return true
  }
  await failsWith(room, name, 'registry_refused', /private address/)
})

test('a token realm at a private address is refused, and the credentials stay here', async (t) => {
  const { room, proxy, name } = await behindProxy(t, big())
  for (const realm of ['http://169.254.169.254/token', 'https://192.168.0.1/token', 'https://[fe80::1]/token']) {
    proxy.fault = (_request, response) => {
      response.writeHead(401, { 'www-authenticate': `Bearer realm="${realm}",service="x"` }).end()
      return true
    }
    await assert.rejects(
      room.images.pull({ name, credentials: { username: 'me', password: 'secret' } }),
      says('registry_refused', /not allowed/),
    )
  }
  await assertNothingLeft(room)
})

test('a mirror is asked first, without the credentials, and the registry itself when the mirror cannot', async (t) => {
  const image = big()
  const registry = await startRegistry(t)
  const [mirror, home] = [await startProxy(t, registry), await startProxy(t, registry)]
  await pushFixture(registry, 'lib/x', 'v1', image)
  const room = await openRoom(t, { registryMirrors: { [home.host]: mirror.host } })
  const name = `${home.host}/lib/x:v1`
  await pullReady(room, { name, credentials: { username: 'me', password: 'secret' } })
  assert.equal(home.requests.length, 0)
  assert.ok(mirror.requests.every(({ authorization }) => authorization === undefined))
  await room.images.remove(name)
  mirror.fault = (_request, response) => {
    response.writeHead(404).end()
    return true
  }
  await pullReady(room, { name })
  assert.ok(home.requests.length >= 3)
})

test('a bomb from a registry is stopped, and nothing of it stays', async (t) => {
  const zeros = tarOf([{ name: 'zeros', content: Buffer.alloc(48 << 20) }])
  const { room, name } = await behindProxy(t, imageOf([zeros], { compress: (tar) => gzipSync(tar, { level: 9 }) }), {
    maxImageBytes: 16 << 20,
  })
  await failsWith(room, name, 'image_too_large', /(more|larger) than 16777216 bytes/)
})

test('when the process that converts dies, one image fails, nothing of it stays, and the next pull works', async (t) => {
  const image = big()
  const { room, proxy, name } = await behindProxy(t, image)
  const held = Promise.withResolvers<void>()
  proxy.fault = (request, response) => {
    if (!request.url?.endsWith(layerOf(image).digest)) return false
    response.writeHead(200, { 'content-length': String(layerOf(image).size) })
    response.write(image.blobs.get(layerOf(image).digest)?.subarray(0, 1 << 20), () => held.resolve())
    return true
  }
  await room.images.pull({ name })
  await held.promise
  const [worker, ...others] = (await processesNaming('conversion-worker')).filter(({ pid }) => parentOf(pid) === process.pid)
  assert.equal(others.length, 0)
  process.kill(worker?.pid ?? 0, 'SIGKILL')
  await assert.rejects(room.images.whenReady(name, step()), says('internal_error', /died \(SIGKILL\)/))
  await pollUntil('the sweep', async () => (await filesOf(room)).drafts.length === 0, step())
  await assertNothingLeft(room, { failedRows: 1 })
  proxy.fault = undefined
  await pullReady(room, { name })
})

const parentOf = (pid: number): number => Number(readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ')[1])
