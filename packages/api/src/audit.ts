/** The audit log: a row for every request that changes something, for those that were refused, and for what the daemon changes by itself. */
import { type Static, Type } from 'typebox'
import { DateTime, nullable } from './names.ts'

/** `under_way`: not answered yet. `interrupted`: the daemon ended before it was. */
export const AUDIT_RESULTS = ['under_way', 'done', 'failed', 'refused', 'interrupted'] as const
export const AuditResult = Type.Enum([...AUDIT_RESULTS], {
  description: '`refused` is who may not, `failed` any other answer from 400 on, `interrupted` that the daemon ended over it',
})
export type AuditResult = Static<typeof AuditResult>

export const AuditEntry = Type.Object(
  {
    id: Type.Integer(),
    at: DateTime,
    caller: nullable(
      Type.String({
        description: 'Subject of the token; `host` over the unix socket; `system` is the daemon itself; null: no one proved anything',
      }),
    ),
    token_id: nullable(Type.String({ description: '`jti` of the token, where it has one' })),
    address: nullable(Type.String({ description: 'Where from; null over the unix socket' })),
    operation: Type.String({
      description:
        'What, as the OpenAPI document names it: `stopInstance`; `restartInstance` is a restart policy, those at /v2 are `pushManifest` and the like',
    }),
    target: Type.Record(Type.String(), Type.String(), { description: 'On which: what stood in the path' }),
    subject_id: nullable(
      Type.String({ description: 'Id of what the path is about, which may have named it otherwise; null where that is not known' }),
    ),
    resource_id: nullable(Type.String({ description: 'Id or name of what the answer is about: that of a new instance, say' })),
    result: AuditResult,
    status: nullable(Type.Integer()),
    code: nullable(Type.String({ description: 'Of the error; at /v2 that of its specification where we have none' })),
    duration_ms: nullable(Type.Integer()),
    request_id: Type.String(),
    skipped: Type.Integer({ description: 'So many refused requests before this one were not written down: there were too many' }),
  },
  { $id: 'AuditEntry' },
)
export type AuditEntry = Static<typeof AuditEntry>
