/** A daemon with instances of 2 GiB that change some of their memory, and what can be seen of their sleep from outside. */
import { readdirSync, statSync } from 'node:fs'
import { mkdir, readdir, readFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { measureTscKhz } from '../packages/daemon/src/host/host-facts.ts'
import { pollUntil } from '../packages/daemon/src/host/poll-until.ts'
import type { DiskSpec } from '../packages/daemon/src/hypervisors/vm-spec.ts'
import { type CaptureManifest, readManifest } from '../packages/daemon/src/memory/capture-files.ts'
import { macOf } from '../packages/daemon/src/network/network.ts'
import { anchorMachineOf } from '../test/harness/anchor-machine.ts'
import { makeBusyboxImage } from '../test/harness/busybox-image.ts'
import { type DaemonProcess, REPOSITORY, startDaemon } from '../test/harness/daemon-process.ts'
import { execOverApi } from '../test/harness/exec-over-api.ts'
import { importImage } from '../test/harness/import-image.ts'
import { processesNaming } from '../test/harness/processes.ts'
import { limited } from './anchors/bare-guest.ts'
import type { BareMachine } from './anchors/bare-qemu.ts'
import type { Bench } from './bench.ts'
import { copySparse, disksOver, timed } from './both-sides.ts'
import { assertHere, type BenchedDriver, DRIVERS, networkOf } from './drivers.ts'

const IMAGE = 'bench/sleeper:latest'
export const MEMORY_MIB = 2048
export interface Sleeper {
  readonly name: string
  readonly id: string
}

export interface SleepingState {
  readonly dir: string
  readonly manifest: CaptureManifest
}

interface HouseOptions {
  readonly driver?: BenchedDriver
  readonly poolSize?: number
}

export class SleepingHouse implements AsyncDisposable {
  readonly daemon: DaemonProcess
  readonly rootfs: string
  readonly machine: BareMachine
  readonly #driver: BenchedDriver
  readonly #dir: string

  private constructor(dir: string, driver: BenchedDriver, daemon: DaemonProcess, rootfs: string, machine: BareMachine) {
    this.#dir = dir
    this.#driver = driver
    this.daemon = daemon
    this.rootfs = rootfs
    this.machine = machine
  }

  /** `poolSize`: how many VMs wait for the next create or restore. Throws `NotHere`. */
  static async open(
    { dir, installed }: Bench,
    name: string,
    { driver = DRIVERS.qemu, poolSize = 0 }: HouseOptions = {},
  ): Promise<SleepingHouse> {
    const place = join(dir, name)
    const env = {
      ...installed.env,
      DORMOUSE_LOG_LEVEL: 'debug',
      DORMOUSE_MEMORY_RATIO: '10',
      DORMOUSE_CPU_RATIO: '100',
      DORMOUSE_DISK_RATIO: '100',
      DORMOUSE_POOL_SIZE: String(poolSize),
    }
    await using undo = new AsyncDisposableStack()
    const daemon = undo.use(await startDaemon({ dir: join(place, 'd'), driver: driver.name, argv: installed.daemon, env }))
    await assertHere(daemon, driver)
    const { path, digest } = await makeBusyboxImage(join(place, 'image'))
    await importImage(daemon, path, IMAGE)
    const { acceleration } = await anchorMachineOf(daemon, driver.name)
    const tscKhz = await measureTscKhz(join(REPOSITORY, 'build/shim/dormouse-shim'), limited())
    undo.move()
    return new SleepingHouse(place, driver, daemon, daemon.paths.imageRootfs(digest), { acceleration, memoryMib: MEMORY_MIB, tscKhz })
  }

  async create(name: string, memoryMib: number = MEMORY_MIB): Promise<Sleeper> {
    const { id } = await this.daemon.client.post<{ id: string }>('/instances?wait=running', {
      ...{ name, image: IMAGE, size: `${memoryMib}MB`, vcpus: 1, ...networkOf(this.#driver) },
    })
    return { name, id }
  }

  async run({ name }: Sleeper, command: string[]): Promise<void> {
    const { exitCode, stderr } = await execOverApi(this.daemon.socket, name, { command })
    if (exitCode !== 0) throw new Error(`${command.join(' ')} ended with ${exitCode} in ${name}: ${stderr}`)
  }

  /** Milliseconds from the request to its answer. */
  async ask({ name }: Sleeper, verb: 'standby' | 'restore' | 'fork' | 'snapshots', body?: unknown): Promise<number> {
    return timed(() => this.daemon.client.post(`/instances/${name}/${verb}`, body))
  }

  async forget(...sleepers: readonly Sleeper[]): Promise<void> {
    for (const { name } of sleepers) await this.daemon.client.delete(`/instances/${name}`)
  }

  /** What the sleeping state of this very moment takes on disk, before anything is made of it. */
  sleepBytes({ id }: Sleeper): number {
    const dir = this.daemon.paths.instanceSleepDir(id)
    const sizes = readdirSync(dir).map((generation) => {
      const files = readdirSync(join(dir, generation)).map((file) => [file, statSync(join(dir, generation, file)).blocks * 512] as const)
      return files.some(([file]) => file === 'delta') ? files.reduce((sum, [, bytes]) => sum + bytes, 0) : 0
    })
    return Math.max(...sizes)
  }

  /** The sleeping state once the pages of the nap have become part of its base. */
  async consolidated({ id }: Sleeper): Promise<SleepingState> {
    const sleeps = this.daemon.paths.instanceSleepDir(id)
    const look = async (): Promise<SleepingState | undefined> => {
      const [generation, ...others] = await readdir(sleeps)
      if (generation === undefined || others.length > 0) return undefined
      const dir = join(sleeps, generation)
      const manifest = await readManifest(dir).catch(() => undefined)
      return manifest !== undefined && manifest.delta === undefined ? { dir, manifest } : undefined
    }
    return pollUntil('a sleeping state to be consolidated', look, limited())
  }

  /** The file that the state stands on. */
  baseOf({ manifest }: SleepingState): string {
    return join(this.daemon.paths.dataDir, manifest.base.replace(/^base\//, 'memory/'), 'memory')
  }

  /** The disks of the one sleeping instance for a machine beside it: the writable one copied, so that its own stays as it fell asleep. */
  async copyOfDisks(dir: string): Promise<DiskSpec[]> {
    const { disksDir } = this.daemon.paths
    const [name = '', ...others] = await readdir(disksDir)
    if (!name.endsWith('.raw') || others.length > 0) throw new Error('There is not exactly one plain disk of an instance to be copied')
    const path = join(dir, 'overlay')
    await copySparse(join(disksDir, name), path)
    return this.disksOver(path)
  }

  disksOver(overlay: string): DiskSpec[] {
    return disksOver(this.rootfs, overlay)
  }

  macOf({ id }: Sleeper): string {
    return macOf(id)
  }

  /** A directory that holds sockets and logs of a machine beside the daemon's. */
  async place(name: string): Promise<string> {
    const dir = join(this.#dir, name)
    await mkdir(dir, { recursive: true })
    return dir
  }

  async vmmOf(sleeper: Sleeper): Promise<number> {
    const { program } = this.#driver
    for (const pid of await this.processesOf(sleeper)) {
      const [argv0 = ''] = (await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')).split('\0')
      if (basename(argv0) === program) return pid
    }
    throw new Error(`No ${program} runs for ${sleeper.id}`)
  }

  /** Everything that runs for it: its VMM, its shim, its network helper. */
  async processesOf({ id }: Sleeper): Promise<number[]> {
    const runDir = this.daemon.paths.vmRunDir(id)
    const known = (await processesNaming(runDir)).map(({ pid }) => pid)
    const children = await Promise.all(known.map((pid) => readFile(`/proc/${pid}/task/${pid}/children`, 'latin1').catch(() => '')))
    return [...new Set([...known, ...children.flatMap((text) => text.split(' ').filter(Boolean).map(Number))])]
  }

  /** Lines of the daemon's log that say `message`, in order. */
  async logged<T>(message: string): Promise<T[]> {
    const lines = (await this.daemon.log()).split('\n').filter((line) => line.includes(`"msg":"${message}"`))
    return lines.map((line) => JSON.parse(line) as T)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.daemon[Symbol.asyncDispose]()
  }
}

/** Bytes of its memory that a VM has written since it mapped its base. */
export async function writtenSince(vmm: number): Promise<number> {
  const mappings = (await readFile(`/proc/${vmm}/smaps`, 'latin1')).split(/^(?=[0-9a-f]+-[0-9a-f]+ )/m)
  const sizes = mappings.map((text) => ({ bytes: kib(text, 'Size'), written: kib(text, 'Anonymous') + kib(text, 'Swap') }))
  return sizes.reduce((largest, one) => (one.bytes > largest.bytes ? one : largest)).written
}

/** What a process has to itself, and its part of what it shares. */
export async function proportionalBytes(pid: number): Promise<number> {
  return kib(await readFile(`/proc/${pid}/smaps_rollup`, 'latin1'), 'Pss')
}

const kib = (text: string, field: string): number => Number(new RegExp(`^${field}:\\s+(\\d+) kB$`, 'm').exec(text)?.[1] ?? 0) * 1024
