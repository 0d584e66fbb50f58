/**
 * Sends every example of the API to a whole daemon, whose VMs are made up, in order, and gives what came back. What differs from run to
 * run (ids, times, tokens) is told in words that stay the same, so that the answers can be committed and shown.
 */
import { createHash } from 'node:crypto'
import { appendFile, mkdtemp, rm } from 'node:fs/promises'
import { Agent, createServer, type IncomingMessage, request } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import WebSocket from 'ws'
import { endpoint } from '../packages/api/src/endpoints.ts'
import { statusOn } from '../packages/api/src/error-table.ts'
import { EXAMPLES, type Example } from '../packages/api/src/examples.ts'
import { encodeQuery } from '../packages/api/src/query.ts'
import { type Route, routes } from '../packages/api/src/routes.ts'
import { decodeSse } from '../packages/api/src/streams.ts'
import { configOf } from '../packages/daemon/src/config/config.ts'
import { Daemon } from '../packages/daemon/src/daemon.ts'
import { FakeSysfs } from '../packages/daemon/src/devices/fake-sysfs.ts'
import { FakeHypervisor } from '../packages/daemon/src/hypervisors/fake/fake.ts'
import { imageOf, layoutOf, tarOf } from '../packages/daemon/src/images/tar-fixtures.ts'
import { createLogger } from '../packages/daemon/src/log.ts'

export interface Exchange {
  readonly route: string
  /** Method and path, with the query. */
  readonly request: string
  readonly body?: unknown
  readonly status: number
  /** The JSON of the answer, the messages of a stream, the frames of a WebSocket, or text. */
  readonly answer?: unknown
}

const LIMIT_MS = 30_000
/** Of a long text. */
const LINES_SHOWN = 6

/** Every example, hidden ones too, as it went. Throws at the first that is refused. */
export async function runExamples(): Promise<{ exchanges: Exchange[]; warnings: string[] }> {
  await using stack = new AsyncDisposableStack()
  const dir = await mkdtemp(join(tmpdir(), 'dm-'))
  stack.defer(() => rm(dir, { recursive: true, force: true }))
  const registry = await startRegistry(stack)
  const settings = {
    ...{ DATA_DIR: join(dir, 'data'), RUN_DIR: join(dir, 'run'), LISTEN: '127.0.0.1:0', HYPERVISOR: 'fake', POOL_SIZE: '0' },
    ...{ REGISTRY_MIRRORS: `registry.example=${registry}`, INSECURE_REGISTRIES: registry, ALLOW_PRIVATE_REGISTRIES: 'true' },
    REGISTRY_CREDENTIALS_FILE: 'off',
  }
  using sysfs = new FakeSysfs([
    { address: '0000:65:00.0', vendor: '10de', device: '26b9', classCode: '030200', group: 12, driver: 'nvidia' },
  ])
  const warnings: string[] = []
  const log = createLogger({ level: 'warn', destination: { write: (line) => void warnings.push(line) } })
  const config = configOf(new Map(Object.entries(settings)))
  const daemon = await Daemon.start({ config, log, hypervisors: [new FakeHypervisor()], sysfs })
  stack.defer(() => daemon.stop())

  const runner = new Runner(daemon, config.listen.socket)
  stack.defer(() => runner.close())
  for (const example of EXAMPLES) await runner.run(example)
  return { exchanges: runner.exchanges, warnings }
}

/** What is not built yet says so. */
const statusOf = (route: Route): number => (route.later === undefined ? route.status : statusOn(route, 'not_supported'))

class Runner {
  readonly exchanges: Exchange[] = []
  readonly #daemon: Daemon
  readonly #socket: string
  readonly #kept = new Map<string, Record<string, unknown>>()
  readonly #words = new SteadyWords()
  readonly #agent = new Agent({ keepAlive: true })

  constructor(daemon: Daemon, socket: string) {
    this.#daemon = daemon
    this.#socket = socket
  }

