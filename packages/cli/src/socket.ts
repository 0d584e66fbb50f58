/** A WebSocket of the API: frames out, frames in, neither faster than the other side takes them. */
import type { IncomingMessage } from 'node:http'
import { connect as dial } from 'node:net'
import { refusalOf } from '@dormouse/api/client.ts'
import { FRAME_MAX } from '@dormouse/api/streams.ts'
import WebSocket from 'ws'
import { answerWith, connectionFailure } from './connect.ts'
import type { Daemon } from './daemon.ts'
import { EXIT, Failure } from './failure.ts'

export type Frame = { readonly kind: 'text'; readonly text: string } | { readonly kind: 'bytes'; readonly bytes: Uint8Array }

const HANDSHAKE_MS = 15_000
// So many frames wait here before the daemon has to.
const QUEUE_MAX = 64

export class Socket implements Disposable {
  readonly #socket: WebSocket
  readonly #queue: Frame[] = []
  #ended: { error?: unknown } | undefined
  #wake: () => void = () => {}

  private constructor(socket: WebSocket) {
    this.#socket = socket
    socket.on('message', (data: Buffer, isBinary: boolean) => {
      this.#queue.push(isBinary ? { kind: 'bytes', bytes: data } : { kind: 'text', text: data.toString('utf8') })
      if (this.#queue.length >= QUEUE_MAX) socket.pause()
      this.#wake()
    })
    socket.on('close', () => this.#end({}))
    socket.on('error', (error) => this.#end({ error }))
  }

  /** Throws AppError when the daemon refuses, Failure when it cannot be reached. */
  static async open(daemon: Daemon, id: 'execInstance' | 'copyInstanceFiles', instance: string): Promise<Socket> {
    const { address } = daemon
    const { url, headers } = daemon.dial(id, { params: { id: instance } })
    const where =
      address.kind === 'unix'
        ? `ws://localhost${url}`
        : `${address.protocol.replace('http', 'ws')}//${address.hostname.includes(':') ? `[${address.hostname}]` : address.hostname}:${address.port}${address.basePath}${url}`
    const socket = new WebSocket(where, {
      headers,
      perMessageDeflate: false,
      handshakeTimeout: HANDSHAKE_MS,
      maxPayload: 16 * FRAME_MAX,
      ...(address.kind === 'unix' && { createConnection: () => dial(address.path) }),
    })
    // Made before the answer comes, so that no frame is missed.
    const own = new Socket(socket)
    await new Promise<void>((resolve, reject) => {
      socket.once('open', resolve)
      socket.once('error', (error) => reject(connectionFailure(address, error)))
      socket.once('unexpected-response', (_, response: IncomingMessage) => {
        refusalOf(answerWith(response)).then(reject, reject)
      })
    })
    return own
  }

  /** Resolves when the bytes are on their way; so a caller that awaits it goes no faster than the daemon. */
  send(frame: string | Uint8Array): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#socket.readyState !== WebSocket.OPEN) resolve()
      else this.#socket.send(frame, { binary: typeof frame !== 'string' }, (error) => (error ? reject(error) : resolve()))
    })
  }

  sendJson(value: unknown): Promise<void> {
    return this.send(JSON.stringify(value))
  }

  /** Bytes of any length, cut to frames. */
  async sendBytes(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; at += FRAME_MAX) await this.send(bytes.subarray(at, at + FRAME_MAX))
  }

  /** The next frame; undefined once the daemon has ended the connection. */
  async next(): Promise<Frame | undefined> {
    for (;;) {
      const frame = this.#queue.shift()
      if (frame !== undefined) {
        if (this.#queue.length === 0 && this.#socket.isPaused) this.#socket.resume()
        return frame
      }
      if (this.#ended?.error !== undefined) throw cutOff(this.#ended.error)
      if (this.#ended !== undefined) return undefined
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
  }

  /** Lets go at once; what the daemon does for this connection ends with it. */
  [Symbol.dispose](): void {
    this.#socket.terminate()
  }

  #end(how: { error?: unknown }): void {
    this.#ended ??= how
    this.#wake()
  }
}

const cutOff = (cause: unknown): Failure =>
  new Failure('The connection to the daemon broke', {
    exitCode: EXIT.unreachable,
    code: 'daemon_unreachable',
    hint: 'See its log: journalctl -u dormouse',
    cause,
  })
