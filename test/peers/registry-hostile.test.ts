/** What a registry that is open to others must withstand, and how it says no: always in the words of the distribution specification. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { OCI_MANIFEST } from '../../packages/daemon/src/images/manifest.ts'
import { imageOf, sha256, tarOf } from '../../packages/daemon/src/images/tar-fixtures.ts'
import { filesOf, step } from './images-room.ts'
import { pushOver, refusalOf, type ServedRegistry, serveRegistry } from './served-registry.ts'

const IMAGE = imageOf([tarOf([{ name: 'a', content: 'a' }])])
const [LAYER = { mediaType: '', digest: '', size: 0 }] = IMAGE.layers
const ABSENT = sha256(Buffer.from('absent'))
const limit = { timeout: 60_000 }

test('names, references, digests and numbers that cannot be are refused, whatever they hold', limit, async (t) => {
  const served = await serveRegistry(t)
  const upload = (await served.ask('POST', 'x/blobs/uploads/')).headers.get('location')?.replace('/v2/', '') ?? ''
  const cases: readonly (readonly [method: string, path: string, status: number, code: string])[] = [
    ['GET', 'UPPER/tags/list', 400, 'NAME_INVALID'],
    ['GET', 'a:b/tags/list', 400, 'NAME_INVALID'],
    ['GET', 'a@b/tags/list', 400, 'NAME_INVALID'],
    ['GET', '%2e%2e%2fetc/tags/list', 400, 'NAME_INVALID'],
    ['GET', 'a//b/tags/list', 400, 'NAME_INVALID'],
    ['GET', 'a%00b/tags/list', 400, 'NAME_INVALID'],
    ['GET', `${'a'.repeat(300)}/tags/list`, 400, 'NAME_INVALID'],
    ['POST', '-a/blobs/uploads/', 400, 'NAME_INVALID'],
    ['GET', 'x/tags/list', 404, 'NAME_UNKNOWN'],
    ['GET', 'x/manifests/1', 404, 'MANIFEST_UNKNOWN'],
    ['GET', `x/manifests/${ABSENT}`, 404, 'MANIFEST_UNKNOWN'],
    ['GET', 'x/manifests/..%2f..%2f1', 404, 'NAME_UNKNOWN'],
    ['DELETE', 'x/manifests/1', 404, 'MANIFEST_UNKNOWN'],
    ['GET', `x/blobs/${ABSENT}`, 404, 'BLOB_UNKNOWN'],
    ['DELETE', `x/blobs/${ABSENT}`, 404, 'BLOB_UNKNOWN'],
    ['GET', 'x/blobs/sha256:123', 400, 'DIGEST_INVALID'],
    ['GET', `x/blobs/${ABSENT.toUpperCase()}`, 400, 'DIGEST_INVALID'],
    ['GET', 'x/blobs/sha256:..%2f..%2fsecret', 404, 'NAME_UNKNOWN'],
    ['POST', 'x/blobs/uploads/?digest=md5:1', 400, 'DIGEST_INVALID'],
    ['POST', 'x/blobs/uploads/?digest-algorithm=md5', 400, 'DIGEST_INVALID'],
    ['PUT', upload, 400, 'DIGEST_INVALID'],
    ['GET', `y/${upload.slice(2)}`, 404, 'BLOB_UPLOAD_UNKNOWN'],
    ['PATCH', 'x/blobs/uploads/0123', 404, 'BLOB_UPLOAD_UNKNOWN'],
    ['GET', '_catalog?n=-1', 400, 'PAGINATION_NUMBER_INVALID'],
    ['GET', '_catalog?n=1e9', 400, 'PAGINATION_NUMBER_INVALID'],
    ['POST', '_catalog', 405, 'UNSUPPORTED'],
    ['PATCH', 'x/manifests/1', 405, 'UNSUPPORTED'],
    [`GET`, `x/referrers/${ABSENT}`, 404, 'NAME_UNKNOWN'],
    ['GET', 'nothing', 404, 'NAME_UNKNOWN'],
  ]
  for (const [method, path, status, code] of cases) {
    const told = await refusalOf(await served.ask(method, path))
    assert.deepEqual([told.status, told.code], [status, code], `${method} ${path}: ${told.message}`)
  }
  const odd = await served.ask('PATCH', upload, { body: 'x', headers: { 'content-range': 'all of it' } })
  assert.equal((await refusalOf(odd)).code, 'RANGE_INVALID')
  assert.equal((await served.ask('DELETE', upload)).status, 204)
  assert.deepEqual(await filesOf(served.room), { drafts: [], layers: [], rootfs: [] })
})

test('a blob under the digest of another does not open that other one', limit, async (t) => {
  const served = await serveRegistry(t)
  await pushOver(served, 'mine', '1', IMAGE)
  const told = await served.ask('POST', `theirs/blobs/uploads/?digest=${LAYER.digest}`, { body: 'something else' })
  assert.deepEqual((await refusalOf(told)).code, 'DIGEST_INVALID')
  assert.equal((await served.ask('GET', `theirs/blobs/${LAYER.digest}`)).status, 404)
  assert.equal((await served.ask('GET', `mine/blobs/${LAYER.digest}`)).status, 200)
})

test('a manifest that comes without a content type is what it says itself, and nothing where it does not', limit, async (t) => {
  const served = await serveRegistry(t)
  await pushOver(served, 'x', 'good', IMAGE)
  const plain = { ...JSON.parse(IMAGE.manifest.toString()), mediaType: OCI_MANIFEST }
  const { mediaType: _, ...silent } = plain
  for (const headers of [{}, { 'content-type': '' }]) {
    const put = (document: object) =>
      served.ask('PUT', 'x/manifests/own', { body: Buffer.from(JSON.stringify(document)), headers: headers as Record<string, string> })
    assert.equal((await put(plain)).status, 201, JSON.stringify(headers))
    const { headers: told } = await served.ask('HEAD', 'x/manifests/own')
    assert.equal(told.get('content-type'), OCI_MANIFEST)
    assert.equal((await refusalOf(await put(silent))).code, 'MANIFEST_INVALID')
  }
})

test('manifests that are none, or of what is no image, or of blobs that are not here, are refused in words', limit, async (t) => {
  const served = await serveRegistry(t, { maxImageBytes: 1 << 20 })
  await pushOver(served, 'x', 'good', IMAGE)
  const plain = JSON.parse(IMAGE.manifest.toString())
  const put = (body: unknown, type = OCI_MANIFEST, reference = '1'): Promise<Response> =>
    served.ask('PUT', `x/manifests/${reference}`, {
      body: Buffer.isBuffer(body) ? body : typeof body === 'string' ? body : JSON.stringify(body),
      headers: { 'content-type': type },
    })
  const helm = { ...plain, config: { ...plain.config, mediaType: 'application/vnd.cncf.helm.config.v1+json' } }
  const odd = { ...plain, layers: [{ ...LAYER, mediaType: 'application/vnd.in-toto+json' }] }
  const bomb = `[${'['.repeat(100_000)}`
  const cases: readonly (readonly [unknown, string | undefined, string, RegExp])[] = [
    ['no JSON', undefined, 'MANIFEST_INVALID', /no JSON/],
    ['[]', undefined, 'MANIFEST_INVALID', /no JSON object/],
    [bomb, undefined, 'MANIFEST_INVALID', /JSON/],
    [Buffer.from([0xff, 0xfe, 0]), undefined, 'MANIFEST_INVALID', /JSON/],
    [plain, 'application/json', 'MANIFEST_INVALID', /content type/],
    [plain, 'application/vnd.docker.distribution.manifest.v1+json', 'MANIFEST_INVALID', /content type/],
    [{ ...plain, mediaType: undefined, schemaVersion: 1 }, undefined, 'MANIFEST_INVALID', /schema version 1/],
    [{ ...plain, manifests: [] }, undefined, 'MANIFEST_INVALID', /index as well/],
    [helm, undefined, 'MANIFEST_INVALID', /no image of a file system/],
    [odd, undefined, 'MANIFEST_INVALID', /media type/],
    [{ ...plain, layers: [{ ...LAYER, digest: ABSENT }] }, undefined, 'MANIFEST_BLOB_UNKNOWN', /was not pushed/],
    [{ ...plain, layers: [{ ...LAYER, size: LAYER.size + 1 }] }, undefined, 'SIZE_INVALID', /where the manifest says/],
    [{ ...plain, layers: [{ ...LAYER, size: -1 }] }, undefined, 'MANIFEST_INVALID', /size/],
    [{ ...plain, layers: [{ ...LAYER, digest: '../../x' }] }, undefined, 'MANIFEST_INVALID', /digest/],
    [{ ...plain, layers: [LAYER, LAYER] }, undefined, 'MANIFEST_INVALID', /2 layers/],
    [{ ...plain, layers: Array(501).fill(LAYER) }, undefined, 'MANIFEST_INVALID', /limit/],
    [{ ...plain, config: { ...plain.config, digest: LAYER.digest, size: LAYER.size } }, undefined, 'MANIFEST_INVALID', /configuration/],
  ]
  for (const [body, type, code, message] of cases) {
    const told = await refusalOf(await put(body, type))
    assert.equal(told.code, code, told.message)
    assert.match(told.message, message)
    assert.ok(told.status < 500)
  }
  const large = await put(JSON.stringify({ ...plain, filler: 'x'.repeat(3 << 20) })).catch((error) => error)
  // The refusal comes while the rest is on its way, and the connection ends with it.
  if (large instanceof Response) assert.equal((await refusalOf(large)).status, 413)
  const wrong = await put(plain, OCI_MANIFEST, ABSENT)
  assert.equal((await refusalOf(wrong)).code, 'DIGEST_INVALID')
  const index = { schemaVersion: 2, manifests: [{ mediaType: OCI_MANIFEST, digest: ABSENT, size: 7 }] }
  const told = await refusalOf(await put(index, 'application/vnd.oci.image.index.v1+json'))
  assert.deepEqual([told.status, told.code], [404, 'MANIFEST_BLOB_UNKNOWN'])
  const tooLarge = await served
    .ask('POST', `x/blobs/uploads/?digest=${ABSENT}`, { body: Buffer.alloc((1 << 20) + 1) })
    .catch((error) => error)
  if (tooLarge instanceof Response) assert.deepEqual((await refusalOf(tooLarge)).code, 'SIZE_INVALID')
  await served.room.images.whenReady('x:good', step())
  assert.deepEqual(
    served.room.images.list().map(({ name }) => name),
    ['docker.io/library/x:good'],
  )
  assert.deepEqual((await filesOf(served.room)).drafts, [])
})

test('an image for what no guest can be is refused under a tag', limit, async (t) => {
  const served = await serveRegistry(t)
  const windows = imageOf([tarOf([{ name: 'a', content: 'a' }])], { platform: { os: 'windows', architecture: 'amd64' } })
  for (const [digest, blob] of windows.blobs) await served.ask('POST', `w/blobs/uploads/?digest=${digest}`, { body: blob })
  const put = (reference: string) =>
    served.ask('PUT', `w/manifests/${reference}`, { body: windows.manifest, headers: { 'content-type': OCI_MANIFEST } })
  const told = await refusalOf(await put('1'))
  assert.equal(told.code, 'MANIFEST_INVALID')
  assert.match(told.message, /windows\/amd64/)
  // By its digest it may be a part of an index, and goes when none comes.
  assert.equal((await put(windows.digest)).status, 201)
  await served.room.images.registry.collect(Date.now())
  assert.equal((await served.ask('GET', `w/manifests/${windows.digest}`)).status, 200)
  assert.deepEqual(served.room.images.list(), [])
})

test('manifests that nothing leads to are so much and no more', limit, async (t) => {
  const served = await serveRegistry(t)
  await pushOver(served, 'x', '1', IMAGE)
  const foreign = JSON.parse(IMAGE.manifest.toString())
  const put = (number: number): Promise<Response> => {
    // Attestations have such layers: a part of an index, and no image.
    const layers = [{ ...LAYER, mediaType: 'application/vnd.in-toto+json' }]
    const document = JSON.stringify({ ...foreign, layers, annotations: { filler: `${number}${'x'.repeat(2_000_000)}` } })
    const headers = { 'content-type': OCI_MANIFEST }
    return served.ask('PUT', `x/manifests/${sha256(Buffer.from(document))}`, { body: document, headers })
  }
  let taken = 0
  for (let answer = await put(0); answer.status === 201; answer = await put(taken)) taken++
  assert.ok(taken > 20 && taken < 40, `${taken} were taken`)
  assert.equal((await refusalOf(await put(taken))).status, 429)
  // Under a tag it is an image, and has a place of its own.
  await pushOver(served, 'x', '2', IMAGE)
})

test('what breaks off in its layers is an image that failed, and says why', limit, async (t) => {
  const served = await serveRegistry(t)
  const broken = imageOf([Buffer.from('this is no tar')])
  await pushOver(served, 'broken', '1', broken)
  await assert.rejects(served.room.images.whenReady('broken:1', step()), /tar/i)
  assert.equal(served.room.images.getImage('broken:1').status, 'failed')
  await served.room.images.remove('broken:1')
  assert.deepEqual(await filesOf(served.room), { drafts: [], layers: [], rootfs: [] })
})

test('a token is asked for, and allows what it says', limit, async (t) => {
  const served = await serveRegistry(t)
  await pushOver(served, 'team/app', '1', IMAGE)
  const mint = async (...scopes: string[]): Promise<string> =>
    (await served.server.authority.mint({ subject: 's', scopes, ttlMs: 60_000 })).token
  const can = async (token: string | null, repository = 'team/app'): Promise<string> => {
    const pulls = (await served.ask('HEAD', `${repository}/blobs/${LAYER.digest}`, { token })).status
    const pushes = (await served.ask('POST', `${repository}/blobs/uploads/`, { token })).status
    const deletes = (await served.ask('DELETE', `${repository}/manifests/none`, { token })).status
    return [pulls, pushes, deletes].join(' ')
  }
  assert.equal(await can(served.token), '200 202 404')
  assert.equal(await can(await mint('image:read')), '200 403 403')
  assert.equal(await can(await mint('image:write')), '200 202 403')
  const read = await served.ask('GET', `team/app/blobs/${LAYER.digest}`, { token: await mint('image:write') })
  assert.equal((await refusalOf(read)).code, 'DENIED')
  assert.equal(await can(await mint('image:delete')), '403 403 404')
  assert.equal(await can(await mint('instance:write')), '403 403 403')
  assert.equal(await can(null), '401 401 401')
  assert.equal(await can('no.real.token'), '401 401 401')

  const pushOnly = await served.tokenOf({ sub: 'builder-1', repos: ['team/app', 'UPPER', 7], scope: 'push', build_id: 'b1' })
  // Good here alone. Asked before this address has been refused so often that it is told to wait.
  const elsewhere = await fetch(`http://${served.host}/images`, { headers: { authorization: `Bearer ${pushOnly}` } })
  assert.equal(elsewhere.status, 401)
  assert.equal(await can(pushOnly), '200 202 403')
  assert.equal(await can(pushOnly, 'team/other'), '403 403 403')
  assert.equal(await can(await served.tokenOf({ repos: ['team/app'], scope: 'pull' })), '200 403 403')
  assert.equal(await can(await served.tokenOf({ repos: ['team/app'] })), '200 403 403')
  assert.equal(await can(await served.tokenOf({ scope: 'push' })), '403 403 403')
  // What it may not see it cannot have mounted, nor listed.
  await pushOver(served, 'secret/app', '1', IMAGE)
  const other = imageOf([tarOf([{ name: 'b', content: 'b' }])])
  await pushOver(served, 'secret/app', '2', other)
  const mount = `team/app/blobs/uploads/?mount=${other.layers[0]?.digest}&from=secret/app`
  assert.equal((await served.ask('POST', mount, { token: pushOnly })).status, 202)
  assert.equal((await served.ask('POST', mount)).status, 201)
  const listed = await (await served.ask('GET', '_catalog', { token: pushOnly })).json()
  assert.deepEqual(listed, { repositories: ['team/app'] })
})

test('lists come in pages that a link leads through', limit, async (t) => {
  const served = await serveRegistry(t)
  for (const tag of ['1', '2', '3']) await pushOver(served, 'many/tags', tag, IMAGE)
  await pushOver(served, 'alone', 'latest', IMAGE)
  const walk = async (start: string): Promise<unknown[]> => {
    const pages: unknown[] = []
    for (let path: string | undefined = start; path !== undefined; ) {
      const answer: Response = await served.ask('GET', path)
      pages.push(await answer.json())
      path = /^<\/v2\/(.+)>; rel="next"$/.exec(answer.headers.get('link') ?? '')?.[1]
    }
    return pages
  }
  assert.deepEqual(await walk('many/tags/tags/list?n=2'), [
    { name: 'many/tags', tags: ['1', '2'] },
    { name: 'many/tags', tags: ['3'] },
  ])
  assert.deepEqual(await walk('_catalog?n=1'), [{ repositories: ['alone'] }, { repositories: ['many/tags'] }])
  assert.deepEqual(await walk('_catalog?n=0'), [{ repositories: [] }])
})

test('what is needed is not deleted, and what is not needed is', limit, async (t) => {
  const served = await serveRegistry(t)
  const { room } = served
  await pushOver(served, 'x', '1', IMAGE)
  await pushOver(served, 'x', '2', IMAGE)
  await room.images.whenReady('x:1', step())
  assert.equal((await refusalOf(await served.ask('DELETE', `x/blobs/${LAYER.digest}`))).code, 'DENIED')
  room.inUse.add(IMAGE.digest)
  const told = await refusalOf(await served.ask('DELETE', `x/manifests/${IMAGE.digest}`))
  assert.deepEqual([told.status, told.code], [409, 'DENIED'])
  assert.match(told.message, /in use by an instance/)
  assert.deepEqual(await (await served.ask('GET', 'x/tags/list')).json(), { name: 'x', tags: ['1', '2'] })
  assert.equal((await served.ask('DELETE', 'x/manifests/2')).status, 202)
  const last = await refusalOf(await served.ask('DELETE', 'x/manifests/1'))
  assert.deepEqual([last.status, last.code], [409, 'DENIED'])
  assert.match(last.message, /in use by an instance/)
  room.inUse.clear()
  assert.equal((await served.ask('DELETE', `x/manifests/${IMAGE.digest}`)).status, 202)
  assert.equal((await served.ask('GET', 'x/tags/list')).status, 404)
  assert.deepEqual(room.images.list(), [])
  assert.deepEqual(await filesOf(room), { drafts: [], layers: [], rootfs: [] })
  const single = await served.ask('POST', `x/blobs/uploads/?digest=${LAYER.digest}`, { body: IMAGE.blobs.get(LAYER.digest) })
  assert.equal(single.status, 201)
  assert.equal((await served.ask('DELETE', `x/blobs/${LAYER.digest}`)).status, 202)
  assert.equal((await served.ask('HEAD', `x/blobs/${LAYER.digest}`)).status, 404)
  await gone(served)
})

async function gone({ room }: ServedRegistry): Promise<void> {
  assert.deepEqual(await filesOf(room), { drafts: [], layers: [], rootfs: [] })
}

test('blobs that no manifest came for are kept for a day, then they go', limit, async (t) => {
  const served = await serveRegistry(t)
  const body = IMAGE.blobs.get(LAYER.digest)
  assert.equal((await served.ask('POST', `x/blobs/uploads/?digest=${LAYER.digest}`, { body })).status, 201)
  const next = await served.restart()
  assert.equal((await next.ask('HEAD', `x/blobs/${LAYER.digest}`)).status, 200)
  const last = await next.restart()
  last.room.db.prepare('UPDATE registry_blobs SET wanted_until_ms = ?').run(Date.now() - 1)
  await last.room.images.registry.collect()
  await gone(last)
})

test('a name that a pull has led elsewhere no longer leads to what was pushed', limit, async (t) => {
  const served = await serveRegistry(t)
  await pushOver(served, 'x', '1', IMAGE)
  await served.room.images.whenReady('x:1', step())
  const other = imageOf([tarOf([{ name: 'b', content: 'b' }])])
  await pushOver(served, 'y', '1', other)
  await served.room.images.whenReady('y:1', step())
  served.room.images.tag('y:1', 'x:1')
  const answer = await served.ask('GET', 'x/manifests/1')
  assert.equal(answer.headers.get('docker-content-digest'), other.digest)
  // The image of another repository can be pulled under the name that it has here.
  assert.equal((await served.ask('HEAD', `x/blobs/${other.layers[0]?.digest}`)).status, 200)
})
