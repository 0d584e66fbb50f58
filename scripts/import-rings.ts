/**
 * Who may import whom. Imports point inwards, from the composition root to the pure helpers; between rooms of one ring only a
 * room's head file may be imported, and no file imports itself by a detour. `make check` runs this.
 *
 *   main ─► daemon ─► http ─► schedules ─► instances ─► the nouns ─► host, paths, log ─► lib, api
 */
import { readdir, readFile } from 'node:fs/promises'
import { dirname, join, relative, resolve } from 'node:path'

const DAEMON = 'packages/daemon/src'

/** Rooms of the daemon, innermost ring first. A file directly below src is a room of its own. */
const RINGS: readonly (readonly string[])[] = [
  ['lib'],
  ['host', 'paths', 'log', 'version'],
  [
    'config',
    'store',
    'events',
    'audit',
    'memory',
    'hypervisors',
    'images',
    'disks',
    'volumes',
    'network',
    'guest',
    'snapshots',
    'devices',
    'egress',
  ],
  ['instances'],
  ['schedules', 'auto-standby', 'supervision', 'garbage'],
  ['hypervisor-set'],
  ['http', 'doctor'],
  ['daemon'],
  ['main'],
]

/** Where a room's head is more than the file with its name, and why. */
const HEADS: Readonly<Record<string, readonly string[]>> = {
  // The room, and what reads strangers' archives for whoever has one.
  images: ['images.ts', 'fill-disk.ts'],
  // How a layer's name tells what is in it.
  disks: ['disks.ts', 'layer.ts'],
  // The database, and one file of rows for each noun: every noun stands on its own.
  store: [
    'database.ts',
    'events.ts',
    'audit.ts',
    'images.ts',
    'instances.ts',
    'instance-record.ts',
    'snapshots.ts',
    'volumes.ts',
    'disk-layers.ts',
    'health-verdicts.ts',
    'leases.ts',
    'auto-standby.ts',
    'devices.ts',
    'registry.ts',
    'pushes.ts',
  ],
  // The contract, and what a driver is given: drivers are made by daemon.ts alone. And what holds a process that outlives the daemon.
  hypervisors: ['hypervisor.ts', 'vm-spec.ts', 'inbound-words.ts', 'shim.ts', 'find-shims.ts'],
  // The room, and what a record holds of it: names of credentials, and the authority.
  egress: ['egress.ts', 'credentials.ts', 'certificates.ts'],
  // The layers, and what a capture consists of on disk.
  memory: ['memory.ts', 'capture-files.ts'],
  // The client, what a guest wrote down on its own, and the made-up guest of made-up VMs.
  guest: ['guest-client.ts', 'journal.ts', 'fake-guest.ts'],
}

/** Packages: what each may import of the others, and of npm where that is part of its promise. */
const PACKAGES: Readonly<Record<string, { readonly rooms: readonly string[]; readonly npm?: readonly string[] }>> = {
  // Runs in browsers too, so nothing of Node.
  api: { rooms: ['api'], npm: ['typebox'] },
  cli: { rooms: ['api', 'cli'] },
  daemon: { rooms: ['api', 'daemon'] },
}

export interface Import {
  readonly from: string
  /** A file of the repository, or the name of a module of npm or Node. */
  readonly to: string
  readonly isLocal: boolean
  readonly isTypeOnly: boolean
  /** Asked for when it is needed, so it closes no circle. */
  readonly isLazy: boolean
}

/** Sentences about imports that break the rules; none when the house stands. Paths are relative to `root`. */
export async function findRingBreaks(root: string): Promise<string[]> {
  const imports: Import[] = []
  for (const file of await sourceFiles(root)) imports.push(...importsOf(file, await readFile(join(root, file), 'utf8')))
  return [...breaksOf(imports), ...circlesOf(imports)]
}

/** Pure: the sentences about these imports, circles apart. */
export function breaksOf(imports: readonly Import[]): string[] {
  return imports.flatMap((one) => {
    const why = packageBreak(one) ?? (one.isLocal ? ringBreak(one) : undefined)
    return why === undefined ? [] : [`${one.from} imports ${one.to}: ${why}`]
  })
}

