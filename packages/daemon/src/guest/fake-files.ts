import { KIND } from './wire.ts'

export interface FakeFile {
  readonly kind: number
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly bytes: Buffer
  readonly linkTarget?: string
}

const directory = (mode = 0o755): FakeFile => ({ kind: KIND.DIRECTORY, mode, uid: 0, gid: 0, bytes: Buffer.alloc(0) })
const file = (text: string, mode = 0o644): FakeFile => ({ kind: KIND.FILE, mode, uid: 0, gid: 0, bytes: Buffer.from(text) })

const FRESH: readonly (readonly [string, FakeFile])[] = [
  ['/', directory()],
  ['/bin', directory()],
  ['/bin/sh', { ...directory(0o777), kind: KIND.SYMLINK, linkTarget: '/bin/busybox' }],
  ['/bin/busybox', file('program', 0o755)],
  ['/etc', directory()],
  ['/etc/hostname', file('fake\n')],
  ['/tmp', directory(0o1777)],
]

/** A tree as JSON: contents in base64. */
export type FakeFilesState = readonly (readonly [path: string, file: Omit<FakeFile, 'bytes'> & { readonly bytes: string }])[]

/** The tree of a fake guest. Links are kept and shown; only the last name of a path is ever followed. */
export class FakeFiles {
  readonly #files: Map<string, FakeFile>

  constructor(files: Iterable<readonly [string, FakeFile]> = FRESH) {
    this.#files = new Map(files)
  }

  static restore(state: FakeFilesState): FakeFiles {
    return new FakeFiles(state.map(([path, entry]) => [path, { ...entry, bytes: Buffer.from(entry.bytes, 'base64') }] as const))
  }

  snapshot(): FakeFilesState {
    return [...this.#files].map(([path, entry]) => [path, { ...entry, bytes: entry.bytes.toString('base64') }] as const)
  }

  find(path: string, follow: boolean): FakeFile | undefined {
    const found = this.#files.get(tidy(path))
    return found?.linkTarget !== undefined && follow ? this.#files.get(tidy(found.linkTarget)) : found
  }

  put(path: string, entry: FakeFile): void {
    const clean = tidy(path)
    for (let at = clean.indexOf('/', 1); at > 0; at = clean.indexOf('/', at + 1)) {
      const parent = clean.slice(0, at)
      if (!this.#files.has(parent)) this.#files.set(parent, directory())
    }
    this.#files.set(clean, entry)
  }

  /** The entry and all below it, directories before what is in them. */
  below(path: string): [string, FakeFile][] {
    const top = tidy(path)
    const inside = top === '/' ? '/' : `${top}/`
    return [...this.#files].filter(([name]) => name === top || name.startsWith(inside)).sort(([a], [b]) => (a < b ? -1 : 1))
  }
}

const tidy = (path: string): string => (path.length > 1 ? path.replace(/\/+$/, '') || '/' : path)
