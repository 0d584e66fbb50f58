import net from 'node:net'
import path from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import type { Step } from '../lib/step.ts'

/** Connects to a unix socket; who is not there is ENOENT or ECONNREFUSED, who takes too long is `timed_out`. */
export function connectTo(file: string, step: Pick<Step, 'signal'>): Promise<net.Socket> {
  return new Promise((resolve, reject) => {
    const socket = net.connect(file)
    const onAbort = (): void => {
      socket.destroy()
      reject(new AppError('timed_out', `Gave up connecting to ${path.basename(file)}`, { cause: step.signal.reason }))
    }
    if (step.signal.aborted) return onAbort()
    step.signal.addEventListener('abort', onAbort, { once: true })
    const settled = (): void => {
      step.signal.removeEventListener('abort', onAbort)
      socket.removeAllListeners()
    }
    socket.once('connect', () => {
      settled()
      resolve(socket)
    })
    socket.once('error', (error) => {
      settled()
      reject(error)
    })
  })
}
