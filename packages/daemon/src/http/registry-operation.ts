/** What a request at /v2 is about, for the audit log: the specification gives its operations no names. */

export interface RegistryOperation {
  readonly operation: string
  readonly target: Readonly<Record<string, string>>
}

const UPLOADS = /^(.+)\/blobs\/uploads(?:\/([^/]*))?$/
const PATH = /^(.+)\/(manifests|blobs|tags|referrers)\/([^/]+)$/

const UPLOAD_METHODS: Readonly<Record<string, string>> = {
  POST: 'beginUpload',
  PATCH: 'pushBlobPart',
  PUT: 'pushBlob',
  DELETE: 'cancelUpload',
}
const NOUNS: Readonly<Record<string, string>> = { manifests: 'Manifest', blobs: 'Blob', tags: 'Tags', referrers: 'Referrers' }
const VERBS: Readonly<Record<string, string>> = { GET: 'pull', HEAD: 'pull', PUT: 'push', DELETE: 'delete' }

/**
 * `pushManifest` of `{ name: 'team/app', reference: '1.0' }`, say. A POST that says what blob it wants is the whole of a push, or a blob's
 * being taken over from another repository. `path` is what stands behind /v2/.
 */
export function registryOperation(method: string, path: string, query: URLSearchParams): RegistryOperation {
  const upload = UPLOADS.exec(path)
  if (upload) {
    const [, name = '', id = ''] = upload
    const digest = query.get('digest') ?? query.get('mount') ?? undefined
    const operation = method === 'POST' && digest !== undefined ? 'pushBlob' : (UPLOAD_METHODS[method] ?? 'getUpload')
    return { operation, target: { name, ...(digest === undefined ? id !== '' && { upload: id } : { digest }) } }
  }
  const [, name, kind = '', reference = ''] = PATH.exec(path) ?? []
  const [verb, noun] = [VERBS[method], NOUNS[kind]]
  if (name === undefined || verb === undefined || noun === undefined) {
    return path === '_catalog' ? { operation: 'listRepositories', target: {} } : { operation: `${method} /v2`, target: { path } }
  }
  if (kind === 'tags' || kind === 'referrers') return { operation: `list${noun}`, target: { name } }
  return { operation: `${verb}${noun}`, target: { name, [kind === 'blobs' ? 'digest' : 'reference']: reference } }
}
