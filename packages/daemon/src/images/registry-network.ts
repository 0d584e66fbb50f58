/**
 * Who the daemon talks to when it pulls. A registry is a stranger that may answer with the address of something else: a redirect
 * for a blob, the realm of a token. Those may lead to the open internet; into the host's own networks only where the configuration
 * says so, or where the registry itself is (and is allowed to be) in a network of that kind.
 *
 * Names are judged by the address that is really connected to, at the moment of connecting: a name that resolves to another
 * address the second time gains nothing.
 */
import { lookup as dnsLookup, type LookupAddress, type LookupAllOptions } from 'node:dns'
import { isIP, type LookupFunction } from 'node:net'
import type { Readable } from 'node:stream'
import { AppError } from '@dormouse/api/errors.ts'
import { Agent, type Dispatcher, request } from 'undici'
import { type AddressClass, classifyAddress } from './addresses.ts'

export interface NetworkPolicy {
  readonly allowPrivateRegistries: boolean
  /** `host` or `host:port`: plain http is spoken to these, and they may be at any address. */
  readonly insecureRegistries: readonly string[]
  /** Plain http to the registry itself, wherever it is. Where it may be is judged as ever. */
  readonly isPlain?: boolean
}

/** node:dns's `lookup`, as far as it is used. */
export type Lookup = (
  hostname: string,
  options: LookupAllOptions,
  callback: (error: NodeJS.ErrnoException | null, addresses: LookupAddress[]) => void,
) => void

const CONNECT_TIMEOUT_MS = 15_000
const HEADERS_TIMEOUT_MS = 60_000
// A connection that gives nothing for so long is as good as cut.
const BODY_TIMEOUT_MS = 60_000
const MAX_REDIRECTS = 5

export interface RegistryRequest {
  readonly method?: 'GET' | 'HEAD' | 'POST' | 'PATCH' | 'PUT'
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: string | Buffer | Readable
  readonly signal: AbortSignal
}

export class RegistryNetwork implements AsyncDisposable {
  /** Where the API is: `https://registry-1.docker.io`. */
  readonly origin: string
  readonly #host: string
  readonly #policy: NetworkPolicy
  readonly #lookup: Lookup
  readonly #home: Agent
  readonly #away: Agent
  #homeClass: AddressClass | undefined

  /** `host` as in a reference: a name or address, and a port. */
  constructor(host: string, policy: NetworkPolicy, lookup: Lookup = dnsLookup) {
    this.#policy = policy
    this.#lookup = lookup
    this.#host = host
    const isPlain = policy.isPlain === true || isLocalName(hostnameOf(host)) || this.#isListed(host)
    this.origin = `${isPlain ? 'http' : 'https'}://${host}`
    this.#home = this.#agent((address) => this.#admitHome(address))
    this.#away = this.#agent((address) => this.#admitAway(address))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.#home.destroy(), this.#away.destroy()])
  }

