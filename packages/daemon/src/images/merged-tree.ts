/**
 * The file system that the layers make, as names only: which entry of which layer stands at each path once all are laid over each
 * other. Layers are applied from the bottom to the top, entry by entry, with the effect that unpacking would have:
 *
 *   - an entry takes the place of what was there, with all below it; a directory over a directory keeps what is below
 *   - a hard link stands for the file that its target is at that moment, and keeps it when the target's name goes away
 *   - whiteouts and opaque marks remove what lower layers put there, never what their own layer did
 *
 * Nothing is followed: a name below a symbolic link is an error, because where it would land depends on who unpacks it.
 *
 * Images with millions of files are real, so a node is a row of some 26 bytes, and a name that was met lately is stored once. Rows
 * are found by their parent and name; nobody keeps lists of children. So what is removed takes what is below along by never being
 * found again: a row is dead, or a mark on a directory says from which layer on its contents count. A parent's row comes before
 * its children's, so one pass at the end tells who is left.
 */
import { randomInt } from 'node:crypto'
import type { LayerPath } from './layer-path.ts'
import { type EntryKind, invalidImage, printableName, tooLarge } from './tar-entry.ts'

const NONE = -1
const ROOT = 0
/** A directory that no entry describes: only names below it do. */
const IMPLIED = 0xffffffff

const GONE = 0
const DIRECTORY = 1
const SYMLINK = 2
const OTHER = 3

const GROWTH = 16_384
const NAMES_GROWTH = 256 * 1024
const RECENT_NAMES = 65_536
const ROWS_PER_BUCKET = 2

export interface TreeLimits {
  /** Entries of all layers together, and directories that they imply. */
  readonly maxEntries: number
  readonly maxNameBytes: number
}

export class MergedTree {
  readonly #limits: TreeLimits
  /** Rows there is room for, and rows in use, the dead among them. */
  #capacity = 0
  #used = 0
  #entries = 0

  readonly #columns: { readonly buffer: ArrayBuffer; readonly width: number }[] = []
  readonly #parent: Int32Array
  readonly #hashNext: Int32Array
  readonly #nameStart: Uint32Array
  readonly #kind: Uint8Array
  /** Which entry it is: the layer, and the entry's place in it. */
  readonly #layer: Uint16Array
  readonly #ordinal: Uint32Array
  /** The last layer (counted from 1) that put this node or one below it here. */
  readonly #touched: Uint16Array
  /** What is below and was last touched by a layer before this one is gone. */
  readonly #cleared: Uint16Array

  /** Each name with its length before it. */
  readonly #names: Buffer
  #namesLength = 0
  /** Where a name was stored lately, by its hash: an image has thousands of files with the same few names. */
  readonly #recent = new Uint32Array(RECENT_NAMES)
  #buckets = new Int32Array(1024).fill(NONE)
  /** Names are chosen by strangers: without a seed they could choose them to collide. */
  readonly #seed = randomInt(2 ** 31)

  #current = 0
  #placed = NONE
  #isDisturbed = false
  /** The mark that counts below the node that was walked to last. */
  #clearedBelow = 0

  constructor(limits: TreeLimits) {
    this.#limits = limits
    this.#parent = new Int32Array(this.#column(4))
    this.#hashNext = new Int32Array(this.#column(4))
    this.#nameStart = new Uint32Array(this.#column(4))
    this.#kind = new Uint8Array(this.#column(1))
    this.#layer = new Uint16Array(this.#column(2))
    this.#ordinal = new Uint32Array(this.#column(4))
    this.#touched = new Uint16Array(this.#column(2))
    this.#cleared = new Uint16Array(this.#column(2))
    this.#names = Buffer.from(new ArrayBuffer(0, { maxByteLength: limits.maxNameBytes }))
    this.#create(NONE, '', DIRECTORY)
  }

  /** Layers are numbered from 0, the bottom. */
  beginLayer(index: number): void {
    this.#current = index + 1
  }

