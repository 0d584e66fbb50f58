/** For tests with a real daemon: what must be true of its host when it is at rest, read from the host itself and not from the daemon. */
import assert from 'node:assert/strict'
import { existsSync, readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { basename, join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { pollUntil } from '../../packages/daemon/src/host/poll-until.ts'
import type { ApiClient } from '../harness/api-client.ts'
import { cgroupsOf, type FoundProcess, processesNaming } from '../harness/processes.ts'
import { artefacts } from '../harness/qemu-driver.ts'
import { stateOfVmm, VMMS } from './vmms.ts'

export interface ShownInstance {
  readonly id: string
  readonly name: string
  readonly state: string
  readonly operation?: string
  readonly exit_code: number | null
  readonly exit_message?: string
  readonly hypervisor: string
  readonly network: {
    readonly enabled?: boolean
    readonly mac?: string
    readonly ports?: readonly { readonly host_port: number; readonly protocol?: string }[]
  }
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

/** No VM lost, none running twice, no disk, draft, socket, process or port left over, every instance in a true state. */
export async function assertHostInOrder(dir: string, instances: readonly ShownInstance[]): Promise<void> {
  const running = instances.filter(({ state }) => state === 'Running')
  await untilGone(dir, running.map(runDirOf(dir)))

  const { shims, vmms, helpers } = await processesOfInstances(dir)
  const disks = disksOf(dir)
  const bridged = bridgedOnes(dir)
  const hasHelper = ({ id, network }: ShownInstance): boolean => network.enabled !== false && !bridged.has(id)
  for (const instance of instances) {
    const { id, name } = instance
    const isRunning = running.includes(instance)
    const own = shims.filter(({ place }) => place === runDirOf(dir)(instance))
    assert.equal(own.length, isRunning ? 1 : 0, `shims of ${name}`)
    const children = [vmms, helpers].map((found) => found.filter(({ parent }) => parent === own[0]?.pid))
    assert.deepEqual(
      children.map(({ length }) => length),
      isRunning ? [1, hasHelper(instance) ? 1 : 0] : [0, 0],
      `VMM and network helper of ${name}`,
    )
    if (isRunning) assertLayers(dir, instance, disks.get(id) ?? [], openFiles(children[0]?.[0]?.pid ?? 0))
    if (!bridged.has(id)) assertPorts(instance, isRunning, children[1]?.[0]?.pid)
  }
  assert.deepEqual(
    [shims.length, vmms.length, helpers.length],
    [running.length, running.length, running.filter(hasHelper).length],
    'a shim, a VMM or a network helper runs for no instance',
  )
  await assertCgroups(dir, running)
  assert.deepEqual(readdirSync(join(dir, 'data/disks')).sort(), [...namedLayers(dir)].sort())
  assert.deepEqual(readdirSync(join(dir, 'data/instances')).sort(), instances.map(({ id }) => id).sort())
  await assertMemory(dir, running)
  const drafts = ['data/golden', 'data/images/drafts'].flatMap((name) => namesIn(join(dir, name)).filter((it) => /draft|-/.test(it)))
  assert.deepEqual(drafts, [])
}

/** Where the host has cgroups, each VM that runs has one, and so have those that wait or are being made; no one else. */
async function assertCgroups(dir: string, running: readonly ShownInstance[]): Promise<void> {
  const cgroups = cgroupsOf(dir)
  if (cgroups.answer.version === 'none') return
  const others = ['run/pool', 'run/golden'].flatMap((name) => namesIn(join(dir, name)))
  const left = cgroups.list().filter((name) => !others.includes(name))
  assert.deepEqual(left, running.map((instance) => basename(runDirOf(dir)(instance))).sort(), 'cgroups of VMs')
}

/** No VM stands still; sleeping states, snapshots and bases of memory are those that rows name, and nothing is on its way to one. */
async function assertMemory(dir: string, running: readonly ShownInstance[]): Promise<void> {
  for (const instance of running) {
    assert.equal(await stateOfVmm(instance.hypervisor, runDirOf(dir)(instance)), 'running', `the VM of ${instance.name}`)
  }
  const differences = (): string[] => {
    const { asleep, snapshots, bases } = memoryOf(dir)
    const expected = new Map([
      ...[...asleep].map(([id, generations]) => [`data/instances/${id}/sleep`, generations] as const),
      ['data/snapshots', snapshots] as const,
      ['data/memory', bases] as const,
      ['data/points', []] as const,
    ])
    return [...expected].flatMap(([name, wanted]) => {
      const found = namesIn(join(dir, name)).sort().join(' ')
      return found === [...wanted].sort().join(' ') ? [] : [`${name} holds ${found || 'nothing'}, not ${wanted.join(' ') || 'nothing'}`]
    })
  }
  // A sleeper may just be given a base of its own.
  const isSettled = () => differences().length === 0
  await pollUntil('memory to be what rows name', isSettled, { signal: AbortSignal.timeout(20_000) }).catch(() => undefined)
  assert.deepEqual(differences(), [])
}

/** What rows name of memory on disk: sleeping states by instance, snapshots that have memory, and bases that someone stands on. */
function memoryOf(dir: string): { asleep: Map<string, string[]>; snapshots: string[]; bases: string[] } {
  const db = new DatabaseSync(join(dir, 'data/dormouse.db'), { readOnly: true })
  try {
    const instances = db.prepare("SELECT id, sleep ->> '$.generation' AS generation FROM instances").all()
    const snapshots = db.prepare("SELECT id || coalesce('.' || generation, '') AS name FROM snapshots WHERE base IS NOT NULL").all()
    const bases = db.prepare(
      "SELECT sleep ->> '$.base' AS base FROM instances UNION SELECT vm ->> '$.machine.base' FROM instances UNION SELECT base FROM snapshots",
    )
    return {
      asleep: new Map(instances.map(({ id, generation }) => [String(id), generation === null ? [] : [String(generation)]])),
      snapshots: snapshots.map(({ name }) => String(name)),
      bases: bases.all().flatMap(({ base }) => (String(base).startsWith('base/') ? [String(base).slice('base/'.length)] : [])),
    }
  } finally {
    db.close()
  }
}

/** Those that have an address on a bridge: their ports are its, and they have no helper. */
function bridgedOnes(dir: string): Set<string> {
  const db = new DatabaseSync(join(dir, 'data/dormouse.db'), { readOnly: true })
  try {
    const leases = db.prepare('SELECT instance_id AS id FROM leases').all()
    return new Set(leases.map(({ id }) => String(id)))
  } finally {
    db.close()
  }
}

/** The layers of each disk by its instance or snapshot, from the rows themselves: no answer of the daemon's has them. */
export function disksOf(dir: string): Map<string, string[]> {
  const db = new DatabaseSync(join(dir, 'data/dormouse.db'), { readOnly: true })
  try {
    return new Map(
      db
        .prepare('SELECT id, disk FROM instances UNION ALL SELECT id, disk FROM snapshots')
        .all()
        .map(({ id, disk }) => [String(id), JSON.parse(String(disk))]),
    )
  } finally {
    db.close()
  }
}

/**
 * Its VMM has layers of its own disk and its volumes open and no others. Where a daemon died over a pivot, one that is on record was never given to it: that
 * is empty, and changes nothing.
 */
function assertLayers(dir: string, { id, name }: ShownInstance, own: readonly string[], files: readonly string[]): void {
  const open = files.filter((file) => file.startsWith(join(dir, 'data/disks/'))).map((file) => basename(file))
  assert.ok(open.includes(own.at(-1) ?? ''), `the VMM of ${name} is another's`)
  const volumes = volumeLayersOf(dir, id)
  for (const layer of open) assert.ok([...own, ...volumes].includes(layer), `the VMM of ${name} has ${layer} open, which is not its own`)
}

/** Of the volumes that it has: layers of its own, and those of volumes that it only reads. */
function volumeLayersOf(dir: string, id: string): string[] {
  const db = new DatabaseSync(join(dir, 'data/dormouse.db'), { readOnly: true })
  try {
    const attached = 'SELECT json_each.value AS attached FROM instances, json_each(instances.volumes) WHERE instances.id = :id'
    const own = db.prepare(`SELECT attached ->> '$.disk' AS disk FROM (${attached})`).all({ id })
    const shared = db.prepare(`SELECT disk FROM volumes WHERE id IN (SELECT attached ->> '$.volumeId' FROM (${attached}))`).all({ id })
    return [...own, ...shared].flatMap(({ disk }) => JSON.parse(String(disk ?? '[]')) as string[])
  } finally {
    db.close()
  }
}

/** Every layer that a row names: of instances, of volumes and of snapshots. */
function namedLayers(dir: string): Set<string> {
  const db = new DatabaseSync(join(dir, 'data/dormouse.db'), { readOnly: true })
  try {
    const attached = db.prepare("SELECT volumes FROM instances UNION ALL SELECT instance ->> '$.volumes' FROM snapshots").all()
    const volumes = db.prepare('SELECT disk FROM volumes').all()
    return new Set([
      ...[...disksOf(dir).values()].flat(),
      ...attached.flatMap((row) => (JSON.parse(String(row.volumes ?? '[]')) as { disk: string[] }[]).flatMap(({ disk }) => disk)),
      ...volumes.flatMap(({ disk }) => JSON.parse(String(disk)) as string[]),
    ])
  } finally {
    db.close()
  }
}

/** The ports of an instance that runs are open, and its helper has no others; those of one that does not are closed. */
function assertPorts({ name, state, network }: ShownInstance, isRunning: boolean, helper: number | undefined): void {
  const recorded = (network.ports ?? []).filter(({ protocol }) => protocol !== 'udp').map(({ host_port }) => host_port)
  const open = listeningSockets()
  for (const port of recorded) {
    const isOpen = open.some((socket) => socket.port === port)
    assert.equal(isOpen, isRunning, `port ${port} of ${name}, which is ${state}`)
  }
  if (helper === undefined) return
  const files = openFiles(helper)
  const held = open.filter(({ inode }) => files.includes(`socket:[${inode}]`)).map(({ port }) => port)
  assert.deepEqual(held.sort(), recorded.sort(), `ports that the network helper of ${name} listens on`)
}

const runDirOf =
  (dir: string) =>
  ({ id }: Pick<ShownInstance, 'id'>): string =>
    join(dir, 'run/vm', id.slice(0, 12))

/** Run directories and processes of VMs that are no more may take a moment to go. */
async function untilGone(dir: string, runDirs: readonly string[]): Promise<void> {
  const strangers = async () => {
    const dirs = ['run/vm', 'run/golden'].flatMap((name) => namesIn(join(dir, name)).map((it) => join(dir, name, it)))
    const { shims, vmms, helpers } = await processesOfInstances(dir)
    const known = shims.filter(({ place }) => runDirs.includes(place))
    const isKnown = ({ parent }: FoundChild): boolean => known.some(({ pid }) => pid === parent)
    return dirs.some((it) => !runDirs.includes(it)) || known.length < shims.length || ![...vmms, ...helpers].every(isKnown)
  }
  await pollUntil('run directories and processes of VMs that are gone to go', async () => !(await strangers()), {
    signal: AbortSignal.timeout(10_000),
  })
}

interface FoundChild extends FoundProcess {
  readonly parent: number
}

interface FoundShim extends FoundProcess {
  /** Its run directory: where it stands now. */
  readonly place: string
}

/** All but those of VMs that wait to become an instance's. */
async function processesOfInstances(dir: string): ReturnType<typeof processesOf> {
  const { shims, vmms, helpers } = await processesOf(dir)
  const waiting = shims.filter(({ place }) => place.startsWith(join(dir, 'run/pool/'))).map(({ pid }) => pid)
  const isTheirs = ({ parent }: FoundChild): boolean => !waiting.includes(parent)
  return { shims: shims.filter(({ pid }) => !waiting.includes(pid)), vmms: vmms.filter(isTheirs), helpers: helpers.filter(isTheirs) }
}

/**
 * Shims that were started for a directory below `dir`, and what is or was theirs: VMMs that they hold or that hold a file below it (their
 * command lines name descriptors, not files), network helpers of this repository that they hold or that no shim holds any more.
 */
export async function processesOf(dir: string): Promise<{ shims: FoundShim[]; vmms: FoundChild[]; helpers: FoundChild[] }> {
  const called = async (...names: readonly string[]): Promise<FoundChild[]> =>
    (await Promise.all(names.map(processesNaming)))
      .flatMap((found, at) => found.filter(({ argv }) => basename(argv[0] ?? '').startsWith(String(names[at]))))
      .map((it) => ({ ...it, parent: parentOf(it.pid) }))
  const [allShims, allVmms, allHelpers] = await Promise.all([called('dormouse-shim'), called(...VMMS), called('dormouse-net')])
  const isBelow = ({ argv }: FoundProcess): boolean => argv[argv.indexOf('--dir') + 1]?.startsWith(`${dir}/`) === true
  const shims = allShims.filter(isBelow).map((shim) => ({ ...shim, place: placeOf(shim.pid) }))
  const isOurs = (argv: readonly string[]): boolean => argv[0] === artefacts.networkHelperPath
  const isIn = (found: readonly FoundProcess[], pid: number): boolean => found.some((it) => it.pid === pid)
  return {
    shims,
    vmms: allVmms.filter(({ pid, parent }) => isIn(shims, parent) || openFiles(pid).some((path) => path.startsWith(dir))),
    helpers: allHelpers.filter(({ parent, argv }) => isIn(shims, parent) || (isOurs(argv) && !isIn(allShims, parent))),
  }
}

function placeOf(pid: number): string {
  try {
    return readlinkSync(`/proc/${pid}/cwd`)
  } catch {
    // It ended while it was looked at.
    return ''
  }
}

function parentOf(pid: number): number {
  try {
    return Number(/^PPid:\s+(\d+)$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1])
  } catch {
    // It ended while it was looked at.
    return 0
  }
}

function namesIn(dir: string): string[] {
  return existsSync(dir) ? readdirSync(dir) : []
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
export const listeningPorts = (): Set<number> => new Set(listeningSockets().map(({ port }) => port))

function listeningSockets(): { port: number; inode: string }[] {
  const sockets: { port: number; inode: string }[] = []
  for (const file of ['/proc/net/tcp', '/proc/net/tcp6']) {
    if (!existsSync(file)) continue
    for (const line of readFileSync(file, 'utf8').trim().split('\n').slice(1)) {
      const [, local = '', , state, , , , , , inode = ''] = line.trim().split(/\s+/)
      if (state === LISTEN) sockets.push({ port: Number.parseInt(local.split(':')[1] ?? '', 16), inode })
    }
  }
  return sockets
}

// TCP_LISTEN in the kernel's tcp_states.h, as /proc/net/tcp writes it.
const LISTEN = '0A'
