/**
 * The guest's agent behind a vsock that the VMM offers as a unix socket, as Cloud Hypervisor and Firecracker do: who connects says
 * `CONNECT PORT`, is answered `OK ITS-PORT`, and then speaks with whoever listens there in the guest. What the guest opens itself comes to
 * the socket's name with `_PORT` behind it.
 */
import type { Socket } from 'node:net'
import { AppError } from '@dormouse/api/errors.ts'
import { pollUntil } from '../host/poll-until.ts'
import type { Step } from '../lib/step.ts'
import { connectToOwn, OWN_DIR } from './own-dir.ts'
import type { ShimPlan } from './shim.ts'

export const VSOCK_SOCKET = 'vsock.sock'
/** Of every guest: each has a VMM of its own, so none needs another. 0 to 2 are taken by vsock(7). */
export const GUEST_CID = 3
/** guest/src/vsock.h */
const PORTS = { AGENT: 1000, LOG: 1001, JOURNAL: 1002 } as const

/** Where the shim takes what the workload writes, and the journal. */
export const VSOCK_OWN_DIR: NonNullable<ShimPlan['ownDir']> = {
  name: OWN_DIR,
  logs: [
    { log: 'app', socket: `${VSOCK_SOCKET}_${PORTS.LOG}` },
    { log: 'journal', socket: `${VSOCK_SOCKET}_${PORTS.JOURNAL}` },
  ],
}

/** Resolves once the agent has taken the connection, however long its guest still boots; `isGone` ends the waiting for one that never will. */
export async function connectToAgent(runDir: string, isGone: () => boolean, step: Pick<Step, 'signal'>): Promise<Socket> {
  let limitMs = FIRST_LIMIT_MS
  return await pollUntil(
    "the guest's agent",
    async () => {
      if (isGone()) throw new AppError('guest_unavailable', 'The VM does not take connections to its guest')
      const socket = await tryToConnect(runDir, limitMs, step)
      limitMs = Math.min(2 * limitMs, LAST_LIMIT_MS)
      return socket
    },
    step,
  )
}

/** Undefined when no one listens there yet. */
async function tryToConnect(runDir: string, limitMs: number, step: Pick<Step, 'signal'>): Promise<Socket | undefined> {
  let socket: Socket
  try {
    socket = await connectToOwn(runDir, VSOCK_SOCKET, step)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT' || code === 'ECONNREFUSED') return undefined
    throw error
  }
  socket.write(`CONNECT ${PORTS.AGENT}\n`)
  return (await saysOk(socket, limitMs, step)) ? socket : undefined
}

/** The guest's own bytes may follow at once, and are left in the stream. A VMM that is asked before its guest is ready hangs up, or is silent. */
function saysOk(socket: Socket, limitMs: number, step: Pick<Step, 'signal'>): Promise<boolean> {
  return new Promise((resolve) => {
    const finish = (answer: boolean): void => {
      clearTimeout(timer)
      step.signal.removeEventListener('abort', onEnd)
      socket.off('readable', onReadable).off('end', onEnd).off('error', onEnd).off('close', onEnd)
      if (!answer) socket.on('error', () => undefined).destroy()
      resolve(answer)
    }
    let line = ''
    const onReadable = (): void => {
      while (!line.endsWith('\n') && line.length < MOST_BYTES) {
        const byte: Buffer | null = socket.read(1)
        if (byte === null) return
        line += byte.toString('latin1')
      }
      finish(/^OK \d+\n$/.test(line))
    }
    const onEnd = (): void => finish(false)
    const timer = setTimeout(onEnd, limitMs)
    step.signal.addEventListener('abort', onEnd, { once: true })
    socket.on('readable', onReadable).on('end', onEnd).on('error', onEnd).on('close', onEnd)
  })
}

const MOST_BYTES = 32
/**
 * One that was asked while its guest had no driver yet may never be answered; nor is one of a guest that has just been woken, and knows the
 * number that its VMM, which counts anew, gives the connection as one that it had before. On a slow host an answer takes its time.
 */
const FIRST_LIMIT_MS = 250
const LAST_LIMIT_MS = 30_000
