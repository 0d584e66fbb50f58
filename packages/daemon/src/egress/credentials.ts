/**
 * Credentials that a guest uses and never has. Its variable says `mock-NAME`; the header that carries the real value is put into what it asks
 * of certain hosts, on its way out. Pure: what a request may ask for, and what follows from it.
 */
import { AppError } from '@dormouse/api/errors.ts'
import { haveHostInCommon, hostPatternOf, matchesHost } from './hosts.ts'

/** How a credential is used. */
export interface Injection {
  /** As it was asked for; in what is asked of a host it is in small letters. */
  readonly header: string
  /** What the header says, with `${value}` for the real value. */
  readonly format: string
  /** As hosts.ts writes them; undefined: every host. */
  readonly hosts?: readonly string[]
}

export interface Credential {
  /** The variable of the instance's `env` that has the real value. */
  readonly source: string
  readonly inject: readonly Injection[]
}

/** By the variable that the guest sees. */
export type Credentials = Readonly<Record<string, Credential>>

/** As a request writes them. */
export type AskedCredentials = Readonly<
  Record<
    string,
    {
      readonly source: { readonly env: string }
      readonly inject: readonly { readonly as: { readonly header: string; readonly format: string }; readonly hosts?: readonly string[] }[]
    }
  >
>

type Variables = Readonly<Record<string, string>>

const PLACEHOLDER = `\${value}`
// Each is looked at beside each other.
const HOSTS_MAX = 256
// All of their names are in the authority's certificate, of which a guest takes 32 KiB.
const HOST_LETTERS_MAX = 8192
// RFC 9110, 5.6.2.
const TOKEN = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/
/** What frames a message, or says whom it is for: a proxy writes these itself. */
const OWN_HEADERS: ReadonlySet<string> = new Set([
  ...['host', 'content-length', 'transfer-encoding', 'connection', 'keep-alive', 'te', 'trailer', 'upgrade', 'expect'],
  ...['proxy-authorization', 'proxy-authenticate', 'proxy-connection', 'sec-websocket-key', 'sec-websocket-accept'],
])

/** Throws `invalid_request` naming the field; no message has a value of the environment in it. */
export function credentialsOf(asked: AskedCredentials, env: Variables): Credentials {
  const all = Object.entries(asked).map(([name, { source, inject }]) => {
    const where = `credentials.${name.slice(0, 80)}`
    if (!Object.hasOwn(env, source.env)) {
      throw invalid(`\`${where}.source.env\` names ${JSON.stringify(source.env)}, which is not in \`env\``)
    }
    return [name, { source: source.env, inject: inject.map((one, index) => injectionOf(one, `${where}.inject[${index}]`)) }] as const
  })
  const credentials = Object.fromEntries(all)
  assertDistinct(credentials)
  const letters = (hostsOf(credentials) ?? []).reduce((sum, host) => sum + host.length, 0)
  if (letters > HOST_LETTERS_MAX) throw invalid(`The hosts of \`credentials\` have more than ${HOST_LETTERS_MAX} letters together`)
  assertNotHidden(env, credentials)
  assertUsable(env, credentials)
  return credentials
}

/** Throws `invalid_request` when a value of `env` is missing, or cannot be what a header says. */
function assertUsable(env: Variables, credentials: Credentials): void {
  for (const [name, { source }] of Object.entries(credentials)) {
    const value = Object.hasOwn(env, source) ? env[source] : undefined
    if (value !== undefined && isFieldText(value)) continue
    throw invalid(`The value of \`env.${source.slice(0, 80)}\` cannot be in a header, which the credential ${name.slice(0, 80)} needs`)
  }
}

/** Throws `invalid_request` when a variable is given a value that no one would see: the guest has a mock by that name. */
function assertNotHidden(given: Variables, credentials: Credentials): void {
  const sources = new Set(Object.values(credentials).map(({ source }) => source))
  for (const [name, { source }] of Object.entries(credentials)) {
    if (sources.has(name) || !Object.hasOwn(given, name) || given[name] === mockOf(name)) continue
    throw invalid(
      `\`env.${name.slice(0, 80)}\` is what the guest has in place of a credential: its value is that of \`env.${source.slice(0, 80)}\``,
    )
  }
}

/** The environment as the guest has it: real values stay out. */
export function guestVariablesOf(env: Variables, credentials: Credentials): Variables {
  const sources = new Set(Object.values(credentials).map(({ source }) => source))
  // Most have none, and lists show many.
  if (sources.size === 0) return env
  const kept = Object.entries(env).filter(([name]) => !sources.has(name))
  return Object.fromEntries([...kept, ...Object.keys(credentials).map((name) => [name, mockOf(name)] as const)])
}

