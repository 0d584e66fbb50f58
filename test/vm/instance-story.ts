/** A real daemon with real VMs for a story of instances: one data directory, one image, and a workload that notices what is done to it. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdir, readFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { join } from 'node:path'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'
import type { HypervisorName } from '../../packages/daemon/src/hypervisors/hypervisor.ts'
import { type BusyboxImageOptions, makeBusyboxImage } from '../harness/busybox-image.ts'
import { type DaemonProcess, startDaemon } from '../harness/daemon-process.ts'
import { execOverApi } from '../harness/exec-over-api.ts'
import { importImage } from '../harness/import-image.ts'
import { processesNaming } from '../harness/processes.ts'
import { Scratch } from '../harness/scratch.ts'
import { timeFactor } from '../harness/slow-host.ts'
import { mountSmallDisk } from '../harness/small-disk.ts'
import { assertHostInOrder, atRest, type ShownInstance } from './house-in-order.ts'

/** What `wakeful` says of itself. */
export interface Look {
  readonly boot: string
  readonly born: string
  readonly held: string
  readonly count: number
  readonly nowMs: number
  readonly chance: string
  readonly monotonicMs: number
  /** How often that clock has gone back since the workload began. */
  readonly stepsBack: number
  /** Between which two moments of this host it was said. */
  readonly askedMs: number
  readonly heardMs: number
}

export interface ShownSnapshot {
  readonly id: string
  readonly name: string | null
  readonly kind: string
  readonly source_instance_id: string
  readonly size_bytes: number
}

export interface RefusedAnswer {
  readonly status: number
  readonly code: string
  readonly message: string
}

interface StoryOptions {
  readonly driver: HypervisorName
  readonly env?: Readonly<Record<string, string>>
  readonly image?: BusyboxImageOptions
  /** The data directory is a file system of its own, of so many bytes; only root can have that. */
  readonly diskBytes?: number
}

const WORKLOAD_PORT = 80

export class InstanceStory implements AsyncDisposable {
  readonly dir: string
  readonly #house: AsyncDisposable
  readonly #options: StoryOptions
  daemon: DaemonProcess

  private constructor(dir: string, house: AsyncDisposable, options: StoryOptions, daemon: DaemonProcess) {
    this.dir = dir
    this.#house = house
    this.#options = options
    this.daemon = daemon
  }

  /** Its image is `box`: busybox with `wakeful`, and what `image` adds. */
  static async begin(options: StoryOptions): Promise<InstanceStory> {
    const scratch = await Scratch.make()
    await using undo = new AsyncDisposableStack()
    undo.use(scratch)
    const wakeful = join(scratch.path, 'wakeful')
    const argv = ['gcc', '-O2', '-static', '-o', wakeful, join(import.meta.dirname, '../harness/wakeful.c')] as const
    await runCommand(argv, { step: { signal: AbortSignal.timeout(60_000) } })
    const dir = join(scratch.path, 'd')
    if (options.diskBytes !== undefined) {
      await mkdir(dir)
      undo.use(await mountSmallDisk(join(dir, 'data'), options.diskBytes))
    }
    const house = undo.move()
    await using end = new AsyncDisposableStack()
    end.use(house)
    const daemon = end.use(await startDaemon({ dir, ...options }))
    const { image = {} } = options
    const { path } = await makeBusyboxImage(join(scratch.path, 'image'), {
      cmd: ['/bin/wakeful', `${WORKLOAD_PORT}`],
      ...image,
      files: { '/etc/machine-id': '', ...image.files },
      programs: { '/bin/wakeful': wakeful, ...image.programs },
    })
    await importImage(daemon, path, 'box')
    end.move()
    return new InstanceStory(dir, house, options, daemon)
  }

  /** A small instance of `box` that runs, its workload reached through a port of this host. */
  async run(name: string, more: object = {}): Promise<ShownInstance> {
    await this.daemon.client.post('/instances?wait=running', { ...SHAPE, ...more, name })
    const instance = await this.expect(name, 'Running')
    await this.untilItListens(instance)
    return instance
  }

  /** Of a machine that has just booted: Running says that its workload was started, and no more. */
  async untilItListens(instance: ShownInstance): Promise<void> {
    const answers = () => this.look(instance).catch(() => undefined)
    await pollUntil(`${instance.name} to listen`, answers, { signal: AbortSignal.timeout(30_000) }, { everyMs: 20 })
  }

  get(name: string): Promise<ShownInstance> {
    return this.daemon.client.get<ShownInstance>(`/instances/${name}`)
  }

  async expect(name: string, state: string): Promise<ShownInstance> {
    const instance = await this.get(name)
    assert.equal(instance.state, state, JSON.stringify(instance))
    return instance
  }

  async standby(name: string): Promise<ShownInstance> {
    return this.daemon.client.post<ShownInstance>(`/instances/${name}/standby`, {})
  }

  async restore(name: string): Promise<ShownInstance> {
    return this.daemon.client.post<ShownInstance>(`/instances/${name}/restore`)
  }

  /** Resolves when the fork is where it was wanted; its workload answers at a port of its own. */
  async fork(source: string, { name, ...more }: { name: string; from_running?: boolean; target_state?: string }): Promise<ShownInstance> {
    const { ports } = SHAPE.network
    await this.daemon.client.post(`/instances/${source}/fork`, { name, network: { ports }, ...more })
    return this.get(name)
  }

