/** What other programs do with the daemon's own registry: skopeo, buildah, the published client's helper, and docker's requests in docker's order. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { request as httpRequest } from 'node:http'
import { join } from 'node:path'
import { test } from 'node:test'
import { extractPushConfig, pushImage } from '@onkernel/hypeman/lib/push'
import { type ImageFixture, imageOf, layoutOf, sha256, tarOf } from '../../packages/daemon/src/images/tar-fixtures.ts'
import { command, filesOf, step, writeFiles } from './images-room.ts'
import { pushOver, type ServedRegistry, serveRegistry } from './served-registry.ts'

const HELLO = imageOf([tarOf([{ name: 'hello', content: 'hello' }]), tarOf([{ name: 'world', content: 'world' }])])
const OTHER_ARCH = process.arch === 'arm64' ? 'amd64' : 'arm64'

/** The image in a directory that skopeo reads, as `oci:<directory>:<tag>`. */
async function layoutDir({ room }: ServedRegistry, image: ImageFixture, name = 'layout'): Promise<string> {
  return await writeFiles(join(room.dir, name), layoutOf(image))
}

const to = ({ token }: ServedRegistry): string[] => ['--dest-tls-verify=false', '--dest-creds', `anyone:${token}`]
const from = ({ token }: ServedRegistry): string[] => ['--src-tls-verify=false', '--src-creds', `anyone:${token}`]

test('skopeo pushes an image, which is ready to run, and pulls the same image back', { timeout: 120_000 }, async (t) => {
  const served = await serveRegistry(t)
  const { host, room } = served
  const dir = await layoutDir(served, HELLO)
  await command(['skopeo', 'copy', ...to(served), `oci:${dir}:latest`, `docker://${host}/team/app:1`])
  const ready = await room.images.whenReady('team/app:1', step())
  assert.equal(ready.name, 'docker.io/team/app:1')
  assert.equal(ready.digest, HELLO.digest)
  assert.deepEqual(ready.config.cmd, ['/bin/true'])
  const listing = await command(['rdsquashfs', '-d', ready.rootfs.path])
  assert.match(listing, /^file "?hello"? /m)
  assert.match(listing, /^file "?world"? /m)

  const back = join(room.dir, 'back')
  await command(['skopeo', 'copy', ...from(served), `docker://${host}/team/app:1`, `oci:${back}:latest`])
  assert.deepEqual(await readFile(join(back, 'blobs', HELLO.digest.replace(':', '/'))), HELLO.manifest)
  assert.deepEqual(
    JSON.parse(await command(['skopeo', 'list-tags', '--tls-verify=false', '--creds', `a:${served.token}`, `docker://${host}/team/app`]))
      .Tags,
    ['1'],
  )
})

test('skopeo logs in with the token as password or as user name, and not without one', { timeout: 60_000 }, async (t) => {
  const served = await serveRegistry(t)
  const login = (user: string, password: string): Promise<string> =>
    command([
      'skopeo',
      'login',
      '--authfile',
      join(served.room.dir, 'auth.json'),
      '--tls-verify=false',
      '-u',
      user,
      '-p',
      password,
      served.host,
    ])
  await login('anyone', served.token)
  await login(served.token, 'x')
  await assert.rejects(login('anyone', 'wrong'), /unauthorized|401|invalid username\/password/i)
})

test('skopeo pushes to one repository and pulls from it with a token for that alone, and to no other', { timeout: 120_000 }, async (t) => {
  const served = await serveRegistry(t)
  const { token } = await served.server.authority.mint({ subject: 'ci', scopes: ['registry:push:team/app'], ttlMs: 3_600_000 })
  const alone = { ...served, token }
  const dir = await layoutDir(served, HELLO)
  const push = (repository: string) =>
    command(['skopeo', 'copy', ...to(alone), `oci:${dir}:latest`, `docker://${served.host}/${repository}:1`])
  await push('team/app')
  const back = join(served.room.dir, 'back')
  await command(['skopeo', 'copy', ...from(alone), `docker://${served.host}/team/app:1`, `oci:${back}:latest`])
  await assert.rejects(push('team/other'), /403 \(Forbidden\)|does not allow/)
  await served.room.images.whenReady('team/app:1', step())
})

