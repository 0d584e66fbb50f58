/**
 * Our merge against what umoci unpacks: generated layers go through both, and the two file systems must be one and the same. Ours is
 * read back out of the finished squashfs, umoci's out of the directory that it has written, both as tars.
 */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { gzipSync } from 'node:zlib'
import fc from 'fast-check'
import { DEFAULT_LIMITS } from '../../packages/daemon/src/images/limits.ts'
import { LayerMerge, TakesTwoPasses } from '../../packages/daemon/src/images/merged-tar.ts'
import { writeRootfs } from '../../packages/daemon/src/images/rootfs-writer.ts'
import type { TarEntry } from '../../packages/daemon/src/images/tar-entry.ts'
import { type EntryWords, imageOf, layoutOf, tarOf } from '../../packages/daemon/src/images/tar-fixtures.ts'
import { TarReader } from '../../packages/daemon/src/images/tar-reader.ts'
import { Scratch } from '../harness/scratch.ts'
import { command, step, writeFiles } from './images-room.ts'
import { spawnOutput } from './images-spawn.ts'

const RUNS = Number(process.env.IMAGES_MERGE_RUNS ?? 40)

type Kind = 'file' | 'dir' | 'symlink' | 'link' | 'char' | 'fifo' | 'whiteout' | 'opaque'
interface Change {
  readonly kind: Kind
  readonly path: readonly string[]
  readonly target: readonly string[]
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly mtime: number
  readonly content: Uint8Array
  readonly repeat: number
  readonly xattr: Uint8Array | undefined
  readonly capability: boolean
  readonly sparseAt: number | undefined
}

const name = fc.constantFrom('a', 'b', 'c', 'ü', 'n'.repeat(120))
const path = fc.array(name, { minLength: 1, maxLength: 3 })
const change: fc.Arbitrary<Change> = fc.record({
  kind: fc.constantFrom<Kind>(
    'file',
    'file',
    'file',
    'dir',
    'dir',
    'dir',
    'symlink',
    'link',
    'link',
    'char',
    'fifo',
    'whiteout',
    'whiteout',
    'opaque',
  ),
  path,
  target: path,
  mode: fc.constantFrom(0o644, 0o755, 0o700, 0o4755, 0o2755, 0o1777, 0o6711, 0),
  uid: fc.constantFrom(0, 1, 1000, 65_534, 1_234_567, 4_000_000),
  gid: fc.constantFrom(0, 5, 1000, 2_097_152),
  mtime: fc.constantFrom(0, 1, 1_600_000_000, 2_147_483_648),
  content: fc.uint8Array({ maxLength: 40 }),
  // Beyond a block of squashfs, and beyond what is copied together on the way there.
  repeat: fc.constantFrom(1, 1, 1, 5000),
  // Go's reader, and so umoci, drops a value that is empty; we keep it.
  xattr: fc.option(fc.uint8Array({ minLength: 1, maxLength: 30 }), { nil: undefined }),
  capability: fc.boolean(),
  sparseAt: fc.option(fc.constantFrom(4096, 300_000), { nil: undefined, freq: 6 }),
})
const layers = fc.array(fc.array(change, { maxLength: 14 }), { minLength: 1, maxLength: 4 })

test('generated layers give the file system that umoci unpacks', {
  skip: process.getuid?.() === 0 ? false : 'umoci makes owners and devices only as root',
}, async (t) => {
  await fc.assert(
    fc.asyncProperty(layers, async (changes) => {
      await using scratch = await Scratch.make()
      const layers = validLayers(changes)
      const tars = layers.map((layer) => tarOf(layer))
      const [ours, theirs] = await Promise.all([squashfsOf(tars, scratch.path), unpackedBy(tars, scratch.path)])
      const emptied = layers
        .flat()
        .flatMap(({ name }) => (name.includes('.wh.') ? [name.replace(/\/\.wh\.\.wh\.\.opq$/, '').replace('.wh.', '')] : []))
      for (const facts of [ours, theirs]) {
        for (const [path, fact] of Object.entries(facts)) {
          // Taking something out of a directory changes its time, and umoci puts back only that of the parent of the mark.
          if (fact.kind === 'dir' && emptied.some((one) => `${path}/`.startsWith(`${Buffer.from(one).toString('latin1')}/`))) fact.mtime = 0
        }
      }
      assert.deepEqual(ours, theirs)
    }),
    { numRuns: RUNS, endOnFailure: process.env.IMAGES_MERGE_SHRINK === undefined, reporter: reportSeed(t) },
  )
})

