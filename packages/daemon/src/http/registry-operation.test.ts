import assert from 'node:assert/strict'
import { test } from 'node:test'
import { registryOperation } from './registry-operation.ts'

const told = (method: string, url: string): string => {
  const { pathname, searchParams } = new URL(url, 'http://any')
  const { operation, target } = registryOperation(method, pathname.slice(1), searchParams)
  return [operation, ...Object.entries(target).map(([name, value]) => `${name}=${value}`)].join(' ')
}

test('what is done at /v2 has a name, and its repository comes first', () => {
  assert.equal(told('PUT', 'team/app/manifests/1.0'), 'pushManifest name=team/app reference=1.0')
  assert.equal(told('DELETE', 'app/manifests/sha256:aa'), 'deleteManifest name=app reference=sha256:aa')
  assert.equal(told('HEAD', 'app/manifests/1.0'), 'pullManifest name=app reference=1.0')
  assert.equal(told('GET', 'app/blobs/sha256:aa'), 'pullBlob name=app digest=sha256:aa')
  assert.equal(told('DELETE', 'app/blobs/sha256:aa'), 'deleteBlob name=app digest=sha256:aa')
  assert.equal(told('GET', 'app/tags/list'), 'listTags name=app')
  assert.equal(told('GET', '_catalog'), 'listRepositories')
})

test('a blob is pushed at the end of its upload, in one go, or from another repository', () => {
  assert.equal(told('POST', 'app/blobs/uploads/'), 'beginUpload name=app')
  assert.equal(told('PATCH', 'app/blobs/uploads/u1'), 'pushBlobPart name=app upload=u1')
  assert.equal(told('PUT', 'app/blobs/uploads/u1?digest=sha256:aa'), 'pushBlob name=app digest=sha256:aa')
  assert.equal(told('POST', 'app/blobs/uploads/?digest=sha256:aa'), 'pushBlob name=app digest=sha256:aa')
  assert.equal(told('POST', 'app/blobs/uploads/?mount=sha256:aa&from=other'), 'pushBlob name=app digest=sha256:aa')
  assert.equal(told('DELETE', 'app/blobs/uploads/u1'), 'cancelUpload name=app upload=u1')
  assert.equal(told('GET', 'app/blobs/uploads/u1'), 'getUpload name=app upload=u1')
})

test('of a repository whose name has such words the last ones count, and what is nothing is told as it is', () => {
  assert.equal(told('PUT', 'a/blobs/b/manifests/1'), 'pushManifest name=a/blobs/b reference=1')
  assert.equal(told('PUT', 'nothing'), 'PUT /v2 path=nothing')
  assert.equal(told('POST', 'app/manifests/1'), 'POST /v2 path=app/manifests/1')
})