test('an index is kept as a whole, and the image of this host in it is ready to run', { timeout: 120_000 }, async (t) => {
  const served = await serveRegistry(t)
  const { host, room } = served
  const foreign = imageOf([tarOf([{ name: 'foreign', content: 'x' }])], { platform: { os: 'linux', architecture: OTHER_ARCH } })
  const files = new Map([...layoutOf(HELLO), ...layoutOf(foreign)])
  const own = process.arch === 'x64' ? 'amd64' : process.arch
  const entry = (image: ImageFixture, architecture: string) => ({
    mediaType: 'application/vnd.oci.image.manifest.v1+json',
    digest: image.digest,
    size: image.manifest.length,
    platform: { os: 'linux', architecture },
  })
  const index = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: 'application/vnd.oci.image.index.v1+json',
      manifests: [entry(foreign, OTHER_ARCH), entry(HELLO, own)],
    }),
  )
  files.set(`blobs/${sha256(index).replace(':', '/')}`, index)
  const top = { mediaType: 'application/vnd.oci.image.index.v1+json', digest: sha256(index), size: index.length }
  const named = { ...top, annotations: { 'org.opencontainers.image.ref.name': 'latest' } }
  files.set('index.json', Buffer.from(JSON.stringify({ schemaVersion: 2, manifests: [named] })))
  const dir = await writeFiles(join(room.dir, 'multi'), files)
  await command(['skopeo', 'copy', '--all', ...to(served), `oci:${dir}:latest`, `docker://${host}/multi:2`])

  const ready = await room.images.whenReady('multi:2', step())
  assert.equal(ready.digest, HELLO.digest)
  // The name by digest, which its manifest had before the index came, is no longer needed.
  assert.deepEqual(
    room.images.list().map(({ name }) => name),
    ['docker.io/library/multi:2'],
  )
  assert.equal(room.images.getImage(`multi@${HELLO.digest}`).digest, HELLO.digest)
  const raw = await command([
    'skopeo',
    'inspect',
    '--raw',
    '--tls-verify=false',
    '--creds',
    `a:${served.token}`,
    `docker://${host}/multi:2`,
  ])
  assert.deepEqual(Buffer.from(raw), index)
  const back = join(room.dir, 'back')
  await command(['skopeo', 'copy', ...from(served), '--override-arch', OTHER_ARCH, `docker://${host}/multi:2`, `oci:${back}:latest`])
  assert.deepEqual(await readFile(join(back, 'blobs', foreign.digest.replace(':', '/'))), foreign.manifest)

  // With the name goes all of it.
  await room.images.remove('multi:2')
  assert.deepEqual(await filesOf(room), { drafts: [], layers: [], rootfs: [] })
  assert.equal((await served.ask('GET', 'multi/manifests/2')).status, 404)
})

test('buildah builds an image from nothing and pushes it', { timeout: 180_000 }, async (t) => {
  const served = await serveRegistry(t)
  const dir = join(served.room.dir, 'buildah')
  await mkdir(dir)
  await writeFile(join(dir, 'program'), 'made by buildah')
  const store = ['--root', join(dir, 'root'), '--runroot', join(dir, 'run'), '--storage-driver', 'vfs']
  const buildah = async (...args: string[]): Promise<string> => (await command(['buildah', ...store, ...args])).trim()
  const working = await buildah('from', 'scratch')
  await buildah('copy', working, join(dir, 'program'), '/program')
  await buildah('config', '--cmd', '["/program"]', '--env', 'A=b', working)
  const image = await buildah('commit', '-q', working)
  await buildah('push', '-q', '--tls-verify=false', '--creds', `${served.token}:unused`, image, `docker://${served.host}/built/app:latest`)
  const ready = await served.room.images.whenReady('built/app', step())
  assert.deepEqual(ready.config.cmd, ['/program'])
  assert.ok(ready.config.env.includes('A=b'))
  assert.match(await command(['rdsquashfs', '-c', 'program', ready.rootfs.path]), /made by buildah/)
})

test("the published client's helper pushes an image", { timeout: 60_000 }, async (t) => {
  const served = await serveRegistry(t)
  const config = extractPushConfig({ baseURL: `http://${served.host}`, apiKey: served.token } as Parameters<typeof extractPushConfig>[0])
  const source = {
    config: async () => HELLO.config,
    layers: async () => HELLO.layers.map(({ digest, size }) => ({ digest, size, data: HELLO.blobs.get(digest) as Buffer })),
  }
  await pushImage(config, source, 'myorg/myapp:v1.0')
  const ready = await served.room.images.whenReady('myorg/myapp:v1.0', step())
  assert.equal(ready.name, 'docker.io/myorg/myapp:v1.0')
  // Again, and under another name: the blobs are there.
  await pushImage(config, source, 'myorg/myapp')
  assert.equal(served.room.images.getImage('myorg/myapp').status, 'ready')
})

