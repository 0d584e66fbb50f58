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
 * Images with millions of files are real, so a node is a row in typed arrays (about 42 bytes and its name), not an object.
 */
import { randomInt } from 'node:crypto'
import type { LayerPath } from './layer-path.ts'
import { type EntryKind, invalidImage, printableName, tooLarge } from './tar-entry.ts'

const NONE = -1
const ROOT = 0
/** A directory that no entry describes: only names below it do. */
const IMPLIED = 0xffffffff

const DIRECTORY = 1
const SYMLINK = 2
const OTHER = 3

export interface TreeLimits {
  /** Entries of all layers together, and directories that they imply. */
  readonly maxEntries: number
  readonly maxNameBytes: number
}

export class MergedTree {
  readonly #limits: TreeLimits
  #capacity = 1024
  #used = 0
  #free = NONE
  #live = 0
  #entries = 0

  #parent = new Int32Array(this.#capacity)
  #firstChild = new Int32Array(this.#capacity)
  #next = new Int32Array(this.#capacity)
  #previous = new Int32Array(this.#capacity)
  #hashNext = new Int32Array(this.#capacity)
  #nameStart = new Uint32Array(this.#capacity)
  #nameLength = new Uint8Array(this.#capacity)
  #kind = new Uint8Array(this.#capacity)
  /** Which entry it is: the layer, and the entry's place in it. */
  #layer = new Uint16Array(this.#capacity)
  #ordinal = new Uint32Array(this.#capacity)
  /** The last layer (counted from 1) that put this node or one below it here; and the last that emptied it. */
  #touched = new Uint16Array(this.#capacity)
  #cleared = new Uint16Array(this.#capacity)

  #names = Buffer.alloc(16 * 1024)
  #namesLength = 0
  #buckets = new Int32Array(2048).fill(NONE)
  /** Names are chosen by strangers: without a seed they could choose them to collide. */
  readonly #seed = randomInt(2 ** 31)

  #current = 0
  #placed = NONE
  #isDisturbed = false

