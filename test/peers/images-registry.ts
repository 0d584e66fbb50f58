/** A real registry on loopback, and a proxy before it that misbehaves on request. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { createHash, createPrivateKey, createPublicKey, randomUUID } from 'node:crypto'
import { readFile, writeFile } from 'node:fs/promises'
import { createServer, request as httpRequest, type IncomingMessage, type ServerResponse } from 'node:http'
import { type AddressInfo, createServer as createTcpServer } from 'node:net'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import { SignJWT } from 'jose'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import type { ImageFixture } from '../../packages/daemon/src/images/tar-fixtures.ts'
import { scratchDir } from '../harness/scratch.ts'
import { command } from './images-room.ts'

// bcrypt of `secret`, the only kind that the registry knows.
const HTPASSWD = 'me:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n'

export interface RegistryOptions {
  /** `me` with the password `secret`. */
  readonly basic?: boolean
  /** Tokens of this server are asked for. */
  readonly tokens?: TokenServer
}

/** Starts Debian's docker-registry; gives `host:port`. */
export async function startRegistry(t: TestContext, options: RegistryOptions = {}): Promise<string> {
  const dir = await scratchDir(t)
  const port = await freePort()
  await writeFile(join(dir, 'htpasswd'), HTPASSWD)
  const auth = options.basic
    ? { htpasswd: { realm: 'test', path: join(dir, 'htpasswd') } }
    : options.tokens
      ? { token: { realm: options.tokens.realm, service: 'test', issuer: 'test', rootcertbundle: options.tokens.certificate } }
      : undefined
  const config = {
    version: 0.1,
    log: { level: 'error' },
    storage: { filesystem: { rootdirectory: join(dir, 'data') } },
    http: { addr: `127.0.0.1:${port}` },
    ...(auth === undefined ? {} : { auth }),
  }
  // JSON is YAML.
  await writeFile(join(dir, 'config.yml'), JSON.stringify(config))
  const child = spawn('docker-registry', ['serve', join(dir, 'config.yml')], { stdio: ['ignore', 'ignore', 'pipe'] })
  let said = ''
  child.stderr.on('data', (chunk) => {
    said = (said + chunk).slice(-4000)
  })
  const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()))
  t.after(async () => {
    child.kill('SIGKILL')
    await gone
  })
  const answers = async (): Promise<boolean> => {
    assert.equal(child.exitCode, null, `docker-registry ended: ${said}`)
    return (await statusOf(`http://127.0.0.1:${port}/v2/`)) !== undefined
  }
  await pollUntil('docker-registry', answers, { signal: AbortSignal.timeout(20_000) })
  return `127.0.0.1:${port}`
}

async function statusOf(url: string): Promise<number | undefined> {
  return await fetch(url).then(
    (response) => response.status,
    () => undefined,
  )
}

/** Pushes an image as it is, however odd: blobs and manifest by the distribution API. */
export async function pushFixture(host: string, repository: string, tag: string, image: ImageFixture): Promise<void> {
  for (const [digest, blob] of image.blobs) {
    const begun = await fetch(`http://${host}/v2/${repository}/blobs/uploads/`, { method: 'POST' })
    const location = new URL(begun.headers.get('location') ?? '', `http://${host}`)
    location.searchParams.set('digest', digest)
    const put = await fetch(location, {
      method: 'PUT',
      body: new Uint8Array(blob),
      headers: { 'content-type': 'application/octet-stream' },
    })
    assert.equal(put.status, 201, await put.text())
  }
  await pushManifest(host, repository, tag, image.manifest)
}

export async function pushManifest(host: string, repository: string, tag: string, manifest: Buffer): Promise<void> {
  const { mediaType } = JSON.parse(manifest.toString())
  const put = await fetch(`http://${host}/v2/${repository}/manifests/${tag}`, {
    method: 'PUT',
    body: new Uint8Array(manifest),
    headers: { 'content-type': mediaType },
  })
  assert.equal(put.status, 201, await put.text())
}

/** Something that answers in the place of the registry; true when it did. */
export type Fault = (request: IncomingMessage, response: ServerResponse) => boolean

export interface FaultyProxy {
  readonly host: string
  /** `METHOD path`, in order. */
  readonly requests: { readonly line: string; readonly range: string | undefined; readonly authorization: string | undefined }[]
  fault: Fault | undefined
  /** Bends the body of what the registry answers to a request. */
  bend: ((request: IncomingMessage, body: Buffer) => Buffer) | undefined
  /** Cuts the connection after so many bytes of a blob. */
  cutBlobsAfter: number | undefined
}

