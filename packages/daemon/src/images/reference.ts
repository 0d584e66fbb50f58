import { AppError } from '@dormouse/api/errors.ts'

/** Where an image comes from, in its full form: `alpine` is `docker.io/library/alpine:latest`. */
export interface Reference {
  /** Host, and port where one was given: `docker.io`, `localhost:5000`. */
  readonly registry: string
  readonly repository: string
  /** Absent where only a digest was given. */
  readonly tag?: string
  readonly digest?: string
}

const DEFAULT_REGISTRY = 'docker.io'
// The alphabets of the distribution spec, "Pulling manifests".
const REPOSITORY = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:\/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$/
const TAG = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/
const HOST =
  /^(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?$/
const DIGEST = /^(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$/
const MAX_LENGTH = 4096
const MAX_REPOSITORY = 255

/** Throws `invalid_name` saying which part is wrong. */
export function parseReference(text: string): Reference {
  const invalid = (why: string, hint?: string): AppError =>
    new AppError('invalid_name', `${JSON.stringify(text.slice(0, 200))} is no image reference: ${why}`, hint === undefined ? {} : { hint })
  if (text === '') throw invalid('it is empty')
  if (text.length > MAX_LENGTH) throw invalid(`it is longer than ${MAX_LENGTH} characters`)
  if (text.includes('://')) throw invalid('it begins with a scheme', 'Leave the scheme out: registry.example.com/name:tag')

  let rest = text
  let digest: string | undefined
  const at = rest.indexOf('@')
  if (at >= 0) {
    digest = rest.slice(at + 1)
    rest = rest.slice(0, at)
    if (!isDigest(digest)) throw invalid('its digest is not sha256:<64 hexadecimal digits in lower case>')
  }

  let registry = DEFAULT_REGISTRY
  const slash = rest.indexOf('/')
  const first = slash < 0 ? '' : rest.slice(0, slash)
  if (first.toLowerCase() === 'localhost' || /[.:]/.test(first)) {
    registry = parseHost(first) ?? raise(invalid(`${JSON.stringify(first)} is no registry host`))
    rest = rest.slice(slash + 1)
  }

  let tag: string | undefined
  const colon = rest.lastIndexOf(':')
  if (colon >= 0) {
    tag = rest.slice(colon + 1)
    rest = rest.slice(0, colon)
    if (!TAG.test(tag)) throw invalid(`${JSON.stringify(tag)} is no tag`)
  }
  if (rest === '') throw invalid('it names no repository')
  if (/[A-Z]/.test(rest)) throw invalid('a repository is written in lower case', `Try ${text.toLowerCase().slice(0, 200)}`)
  if (!REPOSITORY.test(rest) || rest.length > MAX_REPOSITORY) throw invalid(`${JSON.stringify(rest)} is no repository name`)
  if (registry === DEFAULT_REGISTRY && !rest.includes('/')) rest = `library/${rest}`
  if (tag === undefined && digest === undefined) tag = 'latest'
  return { registry, repository: rest, ...(tag === undefined ? {} : { tag }), ...(digest === undefined ? {} : { digest }) }
}

/** The one way of writing a reference; what tables hold and lists show. A digest wins over a tag, as it does when pulling. */
export function formatReference(reference: Reference): string {
  const name = `${reference.registry}/${reference.repository}`
  return reference.digest === undefined ? `${name}:${reference.tag}` : `${name}@${reference.digest}`
}

export const normaliseReference = (text: string): string => formatReference(parseReference(text))

export function isReference(text: string): boolean {
  try {
    parseReference(text)
    return true
  } catch {
    return false
  }
}

export const isDigest = (text: string): boolean => DIGEST.test(text)
export const isTag = (text: string): boolean => TAG.test(text)

function parseHost(text: string): string | undefined {
  const match = HOST.exec(text)
  if (!match) return undefined
  const port = match[1]
  if (port !== undefined && (Number(port) < 1 || Number(port) > 65_535)) return undefined
  const host = text.toLowerCase()
  // Names under which the same registry is known.
  return host === 'index.docker.io' || host === 'registry-1.docker.io' || host === 'registry.hub.docker.com' ? DEFAULT_REGISTRY : host
}

function raise(error: Error): never {
  throw error
}
