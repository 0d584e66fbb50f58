/** Requests as fast as a server answers them, by a client that costs as little as possible: what is measured is the server. */
import { connect, type Socket } from 'node:net'

export interface Load {
  readonly socket: string
  readonly path: string
  readonly requests: number
  /** Connections, each of which asks again as soon as it is answered. */
  readonly atOnce: number
}

export interface Loaded {
  readonly totalMs: number
  /** Of each request. */
  readonly ms: readonly number[]
  /** Of one answer's body. */
  readonly bytes: number
}

export async function loadOf({ socket, path, requests, atOnce }: Load): Promise<Loaded> {
  const ms: number[] = []
  let bytes = 0
  let left = requests
  const from = performance.now()
  await Promise.all(
    Array.from({ length: atOnce }, async () => {
      using caller = await Caller.open(socket, path)
      while (left > 0) {
        left -= 1
        const began = performance.now()
        bytes = await caller.ask()
        ms.push(performance.now() - began)
      }
    }),
  )
  return { totalMs: performance.now() - from, ms, bytes }
}

const HEAD_END = Buffer.from('\r\n\r\n')

class Caller implements Disposable {
  readonly #socket: Socket
  readonly #request: Buffer
  #head: Buffer = Buffer.alloc(0)
  #bodyLeft: number | undefined
  #bodyBytes = 0
  #answered: PromiseWithResolvers<number> | undefined

  private constructor(socket: Socket, path: string) {
    this.#socket = socket
    this.#request = Buffer.from(`GET ${path} HTTP/1.1\r\nhost: bench\r\naccept: application/json\r\n\r\n`)
    socket.on('data', (chunk) => this.#take(chunk))
    socket.on('error', (error) => this.#answered?.reject(error))
  }

  static open(path: string, request: string): Promise<Caller> {
    const socket = connect(path)
    return new Promise((resolve, reject) => {
      socket.once('connect', () => resolve(new Caller(socket, request)))
      socket.once('error', reject)
    })
  }

  /** Resolves with the length of the body, once it is all there. */
  ask(): Promise<number> {
    this.#answered = Promise.withResolvers()
    this.#socket.write(this.#request)
    return this.#answered.promise
  }

  #take(chunk: Buffer): void {
    let body = chunk
    if (this.#bodyLeft === undefined) {
      this.#head = this.#head.length === 0 ? chunk : Buffer.concat([this.#head, chunk])
      const end = this.#head.indexOf(HEAD_END)
      if (end < 0) return
      const head = this.#head.toString('latin1', 0, end)
      const length = /\r\ncontent-length: (\d+)/i.exec(head)?.[1]
      if (!head.startsWith('HTTP/1.1 200') || length === undefined) {
        this.#answered?.reject(new Error(`The server answered ${head.split('\r\n')[0]}`))
        return
      }
      body = this.#head.subarray(end + HEAD_END.length)
      this.#bodyBytes = Number(length)
      this.#bodyLeft = this.#bodyBytes
      this.#head = Buffer.alloc(0)
    }
    this.#bodyLeft -= body.length
    if (this.#bodyLeft > 0) return
    this.#bodyLeft = undefined
    this.#answered?.resolve(this.#bodyBytes)
  }

  [Symbol.dispose](): void {
    this.#socket.destroy()
  }
}