export async function startProxy(t: TestContext, upstream: string): Promise<FaultyProxy> {
  const proxy: FaultyProxy = { host: '', requests: [], fault: undefined, bend: undefined, cutBlobsAfter: undefined }
  const server = createServer((request, response) => {
    const { range, authorization } = request.headers
    proxy.requests.push({ line: `${request.method} ${request.url}`, range, authorization })
    response.on('error', () => undefined)
    if (proxy.fault?.(request, response)) return
    const forward = httpRequest(
      `http://${upstream}${request.url}`,
      { method: request.method, headers: { ...request.headers, host: upstream } },
      (answer) => {
        const isBlob = request.method === 'GET' && request.url?.includes('/blobs/')
        if (proxy.bend) {
          const chunks: Buffer[] = []
          answer.on('data', (chunk) => chunks.push(chunk))
          answer.on('end', () => {
            const body = proxy.bend?.(request, Buffer.concat(chunks)) ?? Buffer.alloc(0)
            response.writeHead(answer.statusCode ?? 500, { ...answer.headers, 'content-length': String(body.length) }).end(body)
          })
          return
        }
        const { location } = answer.headers
        // What is uploaded comes through here, too.
        const home = location === undefined ? {} : { location: location.replace(`//${upstream}/`, `//${proxy.host}/`) }
        response.writeHead(answer.statusCode ?? 500, { ...answer.headers, ...home })
        let sent = 0
        answer.on('data', (chunk: Buffer) => {
          if (isBlob && proxy.cutBlobsAfter !== undefined && sent + chunk.length > proxy.cutBlobsAfter) {
            response.write(chunk.subarray(0, proxy.cutBlobsAfter - sent), () => request.socket.destroy())
            answer.destroy()
            return
          }
          sent += chunk.length
          response.write(chunk)
        })
        answer.on('end', () => response.end())
        answer.on('error', () => request.socket.destroy())
      },
    )
    forward.on('error', () => request.socket.destroy())
    request.pipe(forward)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  t.after(() => {
    server.closeAllConnections()
    server.close()
  })
  return Object.assign(proxy, { host: `127.0.0.1:${(server.address() as AddressInfo).port}` })
}

export interface TokenServer {
  readonly realm: string
  readonly certificate: string
  /** What was asked, and by whom. */
  readonly asked: { readonly scope: string | null; readonly authorization: string | undefined }[]
}

/** Signs tokens that the registry really checks. `me` with the password `secret` may pull and push, others get nothing. */
export async function startTokenServer(t: TestContext): Promise<TokenServer> {
  const dir = await scratchDir(t)
  const [key, certificate] = [join(dir, 'key.pem'), join(dir, 'cert.pem')]
  await command([
    'openssl',
    'req',
    '-x509',
    '-newkey',
    'ec',
    '-pkeyopt',
    'ec_paramgen_curve:P-256',
    '-nodes',
    '-days',
    '2',
    '-subj',
    '/CN=test',
    '-keyout',
    key,
    '-out',
    certificate,
  ])
  const privateKey = createPrivateKey(await readFile(key))
  const kid = libtrustId(createPublicKey(privateKey).export({ type: 'spki', format: 'der' }))
  const asked: TokenServer['asked'] = []
  const server = createServer(async (request, response) => {
    const scope = new URL(request.url ?? '', 'http://x').searchParams.get('scope')
    asked.push({ scope, authorization: request.headers.authorization })
    const isMe = request.headers.authorization === `Basic ${Buffer.from('me:secret').toString('base64')}`
    if (request.headers.authorization !== undefined && !isMe) {
      response.writeHead(401).end('{}')
      return
    }
    const [type, name, actions] = (scope ?? '').split(':')
    const token = await new SignJWT({ access: isMe && scope ? [{ type, name, actions: actions?.split(',') }] : [] })
      .setProtectedHeader({ alg: 'ES256', typ: 'JWT', kid })
      .setIssuer('test')
      .setSubject('me')
      .setAudience('test')
      .setJti(randomUUID())
      .setIssuedAt()
      .setNotBefore('-1m')
      .setExpirationTime('5m')
      .sign(privateKey)
    response.end(JSON.stringify({ token, expires_in: 300 }))
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  t.after(() => server.close())
  return { realm: `http://127.0.0.1:${(server.address() as AddressInfo).port}/token`, certificate, asked }
}

/** How the registry names keys: 240 bits of the hash of the public key, in base32, by fours. */
function libtrustId(spki: Buffer): string {
  const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567'
  const bits = [...createHash('sha256').update(spki).digest().subarray(0, 30)].map((byte) => byte.toString(2).padStart(8, '0')).join('')
  const letters = (bits.match(/.{5}/g) ?? []).map((five) => alphabet[Number.parseInt(five, 2)]).join('')
  return (letters.match(/.{4}/g) ?? []).join(':')
}

async function freePort(): Promise<number> {
  const server = createTcpServer()
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  await new Promise((resolve) => server.close(resolve))
  return port
}
