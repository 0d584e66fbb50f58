import { Agent, request } from 'node:http'
import { parseDuration } from '@dormouse/api/units.ts'
import { timeFactor } from './slow-host.ts'

export interface ApiAnswer<T> {
  readonly status: number
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
  readonly body: T
}

/** An answer of 400 and above, as the API words it. */
class ApiFailure extends Error {
  override readonly name = 'ApiFailure'
  readonly status: number
  readonly code: string

  constructor(what: string, status: number, body: unknown) {
    const { code, message, hint } = (body ?? {}) as { code?: string; message?: string; hint?: string }
    super(`${what}: ${status} ${code ?? ''}: ${message ?? JSON.stringify(body)}${hint === undefined ? '' : ` (${hint})`}`)
    this.status = status
    this.code = code ?? ''
  }
}

/** The API over its unix socket, as plain as HTTP allows: what a test says is what goes over the wire. */
export class ApiClient implements Disposable {
  readonly socket: string
  readonly #agent = new Agent({ keepAlive: true, maxSockets: 64 })

  constructor(socket: string) {
    this.socket = socket
  }

  /** Any answer, whatever its status. A body that is not JSON comes as text. */
  call<T = unknown>(method: string, asked: string, body?: unknown, options: { timeoutMs?: number } = {}): Promise<ApiAnswer<T>> {
    const path = patient(asked)
    const { promise, resolve, reject } = Promise.withResolvers<ApiAnswer<T>>()
    const text = body === undefined ? undefined : JSON.stringify(body)
    const signal = AbortSignal.timeout(options.timeoutMs ?? 120_000)
    const headers = text === undefined ? {} : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) }
    const outgoing = request({ socketPath: this.socket, agent: this.#agent, method, path, headers, signal }, (answer) => {
      const chunks: Buffer[] = []
      answer.on('data', (chunk: Buffer) => chunks.push(chunk))
      answer.on('error', reject)
      answer.on('end', () => {
        resolve({ status: answer.statusCode ?? 0, headers: answer.headers, body: parse(Buffer.concat(chunks).toString('utf8')) as T })
      })
    })
    outgoing.on('error', reject)
    outgoing.end(text)
    return promise
  }

  get<T>(path: string): Promise<T> {
    return this.#must<T>('GET', path)
  }

  post<T>(path: string, body?: unknown): Promise<T> {
    return this.#must<T>('POST', path, body)
  }

  patch<T>(path: string, body: unknown): Promise<T> {
    return this.#must<T>('PATCH', path, body)
  }

  async delete(path: string): Promise<void> {
    await this.#must('DELETE', path)
  }

  async #must<T>(method: string, path: string, body?: unknown): Promise<T> {
    const answer = await this.call<T>(method, path, body)
    if (answer.status >= 400) throw new ApiFailure(`${method} ${path}`, answer.status, answer.body)
    return answer.body
  }

  [Symbol.dispose](): void {
    this.#agent.destroy()
  }
}

/** How long an answer may wait for a state is said in the request (`?wait=running`, `/wait`): where everything is slow it may be longer. */
function patient(asked: string): string {
  if (timeFactor === 1 || !/\?(.*&)?wait=running|\/wait\?/.test(asked)) return asked
  const [path = '', query] = asked.split('?')
  const parameters = new URLSearchParams(query)
  const waitMs = parseDuration(parameters.get('timeout') ?? '60s') ?? 0
  // The API waits no longer.
  parameters.set('timeout', `${Math.min(300, Math.ceil((waitMs / 1000) * timeFactor))}s`)
  return `${path}?${parameters}`
}

function parse(text: string): unknown {
  if (text === '') return undefined
  try {
    return JSON.parse(text)
  } catch {
    return text
  }
}