  constructor(limits: TreeLimits) {
    this.#limits = limits
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
        this.#removeLower(this.#find(path.path), false)
        return
      case 'opaque':
        this.#empty(path.path)
        return
      case 'entry':
        this.#put(ordinal, path.path, kind, target)
    }
  }

  /** How many names there are now, the root among them. */
  get size(): number {
    return this.#live
  }

  /** The node that the entry applied last was placed at; -1 for a whiteout. */
  get placed(): number {
    return this.#placed
  }

  /** Has an entry taken the place of another since the start? While none has, what was placed stands as it is. */
  get isDisturbed(): boolean {
    return this.#isDisturbed
  }

  /**
   * Who stands where of one layer: `nodeOf[ordinal]` is the node that the entry is to be written for, or -1 when it is gone.
   * `links` are further names of the same files, each with the node that it shares.
   */
  survivors(layer: number, entries: number): { nodeOf: Int32Array; links: { node: number; primary: number }[] } {
    const nodeOf = new Int32Array(entries).fill(NONE)
    const links: { node: number; primary: number }[] = []
    for (let node = 0; node < this.#used; node++) {
      if (this.#kind[node] === 0 || this.#layer[node] !== layer) continue
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
      if (existing !== NONE) this.#removeTree(existing)
      this.#place(this.#create(parent, name, DIRECTORY), ordinal)
      return
    }
    if (existing !== NONE && this.#kind[existing] === DIRECTORY) this.#removeTree(existing)
    if (existing !== NONE) this.#isDisturbed = true
    const isReused = existing !== NONE && this.#kind[existing] !== 0 && this.#kind[existing] !== DIRECTORY
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
    let node = ROOT
    for (let i = 0; i < path.length - 1; i++) {
      const name = path[i] as string
      let child = this.#child(node, name)
      if (child !== NONE && this.#kind[child] === SYMLINK) throw belowSymlink(path, i)
      if (child !== NONE && this.#kind[child] !== DIRECTORY) {
        this.#removeTree(child)
        child = NONE
      }
      if (child === NONE) {
        this.#count()
        child = this.#create(node, name, DIRECTORY)
        this.#layer[child] = this.#current - 1
        this.#ordinal[child] = IMPLIED
      }
      node = child
    }
    return node
  }

  /** The node at `path`, or -1. Throws where the way there leads through a symbolic link. */
  #find(path: readonly string[]): number {
    let node = ROOT
    for (let i = 0; i < path.length; i++) {
      if (this.#kind[node] === SYMLINK) throw belowSymlink(path, i - 1)
      if (this.#kind[node] !== DIRECTORY) return NONE
      node = this.#child(node, path[i] as string)
      if (node === NONE) return NONE
    }
    return node
  }

  #empty(path: readonly string[]): void {
    const node = this.#find(path)
    if (node !== NONE && this.#kind[node] === SYMLINK) throw belowSymlink([...path, '.wh..wh..opq'], path.length - 1)
    this.#removeLower(node, true)
  }

  /** Removes what lower layers put at `node` (or only below it), and leaves what the current layer did. */
  #removeLower(node: number, keepSelf: boolean): void {
    if (node === NONE) return
    if (!keepSelf && this.#touched[node] !== this.#current) {
      this.#removeTree(node)
      return
    }
    // All that is left below was put there by this layer; going over it again for each repeat would be quadratic.
    if (this.#kind[node] !== DIRECTORY || this.#cleared[node] === this.#current) return
    this.#cleared[node] = this.#current
    for (let child = this.#firstChild[node] as number; child !== NONE; ) {
      const next = this.#next[child] as number
      this.#removeLower(child, false)
      child = next
    }
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
    if (this.#live >= this.#buckets.length) this.#rehash()
    let node = this.#free
    if (node !== NONE) this.#free = this.#next[node] as number
    else {
      if (this.#used === this.#capacity) this.#grow()
      node = this.#used++
    }
    this.#live++
    this.#parent[node] = parent
    this.#firstChild[node] = NONE
    this.#previous[node] = NONE
    this.#next[node] = NONE
    this.#hashNext[node] = NONE
    this.#kind[node] = kind
    this.#layer[node] = 0
    this.#ordinal[node] = IMPLIED
    this.#touched[node] = 0
    this.#cleared[node] = 0
    this.#nameStart[node] = this.#storeName(name)
    this.#nameLength[node] = name.length
    if (parent === NONE) return node

    const sibling = this.#firstChild[parent] as number
    this.#next[node] = sibling
    if (sibling !== NONE) this.#previous[sibling] = node
    this.#firstChild[parent] = node
    const bucket = this.#bucket(parent, name)
    this.#hashNext[node] = this.#buckets[bucket] as number
    this.#buckets[bucket] = node
    return node
  }

  #removeTree(node: number): void {
    this.#isDisturbed = true
    // Depth is limited by the path's.
    for (let child = this.#firstChild[node] as number; child !== NONE; ) {
      const next = this.#next[child] as number
      this.#removeTree(child)
      child = next
    }
    const parent = this.#parent[node] as number
    const next = this.#next[node] as number
    const previous = this.#previous[node] as number
    if (previous === NONE) this.#firstChild[parent] = next
    else this.#next[previous] = next
    if (next !== NONE) this.#previous[next] = previous

    const bucket = this.#bucket(parent, this.#nameOf(node))
    if (this.#buckets[bucket] === node) this.#buckets[bucket] = this.#hashNext[node] as number
    else {
      let before = this.#buckets[bucket] as number
      while (this.#hashNext[before] !== node) before = this.#hashNext[before] as number
      this.#hashNext[before] = this.#hashNext[node] as number
    }
    this.#kind[node] = 0
    this.#next[node] = this.#free
    this.#free = node
    this.#live--
  }

  #child(parent: number, name: string): number {
    let node = this.#buckets[this.#bucket(parent, name)] as number
    while (node !== NONE && !(this.#parent[node] === parent && this.#hasName(node, name))) node = this.#hashNext[node] as number
    return node
  }

  #bucket(parent: number, name: string): number {
    let hash = Math.imul(parent ^ this.#seed, 0x9e3779b1)
    for (let i = 0; i < name.length; i++) {
      hash = Math.imul(hash ^ name.charCodeAt(i), 0x5bd1e995)
      hash ^= hash >>> 15
    }
    return (hash >>> 0) & (this.#buckets.length - 1)
  }

  #rehash(): void {
    this.#buckets = new Int32Array(this.#buckets.length * 2).fill(NONE)
    for (let node = 1; node < this.#used; node++) {
      if (this.#kind[node] === 0) continue
      const bucket = this.#bucket(this.#parent[node] as number, this.#nameOf(node))
      this.#hashNext[node] = this.#buckets[bucket] as number
      this.#buckets[bucket] = node
    }
  }

  #hasName(node: number, name: string): boolean {
    const length = this.#nameLength[node] as number
    if (length !== name.length) return false
    const start = this.#nameStart[node] as number
    for (let i = 0; i < length; i++) if (this.#names[start + i] !== name.charCodeAt(i)) return false
    return true
  }

  #nameOf(node: number): string {
    const start = this.#nameStart[node] as number
    return this.#names.toString('latin1', start, start + (this.#nameLength[node] as number))
  }

  #storeName(name: string): number {
    const start = this.#namesLength
    const end = start + name.length
    if (end > this.#limits.maxNameBytes)
      throw tooLarge(`The names of the image's files are longer than ${this.#limits.maxNameBytes} bytes together`)
    if (end > this.#names.length) {
      const larger = Buffer.alloc(Math.max(end, Math.ceil(this.#names.length * 1.5)))
      this.#names.copy(larger)
      this.#names = larger
    }
    this.#names.write(name, start, 'latin1')
    this.#namesLength = end
    return start
  }

  #grow(): void {
    this.#capacity = Math.ceil(this.#capacity * 1.5)
    const grown = <T extends Int32Array | Uint32Array | Uint16Array | Uint8Array>(old: T): T => {
      const larger = new (old.constructor as new (length: number) => T)(this.#capacity)
      larger.set(old)
      return larger
    }
    this.#parent = grown(this.#parent)
    this.#firstChild = grown(this.#firstChild)
    this.#next = grown(this.#next)
    this.#previous = grown(this.#previous)
    this.#hashNext = grown(this.#hashNext)
    this.#nameStart = grown(this.#nameStart)
    this.#nameLength = grown(this.#nameLength)
    this.#kind = grown(this.#kind)
    this.#layer = grown(this.#layer)
    this.#ordinal = grown(this.#ordinal)
    this.#touched = grown(this.#touched)
    this.#cleared = grown(this.#cleared)
  }
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