test('docker pushes: asks who it is to be, looks, mounts, sends chunks of unknown length, then the manifest', {
  timeout: 60_000,
}, async (t) => {
  const served = await serveRegistry(t)
  const basic = `Basic ${Buffer.from(`me:${served.token}`).toString('base64')}`
  const asked = await fetch(`http://${served.host}/v2/`)
  assert.equal(asked.status, 401)
  assert.equal(asked.headers.get('www-authenticate'), 'Basic realm="dormouse", charset="UTF-8"')
  assert.equal(asked.headers.get('docker-distribution-api-version'), 'registry/2.0')
  assert.equal((await fetch(`http://${served.host}/v2/`, { headers: { authorization: basic } })).status, 200)

  const send = dockerOf(served, basic)
  const image = dockerImage()
  for (const [digest, blob] of image.blobs) {
    assert.equal((await send('HEAD', `/v2/team/app/blobs/${digest}`)).status, 404)
    const begun = await send('POST', `/v2/team/app/blobs/uploads/?from=team%2Fbase&mount=${encodeURIComponent(digest)}`)
    assert.equal(begun.status, 202)
    assert.equal(begun.headers.range, '0-0')
    const sent = await send('PATCH', String(begun.headers.location), { chunks: [blob.subarray(0, 7), blob.subarray(7)] })
    assert.equal(sent.status, 202)
    assert.equal(sent.headers.range, `0-${blob.length - 1}`)
    const put = await send('PUT', `${sent.headers.location}?digest=${encodeURIComponent(digest)}`, { chunks: [] })
    assert.equal(put.status, 201)
    assert.equal(put.headers['docker-content-digest'], digest)
    const there = await send('HEAD', `/v2/team/app/blobs/${digest}`)
    assert.deepEqual([there.status, there.headers['content-length']], [200, String(blob.length)])
  }
  const type = 'application/vnd.docker.distribution.manifest.v2+json'
  const put = await send('PUT', '/v2/team/app/manifests/1', { chunks: [image.manifest], type })
  assert.equal(put.status, 201)
  assert.equal(put.headers['docker-content-digest'], sha256(image.manifest))
  await served.room.images.whenReady('team/app:1', step())
  const head = await send('HEAD', '/v2/team/app/manifests/1')
  assert.deepEqual([head.headers['content-type'], head.headers['content-length']], [type, String(image.manifest.length)])
})

/** With Docker's media types. */
function dockerImage(): { manifest: Buffer; blobs: ReadonlyMap<string, Buffer> } {
  const plain = JSON.parse(HELLO.manifest.toString())
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: 'application/vnd.docker.distribution.manifest.v2+json',
      config: { ...plain.config, mediaType: 'application/vnd.docker.container.image.v1+json' },
      layers: HELLO.layers.map((layer) => ({ ...layer, mediaType: 'application/vnd.docker.image.rootfs.diff.tar.gzip' })),
    }),
  )
  return { manifest, blobs: HELLO.blobs }
}

interface DockerAnswer {
  readonly status: number
  readonly headers: Record<string, string | string[] | undefined>
}

/** Go's client gives a body of unknown length in chunks. */
function dockerOf({ host }: ServedRegistry, authorization: string) {
  return (method: string, path: string, body: { chunks?: readonly Buffer[]; type?: string } = {}): Promise<DockerAnswer> =>
    new Promise((resolve, reject) => {
      const { chunks, type = 'application/octet-stream' } = body
      const shape: Record<string, string> =
        chunks === undefined
          ? {}
          : chunks.length === 0
            ? { 'content-length': '0' }
            : { 'transfer-encoding': 'chunked', 'content-type': type }
      const sent = httpRequest(`http://${host}${path}`, { method, agent: false, headers: { authorization, ...shape } }, (answer) => {
        answer.resume()
        answer.on('end', () => resolve({ status: answer.statusCode ?? 0, headers: answer.headers }))
      })
      sent.on('error', reject)
      for (const chunk of chunks ?? []) sent.write(chunk)
      sent.end()
    })
}

