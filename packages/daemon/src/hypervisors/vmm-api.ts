/** JSON over HTTP on a unix socket, as VMMs offer it. One request a connection: whoever comes next, and a daemon after us, never waits for ours. */
import { request as httpRequest } from 'node:http'
import type { Socket } from 'node:net'
import { AppError } from '@dormouse/api/errors.ts'
import type { Step } from '../lib/step.ts'

export interface VmmRequest {
  readonly method: 'GET' | 'PUT' | 'PATCH'
  readonly path: string
  readonly body?: unknown
}

/** A refusal of the VMM's own, in its words. */
export class VmmRefusal extends Error {
  override readonly name = 'VmmRefusal'
  readonly status: number

  constructor(request: VmmRequest, status: number, words: string) {
    super(`${request.method} ${request.path} was answered ${status}${words === '' ? '' : `: ${words}`}`)
    this.status = status
  }
}

export class VmmApi {
  readonly #connect: (step: Pick<Step, 'signal'>) => Promise<Socket>

  /** `connect` gives a fresh connection each time. */
  constructor(connect: (step: Pick<Step, 'signal'>) => Promise<Socket>) {
    this.#connect = connect
  }

  /**
   * What it answers, parsed; undefined when it says nothing. Throws `VmmRefusal` when it refuses, `timed_out` when it does not answer in
   * time, the connection's own error when it is not there. A VMM may have been taken over by its guest: it is believed no size.
   */
  async ask(request: VmmRequest, step: Pick<Step, 'signal'>): Promise<unknown> {
    const socket = await this.#connect(step)
    try {
      const { status, text } = await exchange(socket, request, step)
      if (status >= 200 && status < 300) return text === '' ? undefined : parse(text, request)
      throw new VmmRefusal(request, status, wordsOf(text))
    } catch (cause) {
      if (step.signal.aborted)
        throw new AppError('timed_out', `The VMM did not answer ${request.path} in time`, { cause: step.signal.reason })
      throw cause
    } finally {
      socket.destroy()
    }
  }
}

function exchange(
  socket: Socket,
  { method, path, body }: VmmRequest,
  { signal }: Pick<Step, 'signal'>,
): Promise<{ status: number; text: string }> {
  const text = body === undefined ? undefined : JSON.stringify(body)
  return new Promise((resolve, reject) => {
    const headers = {
      accept: 'application/json',
      host: 'localhost',
      ...(text === undefined ? {} : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) }),
    }
    const hungUp = (): void => reject(new AppError('internal_error', `The VMM hung up without a whole answer to ${path}`))
    const request = httpRequest({ createConnection: () => socket, method, path, headers, signal }, (response) => {
      request.off('close', hungUp)
      const chunks: Buffer[] = []
      let bytes = 0
      response.on('data', (chunk: Buffer) => {
        bytes += chunk.length
        if (bytes > MOST_BYTES) request.destroy(new AppError('internal_error', `The VMM's answer to ${path} is too long`))
        else chunks.push(chunk)
      })
      response.on('error', reject)
      // After the end, or without one.
      response.on('close', hungUp)
      response.on('end', () => resolve({ status: response.statusCode ?? 0, text: Buffer.concat(chunks).toString('utf8') }))
    })
    request.on('error', reject)
    // Without a word to anyone, as when it is to speak another protocol: that has no answer, and no error.
    request.on('close', hungUp)
    request.end(text)
  })
}

function parse(text: string, { path }: VmmRequest): unknown {
  try {
    return JSON.parse(text)
  } catch (cause) {
    throw new AppError('internal_error', `The VMM's answer to ${path} is no JSON`, { cause })
  }
}

/** Cloud Hypervisor answers a list of causes, Firecracker an object with `fault_message`; what is neither is told as it came. */
function wordsOf(text: string): string {
  let words: unknown
  try {
    words = JSON.parse(text)
  } catch {
    // Told as it came.
  }
  if (typeof words === 'object' && words !== null && 'fault_message' in words) words = words.fault_message
  if (Array.isArray(words) && words.every((one) => typeof one === 'string')) words = words.join(': ')
  // Nothing of it may end a line of a log.
  return (typeof words === 'string' ? words : text)
    .slice(0, 4096)
    .replaceAll(/\p{Cc}+/gu, ' ')
    .trim()
    .slice(0, 500)
}

const MOST_BYTES = 1 << 20
