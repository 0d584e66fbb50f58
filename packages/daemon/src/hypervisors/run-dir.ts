/** The directory that a VM has for as long as it runs: its shim stands in it, and is found by it. */
import { existsSync } from 'node:fs'
import { mkdir, rm } from 'node:fs/promises'
import path from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import type { Cgroups } from '../host/cgroups.ts'
import { killFamily } from '../host/process-identity.ts'
import { findShims } from './find-shims.ts'
import { removeOwnDir } from './own-dir.ts'

/** A run directory is one VM's. What a dead one left is cleared away; a living one is never started over. */
export async function makeRunDir(runDir: string): Promise<void> {
  await clearRunDir(runDir)
  await mkdir(runDir, { mode: 0o700 })
}

/** Makes room for a run directory of that name. */
export async function clearRunDir(runDir: string): Promise<void> {
  await mkdir(path.dirname(runDir), { recursive: true })
  // Every shim's directory exists, so only then is there one to be looked for.
  if (!existsSync(runDir)) return
  if ((await findShims(runDir)).length > 0) throw new AppError('conflict', `A VM still runs in ${runDir}`)
  await removeOwnDir(runDir)
  await rm(runDir, { recursive: true, force: true })
}

/** Ends whatever runs in it, and removes it and its cgroup. Repeat is harmless. */
export async function sweepRunDir(runDir: string, cgroups: Cgroups | undefined): Promise<void> {
  const limit = { signal: AbortSignal.timeout(10_000) }
  // The VMM and the network helper die with their shim.
  for (const shim of await findShims(runDir)) await killFamily(shim, limit)
  await removeOwnDir(runDir)
  await rm(runDir, { recursive: true, force: true })
  await cgroups?.remove(path.basename(runDir))
}
