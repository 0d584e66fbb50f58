/** The daemon's side of a VM's network helper (shim/net.c): which ports it publishes, and what has passed through it. */
import path from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import { connectTo } from '../host/unix-socket.ts'
import type { Step } from '../lib/step.ts'
import type { Bandwidth, IgnoredConnections, Inbound, PortForward } from './hypervisor.ts'
import { ignoredWords, parseInbound } from './inbound-words.ts'

export const NETWORK_SOCKET = 'net.sock'

/** From the helper's viewpoint; the guest has received what went to it. */
export interface Traffic {
  readonly toGuestBytes: number
  readonly fromGuestBytes: number
}

const ANSWER_LIMIT_MS = 5000
const MAX_ANSWER = 64 * 1024

export class NetworkHelper {
  readonly #file: string

  constructor(runDir: string) {
    this.#file = path.join(runDir, NETWORK_SOCKET)
  }

  /** Makes the published ports exactly `ports`. When one is taken nothing has changed. */
  async setPorts(ports: readonly PortForward[], step: Step): Promise<void> {
    const now = new Set((await this.#ask('ports', step)).split(' ').filter((word) => word !== ''))
    const wanted = new Set(ports.map(portWord))
    // Those that go make room first: a port may move to another guest port.
    const gone = [...now].filter((word) => !wanted.has(word))
    const added = [...wanted].filter((word) => !now.has(word))
    const done: string[] = []
    try {
      for (const word of gone) done.push(await this.#change('remove', word, step))
      for (const word of added) done.push(await this.#change('add', word, step))
    } catch (error) {
      const undo = { signal: AbortSignal.timeout(ANSWER_LIMIT_MS) }
      for (const reverse of done.reverse()) await this.#ask(reverse, undo).catch(() => undefined)
      throw error
    }
  }

  async setBandwidth(bandwidth: Bandwidth, step: Step): Promise<void> {
    await this.#ask(`rates ${rateWords(bandwidth)}`, step)
  }

  /** Undefined when the helper does not answer. */
  async traffic(): Promise<Traffic | undefined> {
    try {
      const match = /^(\d+) (\d+)$/.exec(await this.#ask('traffic', { signal: AbortSignal.timeout(ANSWER_LIMIT_MS) }))
      return match === null ? undefined : { toGuestBytes: Number(match[1]), fromGuestBytes: Number(match[2]) }
    } catch {
      return undefined
    }
  }

  /** Connections to the published ports. Rejects when the helper does not answer. */
  async inbound(ignored: IgnoredConnections, step: Step): Promise<Inbound> {
    return parseInbound(await this.#ask(['inbound', ...ignoredWords(ignored)].join(' '), step))
  }

  /** Gives the request that takes it back. */
  async #change(verb: 'add' | 'remove', word: string, step: Pick<Step, 'signal'>): Promise<string> {
    await this.#ask(`${verb} ${word}`, step)
    return `${verb === 'add' ? 'remove' : 'add'} ${word}`
  }

  /** One question, one line, one connection: it is asked seldom, and so nothing is to be kept alive. */
  async #ask(question: string, step: Pick<Step, 'signal'>): Promise<string> {
    const signal = AbortSignal.any([step.signal, AbortSignal.timeout(ANSWER_LIMIT_MS)])
    const socket = await connectTo(this.#file, { signal })
    const onAbort = (): void => void socket.destroy(signal.reason instanceof Error ? signal.reason : new Error('cancelled'))
    signal.addEventListener('abort', onAbort, { once: true })
    try {
      socket.write(`${question}\n`)
      let text = ''
      for await (const chunk of socket) {
        text += String(chunk)
        if (text.includes('\n') || text.length > MAX_ANSWER) break
      }
      const [, answer, rest] = /^(ok|error) ?(.*)\n/.exec(text) ?? []
      if (answer === 'ok') return rest ?? ''
      throw portError(rest ?? '') ?? new AppError('internal_error', `The network helper refused "${question}": ${rest ?? 'no answer'}`)
    } finally {
      signal.removeEventListener('abort', onAbort)
      socket.destroy()
    }
  }
}

/** How helper and daemon write a published port: `tcp:127.0.0.1:8080:80`, `udp:[::]:53:53`. */
export const portWord = ({ protocol, hostIp, hostPort, guestPort }: PortForward): string =>
  `${protocol}:${hostIp.includes(':') ? `[${hostIp}]` : hostIp}:${hostPort}:${guestPort}`

/** How the helper is told of rates: to the guest and from it, 0 for no limit. */
export const rateWords = ({ downloadBps = 0, uploadBps = 0 }: Bandwidth): string => `${downloadBps} ${uploadBps}`

/** What a helper says about a port that it could not bind. */
export function portError(line: string): AppError | undefined {
  const match = /^port_in_use (tcp|udp):(\S+):(\d+):\d+$/.exec(line)
  if (match === null) return undefined
  return new AppError('port_in_use', `Host port ${match[3]}/${match[1]} on ${match[2]} is taken`, { hint: 'Publish another host port' })
}