  async run(example: Example): Promise<void> {
    await this.#prepare(example)
    const route: Route = routes[example.route]
    const { method, path: pattern } = endpoint(example.route)
    const given = (text: string): string => this.#given(text) as string
    const spelled = (value: (name: string) => string): string => pattern.replace(/\{(\w+)\}/g, (_, name: string) => value(name))
    const query = encodeQuery(this.#given(example.query) as Record<string, unknown> | undefined)
    const path = spelled((name) => encodeURIComponent(given(example.params?.[name] ?? ''))) + query
    const body = this.#given(example.body)

    const { status, answer } =
      route.stream === 'websocket' ? await this.#talk(path, example) : await this.#ask({ method, path, body, example, route })
    if (status !== statusOf(route)) throw new Error(`The example of ${example.route} was answered ${status}: ${JSON.stringify(answer)}`)
    if (example.as !== undefined) this.#kept.set(example.as, answer as Record<string, unknown>)
    if (example.isHidden) return
    this.exchanges.push({
      route: example.route,
      request: this.#words.of(`${method} ${path}`) as string,
      ...(body !== undefined && { body: this.#words.of(body) }),
      status,
      ...(answer !== undefined && { answer: this.#words.of(answer) }),
    })
  }

  close(): void {
    this.#agent.destroy()
  }

  async #prepare({ after }: Example): Promise<void> {
    if (after === undefined) return
    if ('image' in after) await this.#daemon.images.whenReady(after.image, { signal: AbortSignal.timeout(LIMIT_MS) })
    else {
      // Workloads of made-up VMs write nothing.
      const { app } = this.#daemon.paths.instanceLogs(this.#daemon.instances.resolve(after.instance).id)
      await appendFile(app, after.writes)
    }
  }

  /** `$web.id` is what an earlier answer held. */
  #given(value: unknown): unknown {
    if (typeof value === 'string') {
      const [, name, field] = /^\$(\w+)\.(\w+)$/.exec(value) ?? []
      return name === undefined || field === undefined ? value : this.#kept.get(name)?.[field]
    }
    if (Array.isArray(value)) return value.map((one) => this.#given(one))
    if (typeof value !== 'object' || value === null) return value
    return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, this.#given(inner)]))
  }

  async #ask(asked: {
    method: string
    path: string
    body: unknown
    example: Example
    route: Route
  }): Promise<{ status: number; answer: unknown }> {
    const { method, path, body, example, route } = asked
    const payload = example.upload ? UPLOADS[example.upload]() : body === undefined ? undefined : JSON.stringify(body)
    const parts = example.upload === 'build-source' ? `; boundary=${BOUNDARY}` : ''
    const type = example.upload ? `${route.rawBody?.[0] ?? ''}${parts}` : 'application/json'
    const headers = payload === undefined ? {} : { 'content-type': type, 'content-length': Buffer.byteLength(payload) }
    const answer = await new Promise<IncomingMessage>((resolve, reject) => {
      const signal = AbortSignal.timeout(LIMIT_MS)
      request({ socketPath: this.#socket, path, method, headers, signal, agent: this.#agent }, resolve).on('error', reject).end(payload)
    })
    const status = answer.statusCode ?? 0
    if (route.stream === 'sse' && status === 200) {
      const messages: unknown[] = []
      for await (const { data } of decodeSse(answer)) {
        if (data !== undefined && messages.push(JSON.parse(data)) === example.messages) break
      }
      return { status, answer: messages }
    }
    const text = Buffer.concat(await Array.fromAsync(answer)).toString()
    if (text === '') return { status, answer: undefined }
    const isText = route.stream === 'text' && status === 200
    return { status, answer: isText ? `${text.split('\n', LINES_SHOWN).join('\n')}\n…` : JSON.parse(text) }
  }

  /** The frames both ways, until the server hangs up. */
  async #talk(path: string, { frames = [] }: Example): Promise<{ status: number; answer: unknown }> {
    const said: unknown[] = []
    const socket = new WebSocket(`ws+unix:${this.#socket}:${path}`, { handshakeTimeout: LIMIT_MS })
    await new Promise<void>((resolve, reject) => {
      socket.on('open', () => {
        for (const frame of frames) {
          said.push({ client: frame })
          socket.send(typeof frame === 'string' ? Buffer.from(frame) : JSON.stringify(frame))
        }
      })
      socket.on('message', (data, isBinary) => {
        const server: unknown = isBinary ? String(data) : JSON.parse(String(data))
        said.push({ server })
        // The last word: it is for the client to hang up.
        if (typeof server === 'object' && server !== null && ('exitCode' in server || 'success' in server)) socket.close()
      })
      socket.on('close', () => resolve())
      socket.on('error', reject)
    })
    return { status: 101, answer: said }
  }
}

/** When the first thing happens in the story that the examples tell. */
const STORY_BEGINS = Date.UTC(2030, 0, 2, 9, 0, 0)

/** What every run says in the same words. */
class SteadyWords {
  readonly #ids = new Map<string, string>()
  #beganAt: number | undefined

  of(value: unknown): unknown {
    if (typeof value === 'string') return this.#text(value)
    if (Array.isArray(value)) return value.map((one) => this.of(one))
    if (typeof value !== 'object' || value === null) return value
    return Object.fromEntries(Object.entries(value).map(([name, inner]) => [this.#text(name), this.of(inner)]))
  }

  #text(text: string): string {
    return text
      .replace(/\beyJ[\w-]+\.[\w-]+\.[\w-]+/g, 'eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJjaSJ9.c2lnbmF0dXJl')
      .replace(/\b[a-z0-9]{24}\b/g, (id) =>
        remembered(this.#ids, id, (n) => `k${createHash('sha256').update(`${n}`).digest('hex').slice(0, 23)}`),
      )
      .replace(/\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z/g, (time) => {
        this.#beganAt ??= Date.parse(time)
        return new Date(STORY_BEGINS + Date.parse(time) - this.#beganAt).toISOString()
      })
      .replace(/^[A-Za-z0-9_-]{43}$/, 'Zx3v…')
  }
}

function remembered(words: Map<string, string>, text: string, make: (n: number) => string): string {
  const known = words.get(text) ?? make(words.size)
  words.set(text, known)
  return known
}

const FILES = tarOf(['bin/', 'tmp/', { name: 'bin/hello', content: '#!/bin/sh\necho hello\n', mode: 0o755 }])
const IMAGE = imageOf([FILES], { config: { Cmd: ['/bin/hello'] } })

/** Between the parts of a form. */
const BOUNDARY = 'parts'

const UPLOADS: Readonly<Record<NonNullable<Example['upload']>, () => Buffer>> = {
  'oci-archive': () =>
    tarOf([...layoutOf(imageOf([FILES], { config: { Cmd: ['/bin/hello', 'again'] } }))].map(([name, content]) => ({ name, content }))),
  'build-source': () => {
    const source = gzipSync(tarOf([{ name: 'Dockerfile', content: 'FROM scratch\n' }]))
    const head = `--${BOUNDARY}\r\ncontent-disposition: form-data; name="source"; filename="source.tar.gz"\r\n\r\n`
    return Buffer.concat([Buffer.from(head), source, Buffer.from(`\r\n--${BOUNDARY}--\r\n`)])
  },
  'volume-archive': () => gzipSync(tarOf(['etc/', { name: 'etc/motd', content: 'hello\n' }])),
}

/** A registry that holds one image under every name, and gives its layers once it `mayGo`. Where it listens. */
export async function startRegistry(
  stack: AsyncDisposableStack,
  { image = IMAGE, mayGo = Promise.resolve() }: { readonly image?: typeof IMAGE; readonly mayGo?: Promise<void> } = {},
): Promise<string> {
  const server = createServer(async (asked, answer) => {
    const blob = image.blobs.get(/\/blobs\/(sha256:\w+)$/.exec(asked.url ?? '')?.[1] ?? '')
    if (image.layers.some(({ digest }) => asked.url?.endsWith(digest))) await mayGo
    if (blob) return void answer.writeHead(200, { 'content-length': blob.length }).end(asked.method === 'HEAD' ? '' : blob)
    if (!/\/manifests\/[^/]+$/.test(asked.url ?? '')) return void answer.writeHead(asked.url === '/v2/' ? 200 : 404).end()
    const { mediaType } = JSON.parse(image.manifest.toString()) as { mediaType: string }
    answer.writeHead(200, { 'content-type': mediaType, 'content-length': image.manifest.length, 'docker-content-digest': image.digest })
    answer.end(asked.method === 'HEAD' ? '' : image.manifest)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  stack.defer(() => {
    server.closeAllConnections()
    server.close()
  })
  return `127.0.0.1:${(server.address() as AddressInfo).port}`
}