test('an upload in parts goes on where it was cut, and refuses a part that leaves a gap', { timeout: 60_000 }, async (t) => {
  const served = await serveRegistry(t)
  const blob = randomBytes(300_000)
  const digest = sha256(blob)
  const begun = await served.ask('POST', 'x/blobs/uploads/')
  const path = (answer: Response): string => String(answer.headers.get('location')).replace('/v2/', '')
  const patch = (at: string, from: number, to: number): Promise<Response> =>
    served.ask('PATCH', at, { body: blob.subarray(from, to), headers: { 'content-range': `${from}-${to - 1}` } })
  const first = await patch(path(begun), 0, 100_000)
  assert.deepEqual([first.status, first.headers.get('range')], [202, '0-99999'])

  await cutAfter(served, path(first), blob.subarray(100_000), 50_000)
  const stands = await standsAt(served, path(first))
  assert.ok(stands >= 100_000 && stands < 300_000, `stands at ${stands}`)
  const gap = await patch(path(first), stands + 1, 300_000)
  assert.equal(gap.status, 416)
  assert.equal(gap.headers.get('range'), `0-${stands - 1}`)

  const rest = await patch(path(first), stands, 300_000)
  assert.deepEqual([rest.status, rest.headers.get('range')], [202, '0-299999'])
  const put = await served.ask('PUT', `${path(rest)}?digest=${digest}`)
  assert.equal(put.status, 201)
  const part = await served.ask('GET', `x/blobs/${digest}`, { headers: { range: 'bytes=10-19' } })
  assert.deepEqual([part.status, part.headers.get('content-range')], [206, 'bytes 10-19/300000'])
  assert.deepEqual(Buffer.from(await part.arrayBuffer()), blob.subarray(10, 20))
  assert.equal((await served.ask('GET', path(rest))).status, 404)
})

/** Sends so many bytes of a larger part, then breaks the connection once they have been taken. */
async function cutAfter(served: ServedRegistry, path: string, bytes: Buffer, count: number): Promise<void> {
  const before = await standsAt(served, path)
  const headers = { authorization: `Bearer ${served.token}`, 'content-length': String(bytes.length) }
  const sent = httpRequest(`http://${served.host}/v2/${path}`, { method: 'PATCH', agent: false, headers })
  const gone = new Promise<void>((resolve) => sent.once('close', () => resolve()))
  sent.on('error', () => undefined)
  sent.write(bytes.subarray(0, count))
  while ((await standsAt(served, path)) === before);
  sent.destroy()
  await gone
}

async function standsAt(served: ServedRegistry, path: string): Promise<number> {
  const answer = await served.ask('GET', path)
  assert.equal(answer.status, 204)
  return Number(answer.headers.get('range')?.split('-')[1]) + 1
}

test('what was imported is pulled from here, and can be pushed to again under another tag', { timeout: 60_000 }, async (t) => {
  const served = await serveRegistry(t)
  const { host, room } = served
  await room.images.importArchive({ path: await layoutDir(served, HELLO) }, 'imported:1')
  const back = join(room.dir, 'back')
  await command(['skopeo', 'copy', ...from(served), `docker://${host}/imported:1`, `oci:${back}:latest`])
  assert.deepEqual(await readFile(join(back, 'blobs', HELLO.digest.replace(':', '/'))), HELLO.manifest)
  // Its blobs are here, its configuration among them, which no file holds.
  await pushOver(served, 'imported', '2', HELLO)
  await room.images.remove('imported:1')
  await command(['skopeo', 'copy', ...from(served), `docker://${host}/imported:2`, `oci:${back}:again`])
  assert.equal((await room.images.whenReady('imported:2', step())).digest, HELLO.digest)
})

test('one request is enough for a blob, and another repository mounts it', { timeout: 60_000 }, async (t) => {
  const served = await serveRegistry(t)
  const [[digest = '', blob] = []] = HELLO.blobs
  const single = await served.ask('POST', `one/blobs/uploads/?digest=${digest}`, { body: blob })
  assert.equal(single.status, 201)
  assert.equal((await served.ask('HEAD', `two/blobs/${digest}`)).status, 404)
  assert.equal((await served.ask('POST', `two/blobs/uploads/?mount=${digest}&from=three`)).status, 202)
  const mounted = await served.ask('POST', `two/blobs/uploads/?mount=${digest}&from=one`)
  assert.deepEqual([mounted.status, mounted.headers.get('location')], [201, `/v2/two/blobs/${digest}`])
  assert.equal((await served.ask('HEAD', `two/blobs/${digest}`)).status, 200)
  assert.deepEqual((await filesOf(served.room)).layers, [digest.replace(':', '-')])
})
