/**
 * The directories of an instance's sleeping states. One is drafted beside the others and published by a rename; it counts once the
 * row names its generation, and those that no row names are swept.
 */

import { mkdir, readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { publishDirectory } from '../host/files.ts'
import { createId } from '../lib/create-id.ts'
import type { Paths } from '../paths.ts'

export interface SleepDraft {
  readonly generation: string
  /** What is written into it counts for nothing until it is published. */
  readonly dir: string
  publish(): Promise<void>
  /** Repeat is harmless. */
  discard(): Promise<void>
}

export async function beginSleepDraft(paths: Paths, id: string): Promise<SleepDraft> {
  const generation = createId()
  const target = paths.instanceSleep(id, generation)
  const dir = `${target}.draft`
  await mkdir(dir, { recursive: true, mode: 0o700 })
  return {
    generation,
    dir,
    publish: () => publishDirectory(dir, target),
    discard: async () => {
      await Promise.all([dir, target].map((name) => rm(name, { recursive: true, force: true })))
    },
  }
}

/** Removes all sleeping states of an instance but the one that counts. Repeat is harmless. */
export async function removeSleepBut(paths: Paths, id: string, generation: string | undefined): Promise<void> {
  const dir = paths.instanceSleepDir(id)
  const names = await readdir(dir).catch((error: NodeJS.ErrnoException): string[] => {
    if (error.code === 'ENOENT') return []
    throw error
  })
  for (const name of names) if (name !== generation) await rm(join(dir, name), { recursive: true, force: true })
}
