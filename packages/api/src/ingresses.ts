/** Ingresses: host names that lead to instances. */
import { type Static, Type } from 'typebox'
import { DateTime, Name, Tags } from './names.ts'

const strict = { additionalProperties: false } as const
const Port = Type.Integer({ minimum: 1, maximum: 65_535 })

export const IngressRule = Type.Object(
  {
    match: Type.Object(
      { hostname: Type.String({ minLength: 1, maxLength: 253 }), port: Type.Optional(Port) },
      { $id: 'IngressMatch', ...strict },
    ),
    target: Type.Object({ instance: Type.String({ minLength: 1, maxLength: 253 }), port: Port }, { $id: 'IngressTarget', ...strict }),
    tls: Type.Optional(Type.Boolean({ default: false })),
    redirect_http: Type.Optional(Type.Boolean({ default: false })),
    request_header_auth: Type.Optional(
      Type.Object({ header: Type.String({ minLength: 1, maxLength: 256 }), value: Type.String({ minLength: 32, maxLength: 256 }) }, strict),
    ),
  },
  { $id: 'IngressRule', ...strict },
)

export const Ingress = Type.Object(
  {
    id: Type.String(),
    name: Type.String(),
    rules: Type.Array(IngressRule),
    created_at: DateTime,
    tags: Type.Optional(Type.Record(Type.String(), Type.String())),
  },
  { $id: 'Ingress' },
)
export type Ingress = Static<typeof Ingress>

export const CreateIngressRequest = Type.Object(
  { name: Name, rules: Type.Array(IngressRule, { minItems: 1, maxItems: 256 }), tags: Type.Optional(Tags) },
  { $id: 'CreateIngressRequest', ...strict },
)
