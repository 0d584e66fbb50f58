import assert from 'node:assert/strict'
import { test } from 'node:test'
import { AppError, type ErrorCode } from '@dormouse/api/errors.ts'
import fc from 'fast-check'
import { parseImageConfig } from './image-config.ts'
import { DEFAULT_LIMITS } from './limits.ts'
import { type Index, parseManifest, selectPlatform } from './manifest.ts'
import { fitOf, parsePlatform } from './platform.ts'
import { imageOf, sha256, tarOf } from './tar-fixtures.ts'

const bytes = (document: unknown): Buffer => Buffer.from(JSON.stringify(document))
const refused = (code: ErrorCode, says: RegExp) => (error: unknown) =>
  error instanceof AppError && error.code === code && says.test(error.message)
const digest = sha256(Buffer.from('x'))
const good = JSON.parse(imageOf([tarOf([{ name: 'a' }])]).manifest.toString()) as Record<string, unknown>
const parse = (document: unknown, declared?: string) => parseManifest(bytes(document), declared, DEFAULT_LIMITS)

const index = (...platforms: readonly (readonly [string, string, string?])[]): Index => {
  const parsed = parse({
    schemaVersion: 2,
    mediaType: 'application/vnd.oci.image.index.v1+json',
    manifests: platforms.map(([os, architecture, variant], i) => ({
      mediaType: 'application/vnd.oci.image.manifest.v1+json',
      digest: sha256(Buffer.from(String(i))),
      size: i,
      platform: { os, architecture, variant },
    })),
  })
  return parsed.kind === 'index' ? parsed : assert.fail()
}

test('manifests of OCI and Docker are read', () => {
  assert.equal(parse(good).kind, 'manifest')
  const docker = {
    ...good,
    mediaType: 'application/vnd.docker.distribution.manifest.v2+json',
    config: { mediaType: 'application/vnd.docker.container.image.v1+json', digest, size: 1 },
    layers: [{ mediaType: 'application/vnd.docker.image.rootfs.diff.tar.gzip', digest, size: 1 }],
  }
  assert.equal(parse(docker, 'application/vnd.docker.distribution.manifest.v2+json').kind, 'manifest')
})

test('unknown media types, of the manifest, its configuration or a layer, are refused by name', () => {
  assert.throws(() => parse({ ...good, mediaType: 'application/x-strange' }), refused('invalid_image', /x-strange/))
  assert.throws(
    () => parse({ ...good, config: { mediaType: 'application/vnd.cncf.helm.config.v1+json', digest, size: 1 } }),
    refused('invalid_image', /no image.*helm/),
  )
  assert.throws(
    () => parse({ ...good, layers: [{ mediaType: 'application/vnd.oci.image.layer.v1.tar+encrypted', digest, size: 1 }] }),
    refused('invalid_image', /encrypted/),
  )
  assert.throws(() => parse({ schemaVersion: 1, fsLayers: [] }), refused('invalid_image', /schema version 1/))
})

test('a document that is manifest and index at once, or another than it came as, is refused', () => {
  assert.throws(() => parse({ ...good, manifests: [] }), refused('invalid_image', /index as well/))
  assert.throws(() => parse(good, 'application/vnd.docker.distribution.manifest.v2+json'), refused('invalid_image', /but came as/))
})

test('digests, sizes and lists that are none are refused', () => {
  for (const layer of [
    { digest: 'sha256:../../x', size: 1 },
    { digest, size: -1 },
    { digest, size: 1.5 },
    { digest, size: '1' },
    { digest: `md5:${'a'.repeat(32)}`, size: 1 },
    null,
    7,
  ]) {
    const mediaType = 'application/vnd.oci.image.layer.v1.tar'
    assert.throws(
      () => parse({ ...good, layers: [layer && typeof layer === 'object' ? { mediaType, ...layer } : layer] }),
      refused('invalid_image', /manifest has/),
    )
  }
  assert.throws(() => parse({ ...good, layers: 'x' }), refused('invalid_image', /no list of layers/))
  assert.throws(
    () => parse({ ...good, layers: Array(501).fill({ mediaType: 'application/vnd.oci.image.layer.v1.tar', digest, size: 1 }) }),
    refused('invalid_image', /limit is 500/),
  )
  for (const text of ['', '{', '[]', 'null', '"x"'])
    assert.throws(() => parseManifest(Buffer.from(text), undefined, DEFAULT_LIMITS), refused('invalid_image', /JSON/))
})

