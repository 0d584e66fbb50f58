/** For tests with a real daemon: what must be true of its host when it is at rest, read from the host itself and not from the daemon. */
import assert from 'node:assert/strict'
import { existsSync, readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import type { ApiClient } from '../harness/api-client.ts'
import { type FoundProcess, processesNaming } from '../harness/processes.ts'

export interface ShownInstance {
  readonly id: string
  readonly name: string
  readonly state: string
  readonly operation?: string
  readonly exit_code: number | null
  readonly exit_message?: string
  readonly network: { readonly ports?: readonly { readonly host_port: number }[] }
}

const MOVING = ['Created', 'Initializing', 'Paused', 'Shutdown']

/** Resolves when no instance is on its way anywhere. */
export async function atRest(client: ApiClient): Promise<ShownInstance[]> {
  let instances: ShownInstance[] = []
  const isAtRest = async () => {
    instances = await client.get<ShownInstance[]>('/instances')
    return instances.every(({ state, operation }) => !MOVING.includes(state) && operation === undefined)
  }
  await pollUntil('the instances to come to rest', isAtRest, { signal: AbortSignal.timeout(90_000) }, { everyMs: 20, upToMs: 200 })
  return instances
}

/** No VM lost, none running twice, no disk, socket, process or port left over, every instance in a true state. */
export async function assertHostInOrder(dir: string, instances: readonly ShownInstance[]): Promise<void> {
  const running = instances.filter(({ state }) => state === 'Running')
  const runDirs = running.map(({ id }) => join(dir, 'run/vm', id.slice(0, 12)))
  await untilGone(dir, runDirs)

  const vmms = await vmmsHolding(dir)
  for (const { id, name } of instances) {
    const own = vmms.filter(({ argv }) => argv.includes(id))
    assert.equal(own.length, running.some((instance) => instance.id === id) ? 1 : 0, `VMMs of ${name}`)
  }
  assert.deepEqual(readdirSync(join(dir, 'data/disks')).sort(), [...new Set([...disksOf(dir).values()].flat())].sort())
  assert.equal(vmms.length, running.length, 'a VMM runs for no instance')
  assert.deepEqual(readdirSync(join(dir, 'data/instances')).sort(), instances.map(({ id }) => id).sort())
  const open = listeningPorts()
  for (const instance of instances) {
    for (const { host_port } of instance.network.ports ?? []) {
      assert.equal(open.has(host_port), running.includes(instance), `port ${host_port} of ${instance.name}, which is ${instance.state}`)
    }
  }
}

/** The layers of each instance's disk, from the rows themselves: no answer of the daemon's has them. */
export function disksOf(dir: string): Map<string, string[]> {
  const db = new DatabaseSync(join(dir, 'data/dormouse.db'), { readOnly: true })
  try {
    return new Map(
      db
        .prepare('SELECT id, disk FROM instances')
        .all()
        .map(({ id, disk }) => [String(id), JSON.parse(String(disk))]),
    )
  } finally {
    db.close()
  }
}

/** Run directories and processes of VMs that are no more may take a moment to go. */
async function untilGone(dir: string, runDirs: readonly string[]): Promise<void> {
  const strangers = async () =>
    [
      ...readdirSync(join(dir, 'run/vm')).map((name) => join(dir, 'run/vm', name)),
      ...readdirSync(join(dir, 'run/golden')).map((name) => join(dir, 'run/golden', name)),
    ].filter((path) => !runDirs.includes(path))
  await pollUntil('run directories of VMs that are gone to be removed', async () => (await strangers()).length === 0, {
    signal: AbortSignal.timeout(10_000),
  })
}

/** VMMs that have a file below `dir` open, deleted or not. Their command lines name descriptors, not files. */
async function vmmsHolding(dir: string): Promise<FoundProcess[]> {
  const vmms = await processesNaming('qemu-system')
  return vmms.filter(({ pid, argv }) => argv[0]?.includes('qemu-system') && openFiles(pid).some((path) => path.startsWith(dir)))
}

function openFiles(pid: number): string[] {
  try {
    return readdirSync(`/proc/${pid}/fd`).map((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`))
  } catch {
    // It ended while it was looked at.
    return []
  }
}

/** TCP ports that something on this host listens on. */
export function listeningPorts(): Set<number> {
  const ports = new Set<number>()
  for (const file of ['/proc/net/tcp', '/proc/net/tcp6']) {
    if (!existsSync(file)) continue
    for (const line of readFileSync(file, 'utf8').trim().split('\n').slice(1)) {
      const [, local = '', , state] = line.trim().split(/\s+/)
      if (state === LISTEN) ports.add(Number.parseInt(local.split(':')[1] ?? '', 16))
    }
  }
  return ports
}

// TCP_LISTEN in the kernel's tcp_states.h, as /proc/net/tcp writes it.
const LISTEN = '0A'
