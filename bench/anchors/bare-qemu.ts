/**
 * What anyone can do with QEMU by hand: the machine of an instance, with the same devices at the same places, but started by no shim,
 * behind no filter, with a plain user-mode network and files and sockets by their names. No product code takes part but the command
 * line that it is derived from, the client of QEMU's protocol and the client of the guest's agent.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { GuestClient } from '../../packages/daemon/src/guest/guest-client.ts'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { connectTo } from '../../packages/daemon/src/host/unix-socket.ts'
import { Q35 } from '../../packages/daemon/src/hypervisors/qemu/boards.ts'
import { commandLine, type Machine } from '../../packages/daemon/src/hypervisors/qemu/command-line.ts'
import { diskDescriptors } from '../../packages/daemon/src/hypervisors/qemu/disk-nodes.ts'
import { Qmp } from '../../packages/daemon/src/hypervisors/qemu/qmp.ts'
import type { DiskSpec } from '../../packages/daemon/src/hypervisors/vm-spec.ts'
import { end, INITRD, KERNEL, limited, MAC, runIn } from './bare-guest.ts'

export interface BareMachine {
  readonly acceleration: 'kvm' | 'tcg'
  readonly memoryMib: number
  readonly tscKhz: number
}

export interface BareStart extends BareMachine {
  /** Exists; sockets and logs are left in it. */
  readonly dir: string
  readonly disks: readonly DiskSpec[]
  readonly mac?: string
  /** A file that is mapped privately as the guest's memory; without one it has memory of its own. */
  readonly base?: string
  /** It waits for a state, paused. */
  readonly isIncoming?: boolean
}

export class BareQemu implements AsyncDisposable {
  readonly dir: string
  readonly pid: number
  readonly qmp: Qmp
  readonly #child: ChildProcess
  readonly #ended: Promise<unknown>
  #guest: GuestClient | undefined

  private constructor(dir: string, child: ChildProcess, ended: Promise<unknown>, qmp: Qmp) {
    this.dir = dir
    this.pid = child.pid as number
    this.qmp = qmp
    this.#child = child
    this.#ended = ended
  }

  /** Resolves when QEMU has greeted. */
  static async start(options: BareStart): Promise<BareQemu> {
    const { dir } = options
    await using errors = await open(join(dir, 'qemu.log'), 'a')
    const [program = '', ...args] = argumentsOf(options)
    const child = spawn(program, args, { stdio: ['ignore', errors.fd, errors.fd] })
    const ended = once(child, 'exit')
    try {
      return new BareQemu(dir, child, ended, await dialled(child, () => Qmp.connect(join(dir, 'qmp.sock'), limited())))
    } catch (cause) {
      await end(child, ended)
      throw new Error(`The plain QEMU did not start; see ${dir}/qemu.log`, { cause })
    }
  }

  get guest(): GuestClient {
    if (this.#guest === undefined) throw new Error('No one has asked for the guest yet')
    return this.#guest
  }

  /** Resolves when the agent has greeted. */
  async connectGuest(): Promise<GuestClient> {
    const socket = await dialled(this.#child, () => connectTo(join(this.dir, 'agent.sock'), limited()))
    this.#guest = await GuestClient.connect(socket, limited())
    return this.#guest
  }

  /** A device state, then the machine runs. */
  async load(uri: string): Promise<void> {
    const step = limited()
    await this.qmp.execute('migrate-set-capabilities', { capabilities: [{ capability: 'events', state: true }] }, step)
    await this.qmp.execute('migrate-incoming', { uri }, step)
    const { status } = await this.qmp.event('MIGRATION', step, ({ status }) => status === 'completed' || status === 'failed')
    if (status === 'failed') throw new Error(`The plain QEMU could not load a state; see ${this.dir}/qemu.log`)
    await this.qmp.execute('cont', undefined, step)
  }

  /** A program that has to end well. */
  async run(command: readonly string[]): Promise<void> {
    await runIn(this.guest, command)
  }

  /** Stops, and writes its whole memory and its devices into a file. */
  async migrateTo(file: string): Promise<void> {
    const step = limited()
    // Left to itself QEMU migrates at the speed of an old network.
    await this.qmp.execute('migrate-set-parameters', { 'max-bandwidth': 2 ** 40 }, step)
    await this.qmp.execute('stop', undefined, step)
    await this.qmp.execute('migrate', { uri: `exec:cat > ${file}` }, step)
    const isDone = async (): Promise<boolean> => {
      const { status } = (await this.qmp.execute('query-migrate', undefined, step)) as { status?: string }
      if (status === 'failed') throw new Error('The plain QEMU could not migrate into a file')
      return status === 'completed'
    }
    await pollUntil('a migration into a file', isDone, step, { everyMs: 1, upToMs: 2 })
  }

  /** Resolves when its process is gone. */
  async quit(): Promise<void> {
    await this.qmp.execute('quit', undefined, limited())
    await this.#ended
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.qmp[Symbol.dispose]()
    await end(this.#child, this.#ended)
  }
}

/** The product's command line, with a path wherever it has a descriptor from its shim. */
function argumentsOf({ dir, disks, mac = MAC, base, isIncoming = false, ...rest }: BareStart): string[] {
  const machine: Machine = { ...rest, board: Q35, vcpus: 1, kernelPath: KERNEL, initrdPath: INITRD }
  const plain = commandLine(machine, { id: 'bare', entry: isIncoming ? 'restore' : 'boot', disks, nic: { mac } })
  const files = new Map(diskDescriptors(disks).map((one) => [`/dev/fdset/${one.number}`, 'file' in one ? one.file : '']))
  const size = `size=${rest.memoryMib}M`
  const replaced: Readonly<Record<string, string>> = {
    qmp: `socket,id=qmp,path=${dir}/qmp.sock,server=on,wait=off`,
    agent: `socket,id=agent,path=${dir}/agent.sock,server=on,wait=off`,
    held: 'null,id=held',
    app: `file,id=app,path=${dir}/app.log`,
    journal: `file,id=journal,path=${dir}/journal`,
    console: `file,id=console,path=${dir}/console.log`,
    net: 'user,id=net',
    ram: base === undefined ? `memory-backend-ram,id=ram,${size}` : `memory-backend-file,id=ram,${size},mem-path=${base},share=off`,
  }
  return plain.flatMap((word, index) => {
    const option = word === '-sandbox' || word === '-add-fd' ? word : plain[index - 1]
    if (option === '-sandbox' || option === '-add-fd') return []
    if (option === '-blockdev') return [word.replace(/\/dev\/fdset\/\d+/g, (set) => files.get(set) ?? set)]
    const id = option === '-chardev' || option === '-netdev' || option === '-object' ? /(?:^|,)id=(\w+)/.exec(word)?.[1] : undefined
    return [replaced[id ?? ''] ?? word]
  })
}

/** QEMU makes its sockets soon after its start. */
function dialled<T>(child: ChildProcess, dial: () => Promise<T>): Promise<NonNullable<T>> {
  const look = async (): Promise<T | undefined> => {
    if (child.exitCode !== null) throw new Error(`QEMU ended with code ${child.exitCode}`)
    return dial().catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT' || error.code === 'ECONNREFUSED') return undefined
      throw error
    })
  }
  return pollUntil("QEMU's socket", look, limited(), { everyMs: 1, upToMs: 2 })
}
