/**
 * What anyone can do by hand with a VMM that has an API on a unix socket: the machine of an instance, started by no shim, behind no filter
 * of ours, with files by their names and no network. Of the product only the clients take part: of such an API, of a vsock, of the agent.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, open, readFile, rm } from 'node:fs/promises'
import { createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import { GuestClient } from '../../packages/daemon/src/guest/guest-client.ts'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { connectTo } from '../../packages/daemon/src/host/unix-socket.ts'
import { OWN_DIR } from '../../packages/daemon/src/hypervisors/own-dir.ts'
import type { DiskSpec } from '../../packages/daemon/src/hypervisors/vm-spec.ts'
import { VmmApi, type VmmRequest } from '../../packages/daemon/src/hypervisors/vmm-api.ts'
import { connectToAgent, VSOCK_OWN_DIR, VSOCK_SOCKET } from '../../packages/daemon/src/hypervisors/vsock-guest.ts'
import { end, limited, runIn } from './bare-guest.ts'

/** How a VMM is asked for what is measured. Paths are those that it is to open; it runs in the directory of its sockets. */
export interface BareVmm {
  readonly title: string
  /** Found in PATH. */
  readonly program: string
  boot(machine: BareMachineSpec): Start
  /** From what `save` has written: it runs. */
  wake(files: string, way: string): Start
  readonly pause: VmmRequest
  readonly resume: VmmRequest
  /** Memory and devices of a paused machine, into a directory that is there. */
  save(files: string): VmmRequest
}

export interface BareMachineSpec {
  readonly memoryMib: number
  readonly disks: readonly DiskSpec[]
}

export interface Start {
  readonly args: readonly string[]
  /** One after the other, once it answers. */
  readonly requests: readonly VmmRequest[]
}

export const API_SOCKET = 'api.sock'
/** What the VMM says. */
const LOG = 'vmm.log'
/** The writable disk, from where the VMM runs: who goes on from a saved machine elsewhere has another one of that name. */
export const OVERLAY = 'overlay'

export const overlayIn = (dir: string): string => join(dir, OWN_DIR, OVERLAY)

/** A directory for a machine to run in. */
export async function makePlace(dir: string): Promise<void> {
  await mkdir(join(dir, OWN_DIR), { recursive: true })
}

export class BareVm implements AsyncDisposable {
  readonly dir: string
  readonly #vmm: BareVmm
  readonly #child: ChildProcess
  readonly #ended: Promise<unknown>
  readonly #logs: LogListeners
  readonly #api: VmmApi
  #guest: GuestClient | undefined

  private constructor(dir: string, vmm: BareVmm, child: ChildProcess, ended: Promise<unknown>, logs: LogListeners) {
    this.dir = dir
    this.#vmm = vmm
    this.#child = child
    this.#ended = ended
    this.#logs = logs
    this.#api = new VmmApi((step) => this.#dial(() => connectTo(join(dir, OWN_DIR, API_SOCKET), step)))
  }

  /** Resolves when its guest has booted as far as the agent's greeting. */
  static async boot(vmm: BareVmm, dir: string, machine: BareMachineSpec): Promise<BareVm> {
    const vm = await BareVm.#start(vmm, dir, vmm.boot(machine))
    return await vm.#or(async () => {
      // Opened by the agent once it can be reached itself. Who asks sooner may be left without an answer.
      await Promise.race([vm.#logs.opened, vm.#gone(), over(limited().signal)])
      await vm.connectGuest()
      return vm
    })
  }

