import type { AuditEntry } from '@dormouse/api/audit.ts'
import { AppError } from '@dormouse/api/errors.ts'
import type { AuditRow } from '../../audit/audit.ts'
import type { Handlers } from '../handler.ts'
import type { ServerUses } from '../uses.ts'

const LIMIT = 100

export function auditRoutes({ audit }: Pick<ServerUses, 'audit'>): Pick<Handlers, 'listAudit'> {
  return {
    listAudit: ({ query, setHeader }) => {
      const { caller, operation, target, result, since, until, cursor, limit = LIMIT } = query
      const rows = audit.list({
        ...(caller !== undefined && { caller }),
        ...(operation !== undefined && { operation }),
        ...(target !== undefined && { target }),
        ...(result !== undefined && { result }),
        ...(since !== undefined && { sinceMs: momentOf('since', since) }),
        ...(until !== undefined && { untilMs: momentOf('until', until) }),
        ...(cursor !== undefined && { beforeId: idOf(cursor) }),
        // One more than is shown tells whether there is more.
        limit: limit + 1,
      })
      const shown = rows.slice(0, limit)
      const last = shown.at(-1)
      if (rows.length > limit && last) setHeader('x-next-cursor', String(last.id))
      return shown.map(presentEntry)
    },
  }
}

function momentOf(field: string, text: string): number {
  const ms = Date.parse(text)
  if (!Number.isFinite(ms)) throw new AppError('invalid_request', `\`${field}\` is no time such as 2030-01-01T00:00:00Z: ${text}`)
  return ms
}

/** Rows never move: the id of the last one is all a cursor needs. */
function idOf(cursor: string): number {
  if (!/^\d{1,15}$/.test(cursor)) throw new AppError('invalid_request', 'The cursor is not one that a list has given')
  return Number(cursor)
}

const presentEntry = (row: AuditRow & { readonly id: number }): AuditEntry => ({
  id: row.id,
  at: new Date(row.atMs).toISOString(),
  caller: row.caller ?? null,
  token_id: row.tokenId ?? null,
  address: row.address ?? null,
  operation: row.operation,
  target: { ...row.target },
  subject_id: row.subjectId ?? null,
  resource_id: row.outcome.resourceId ?? null,
  result: row.outcome.result,
  status: row.outcome.status ?? null,
  code: row.outcome.code ?? null,
  duration_ms: row.outcome.durationMs ?? null,
  request_id: row.requestId,
  skipped: row.skipped,
})
