/** The images room on a directory of its own, and what tests ask of it again and again. */
import assert from 'node:assert/strict'
import { mkdir, readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import { type Config, configOf } from '../../packages/daemon/src/config/config.ts'
import { Events } from '../../packages/daemon/src/events/events.ts'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'
import { Images } from '../../packages/daemon/src/images/images.ts'
import { silentLogger } from '../../packages/daemon/src/log.ts'
import { Paths } from '../../packages/daemon/src/paths.ts'
import { Database } from '../../packages/daemon/src/store/database.ts'
import type { RecordedEvent } from '../../packages/daemon/src/store/events.ts'
import { scratchDir } from '../harness/scratch.ts'

export interface Room {
  readonly dir: string
  readonly images: Images
  readonly db: Database
  readonly paths: Paths
  readonly events: RecordedEvent[]
  readonly inUse: Set<string>
  /** `operation:step`, where it stands still from then on as if the daemon had died there; `crashed` tells when. */
  crashAt: string | undefined
  readonly crashed: Promise<void>
  /** Stops this room and opens the same directory again, as a daemon does that is started anew. */
  restart(): Promise<Room>
}

export interface RoomOptions {
  /** Of a room that was there before. */
  readonly dir?: string
  readonly makeRoom?: (bytes: number, of: 'images' | 'disk') => Promise<void>
}

export async function openRoom(t: TestContext, config: Partial<Config['images']> = {}, options: RoomOptions = {}): Promise<Room> {
  const home = options.dir ?? (await scratchDir(t))
  await mkdir(join(home, 'data'), { recursive: true })
  const paths = new Paths({ dataDir: join(home, 'data'), runDir: join(home, 'run') })
  const db = Database.open(paths.database)
  const events = new Events({ db })
  const seen: RecordedEvent[] = []
  events.listen((event) => seen.push(event))
  const inUse = new Set<string>()
  const crashed = Promise.withResolvers<void>()
  const images = new Images({
    db,
    paths,
    log: silentLogger,
    events,
    // Tests are no one's to refuse for want of a fifth of the disk.
    config: { ...configOf(new Map()).images, maxStorageShare: 1, minFreeBytes: 0, ...config },
    isInUse: (digest) => inUse.has(digest),
    ...(options.makeRoom === undefined ? {} : { makeRoom: options.makeRoom }),
    crashPoint: async (operation, step) => {
      if (`${operation}:${step}` !== room.crashAt) return
      crashed.resolve()
      await new Promise(() => undefined)
    },
  })
  let isOpen = true
  const close = async (): Promise<void> => {
    if (!isOpen) return
    isOpen = false
    await images[Symbol.asyncDispose]()
    db.close()
  }
  t.after(close)
  const room: Room = {
    dir: home,
    images,
    db,
    paths,
    events: seen,
    inUse,
    crashAt: undefined,
    crashed: crashed.promise,
    restart: async () => {
      await close()
      return openRoom(t, config, { ...options, dir: home })
    },
  }
  await images.recover()
  return room
}

export const step = (limitMs = 60_000): { signal: AbortSignal } => ({ signal: AbortSignal.timeout(limitMs) })

/** Pulls and waits. */
export async function pullReady(room: Room, request: Parameters<Images['pull']>[0]): ReturnType<Images['whenReady']> {
  await room.images.pull(request)
  return await room.images.whenReady(request.name, step())
}

/** What lies in the images' directories. */
export async function filesOf({ paths }: Room): Promise<{ drafts: string[]; layers: string[]; rootfs: string[] }> {
  return {
    drafts: await readdir(paths.imageDraftsDir),
    layers: (await readdir(paths.imageLayersDir)).sort(),
    rootfs: await readdir(paths.imageRootfsDir),
  }
}

/** No file, and no row but those of `failed` pulls. */
export async function assertNothingLeft(room: Room, options: { failedRows?: number } = {}): Promise<void> {
  assert.deepEqual(await filesOf(room), { drafts: [], layers: [], rootfs: [] })
  const count = (table: string): number => Number(room.db.prepare(`SELECT count(*) AS n FROM ${table}`).get()?.n)
  assert.equal(count('images'), options.failedRows ?? 0, 'rows of images')
  assert.equal(count('image_names'), options.failedRows ?? 0, 'rows of names')
  assert.equal(count('image_layers'), 0, 'rows of layers')
}

export async function command(
  argv: readonly [string, ...string[]],
  options: { input?: Buffer | string; cwd?: string } = {},
): Promise<string> {
  const { stdout } = await runCommand(argv, { step: step(), maxOutputBytes: 64 << 20, ...options })
  return stdout
}

/** Writes files by name below `dir`. */
export async function writeFiles(dir: string, files: ReadonlyMap<string, Buffer>): Promise<string> {
  for (const [name, bytes] of files) {
    await mkdir(join(dir, name, '..'), { recursive: true })
    await writeFile(join(dir, name), bytes)
  }
  return dir
}