  async snapshot(name: string, asked: { kind: 'Standby' | 'Stopped'; name?: string }): Promise<ShownSnapshot> {
    return this.daemon.client.post<ShownSnapshot>(`/instances/${name}/snapshots`, asked)
  }

  async restoreSnapshot(name: string, { id }: ShownSnapshot, target?: string): Promise<ShownInstance> {
    const body = target === undefined ? {} : { target_state: target }
    return this.daemon.client.post<ShownInstance>(`/instances/${name}/snapshots/${id}/restore`, body)
  }

  async forkSnapshot({ id }: ShownSnapshot, name: string, target?: string): Promise<ShownInstance> {
    await this.daemon.client.post(`/snapshots/${id}/fork`, { name, ...(target === undefined ? {} : { target_state: target }) })
    // One that goes on from a snapshot publishes nothing by itself.
    return this.daemon.client.patch<ShownInstance>(`/instances/${name}`, { network: { ports: SHAPE.network.ports } })
  }

  async stop(name: string): Promise<void> {
    await this.daemon.client.post(`/instances/${name}/stop`, { force: true })
  }

  async remove(...names: string[]): Promise<void> {
    for (const name of names) await this.daemon.client.delete(`/instances/${name}?graceful_shutdown=false`)
  }

  /** What an operation that must not succeed is answered with. */
  async refused(method: string, path: string, body?: object): Promise<RefusedAnswer> {
    const answer = await this.daemon.client.call<{ code: string; message: string }>(method, path, body)
    assert.ok(answer.status >= 400, `${method} ${path} was not refused: ${JSON.stringify(answer.body)}`)
    return { status: answer.status, code: answer.body.code, message: answer.body.message }
  }

  async sh(name: string, script: string): Promise<string> {
    const { exitCode, stdout, stderr } = await execOverApi(this.daemon.socket, name, { command: ['/bin/sh', '-c', script] })
    assert.equal(exitCode, 0, stderr)
    return stdout.trim()
  }

  async look(instance: ShownInstance): Promise<Look> {
    const askedMs = Date.now()
    const said = await this.ask(instance, 'look')
    return { ...JSON.parse(said), askedMs, heardMs: Date.now() }
  }

  /** It is Running, or is woken, and has neither booted nor lost a moment since it was seen. */
  async goesOn(name: string, seen: Look): Promise<Look> {
    if ((await this.get(name)).state === 'Standby') await this.restore(name)
    const now = await this.look(await this.expect(name, 'Running'))
    assert.deepEqual([now.born, now.boot, now.held], [seen.born, seen.boot, seen.held])
    assert.ok(now.count >= seen.count, `it counts ${now.count} and had come to ${seen.count}`)
    return now
  }

  /** One line to `wakeful` through the published port, and its answer. */
  async ask(instance: ShownInstance, line: string): Promise<string> {
    const said = await hear(portOf(instance), `${line}\n`)
    assert.notEqual(said, '', `${instance.name} answered ${line} with nothing`)
    return said.trim()
  }

  async vmmOf({ id, name }: ShownInstance): Promise<number> {
    const [vmm] = (await processesNaming(id)).filter(({ argv }) => argv[0]?.includes('qemu-system'))
    assert.ok(vmm, `no VMM runs for ${name}`)
    return vmm.pid
  }

  /** Lines of the daemon's log about an instance, with that message, oldest first. */
  async logged(message: string, { id }: Pick<ShownInstance, 'id'>): Promise<readonly Readonly<Record<string, number>>[]> {
    const lines = (await readFile(join(this.dir, 'daemon.log'), 'utf8')).trim().split('\n')
    return lines.filter((line) => line.includes(`"msg":"${message}"`) && line.includes(id)).map((line) => JSON.parse(line))
  }

  /** The base of its last nap has been made, its `count`th since it began. */
  async untilConsolidated(instance: ShownInstance, count: number): Promise<void> {
    const isDone = async () => (await this.logged('sleeping state consolidated', instance)).length >= count
    await pollUntil(`${instance.name} to be consolidated`, isDone, { signal: AbortSignal.timeout(60_000) })
  }

  async restartDaemon(how: 'stop' | 'kill' = 'stop', env: Readonly<Record<string, string>> = {}): Promise<void> {
    await this.daemon[how]()
    this.daemon = await startDaemon({ dir: this.dir, ...this.#options, env: { ...this.#options.env, ...env } })
  }

  /** No VM, process, layer, draft or port left that no row knows of. */
  async assertInOrder(): Promise<void> {
    await assertHostInOrder(this.dir, await atRest(this.daemon.client))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.daemon[Symbol.asyncDispose]()
    await this.#house[Symbol.asyncDispose]()
  }
}

const SHAPE = {
  image: 'box',
  vcpus: 1,
  size: '256MB',
  overlay_size: '256MB',
  network: { ports: [{ host_port: 0, guest_port: WORKLOAD_PORT, host_ip: '127.0.0.1' }] },
}

export function portOf({ name, network }: ShownInstance): number {
  const port = network.ports?.[0]?.host_port
  assert.ok(port, `${name} publishes no port`)
  return port
}

/** Sends `line` and hears the other side out. */
async function hear(port: number, line: string): Promise<string> {
  const socket = connect(port, '127.0.0.1')
  socket.setTimeout(30_000 * timeFactor, () => socket.destroy(new Error(`port ${port} did not answer in time`)))
  let said = ''
  socket.setEncoding('utf8').on('data', (text: string) => {
    said += text
  })
  socket.write(line)
  await once(socket, 'close')
  return said
}
