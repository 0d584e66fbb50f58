/**
 * A daemon made of answers: for what a real one does too rarely, or cannot be made to do at a given moment. Stories of use run
 * against the real daemon in cli-stories.test.ts.
 */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import { type WebSocket, WebSocketServer } from 'ws'
import { scratchDir } from '../harness/scratch.ts'

export interface StubDaemon {
  readonly socket: string
  readonly dir: string
  /** Method, path and query of every request so far, in order. */
  readonly requests: string[]
}

type Reply = (request: IncomingMessage, response: ServerResponse) => void
type Talk = (socket: WebSocket, request: IncomingMessage) => void

const REFUSED_UPGRADE = 'HTTP/1.1 409 Conflict\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n'

/** Answers by `METHOD /path` without its query; what is not named is 404 as the daemon words it. Without `talk` no WebSocket is taken. */
export async function startStub(t: TestContext, replies: Readonly<Record<string, Reply>>, talk?: Talk): Promise<StubDaemon> {
  const dir = await scratchDir(t)
  const socket = join(dir, 'd.sock')
  const requests: string[] = []
  const server = createServer((request, response) => {
    requests.push(`${request.method} ${request.url}`)
    const reply = replies[`${request.method} ${request.url?.split('?')[0]}`]
    if (reply !== undefined) reply(request, response)
    else answer(response, { code: 'not_found', message: `There is no ${request.url}` }, 404)
  })
  const sockets = new WebSocketServer({ noServer: true })
  server.on('upgrade', (request, stream, head) => {
    requests.push(`${request.method} ${request.url}`)
    if (talk === undefined) stream.end(`${REFUSED_UPGRADE}{"code":"invalid_state","message":"web is Stopped","hint":"Start it"}`)
    else sockets.handleUpgrade(request, stream, head, (each) => talk(each, request))
  })
  await new Promise<void>((resolve) => server.listen(socket, resolve))
  t.after(() => {
    for (const each of sockets.clients) each.terminate()
    server.closeAllConnections()
    server.close()
  })
  return { socket, dir, requests }
}

export function answer(response: ServerResponse, value: unknown, status = 200): void {
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(value))
}

export const json =
  (value: unknown, status = 200): Reply =>
  (_, response) =>
    answer(response, value, status)

/** An instance as the daemon shows one. */
export const instance = (over: object = {}) => ({
  id: 'abcdefghijklmnopqrstuvwx',
  name: 'web',
  image: 'docker.io/library/alpine:latest',
  state: 'Running',
  created_at: '2026-01-01T00:00:00Z',
  expires_at: null,
  ...over,
})