  /** Applies the entry that is `ordinal`th in the current layer. `target` is where a hard link leads. */
  apply(ordinal: number, path: LayerPath, kind: EntryKind, target?: readonly string[]): void {
    this.#count()
    this.#placed = NONE
    switch (path.kind) {
      case 'root':
        if (kind !== 'dir') throw invalidImage('The root directory is replaced by something that is no directory')
        this.#place(ROOT, ordinal)
        return
      case 'whiteout':
        this.#removeLower(this.#find(path.path))
        return
      case 'opaque':
        this.#empty(path.path)
        return
      case 'entry':
        this.#put(ordinal, path.path, kind, target)
    }
  }

  /** The node that the entry applied last was placed at; -1 for a whiteout. */
  get placed(): number {
    return this.#placed
  }

  /** Has an entry taken the place of another since the start? While none has, what was placed stands as it is. */
  get isDisturbed(): boolean {
    return this.#isDisturbed
  }

  /** How many names there are, the root among them. Dead rows are dead for good afterwards. */
  settle(): number {
    let size = 1
    for (let node = 1; node < this.#used; node++) {
      if (this.#kind[node] === GONE) continue
      const parent = this.#parent[node] as number
      const clearedAbove = this.#cleared[parent] as number
      if (this.#kind[parent] === GONE || (this.#touched[node] as number) < clearedAbove) {
        this.#kind[node] = GONE
        continue
      }
      if ((this.#cleared[node] as number) < clearedAbove) this.#cleared[node] = clearedAbove
      size++
    }
    return size
  }

  /**
   * Who stands where of one layer: `nodeOf[ordinal]` is the node that the entry is to be written for, or -1 when it is gone.
   * `links` are further names of the same files, each with the node that it shares. True after `settle`.
   */
  survivors(layer: number, entries: number): { nodeOf: Int32Array; links: { node: number; primary: number }[] } {
    const nodeOf = new Int32Array(entries).fill(NONE)
    const links: { node: number; primary: number }[] = []
    for (let node = 0; node < this.#used; node++) {
      if (this.#kind[node] === GONE || this.#layer[node] !== layer) continue
      const ordinal = this.#ordinal[node] as number
      if (ordinal === IMPLIED) continue
      const primary = nodeOf[ordinal] as number
      if (primary === NONE) nodeOf[ordinal] = node
      else links.push({ node, primary })
    }
    return { nodeOf, links }
  }

  /** The node's path from the root, as latin1; the root itself is `.`. */
  pathOf(node: number): string {
    if (node === ROOT) return '.'
    let path = this.#nameOf(node)
    for (let up = this.#parent[node] as number; up !== ROOT; up = this.#parent[up] as number) path = `${this.#nameOf(up)}/${path}`
    return path
  }

  #put(ordinal: number, path: readonly string[], kind: EntryKind, target: readonly string[] | undefined): void {
    const parent = this.#ensureParents(path)
    const name = path.at(-1) ?? ''
    const existing = this.#child(parent, name)
    if (kind === 'dir') {
      if (existing !== NONE && this.#kind[existing] === DIRECTORY) {
        this.#place(existing, ordinal)
        return
      }
      if (existing !== NONE) this.#remove(existing)
      this.#place(this.#create(parent, name, DIRECTORY), ordinal)
      return
    }
    if (existing !== NONE && this.#kind[existing] === DIRECTORY) this.#remove(existing)
    if (existing !== NONE) this.#isDisturbed = true
    const isReused = existing !== NONE && this.#kind[existing] !== GONE
    if (kind === 'link') {
      const linked = this.#linkTarget(path, target ?? [], isReused ? existing : NONE)
      const node = isReused ? existing : this.#create(parent, name, OTHER)
      this.#kind[node] = this.#kind[linked] as number
      this.#layer[node] = this.#layer[linked] as number
      this.#ordinal[node] = this.#ordinal[linked] as number
      this.#touch(node)
      this.#placed = node
      return
    }
    const node = isReused ? existing : this.#create(parent, name, OTHER)
    this.#kind[node] = kind === 'symlink' ? SYMLINK : OTHER
    this.#ordinal[node] = IMPLIED
    this.#place(node, ordinal)
  }

  #linkTarget(path: readonly string[], target: readonly string[], self: number): number {
    const sentence = (why: string) => invalidImage(`The hard link ${printable(path)} leads to ${printable(target)}, ${why}`)
    const linked = this.#find(target)
    if (linked === NONE) throw sentence('which is not there')
    if (linked === self) throw sentence('which is itself')
    if (this.#kind[linked] === DIRECTORY) throw sentence('which is a directory')
    return linked
  }

  /** Makes what is missing above `path`. What is no directory there gives way, as it does when an overlay is laid over it. */
  #ensureParents(path: readonly string[]): number {
    let node = this.#walkFromRoot()
    for (let i = 0; i < path.length - 1; i++) {
      const name = path[i] as string
      let child = this.#child(node, name)
      if (child !== NONE && this.#kind[child] === SYMLINK) throw belowSymlink(path, i)
      if (child !== NONE && this.#kind[child] !== DIRECTORY) {
        this.#remove(child)
        child = NONE
      }
      if (child === NONE) {
        this.#count()
        child = this.#create(node, name, DIRECTORY)
      }
      node = this.#walkInto(child)
    }
    return node
  }

  /** The node at `path`, or -1. Throws where the way there leads through a symbolic link. */
  #find(path: readonly string[]): number {
    let node = this.#walkFromRoot()
    for (let i = 0; i < path.length; i++) {
      if (this.#kind[node] === SYMLINK) throw belowSymlink(path, i - 1)
      if (this.#kind[node] !== DIRECTORY) return NONE
      node = this.#child(node, path[i] as string)
      if (node === NONE) return NONE
      this.#walkInto(node)
    }
    return node
  }

  #walkFromRoot(): number {
    this.#clearedBelow = 0
    return this.#walkInto(ROOT)
  }

  #walkInto(node: number): number {
    this.#clearedBelow = Math.max(this.#clearedBelow, this.#cleared[node] as number)
    return node
  }

  #empty(path: readonly string[]): void {
    const node = this.#find(path)
    if (node === NONE) return
    if (this.#kind[node] === SYMLINK) throw belowSymlink([...path, '.wh..wh..opq'], path.length - 1)
    this.#cleared[node] = this.#current
  }

  /** Removes what lower layers put at `node` and below it, and leaves what the current layer did. */
  #removeLower(node: number): void {
    if (node === NONE) return
    if (this.#touched[node] === this.#current) this.#cleared[node] = this.#current
    else this.#remove(node)
  }

  #place(node: number, ordinal: number): void {
    if (this.#ordinal[node] !== IMPLIED) this.#isDisturbed = true
    this.#placed = node
    this.#touch(node)
    this.#layer[node] = this.#current - 1
    this.#ordinal[node] = ordinal
  }

  #touch(node: number): void {
    for (let up = node; up !== NONE && this.#touched[up] !== this.#current; up = this.#parent[up] as number)
      this.#touched[up] = this.#current
  }

  #count(): void {
    if (++this.#entries > this.#limits.maxEntries) throw tooLarge(`The image has more than ${this.#limits.maxEntries} entries`)
  }

  // Nodes

  #create(parent: number, name: string, kind: number): number {
    if (this.#used >= this.#buckets.length * ROWS_PER_BUCKET) this.#rehash()
    if (this.#used === this.#capacity) this.#grow()
    const node = this.#used++
    this.#parent[node] = parent
    this.#kind[node] = kind
    this.#layer[node] = Math.max(0, this.#current - 1)
    this.#ordinal[node] = IMPLIED
    this.#touched[node] = this.#current
    this.#nameStart[node] = this.#storeName(name)
    if (parent === NONE) return node
    this.#touch(parent)
    const bucket = this.#bucket(parent, name)
    this.#hashNext[node] = this.#buckets[bucket] as number
    this.#buckets[bucket] = node
    return node
  }

  /** With all that is below: what no one can walk to is not there. */
  #remove(node: number): void {
    this.#isDisturbed = true
    const bucket = this.#bucket(this.#parent[node] as number, this.#nameOf(node))
    if (this.#buckets[bucket] === node) this.#buckets[bucket] = this.#hashNext[node] as number
    else {
      let before = this.#buckets[bucket] as number
      while (this.#hashNext[before] !== node) before = this.#hashNext[before] as number
      this.#hashNext[before] = this.#hashNext[node] as number
    }
    this.#kind[node] = GONE
  }

  /** The child of the directory that was walked to last. */
  #child(parent: number, name: string): number {
    let node = this.#buckets[this.#bucket(parent, name)] as number
    while (node !== NONE && !(this.#parent[node] === parent && this.#hasName(node, name))) node = this.#hashNext[node] as number
    if (node === NONE || (this.#touched[node] as number) >= this.#clearedBelow) return node
    this.#remove(node)
    return NONE
  }

  #bucket(parent: number, name: string): number {
    return hashOf(name, Math.imul(parent ^ this.#seed, 0x9e3779b1)) & (this.#buckets.length - 1)
  }

  #rehash(): void {
    this.#buckets = new Int32Array(this.#buckets.length * 2).fill(NONE)
    for (let node = 1; node < this.#used; node++) {
      if (this.#kind[node] === GONE) continue
      const bucket = this.#bucket(this.#parent[node] as number, this.#nameOf(node))
      this.#hashNext[node] = this.#buckets[bucket] as number
      this.#buckets[bucket] = node
    }
  }

  #hasName(node: number, name: string): boolean {
    return this.#isStored(name, this.#nameStart[node] as number)
  }

  #nameOf(node: number): string {
    const start = this.#nameStart[node] as number
    return this.#names.toString('latin1', start + 1, start + 1 + (this.#names[start] as number))
  }

  #isStored(name: string, start: number): boolean {
    if (this.#names[start] !== name.length) return false
    for (let i = 0; i < name.length; i++) if (this.#names[start + 1 + i] !== name.charCodeAt(i)) return false
    return true
  }

  #storeName(name: string): number {
    const slot = hashOf(name, this.#seed) & (RECENT_NAMES - 1)
    const recent = this.#recent[slot] as number
    if (recent < this.#namesLength && this.#isStored(name, recent)) return recent
    const start = this.#namesLength
    const end = start + 1 + name.length
    if (end > this.#limits.maxNameBytes)
      throw tooLarge(`The names of the image's files are longer than ${this.#limits.maxNameBytes} bytes together`)
    if (end > this.#names.length) resize(this.#names.buffer as ArrayBuffer, end)
    this.#names[start] = name.length
    this.#names.write(name, start + 1, 'latin1')
    this.#namesLength = end
    this.#recent[slot] = start
    return start
  }

  /** A column that grows where it lies: copies of old ones would be half of what the tree takes. */
  #column(width: number): ArrayBuffer {
    const buffer = new ArrayBuffer(0, { maxByteLength: (this.#limits.maxEntries + 1) * width })
    this.#columns.push({ buffer, width })
    return buffer
  }

  #grow(): void {
    this.#capacity = Math.min(this.#capacity + GROWTH, this.#limits.maxEntries + 1)
    for (const { buffer, width } of this.#columns) buffer.resize(this.#capacity * width)
  }
}

const resize = (buffer: ArrayBuffer, needed: number): void =>
  buffer.resize(Math.min(Math.ceil(needed / NAMES_GROWTH) * NAMES_GROWTH, buffer.maxByteLength))

function hashOf(name: string, seed: number): number {
  let hash = seed
  for (let i = 0; i < name.length; i++) {
    hash = Math.imul(hash ^ name.charCodeAt(i), 0x5bd1e995)
    hash ^= hash >>> 15
  }
  return hash >>> 0
}

const printable = (path: readonly string[]): string => printableName(path.join('/'))

function belowSymlink(path: readonly string[], link: number): Error {
  const linkName = printable(path.slice(0, link + 1))
  return invalidImage(
    `The name ${printable(path)} lies below ${linkName}, which is a symbolic link: where it leads is not decided by a layer`,
    {
      hint: 'Build the image again with the real directory in the path, for example /usr/bin in place of /bin',
    },
  )
}