  /**
   * One request, redirects followed by hand. `authorization` is only ever sent to the registry's own origin, or, where `isRealm`,
   * to the realm itself: never to where one of them redirects.
   */
  async request(url: URL, options: RegistryRequest & { authorization?: string; isRealm?: boolean }): Promise<Dispatcher.ResponseData> {
    let target = url
    for (let redirects = 0; ; redirects++) {
      const isHome = target.origin === this.origin
      this.#admitUrl(target, isHome)
      const mayAuthorize = isHome || (options.isRealm === true && target.origin === url.origin)
      const response = await this.#once(target, isHome, {
        ...options,
        headers: {
          ...options.headers,
          ...(mayAuthorize && options.authorization !== undefined ? { authorization: options.authorization } : {}),
        },
      })
      const location = response.headers.location
      if (![301, 302, 303, 307, 308].includes(response.statusCode) || typeof location !== 'string') return response
      await response.body.dump({ limit: 64 * 1024 }).catch(() => undefined)
      if (redirects >= MAX_REDIRECTS) throw this.#refused(`redirects more than ${MAX_REDIRECTS} times`)
      if (options.method !== undefined && options.method !== 'GET' && options.method !== 'HEAD')
        throw this.#refused(options.isRealm ? 'redirects a request for a token' : 'redirects an upload')
      target = URL.canParse(location, target.href)
        ? new URL(location, target)
        : raise(this.#refused('redirects to something that is no URL'))
    }
  }

  async #once(url: URL, isHome: boolean, options: RegistryRequest): Promise<Dispatcher.ResponseData> {
    try {
      return await request(url, {
        method: options.method ?? 'GET',
        headers: { 'user-agent': 'dormouse', ...options.headers },
        ...(options.body === undefined ? {} : { body: options.body }),
        dispatcher: isHome ? this.#home : this.#away,
        signal: options.signal,
      })
    } catch (error) {
      if (error instanceof AppError || options.signal.aborted) throw options.signal.aborted ? options.signal.reason : error
      const refused = findAppError(error)
      if (refused) throw refused
      throw new AppError('registry_unavailable', `The registry ${url.host} could not be reached: ${messageOf(error)}`, { cause: error })
    }
  }

  #admitUrl(url: URL, isHome: boolean): void {
    if (url.protocol !== 'https:' && url.protocol !== 'http:') throw this.#refused(`leads to a URL of the kind ${url.protocol}`)
    if (url.username !== '' || url.password !== '') throw this.#refused('leads to a URL with a password in it')
    const hostname = hostnameOf(url.host)
    if (!isHome && url.protocol === 'http:' && !isLocalName(hostname) && !this.#isListed(url.host)) {
      throw this.#refused(`leads to ${url.host} over plain http`, `To allow it: DORMOUSE_INSECURE_REGISTRIES=${url.host}`)
    }
    // For an address there is no look-up in which it could be judged.
    if (isIP(hostname)) isHome ? this.#admitHome(hostname) : this.#admitAway(hostname)
  }

  #admitHome(address: string): void {
    const kind = classifyAddress(address)
    this.#homeClass = kind
    if (kind === 'public' || this.#policy.allowPrivateRegistries || this.#isListed(this.#host)) return
    if (kind === 'loopback' && isLocalName(hostnameOf(this.#host))) return
    throw new AppError('registry_refused', `The registry ${this.#host} is at a ${kind} address (${address}), which is not allowed`, {
      hint: 'To allow registries in private networks: DORMOUSE_ALLOW_PRIVATE_REGISTRIES=true',
    })
  }

  #admitAway(address: string): void {
    const kind = classifyAddress(address)
    if (kind === 'public' || this.#policy.allowPrivateRegistries) return
    if ((kind === 'loopback' || kind === 'private') && kind === this.#homeClass) return
    throw this.#refused(`leads to a ${kind} address (${address})`, 'To allow it: DORMOUSE_ALLOW_PRIVATE_REGISTRIES=true')
  }

  #refused(why: string, hint?: string): AppError {
    return new AppError('registry_refused', `The registry ${this.#host} ${why}, which is not allowed`, hint === undefined ? {} : { hint })
  }

  #isListed(host: string): boolean {
    const hostname = hostnameOf(host)
    return this.#policy.insecureRegistries.some((listed) => listed === host || listed === hostname)
  }

  #agent(admit: (address: string) => void): Agent {
    const lookup: LookupFunction = (hostname, options, callback) => {
      this.#lookup(hostname, { ...options, all: true }, (error, addresses: LookupAddress[]) => {
        if (error) return callback(error, '', 0)
        try {
          for (const { address } of addresses) admit(address)
        } catch (refusal) {
          return callback(refusal as NodeJS.ErrnoException, '', 0)
        }
        if (options.all) return callback(null, addresses)
        const [first] = addresses
        return first ? callback(null, first.address, first.family) : callback(new Error(`${hostname} has no address`), '', 0)
      })
    }
    return new Agent({
      connect: { lookup, timeout: CONNECT_TIMEOUT_MS },
      headersTimeout: HEADERS_TIMEOUT_MS,
      bodyTimeout: BODY_TIMEOUT_MS,
      // Header lists of strangers are kept small.
      maxHeaderSize: 32 * 1024,
      connections: 8,
    })
  }
}

/** The host without port and brackets. */
function hostnameOf(host: string): string {
  const bracketed = /^\[([^\]]+)\]/.exec(host)
  return bracketed?.[1] ?? host.replace(/:\d+$/, '')
}

/** Is the registry this host's own loopback, by its name, and not one that the configuration lists? */
export function isUnlistedLoopback(host: string, { allowPrivateRegistries, insecureRegistries }: NetworkPolicy): boolean {
  const hostname = hostnameOf(host)
  return isLocalName(hostname) && !allowPrivateRegistries && !insecureRegistries.some((listed) => listed === host || listed === hostname)
}

/** Written so that only this host can be meant. */
const isLocalName = (hostname: string): boolean =>
  hostname === 'localhost' || (isIP(hostname) !== 0 && classifyAddress(hostname) === 'loopback')

function findAppError(error: unknown): AppError | undefined {
  for (let link = error, depth = 0; link instanceof Error && depth < 5; link = link.cause, depth++) {
    if (link instanceof AppError) return link
    if (link instanceof AggregateError) {
      const found = link.errors.map(findAppError).find((one) => one !== undefined)
      if (found) return found
    }
  }
  return undefined
}

const messageOf = (error: unknown): string => {
  const { code, message } = error as { code?: string; message?: string }
  return message || code || 'unknown error'
}

function raise(error: Error): never {
  throw error
}