test('the platform that fits best is taken: the asked variant, else the one that runs everywhere', () => {
  const both = index(['linux', 'amd64', 'v3'], ['linux', 'arm64', 'v8'], ['linux', 'amd64'], ['unknown', 'unknown'])
  assert.equal(selectPlatform(both, parsePlatform('linux/amd64'), 'x').size, 2)
  assert.equal(selectPlatform(both, parsePlatform('linux/amd64/v3'), 'x').size, 0)
  assert.equal(selectPlatform(both, parsePlatform('linux/arm64'), 'x').size, 1)
  assert.equal(selectPlatform(index(['linux', 'amd64', 'v2']), parsePlatform('linux/amd64'), 'x').size, 0)
  assert.equal(fitOf({ os: 'windows', architecture: 'amd64' }, parsePlatform('linux/amd64')), 0)
})

test('an absent platform is refused, saying what there is', () => {
  assert.throws(
    () => selectPlatform(index(['linux', 's390x'], ['unknown', 'unknown']), parsePlatform('linux/amd64'), 'x'),
    (error) => {
      assert.ok(error instanceof AppError && error.code === 'platform_not_available')
      assert.match(error.hint ?? '', /linux\/s390x$/)
      return true
    },
  )
})

test('a platform that no guest could run is invalid', () => {
  for (const bad of ['windows/amd64', 'linux', 'linux/386', 'LINUX/amd64', 'linux/amd64/v1/x', ''])
    assert.throws(() => parsePlatform(bad), refused('invalid_platform', /./))
})

test('a configuration is read into what is used, with the forms that old tools write', () => {
  const { config, diffIds, platform } = parseImageConfig(
    bytes({
      os: 'linux',
      architecture: 'arm64',
      variant: 'v8',
      rootfs: { diff_ids: [digest] },
      config: {
        Entrypoint: '/one',
        Cmd: ['a', ''],
        Env: ['A=b=c'],
        WorkingDir: 'srv',
        User: '1000:1000',
        StopSignal: 'SIGQUIT',
        ExposedPorts: { '80/tcp': {}, bad: {} },
      },
    }),
  )
  assert.deepEqual(config, {
    entrypoint: ['/one'],
    cmd: ['a', ''],
    env: ['A=b=c'],
    workingDir: '/srv',
    user: '1000:1000',
    stopSignal: 'SIGQUIT',
    exposedPorts: ['80/tcp'],
  })
  assert.deepEqual(diffIds, [digest])
  assert.deepEqual(platform, { os: 'linux', architecture: 'arm64', variant: 'v8' })
  assert.equal(parseImageConfig(bytes({ config: null })).config.workingDir, '/')
})

test('a configuration that could not be given to a program is refused', () => {
  for (const config of [
    { Cmd: [1] },
    { Cmd: ['a\0b'] },
    { Env: ['=x'] },
    { Env: ['novalue'] },
    { User: {} },
    { Entrypoint: Array(5000).fill('x') },
    { Cmd: ['x'.repeat(200_000)] },
    { StopSignal: 'kill -9' },
  ]) {
    assert.throws(() => parseImageConfig(bytes({ config })), refused('invalid_image', /configuration/), JSON.stringify(config).slice(0, 60))
  }
  assert.throws(() => parseImageConfig(bytes({ rootfs: { diff_ids: ['x'] } })), refused('invalid_image', /diff id/))
})

test('whatever JSON comes, the answer is a document or invalid_image', () => {
  const key = fc.constantFrom(
    'schemaVersion',
    'mediaType',
    'config',
    'layers',
    'manifests',
    'digest',
    'size',
    'platform',
    'rootfs',
    'diff_ids',
    'Env',
    'Cmd',
    'os',
    'annotations',
    '__proto__',
  )
  const value = fc.letrec((tie) => ({
    node: fc.oneof(
      { depthSize: 'small' },
      fc.constantFrom(2, -1, digest, 'application/vnd.oci.image.manifest.v1+json', null, true),
      fc.string(),
      fc.dictionary(key, tie('node')),
      fc.array(tie('node'), { maxLength: 3 }),
    ),
  })).node
  fc.assert(
    fc.property(fc.dictionary(key, value), (document) => {
      for (const read of [() => parse(document), () => parseImageConfig(bytes(document))]) {
        try {
          read()
        } catch (error) {
          assert.ok(error instanceof AppError && error.code === 'invalid_image', String(error))
        }
      }
    }),
    { numRuns: 500 },
  )
})
