import { readFile } from 'node:fs/promises'
import { AppError } from '@dormouse/api/errors.ts'

export interface Credentials {
  readonly username?: string
  readonly password?: string
  /** Given instead of a password: exchanged for access tokens at the realm. */
  readonly identityToken?: string
  /** Sent as it is. */
  readonly registryToken?: string
}

/** A docker `config.json`. */
export interface Keychain {
  readonly file: string
  /** Someone said that this file is to be used. One that only happens to lie where Docker would look stands in no pull's way. */
  readonly isNamed: boolean
}

const MAX_FILE = 1 << 20

/**
 * The credentials that a docker `config.json` has for a registry; undefined when the file or an entry is not there. Helpers would
 * mean running a program of someone's choice with the daemon's rights, so they are named and refused. Where nobody named the file,
 * the registry is asked without credentials instead: a public image needs none.
 */
export async function credentialsFromFile(keychain: Keychain | undefined, registry: string): Promise<Credentials | undefined> {
  if (keychain === undefined) return undefined
  try {
    return await credentialsIn(keychain.file, registry)
  } catch (error) {
    if (keychain.isNamed) throw error
    return undefined
  }
}

async function credentialsIn(file: string, registry: string): Promise<Credentials | undefined> {
  let text: string
  try {
    text = await readFile(file, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw unreadable(file, error)
  }
  if (text.length > MAX_FILE) throw unreadable(file)
  return credentialsFrom(text, file, registry)
}

/** Pure part of `credentialsFromFile`. */
export function credentialsFrom(text: string, file: string, registry: string): Credentials | undefined {
  let config: unknown
  try {
    config = JSON.parse(text)
  } catch (error) {
    throw unreadable(file, error)
  }
  if (!isRecord(config)) throw unreadable(file)
  const names = namesOf(registry)
  if (isRecord(config.auths)) {
    for (const [key, value] of Object.entries(config.auths)) {
      if (!names.has(bareHost(key)) || !isRecord(value)) continue
      const found = credentialsOf(value, file)
      if (found) return found
    }
  }
  const helpers = isRecord(config.credHelpers) ? Object.keys(config.credHelpers) : []
  if (helpers.some((key) => names.has(bareHost(key)))) throw helper(file, registry)
  // With a store of its own Docker leaves empty entries behind.
  if (
    typeof config.credsStore === 'string' &&
    isRecord(config.auths) &&
    Object.keys(config.auths).some((key) => names.has(bareHost(key)))
  ) {
    throw helper(file, registry)
  }
  return undefined
}

function credentialsOf(entry: Record<string, unknown>, file: string): Credentials | undefined {
  const identity = textOf(entry.identitytoken)
  const token = textOf(entry.registrytoken)
  let username = textOf(entry.username)
  let password = textOf(entry.password)
  const auth = textOf(entry.auth)
  if (auth !== undefined) {
    const decoded = Buffer.from(auth, 'base64').toString('utf8').replace(/\0+$/, '')
    const colon = decoded.indexOf(':')
    if (colon < 0) throw unreadable(file)
    username = decoded.slice(0, colon)
    password = decoded.slice(colon + 1)
  }
  if (username === undefined && identity === undefined && token === undefined) return undefined
  return {
    ...(username === undefined ? {} : { username }),
    ...(password === undefined ? {} : { password }),
    ...(identity === undefined ? {} : { identityToken: identity }),
    ...(token === undefined ? {} : { registryToken: token }),
  }
}

/** Docker writes its own registry under an old address. */
const namesOf = (registry: string): Set<string> =>
  new Set(registry === 'docker.io' ? ['docker.io', 'index.docker.io', 'registry-1.docker.io'] : [registry])

const bareHost = (key: string): string => (key.replace(/^https?:\/\//, '').split('/')[0] ?? '').toLowerCase()

const isRecord = (value: unknown): value is Record<string, unknown> => typeof value === 'object' && value !== null && !Array.isArray(value)
const textOf = (value: unknown): string | undefined => (typeof value === 'string' && value !== '' ? value : undefined)

const unreadable = (file: string, cause?: unknown): AppError =>
  new AppError('invalid_request', `The registry credentials in ${file} could not be read`, {
    cause,
    hint: 'It must be a docker config.json',
  })

const helper = (file: string, registry: string): AppError =>
  new AppError('not_supported', `${file} leaves the credentials of ${registry} to a credential helper, which the daemon does not run`, {
    hint: 'Give the credentials with the request, or write them into the file as "auths"',
  })
