/** The daemon's own registry, on loopback: the images room behind the real server, with nothing else of a daemon. */
import assert from 'node:assert/strict'
import type { TestContext } from 'node:test'
import { SignJWT } from 'jose'
import type { Config } from '../../packages/daemon/src/config/config.ts'
import { fakeUses } from '../../packages/daemon/src/http/fake-uses.ts'
import { HttpServer } from '../../packages/daemon/src/http/server.ts'
import type { ImageFixture } from '../../packages/daemon/src/images/tar-fixtures.ts'
import { openRoom, type Room } from './images-room.ts'

export interface ServedRegistry {
  readonly room: Room
  readonly server: HttpServer
  /** `127.0.0.1:<port>` */
  readonly host: string
  /** One that may do everything. */
  readonly token: string
  /** A token with these claims, beside its times. */
  tokenOf(claims: Record<string, unknown>): Promise<string>
  /** `path` is below /v2/. */
  ask(method: string, path: string, options?: AskOptions): Promise<Response>
  /** As a daemon does that is started anew, at another port. */
  restart(): Promise<ServedRegistry>
}

export interface AskOptions {
  readonly body?: Uint8Array | string | undefined
  readonly headers?: Readonly<Record<string, string>>
  /** In place of the one that may do everything; null: none. */
  readonly token?: string | null
}

export async function serveRegistry(t: TestContext, config: Partial<Config['images']> = {}, given?: Room): Promise<ServedRegistry> {
  const room = given ?? (await openRoom(t, config))
  const uses = fakeUses()
  const server = new HttpServer({ ...uses, images: room.images, registry: room.images.registry })
  t.after(() => server.close())
  const { tcp } = await server.listen({ socket: { path: `${room.dir}/run/s`, mode: 0o600 }, tcp: { host: '127.0.0.1', port: 0 } })
  assert.ok(tcp)
  const host = `127.0.0.1:${tcp.port}`
  const { token } = await server.authority.mint({ subject: 'test', ttlMs: 3_600_000 })
  return {
    room,
    server,
    host,
    token,
    tokenOf: (claims) => new SignJWT(claims).setProtectedHeader({ alg: 'HS256' }).setIssuedAt().setExpirationTime('1h').sign(uses.secret),
    ask: (method, path, options = {}) => {
      const authorization = options.token === null ? {} : { authorization: `Bearer ${options.token ?? token}` }
      const { body } = options
      return fetch(`http://${host}/v2/${path}`, {
        method,
        headers: { ...authorization, ...options.headers },
        ...(body === undefined ? {} : { body: typeof body === 'string' ? body : new Uint8Array(body) }),
        redirect: 'manual',
      })
    },
    restart: async () => {
      await server.close()
      return await serveRegistry(t, config, await room.restart())
    },
  }
}

/** The error of a refusal, which must be as the distribution specification has it. */
export async function refusalOf(answer: Response): Promise<{ status: number; code: string; message: string }> {
  const { errors } = (await answer.json()) as { errors: { code: string; message: string }[] }
  assert.equal(errors.length, 1)
  const [{ code, message } = { code: '', message: '' }] = errors
  assert.match(code, /^[A-Z_]+$/)
  assert.ok(message.length > 0)
  return { status: answer.status, code, message }
}

/** By the API, quickly. */
export async function pushOver(served: ServedRegistry, repository: string, reference: string, image: ImageFixture): Promise<void> {
  for (const [digest, blob] of image.blobs) {
    if ((await served.ask('HEAD', `${repository}/blobs/${digest}`)).status === 200) continue
    assert.equal((await served.ask('POST', `${repository}/blobs/uploads/?digest=${digest}`, { body: blob })).status, 201)
  }
  const headers = { 'content-type': 'application/vnd.oci.image.manifest.v1+json' }
  const put = await served.ask('PUT', `${repository}/manifests/${reference}`, { body: image.manifest, headers })
  assert.equal(put.status, 201, await put.text())
}