  /** From what was saved in `files`. Resolves when the agent has greeted. */
  static async wake(vmm: BareVmm, dir: string, files: string, way: string): Promise<BareVm> {
    const vm = await BareVm.#start(vmm, dir, vmm.wake(files, way))
    return await vm.#or(async () => {
      await vm.connectGuest()
      return vm
    })
  }

  static async #start(vmm: BareVmm, dir: string, { args, requests }: Start): Promise<BareVm> {
    const own = join(dir, OWN_DIR)
    // Of one that ran here before.
    await Promise.all([API_SOCKET, VSOCK_SOCKET].map((name) => rm(join(own, name), { force: true })))
    const logs = await LogListeners.open(own)
    await using errors = await open(join(dir, LOG), 'a')
    // A session of its own, as a VM of the daemon's has: see raw-cold-boot.ts.
    const child = spawn('setpriv', ['--pdeathsig', 'KILL', vmm.program, ...args], {
      ...{ cwd: own, stdio: ['ignore', errors.fd, errors.fd], detached: true },
    })
    const vm = new BareVm(dir, vmm, child, once(child, 'exit'), logs)
    return await vm.#or(async () => {
      for (const request of requests) await vm.#api.ask(request, limited())
      return vm
    })
  }

  get guest(): GuestClient {
    if (this.#guest === undefined) throw new Error('No one has asked for the guest yet')
    return this.#guest
  }

  /** Anew. One that has just been woken may drop the first connection with those that it had before. */
  async connectGuest(): Promise<GuestClient> {
    await this.#forgetGuest()
    const step = limited()
    const greeted = async (): Promise<GuestClient | undefined> => {
      const socket = await connectToAgent(this.dir, () => this.#hasEnded, step)
      return GuestClient.connect(socket, step).catch((error) => {
        if (this.#hasEnded || step.signal.aborted) throw error
        return undefined
      })
    }
    this.#guest = await pollUntil("the plain guest's agent", greeted, step, { everyMs: 1, upToMs: 5 })
    return this.#guest
  }

  async run(command: readonly string[]): Promise<void> {
    await runIn(this.guest, command)
  }

  async pause(): Promise<void> {
    await this.#api.ask(this.#vmm.pause, limited())
  }

  async save(files: string): Promise<void> {
    await this.#api.ask(this.#vmm.save(files), limited())
  }

  /** Who wants its guest connects again: connections may be cut by a save. */
  async resume(): Promise<void> {
    await this.#api.ask(this.#vmm.resume, limited())
  }

  /** By force, as one ends that is saved. */
  async quit(): Promise<void> {
    await end(this.#child, this.#ended)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#forgetGuest()
    await this.quit()
    await this.#logs[Symbol.asyncDispose]()
  }

  get #hasEnded(): boolean {
    return this.#child.exitCode !== null || this.#child.signalCode !== null
  }

  async #forgetGuest(): Promise<void> {
    await this.#guest?.close()
    this.#guest = undefined
  }

  async #gone(): Promise<never> {
    await this.#ended
    throw new Error('The VMM has ended')
  }

  /** Its socket is there soon after its start. */
  #dial(connect: () => Promise<Socket>): Promise<Socket> {
    const look = async (): Promise<Socket | undefined> => {
      if (this.#hasEnded) throw new Error('The VMM has ended')
      return connect().catch((error: NodeJS.ErrnoException) => {
        if (error.code === 'ENOENT' || error.code === 'ECONNREFUSED') return undefined
        throw error
      })
    }
    return pollUntil("the VMM's socket", look, limited(), { everyMs: 1, upToMs: 2 })
  }

  /** Nothing is left of it where that fails. */
  async #or<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work()
    } catch (cause) {
      await this[Symbol.asyncDispose]()
      const words = await readFile(join(this.dir, LOG), 'utf8')
      throw new Error(`The plain ${this.#vmm.title} did not run; its log ends with:\n${words.slice(-2000)}`, { cause })
    }
  }
}

async function over(signal: AbortSignal): Promise<never> {
  await once(signal, 'abort')
  throw signal.reason
}

/** Takes what a guest writes over the streams that it opens itself. */
class LogListeners implements AsyncDisposable {
  readonly #undo: AsyncDisposableStack
  /** The guest has opened one. */
  readonly opened: Promise<void>

  private constructor(undo: AsyncDisposableStack, opened: Promise<void>) {
    this.#undo = undo
    this.opened = opened
  }

  static async open(dir: string): Promise<LogListeners> {
    const opened = Promise.withResolvers<void>()
    await using undo = new AsyncDisposableStack()
    for (const { socket: name } of VSOCK_OWN_DIR.logs) {
      const sockets = new Set<Socket>()
      const server = createServer((socket) => {
        sockets.add(socket)
        socket.on('error', () => undefined).resume()
        opened.resolve()
      })
      undo.defer(async () => {
        for (const socket of sockets) socket.destroy()
        await new Promise((resolve) => server.close(resolve))
      })
      server.listen(join(dir, name))
      await once(server, 'listening')
    }
    return new LogListeners(undo.move(), opened.promise)
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#undo.disposeAsync()
  }
}