const reportSeed =
  (t: { diagnostic(message: string): void }) =>
  (details: fc.RunDetails<[Change[][]]>): void => {
    t.diagnostic(`seed ${details.seed}, ${details.numRuns} runs`)
    if (details.failed) throw new Error(fc.defaultReportMessage(details) ?? 'failed', { cause: details.errorInstance })
  }

async function squashfsOf(tars: readonly Buffer[], dir: string): Promise<Facts> {
  const layers = tars.map((tar) => {
    const blob = gzipSync(tar, { level: 1 })
    return {
      open: async function* () {
        yield blob
      },
    }
  })
  const file = join(dir, 'rootfs')
  const write = (merge: LayerMerge, tar: AsyncIterable<Buffer>) =>
    writeRootfs(file, tar, { compression: 'lz4', inodes: () => merge.inodes, step: step() })
  const twoPasses = async (): Promise<void> => {
    const merge = new LayerMerge(DEFAULT_LIMITS)
    for (const layer of layers) await merge.scan(layer)
    await write(merge, merge.stream())
  }
  const [only, ...others] = layers
  if (only && others.length === 0) {
    const merge = new LayerMerge(DEFAULT_LIMITS)
    await write(
      merge,
      merge.scanAndStream(only, () => undefined),
    ).catch((error) => {
      if (error instanceof TakesTwoPasses) return twoPasses()
      throw error
    })
  } else await twoPasses()
  return factsOf(await spawnOutput(['sqfs2tar', '--root-becomes', '.', file]))
}

async function unpackedBy(tars: readonly Buffer[], dir: string): Promise<Facts> {
  const layout = await writeFiles(join(dir, 'layout'), layoutOf(imageOf(tars)))
  await command(['umoci', 'raw', 'unpack', '--image', `${layout}:latest`, join(dir, 'unpacked')])
  const tar = await spawnOutput([
    'tar',
    '--format=posix',
    '--xattrs',
    '--xattrs-include=*',
    '--numeric-owner',
    '-cf',
    '-',
    '-C',
    join(dir, 'unpacked'),
    '.',
  ])
  await rm(join(dir, 'unpacked'), { recursive: true })
  return factsOf(tar)
}

/** What a tar says of each path, with hard links as the list of names that are one file. */
type Facts = Record<string, Record<string, unknown>>

