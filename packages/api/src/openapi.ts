/** The route table, printed as an OpenAPI 3.1 document. Pure: the same table gives the same text. */
import type { TSchema } from 'typebox'
import { type ENDPOINTS, endpoint, type Method } from './endpoints.ts'
import { BROKEN_REQUESTS, brokenOn, ERRORS, errorsOf, statusOn } from './error-table.ts'
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
    paths[path][method.toLowerCase()] = operation(id, method, routes[id], refer)
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
    servers: [
      { url: '/', description: 'The daemon that gives this document; over TCP at http://127.0.0.1:4973 unless it is told otherwise' },
    ],
    'x-errors': Object.fromEntries(ERROR_CODES.map((code) => [code, ERRORS[code]])),
    security: [{ bearer: [] }],
    paths,
    components: {
      responses: brokenRequests(refer),
      schemas: Object.fromEntries([...schemas].sort(([a], [b]) => (a < b ? -1 : 1))),
      securitySchemes: { bearer: { type: 'http', scheme: 'bearer', bearerFormat: 'JWT' } },
    },
  }
}

type Refer = (schema: TSchema) => unknown

function operation(id: keyof typeof ENDPOINTS, method: Method, route: Route, refer: Refer): Json {
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
    responses: { [route.status]: answer(route, refer), ...refusals(method, route, refer) },
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
  const schema = refer(route.body)
  // Some clients write null where they have nothing to say.
  const wanted = route.bodyOptional ? { anyOf: [schema, { type: 'null' }] } : schema
  return { requestBody: { required: route.bodyOptional !== true, content: { 'application/json': { schema: wanted } } } }
}

function answer(route: Route, refer: Refer): Json {
  const media = route.stream === 'sse' ? 'text/event-stream' : route.stream === 'text' ? 'text/plain' : 'application/json'
  const data = route.answer ? refer(route.answer) : { type: 'string' }
  const schema = route.stream === 'sse' ? eventOf(data) : data
  const hasBody = route.answer !== undefined || route.stream === 'text'
  const headers = headersOf(route)
  return {
    description: route.summary,
    ...(Object.keys(headers).length > 0 && { headers }),
    ...(hasBody && { content: { [media]: { schema } } }),
  }
}

const header = (description: string): Json => ({ description, schema: { type: 'string' } })

/** What an answer says beside its body. */
function headersOf({ query, headers = {} }: Route): Json {
  const isPaged = Object.hasOwn((query as { properties?: object } | undefined)?.properties ?? {}, 'cursor')
  return {
    ...(isPaged && { 'x-next-cursor': header('`cursor` of the next page; absent on the last') }),
    ...Object.fromEntries(Object.entries(headers).map(([name, description]) => [name, header(description)])),
  }
}

/** One event of a stream, as its fields are once they are read: what is told stands in `data`, as JSON. */
const eventOf = (told: unknown): Json => ({
  type: 'object',
  required: ['data'],
  properties: {
    id: { type: 'string' },
    event: { type: 'string' },
    data: { type: 'string', contentMediaType: 'application/json', contentSchema: told },
  },
})

function refusals(method: Method, route: Route, refer: Refer): Json {
  const byStatus = new Map<number, ErrorCode[]>()
  for (const code of errorsOf(route)) {
    const status = statusOn(route, code)
    byStatus.set(status, [...(byStatus.get(status) ?? []), code])
  }
  const content = { 'application/json': { schema: refer(Problem) } }
  const told = [...byStatus].map(
    ([status, list]) => [status, { description: list.map((code) => `\`${code}\``).join(', '), content }] as const,
  )
  const broken = brokenOn(method).map(({ status }) => [status, { $ref: `#/components/responses/${brokenName(status)}` }] as const)
  // By their numbers: an object has its whole numbers in order.
  return Object.fromEntries([...told, ...broken])
}

const brokenName = (status: number): string => `BrokenRequest${status}`

/** What is answered before it is looked which route is meant. */
const brokenRequests = (refer: Refer): Json =>
  Object.fromEntries(
    BROKEN_REQUESTS.map(({ status, when }) => [
      brokenName(status),
      { description: `\`invalid_request\`: ${when}`, content: { 'application/json': { schema: refer(Problem) } } },
    ]),
  )

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
