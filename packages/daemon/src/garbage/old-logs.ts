import { rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { namesIn } from '../host/disk-blocks.ts'
import type { Paths } from '../paths.ts'
import type { Collected, CollectFiles } from './collected.ts'

export interface OldLogsUses {
  readonly paths: Paths
  readonly instanceIds: () => readonly string[]
  /** It is being started, say, which makes its log one of the boot before. */
  readonly isBusy: (id: string) => boolean
}

export const isOldLog = (name: string): boolean => name.endsWith('.log.previous')

/** Removes logs of the boot before. Those of the last boot stay as long as their instance. */
export async function collectOldLogs(
  { paths, instanceIds, isBusy }: OldLogsUses,
  { olderThanMs, dryRun, signal, nowMs }: CollectFiles,
): Promise<Collected> {
  const names: string[] = []
  let bytes = 0
  for (const id of instanceIds()) {
    const dir = paths.instanceLogsDir(id)
    for (const name of (await namesIn(dir)).filter(isOldLog)) {
      signal.throwIfAborted()
      const facts = await stat(join(dir, name)).catch(() => undefined)
      if (facts === undefined || nowMs - facts.mtimeMs < olderThanMs || isBusy(id)) continue
      if (!dryRun) await rm(join(dir, name), { force: true })
      names.push(`${id}/${name}`)
      bytes += facts.blocks * 512
    }
  }
  return { names, bytes }
}