function factsOf(tar: Buffer): Facts {
  const facts: Facts = {}
  const groups = new Map<string, string[]>()
  const plain = (name: string): string => name.replace(/^\.\//, '').replace(/\/$/, '') || '.'
  let current: TarEntry | undefined
  let hash = createHash('sha256')
  const reader = new TarReader({
    entry: (entry) => {
      current = entry
      hash = createHash('sha256')
    },
    data: (slice) => {
      // Empty regions of a sparse file would be told apart by where they are: both sides write files out in full.
      assert.equal(current?.sparse, undefined)
      hash.update(slice)
    },
    endEntry: () => {
      if (!current) return
      const { kind, mode, uid, gid, mtime, size, linkName, devMajor, devMinor, xattrs } = current
      const path = plain(current.name)
      if (kind === 'link') {
        const first = plain(linkName)
        groups.set(first, [...(groups.get(first) ?? [first]), path])
        return
      }
      const attributes = Object.fromEntries([...xattrs].map(([key, value]) => [key, value.toString('hex')]).sort())
      // The root has no entry in some layers: then it is whoever made it.
      if (path === '.') return
      facts[path] = {
        kind,
        mode: kind === 'symlink' ? undefined : mode,
        uid,
        gid,
        mtime,
        size,
        linkName,
        devices: [devMajor, devMinor],
        attributes,
        content: kind === 'file' ? hash.digest('hex') : undefined,
      }
    },
  })
  reader.write(tar)
  reader.end()
  for (const [first, names] of groups) {
    // GNU tar writes hard links to FIFOs and devices as files of their own.
    const isTold = facts[first]?.kind === 'file' || facts[first]?.kind === 'symlink'
    for (const name of names) facts[name] = { ...facts[first], ...(isTold ? { names: [...names].sort() } : {}) }
  }
  return facts
}

/**
 * Leaves out the changes that no build tool would write, or on which unpackers differ: a name below what is no directory, a hard
 * link to nothing. Needs to know what is there, so it keeps the kinds of all paths, as umoci would.
 */
function validLayers(changes: readonly (readonly Change[])[]): EntryWords[][] {
  const kinds = new Map<string, Kind>()
  const below = (key: string): string[] => [...kinds.keys()].filter((one) => one === key || one.startsWith(`${key}/`))
  return changes.map((layer) => {
    const touched = new Set<string>()
    const words: EntryWords[] = []
    for (const one of layer) {
      const key = one.path.join('/')
      const parents = one.path.slice(0, -1).map((_, index) => one.path.slice(0, index + 1).join('/'))
      if (parents.some((parent) => kinds.get(parent) !== 'dir')) continue
      if (one.kind === 'whiteout' || one.kind === 'opaque') {
        if (one.kind === 'opaque' && kinds.get(key) !== 'dir') continue
        // What its own layer touched stays, with the directories above it.
        for (const gone of below(key)) if (!touched.has(gone) && !(one.kind === 'opaque' && gone === key)) kinds.delete(gone)
        const at = one.kind === 'opaque' ? `${key}/.wh..wh..opq` : [...parents.slice(-1), `.wh.${one.path.at(-1)}`].join('/')
        // NAME_MAX
        words.push({ name: at })
        continue
      }
      const target = one.target.join('/')
      if (one.kind === 'link') {
        const found = kinds.get(target)
        if (found === undefined || found === 'dir' || target === key || target.startsWith(`${key}/`)) continue
      }
      if (!(one.kind === 'dir' && kinds.get(key) === 'dir')) for (const gone of below(key)) kinds.delete(gone)
      kinds.set(key, one.kind === 'link' ? (kinds.get(target) ?? 'file') : one.kind)
      for (const each of [...parents, key]) touched.add(each)
      words.push(wordsOf(one, key, target))
    }
    return words
  })
}

function wordsOf(one: Change, key: string, target: string): EntryWords {
  const { mode, uid, gid, mtime } = one
  const common = { name: key, mode, uid, gid, mtime }
  switch (one.kind) {
    case 'file': {
      const xattrs = new Map<string, Buffer>()
      if (one.xattr) xattrs.set('user.test', Buffer.from(one.xattr))
      // Version 2, with bytes that are not UTF-8.
      if (one.capability) xattrs.set('security.capability', Buffer.from('010000020020ffff00000000ff80000000000000', 'hex'))
      const content = Buffer.concat(Array<Uint8Array>(one.repeat).fill(one.content))
      if (one.sparseAt === undefined || content.length === 0) return { ...common, content, xattrs }
      const sparse = [{ offset: one.sparseAt, length: content.length }]
      return { ...common, content, xattrs, size: one.sparseAt + content.length + 1000, storedSize: content.length, sparse }
    }
    case 'dir':
      return { ...common, kind: 'dir', ...(one.xattr ? { xattrs: new Map([['trusted.test', Buffer.from(one.xattr)]]) } : {}) }
    case 'symlink':
      return { ...common, kind: 'symlink', linkName: target, mode: 0o777 }
    case 'link':
      return { ...common, kind: 'link', linkName: target }
    case 'char':
      return { ...common, kind: 'char', devMajor: 1, devMinor: 3 }
    default:
      return { ...common, kind: 'fifo' }
  }
}