function packageBreak({ from, to, isLocal }: Import): string | undefined {
  const name = packageOf(from)
  const rules = name === undefined ? undefined : PACKAGES[name]
  if (rules === undefined) return undefined
  if (isLocal) {
    const other = packageOf(to)
    return other !== undefined && rules.rooms.includes(other) ? undefined : `${name} may import only of ${rules.rooms.join(', ')}`
  }
  if (rules.npm === undefined || rules.npm.some((module) => to === module || to.startsWith(`${module}/`))) return undefined
  return `${name} may import only ${rules.npm.join(', ')}`
}

function ringBreak({ from, to }: Import): string | undefined {
  const own = roomOf(from)
  const other = roomOf(to)
  if (own === undefined || other === undefined || own === other) return undefined
  const ownRing = ringOf(own)
  const otherRing = ringOf(other)
  if (ownRing === -1) return `scripts/import-rings.ts knows no room ${own}`
  if (otherRing === -1) return `scripts/import-rings.ts knows no room ${other}`
  if (otherRing > ownRing) return `imports point inwards, and ${other} lies outside ${own}`
  if (otherRing === ownRing && !isHead(to, other)) return `of a room in the same ring only the head file (${headsOf(other).join(', ')})`
  return undefined
}

const ringOf = (room: string): number => RINGS.findIndex((ring) => ring.includes(room))
const headsOf = (room: string): readonly string[] => HEADS[room] ?? [`${room}.ts`]
const isHead = (file: string, room: string): boolean =>
  file === `${DAEMON}/${room}.ts` || headsOf(room).some((head) => file === `${DAEMON}/${room}/${head}`)

/** The room a file of the daemon lies in; undefined outside the daemon. */
function roomOf(file: string): string | undefined {
  if (!file.startsWith(`${DAEMON}/`)) return undefined
  return file
    .slice(DAEMON.length + 1)
    .split('/')[0]
    ?.replace(/\.ts$/, '')
}

const packageOf = (file: string): string | undefined => /^packages\/([^/]+)\//.exec(file)?.[1]

/** Pure: one sentence for each circle of imports that exist at run time. Types may refer to each other. */
export function circlesOf(imports: readonly Import[]): string[] {
  const next = new Map<string, string[]>()
  for (const { from, to, isLocal, isTypeOnly, isLazy } of imports) {
    if (isLocal && !isTypeOnly && !isLazy) next.set(from, [...(next.get(from) ?? []), to])
  }
  const circles: string[] = []
  const done = new Set<string>()
  const walk = (file: string, path: readonly string[]): void => {
    const at = path.indexOf(file)
    if (at !== -1) {
      circles.push(`a circle of imports: ${[...path.slice(at), file].join(' → ')}`)
      return
    }
    if (done.has(file)) return
    for (const to of next.get(file) ?? []) walk(to, [...path, file])
    done.add(file)
  }
  for (const file of next.keys()) walk(file, [])
  return circles
}

const IMPORT =
  /^(?:import|export)\b(?<what>[^'";]*?)\bfrom\s*'(?<from>[^']+)'|^import\s*'(?<bare>[^']+)'|\bimport\(\s*'(?<dynamic>[^']+)'\s*\)/gm

/** Pure: what a source file imports. */
export function importsOf(file: string, source: string): Import[] {
  return [...source.matchAll(IMPORT)].map(({ groups = {} }) => {
    const specifier = groups.from ?? groups.bare ?? groups.dynamic ?? ''
    const local = localFile(file, specifier)
    return {
      from: file,
      to: local ?? specifier,
      isLocal: local !== undefined,
      isTypeOnly: /^\s*type\b/.test(groups.what ?? ''),
      isLazy: groups.dynamic !== undefined,
    }
  })
}

function localFile(file: string, specifier: string): string | undefined {
  if (specifier.startsWith('@dormouse/')) return `packages/${specifier.slice('@dormouse/'.length).replace('/', '/src/')}`
  return specifier.startsWith('.') ? relative('/', resolve('/', dirname(file), specifier)) : undefined
}

/** Sources of the packages; tests may look behind the doors. */
async function sourceFiles(root: string): Promise<string[]> {
  const packages = await readdir(join(root, 'packages'))
  const files = await Promise.all(
    packages.map(async (name) => {
      const names = await readdir(join(root, 'packages', name, 'src'), { recursive: true }).catch(() => [])
      return names.map((path) => `packages/${name}/src/${path}`)
    }),
  )
  return files.flat().filter((path) => path.endsWith('.ts') && !path.endsWith('.test.ts'))
}
