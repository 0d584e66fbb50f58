/** A VMM in the small under a real shim: a process that maps a base privately and dirties what it is told to. */
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { chmod, mkdir, open, readFile } from 'node:fs/promises'
import net from 'node:net'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'
import { type Descriptor, Shim, type ShimPlan } from '../../packages/daemon/src/hypervisors/shim.ts'
import { artefacts, makeStep } from './qemu-driver.ts'

export const PAGE = 4096

export async function buildMemoryHolder(dir: string): Promise<string> {
  const program = join(dir, 'memory-holder')
  await runCommand(['gcc', '-O2', '-o', program, join(import.meta.dirname, 'memory-holder.c')], { step: makeStep() })
  return program
}

/** `pages` pages with something in every second of the first half; the rest is a hole. */
export async function writeBase(file: string, pages: number, seed: number): Promise<void> {
  await using handle = await open(file, 'wx', 0o666)
  await handle.truncate(pages * PAGE)
  const page = Buffer.alloc(PAGE)
  for (let number = 0; number < pages / 2; number += 2) {
    for (let at = 0; at < PAGE; at += 8) page.writeDoubleLE(Math.sin(seed + number + at), at)
    await handle.write(page, 0, PAGE, number * PAGE)
  }
}

export type Base = { readonly kind: 'write'; readonly file: string } | { readonly kind: 'daemon'; readonly fd: number }

export interface HolderOptions {
  readonly name: string
  readonly dir: string
  readonly program: string
  readonly base: Base
  readonly user?: { readonly uid: number; readonly gid: number }
}

export class MemoryHolder {
  readonly shim: Shim
  readonly #socket: net.Socket
  readonly #answers: AsyncIterator<string>

  private constructor(shim: Shim, socket: net.Socket) {
    this.shim = shim
    this.#socket = socket
    this.#answers = createInterface({ input: socket })[Symbol.asyncIterator]()
  }

  static async start(options: HolderOptions): Promise<MemoryHolder> {
    const { name, dir, program, base, user } = options
    const runDir = join(dir, name)
    await mkdir(runDir, { mode: 0o700 })
    const memory: Descriptor = { number: 17, ...base }
    const plan: ShimPlan = {
      shimPath: artefacts.shimPath,
      runDir,
      ...(user === undefined ? {} : { user }),
      logs: [{ name: 'vmm', file: join(dir, `${name}.log`), maxBytes: 1 << 20 }],
      isolateNetwork: false,
      vmm: {
        argv: [program],
        descriptors: [{ number: 11, kind: 'listen', name: 'holder.sock' }, { number: 16, kind: 'blank' }, memory],
      },
      memory: 17,
    }
    const shim = await Shim.launch(plan, makeStep(20_000))
    const socket = net.connect(join(runDir, 'holder.sock'))
    const holder = new MemoryHolder(shim, socket)
    // It answers once it has mapped its memory.
    await holder.do('fill 0 0 1 1')
    return holder
  }

  async do(command: string): Promise<void> {
    const answer = await this.ask(command)
    if (answer !== 'ok') throw new Error(`${command}: ${answer}`)
  }

  async ask(command: string): Promise<string> {
    this.#socket.write(`${command}\n`)
    const { value = 'it is gone' } = await this.#answers.next()
    return value
  }

  /** All its memory, hashed. */
  async hash(scratch: string): Promise<string> {
    const file = join(scratch, 'memory.dump')
    await open(file, 'w', 0o666).then((handle) => handle.close())
    await chmod(file, 0o666)
    await this.do(`write ${file}`)
    return hashOf(file)
  }

  async end(): Promise<void> {
    this.#socket.destroy()
    await this.shim.kill()
    this.shim[Symbol.dispose]()
  }
}

export async function hashOf(file: string): Promise<string> {
  const hash = createHash('sha256')
  for await (const chunk of createReadStream(file)) hash.update(chunk)
  return hash.digest('hex')
}

/** The living children of a process. */
export async function childrenOf(pid: number): Promise<number[]> {
  return (await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8')).trim().split(' ').filter(Boolean).map(Number)
}
