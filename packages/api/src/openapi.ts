/** The route table, printed as an OpenAPI 3.1 document. Pure: the same table gives the same text. */
import type { TSchema } from 'typebox'
import { type ENDPOINTS, endpoint } from './endpoints.ts'
import { ERRORS, errorsOf, statusOn } from './error-table.ts'
import { ERROR_CODES, type ErrorCode } from './errors.ts'
import { Problem } from './problem.ts'
import { ROUTE_IDS, type Route, routes } from './routes.ts'

type Json = Record<string, unknown>

export interface OpenApiOptions {
  readonly version: string
}

export function openApiDocument({ version }: OpenApiOptions): Json {
  const schemas = new Map<string, unknown>()
  const refer = referrer(schemas)
  const paths: Record<string, Json> = {}
  for (const id of ROUTE_IDS) {
    const { method, path } = endpoint(id)
    paths[path] ??= {}
    paths[path][method.toLowerCase()] = operation(id, routes[id], refer)
  }
  return {
    openapi: '3.1.0',
    info: {
      title: 'dormouse',
      version,
      description:
        'OCI images as virtual machines. Errors carry a code, a sentence and often a hint; those that will be the same next time ' +
        'carry `x-should-retry: false`. Over TCP a bearer token is needed, over the unix socket none.',
    },
    'x-errors': Object.fromEntries(ERROR_CODES.map((code) => [code, ERRORS[code]])),
    security: [{ bearer: [] }],
    paths,
    components: {
      schemas: Object.fromEntries([...schemas].sort(([a], [b]) => (a < b ? -1 : 1))),
      securitySchemes: { bearer: { type: 'http', scheme: 'bearer', bearerFormat: 'JWT' } },
    },
  }
}

type Refer = (schema: TSchema) => unknown

function operation(id: keyof typeof ENDPOINTS, route: Route, refer: Refer): Json {
  const notes = [
    route.later === undefined ? undefined : `Not yet: answers 501 \`not_supported\`. ${route.later}.`,
    route.scope === 'open'
      ? 'Needs no token.'
      : route.scope === 'host'
        ? 'Only over the unix socket.'
        : route.scope === 'any'
          ? 'Needs a token, whatever its scopes.'
          : `Needs the scope \`${route.scope}\`.`,
    route.stream === 'websocket' ? 'A WebSocket; docs/streams.md describes its frames.' : undefined,
  ].filter((note) => note !== undefined)
  return {
    operationId: id,
    tags: [route.tag],
    summary: route.summary,
    description: notes.join(' '),
    ...(route.scope === 'open' && { security: [] }),
    ...parameters(route, refer),
    ...requestBody(route, refer),
    responses: { [route.status]: answer(route, refer), ...refusals(route, refer) },
  }
}

function parameters(route: Route, refer: Refer): Json {
  const list = (['params', 'query'] as const).flatMap((place) => {
    const schema = route[place] as { properties?: Record<string, TSchema>; required?: readonly string[] } | undefined
    return Object.entries(schema?.properties ?? {}).map(([name, property]) => ({
      name,
      in: place === 'params' ? 'path' : 'query',
      required: place === 'params' || (schema?.required ?? []).includes(name),
      ...((property as { type?: string }).type === 'object' && { style: 'deepObject', explode: true }),
      schema: refer(property),
    }))
  })
  return list.length === 0 ? {} : { parameters: list }
}

function requestBody(route: Route, refer: Refer): Json {
  if (route.rawBody) {
    const raw = { schema: { type: 'string', format: 'binary' } }
    return { requestBody: { required: true, content: Object.fromEntries(route.rawBody.map((type) => [type, raw])) } }
  }
  if (!route.body) return {}
  return { requestBody: { required: route.bodyOptional !== true, content: { 'application/json': { schema: refer(route.body) } } } }
}

function answer(route: Route, refer: Refer): Json {
  const media = route.stream === 'sse' ? 'text/event-stream' : route.stream === 'text' ? 'text/plain' : 'application/json'
  const schema = route.answer ? refer(route.answer) : { type: 'string' }
  const hasBody = route.answer !== undefined || route.stream === 'text'
  return { description: route.summary, ...(hasBody && { content: { [media]: { schema } } }) }
}

function refusals(route: Route, refer: Refer): Json {
  const byStatus = new Map<number, ErrorCode[]>()
  for (const code of errorsOf(route)) {
    const status = statusOn(route, code)
    byStatus.set(status, [...(byStatus.get(status) ?? []), code])
  }
  const content = { 'application/json': { schema: refer(Problem) } }
  return Object.fromEntries(
    [...byStatus]
      .sort(([a], [b]) => a - b)
      .map(([status, list]) => [String(status), { description: list.map((code) => `\`${code}\``).join(', '), content }]),
  )
}

/** Schemas with a name of their own become components, wherever they stand. */
function referrer(schemas: Map<string, unknown>): Refer {
  const plain = (value: unknown): unknown => {
    if (Array.isArray(value)) return value.map(plain)
    if (typeof value !== 'object' || value === null) return value
    const { $id, ...rest } = value as Json
    const body = Object.fromEntries(Object.entries(rest).map(([key, inner]) => [key, plain(inner)]))
    if (Array.isArray(body.enum) && body.type === undefined && body.enum.every((one) => typeof one === 'string')) body.type = 'string'
    if (typeof $id !== 'string') return body
    schemas.set($id, body)
    return { $ref: `#/components/schemas/${$id}` }
  }
  return plain
}