/**
 * What an environment becomes: a source that is told as the guest has it stays as it is, so that what is shown can be sent back. Throws
 * `invalid_request` when a credential could not be used with it any more.
 */
export function changedVariables(env: Variables, change: Variables, credentials: Credentials): Variables {
  const shown = guestVariablesOf(env, credentials)
  const sources = new Set(Object.values(credentials).map(({ source }) => source))
  const isEcho = ([name, value]: [string, string]): boolean =>
    sources.has(name) && Object.hasOwn(credentials, name) && value === shown[name]
  assertNotHidden(change, credentials)
  const after = { ...env, ...Object.fromEntries(Object.entries(change).filter((one) => !isEcho(one))) }
  assertUsable(after, credentials)
  return after
}

const mockOf = (name: string): string => `mock-${name}`

/** The headers that are set in a request to a host, in the order of the credentials. `host` as hosts.ts writes it. */
export function headersFor(host: string, credentials: Credentials, env: Variables): readonly (readonly [name: string, text: string])[] {
  return Object.values(credentials).flatMap(({ source, inject }) => {
    const value = env[source]
    if (value === undefined) return []
    return inject
      .filter(({ hosts }) => hosts === undefined || hosts.some((pattern) => matchesHost(pattern, host)))
      .map(({ header, format }) => [header.toLowerCase(), format.replaceAll(PLACEHOLDER, () => value)] as const)
  })
}

/** Does any of them speak of that host? */
export const isMediated = (host: string, credentials: Credentials): boolean =>
  Object.values(credentials).some(({ inject }) =>
    inject.some(({ hosts }) => hosts === undefined || hosts.some((pattern) => matchesHost(pattern, host))),
  )

/** All hosts that any of them speaks of; undefined: every host. */
export function hostsOf(credentials: Credentials): readonly string[] | undefined {
  const lists = Object.values(credentials).flatMap(({ inject }) => inject.map(({ hosts }) => hosts))
  return lists.some((hosts) => hosts === undefined) ? undefined : [...new Set(lists.flatMap((hosts) => hosts ?? []))].sort()
}

function injectionOf({ as, hosts }: AskedCredentials[string]['inject'][number], where: string): Injection {
  const { header } = as
  if (!TOKEN.test(header)) throw invalid(`\`${where}.as.header\` is no name of a header: ${JSON.stringify(header)}`)
  if (OWN_HEADERS.has(header.toLowerCase())) throw invalid(`\`${where}.as.header\` is ${header}, which belongs to the connection`)
  if (!as.format.includes(PLACEHOLDER)) throw invalid(`\`${where}.as.format\` must contain ${PLACEHOLDER}`)
  if (!isFieldText(as.format)) throw invalid(`\`${where}.as.format\` holds what cannot be in a header`)
  if (hosts === undefined) return { header, format: as.format }
  if (hosts.length === 0) throw invalid(`\`${where}.hosts\` is empty: name hosts, or leave it out for every host`)
  const patterns = hosts.map((text) => {
    const pattern = hostPatternOf(text)
    if (pattern === undefined) {
      throw invalid(`\`${where}.hosts\` holds ${JSON.stringify(text)}, but takes names such as api.example.com or *.example.com`)
    }
    return pattern
  })
  return { header, format: as.format, hosts: [...new Set(patterns)] }
}

/** Of two that set one header for one host, neither could be told to be the one that is meant. */
function assertDistinct(credentials: Credentials): void {
  const seen: { name: string; header: string; hosts: readonly string[] | undefined }[] = []
  let count = 0
  for (const [name, { inject }] of Object.entries(credentials)) {
    for (const { header: asked, hosts } of inject) {
      const header = asked.toLowerCase()
      count += hosts?.length ?? 1
      if (count > HOSTS_MAX) throw invalid(`\`credentials\` name more than ${HOSTS_MAX} hosts`)
      const twin = seen.find((other) => other.header === header && overlap(other.hosts, hosts))
      if (twin) {
        throw invalid(`\`credentials\` set the header ${header} twice for one host: ${twin.name.slice(0, 80)} and ${name.slice(0, 80)} do`)
      }
      seen.push({ name, header, hosts })
    }
  }
}

const overlap = (a: readonly string[] | undefined, b: readonly string[] | undefined): boolean =>
  a === undefined || b === undefined || a.some((one) => b.some((other) => haveHostInCommon(one, other)))

/** RFC 9110, 5.5: visible characters, with spaces and tabs between them. */
const isFieldText = (text: string): boolean => /^[\x21-\x7e]([\t\x20-\x7e]*[\x21-\x7e])?$/.test(text)

const invalid = (message: string): AppError => new AppError('invalid_request', message)
