/**
 * The proxy of one instance, in a process of its own, under a shim as a VMM is: it outlives the daemon, has a user of its own and no core
 * dumps, and its end is known. What it is to do it is told over a socket that no one but the daemon reaches.
 */
import { chmod, readdir, rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { AppError } from '@dormouse/api/errors.ts'
import { connectTo } from '../host/unix-socket.ts'
import type { ProcessIdentity, VmExit } from '../hypervisors/hypervisor.ts'
import { Shim } from '../hypervisors/shim.ts'
import type { Step } from '../lib/step.ts'
import { CONTROL_FD, GUEST_FD, type ProxyOrder } from './proxy-order.ts'

export interface EgressProxyPlan {
  readonly shimPath: string
  /**
   * Must exist; no one else may enter it from then on. What an earlier proxy left in it goes, but for the directory of the guest's socket, in
   * which the network helper of a VM that runs may stand: so it is the same one for as long as that VM runs.
   */
  readonly runDir: string
  /** Neither the daemon's nor the VM's; absent where the daemon is no root. */
  readonly user?: { readonly uid: number; readonly gid: number }
  readonly log: { readonly file: string; readonly maxBytes: number }
  /** Directories of cgroups that it enters. */
  readonly cgroups?: readonly string[]
  /** A listening socket that the guest reaches; absent: one is made in the run directory, GUEST_SOCKET. */
  readonly guestFd?: number
}

/** What is to be kept of it, to find it again. */
export interface EgressProxyHandle {
  readonly shim: ProcessIdentity
  readonly proxy: ProcessIdentity
}

const CONTROL_SOCKET = 'control.sock'
/** In a directory of its own, which is handed to the network helper of the guest's VM. */
export const GUEST_SOCKET = 'guest/guest.sock'
// Of V8's heap; what passes through is no part of it.
const HEAP_MIB = 96

export class EgressProxy implements Disposable {
  readonly #shim: Shim

  private constructor(shim: Shim) {
    this.#shim = shim
  }

  /** Resolves when its process is there. It takes nothing from its guest before it is configured. On throw nothing is left. */
  static async start({ shimPath, runDir, user, log, cgroups, guestFd }: EgressProxyPlan, step: Step): Promise<EgressProxy> {
    await clearRunDir(runDir)
    const guest = guestFd === undefined ? ({ kind: 'offer', name: GUEST_SOCKET } as const) : ({ kind: 'daemon', fd: guestFd } as const)
    const shim = await Shim.launch(
      {
        shimPath,
        runDir,
        ...(user && { user }),
        ...(cgroups && { cgroups }),
        logs: [{ name: 'vmm', ...log }],
        isolateNetwork: false,
        vmm: {
          // The inspector that a signal would open shows all that is in the process.
          argv: [process.execPath, '--disable-sigusr1', `--max-old-space-size=${HEAP_MIB}`, '--max-semi-space-size=1', workerFile()],
          descriptors: [
            { number: CONTROL_FD, kind: 'listen', name: CONTROL_SOCKET },
            { number: GUEST_FD, ...guest },
          ],
        },
      },
      step,
    )
    return new EgressProxy(shim)
  }

  /** One that outlived the daemon. Undefined when it is gone. */
  static async adopt(runDir: string, { shim, proxy }: EgressProxyHandle, step: Step): Promise<EgressProxy | undefined> {
    const found = await Shim.adopt(runDir, shim, proxy, step)
    return found && new EgressProxy(found)
  }

  get handle(): EgressProxyHandle {
    return { shim: this.#shim.identity, proxy: this.#shim.vmm }
  }

  /** Settles once, for any reason. */
  get ended(): Promise<VmExit> {
    return this.#shim.ended
  }

  /** From the next request of the guest's on. Repeat is harmless. */
  async configure(order: ProxyOrder, step: Step): Promise<void> {
    const socket = await connectTo(join(this.#shim.runDir, CONTROL_SOCKET), step)
    using _ = { [Symbol.dispose]: () => socket.destroy() }
    const onAbort = (): void => void socket.destroy(step.signal.reason as Error)
    step.signal.addEventListener('abort', onAbort, { once: true })
    try {
      socket.end(`${JSON.stringify(order)}\n`)
      const answer = (await text(socket)).trim()
      if (answer !== 'ok') throw new AppError('internal_error', `The proxy of an instance was not configured: ${answer || 'it ended'}`)
    } finally {
      step.signal.removeEventListener('abort', onAbort)
    }
  }

  /** Ends it. Repeat is harmless. */
  async kill(): Promise<VmExit> {
    return this.#shim.kill()
  }

  [Symbol.dispose](): void {
    this.#shim[Symbol.dispose]()
  }
}

async function clearRunDir(runDir: string): Promise<void> {
  // Whoever gets as far as the guest's socket may use what the guest may.
  await chmod(runDir, 0o700)
  const left = (await readdir(runDir)).filter((name) => name !== dirname(GUEST_SOCKET))
  await Promise.all(left.map((name) => rm(join(runDir, name), { recursive: true, force: true })))
}

/** From source beside this file, and in a bundle beside that. */
function workerFile(): string {
  return fileURLToPath(new URL(import.meta.url.endsWith('.ts') ? './egress-worker.ts' : './egress-worker.js', import.meta.url))
}
