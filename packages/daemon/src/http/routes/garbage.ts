import { AppError } from '@dormouse/api/errors.ts'
import { type DiskUsage, GARBAGE_KINDS, type PruneRequest, type PruneResponse } from '@dormouse/api/garbage.ts'
import { parseDuration } from '@dormouse/api/units.ts'
import type { Handlers } from '../handler.ts'
import type { ServerUses } from '../uses.ts'

type GarbageRoutes = Pick<Handlers, 'getDiskUsage' | 'prune'>

export function garbageRoutes({ garbage }: Pick<ServerUses, 'garbage'>): GarbageRoutes {
  return {
    getDiskUsage: async (): Promise<DiskUsage> => {
      const { totalBytes, freeBytes, kinds, measuredAtMs } = await garbage.usage()
      const whole = kinds.filter(({ partOf }) => partOf === undefined)
      return {
        total_bytes: totalBytes,
        free_bytes: freeBytes,
        used_bytes: whole.reduce((sum, { bytes }) => sum + bytes, 0),
        reclaimable_bytes: whole.reduce((sum, { reclaimableBytes }) => sum + reclaimableBytes, 0),
        measured_at: new Date(measuredAtMs).toISOString(),
        kinds: kinds.map(({ kind, partOf, count, inUse, bytes, sharedBytes, reclaimableBytes }) => ({
          kind,
          ...(partOf !== undefined && { part_of: partOf }),
          count,
          in_use: inUse,
          bytes,
          shared_bytes: sharedBytes,
          reclaimable_bytes: reclaimableBytes,
        })),
      }
    },

    prune: async ({ body }): Promise<PruneResponse> => {
      const { all = false, dry_run: dryRun = false } = body
      // Who names images means also those of which ours may be the only copy. Logs are of use to someone who has yet to ask.
      const kinds = body.kinds ?? GARBAGE_KINDS.filter((kind) => all || kind !== 'logs')
      const collected = await garbage.collect({
        kinds,
        all,
        irreplaceable: body.kinds?.includes('images') ?? false,
        dryRun,
        olderThanMs: ageOf(body),
      })
      return {
        dry_run: dryRun,
        freed_bytes: collected.reduce((sum, { bytes }) => sum + bytes, 0),
        kinds: collected.map(({ kind, names, bytes, error }) => ({
          kind,
          freed_bytes: bytes,
          names: [...names],
          // Foreign errors may hold paths of the host.
          ...(error !== undefined && { error: error instanceof AppError ? error.message : 'It failed: see the log of the daemon' }),
        })),
      }
    },
  }
}

function ageOf({ older_than: text }: PruneRequest): number {
  if (text === undefined || text === '') return 0
  const ms = parseDuration(text)
  if (ms !== undefined && ms >= 0 && Number.isFinite(ms)) return ms
  throw new AppError('invalid_request', `\`older_than\` is ${JSON.stringify(text)}, but must be a duration such as 720h`)
}
