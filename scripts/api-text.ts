import { endpoint, type Method, type RouteId } from '../packages/api/src/endpoints.ts'
import { errorsOf, statusOn } from '../packages/api/src/error-table.ts'
import type { ErrorCode } from '../packages/api/src/errors.ts'
import { ROUTE_IDS, type Route, routes } from '../packages/api/src/routes.ts'
import { recordedExamples } from './api-examples-file.ts'
import type { Exchange } from './api-examples-run.ts'

const TITLES: Readonly<Record<string, string>> = {
  instances: 'Instances',
  schedules: 'Snapshot schedules',
  snapshots: 'Snapshots',
  images: 'Images',
  volumes: 'Volumes',
  devices: 'Devices',
  ingresses: 'Ingresses',
  builds: 'Builds',
  server: 'The server and its host',
}

const INTRODUCTION = `# The API

Written by \`node scripts/api-docs.ts\` from the route table and its schemas (\`packages/api/src/routes.ts\`). The same as an OpenAPI document is served at \`/openapi.json\`, \`/spec.json\` and \`/spec.yaml\`. Each example was sent to a daemon, and a test sends it again.

- **Where**: the unix socket \`/run/dormouse/dormouse.sock\`, without a token; TCP (\`http://127.0.0.1:4973\`) with \`Authorization: Bearer TOKEN\` ([who may](host-setup.md#who-may-use-it)). \`curl --unix-socket /run/dormouse/dormouse.sock http://localhost/instances\`
- **Tables**: a field with * has to be there, the others may be left out.
- **Bodies** are JSON, UTF-8, at most 4 MiB; unknown fields are refused. Answers may have new fields one day: pass over what you do not know.
- **Names in paths**: an instance by its id, its name, or a beginning of the id that only one has; a volume by id or name; an image by its reference with slashes percent-encoded.
- **Lists** come newest first. With \`limit\` a page; the header \`x-next-cursor\` is the \`cursor\` of the next one.
- **Tags** in a query are \`tags[team]=shop\`; all of them have to fit.
- **Sizes** are \`512MB\`, \`1.5GB\` or bytes, in powers of 1024; **durations** \`90s\`, \`1h30m\`; **times** RFC 3339 in UTC.
- **Errors** have a code, a sentence and often a hint: [errors](errors.md).
- **Streams**: what is on the wire of logs, events, exec and cp, also from a browser, is in [streams](streams.md).
`

/** docs/api.md: each route with its parameters, body, answer, errors and example; then the schemas that they name. */
export function apiText(): string {
  const models = new Models()
  const examples = new Map(recordedExamples().map((one) => [one.route, one]))
  const common = commonErrors()
  const tags = [...new Set(ROUTE_IDS.map((id) => (routes[id] as Route).tag))]
  const sections = tags.map((tag) => {
    const ids = ROUTE_IDS.filter((id) => (routes[id] as Route).tag === tag)
    return `## ${TITLES[tag] ?? tag}\n\n${ids.map((id) => routeText(id, models, examples.get(id), common)).join('\n')}`
  })
  const codes = [...common].map((code) => `\`${code}\``).join(', ')
  return `${INTRODUCTION}- Every route that needs a token may answer ${codes}; these are not listed again.

${tags.map((tag) => `- [${TITLES[tag] ?? tag}](#${anchor(TITLES[tag] ?? tag)})`).join('\n')}
- [Schemas](#schemas)

${sections.join('\n')}
## Schemas

${models.text()}`
}

/** What everyone may be told, whatever is asked for. */
function commonErrors(): ReadonlySet<ErrorCode> {
  const asking = ROUTE_IDS.map((id) => routes[id] as Route).filter(({ scope }) => scope !== 'open')
  const [first, ...others] = asking.map((route) => new Set(errorsOf(route)))
  return new Set([...(first ?? [])].filter((code) => others.every((codes) => codes.has(code))))
}

function routeText(id: RouteId, models: Models, example: Exchange | undefined, common: ReadonlySet<ErrorCode>): string {
  const { method, path } = endpoint(id)
  const route: Route = routes[id]
  const parts = [
    `### ${route.summary}\n`,
    `\`${method} ${path}\` · \`${id}\` · ${scopeText(route)}\n`,
    route.later === undefined ? '' : `**Not yet**: answers 501 \`not_supported\`. ${route.later}.\n`,
    fieldsText('In the path', route.params, models),
    fieldsText('In the query', route.query, models),
    bodyText(route, models),
    answerText(route, models),
    errorsText(route, common),
    example === undefined ? '' : exampleText(method, route, example),
  ]
  return parts.filter((part) => part !== '').join('\n')
}

function scopeText({ scope }: Route): string {
  if (scope === 'open') return 'needs no token'
  if (scope === 'host') return 'only over the unix socket'
  return scope === 'any' ? 'any token' : `scope \`${scope}\``
}

function bodyText({ body, bodyOptional, rawBody }: Route, models: Models): string {
  if (rawBody) return `**Body**: raw, ${rawBody.map((type) => `\`${type}\``).join(', ')}; streamed, of any length.\n`
  if (!body) return ''
  const schema = body as Schema
  if (schema.$id === undefined && Object.keys(schema.properties ?? {}).length === 0) return '**Body**: none, or `{}`.\n'
  const may = bodyOptional ? ', may be left out' : ''
  return schema.$id === undefined ? fieldsText(`Body${may}`, body, models) : `**Body**${may}: ${models.typeOf(schema)}\n`
}

function answerText({ status, answer, stream }: Route, models: Models): string {
  if (stream === 'websocket') return `**Answer** ${status}: a WebSocket, see [streams](streams.md).\n`
  if (stream === 'text') return `**Answer** ${status}: text.\n`
  if (!answer) return `**Answer** ${status}, without a body.\n`
  const type = models.typeOf(answer as Schema)
  return stream === 'sse' ? `**Answer** ${status}: an event stream; each message is ${type}\n` : `**Answer** ${status}: ${type}\n`
}

function errorsText(route: Route, common: ReadonlySet<ErrorCode>): string {
  const byStatus = new Map<number, string[]>()
  for (const code of errorsOf(route)) {
    if (common.has(code)) continue
    const status = statusOn(route, code)
    byStatus.set(status, [...(byStatus.get(status) ?? []), `\`${code}\``])
  }
  if (byStatus.size === 0) return ''
  const groups = [...byStatus].sort(([a], [b]) => a - b).map(([status, codes]) => `${status} ${codes.join(' ')}`)
  return `**Errors**: ${groups.join(' · ')}\n`
}

function exampleText(method: Method, { stream, rawBody }: Route, { request, body, status, answer }: Exchange): string {
  const said = body === undefined ? '' : `\n${json(body)}`
  const raw = rawBody ? `\ncontent-type: ${rawBody[0]}\n\n(the bytes)` : ''
  const lines = [`${request}${raw}${said}\n`]
  if (stream === 'websocket') {
    const frames = answer as readonly { client?: unknown; server?: unknown }[]
    for (const frame of frames) lines.push('client' in frame ? `→ ${frameText(frame.client)}` : `← ${frameText(frame.server)}`)
  } else if (stream === 'sse' && status < 400)
    lines.push(`${status}`, ...(answer as unknown[]).map((message) => `data: ${JSON.stringify(message)}`))
  else lines.push(`${status}`, ...(answer === undefined ? [] : [typeof answer === 'string' ? answer : json(answer)]))
  return `\`\`\`\n${method === 'GET' && stream !== undefined && status < 400 ? lines.join('\n').trimEnd() : lines.join('\n')}\n\`\`\`\n`
}

const frameText = (frame: unknown): string => (typeof frame === 'string' ? JSON.stringify(frame).slice(1, -1) : JSON.stringify(frame))

/** JSON in few lines: what fits into one is one. */
function json(value: unknown, indent = ''): string {
  const short = JSON.stringify(value)
  if (short === undefined || short.length + indent.length <= 110 || typeof value !== 'object' || value === null) return spaced(value)
  const inner = `${indent}  `
  if (Array.isArray(value)) return `[\n${value.map((one) => inner + json(one, inner)).join(',\n')}\n${indent}]`
  const fields = Object.entries(value).map(([name, one]) => `${inner}${JSON.stringify(name)}: ${json(one, inner)}`)
  return `{\n${fields.join(',\n')}\n${indent}}`
}

function spaced(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(spaced).join(', ')}]`
  if (typeof value !== 'object' || value === null) return JSON.stringify(value)
  const fields = Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${spaced(one)}`)
  return fields.length === 0 ? '{}' : `{ ${fields.join(', ')} }`
}

interface Schema {
  readonly $id?: string
  readonly type?: string
  readonly description?: string
  readonly default?: unknown
  readonly enum?: readonly unknown[]
  readonly const?: unknown
  readonly anyOf?: readonly Schema[]
  readonly items?: Schema
  readonly properties?: Readonly<Record<string, Schema>>
  readonly required?: readonly string[]
  readonly patternProperties?: Readonly<Record<string, Schema>>
  readonly additionalProperties?: unknown
  readonly format?: string
  readonly pattern?: string
  readonly minimum?: number
  readonly maximum?: number
  readonly minLength?: number
  readonly maxLength?: number
}

function fieldsText(title: string, schema: unknown, models: Models): string {
  const { properties = {}, required = [] } = (schema ?? {}) as Schema
  const rows = rowsOf(properties, required, models, '')
  if (rows.length === 0) return ''
  return `**${title}**\n\n| Field | Type | What |\n| --- | --- | --- |\n${rows.join('\n')}\n`
}

/** A field a row; those of an object without a name of its own stand below it. */
function rowsOf(properties: Readonly<Record<string, Schema>>, required: readonly string[], models: Models, within: string): string[] {
  return Object.entries(properties).flatMap(([name, schema]) => {
    const must = required.includes(name) ? ' *' : ''
    const usual = schema.default === undefined ? '' : `${JSON.stringify(schema.default)} when left out`
    const described = schema.description ?? schema.anyOf?.find(({ description }) => description !== undefined)?.description
    const what = [described, usual].filter((one) => one !== undefined && one !== '').join('; ')
    const row = `| \`${within}${name}\`${must} | ${models.typeOf(schema)} | ${cell(what)} |`
    const item = schema.items !== undefined && schema.items.$id === undefined ? schema.items : undefined
    const inner = schema.$id === undefined ? (schema.properties ? schema : item?.properties ? item : undefined) : undefined
    const below = inner ? rowsOf(inner.properties ?? {}, inner.required ?? [], models, `${within}${name}${item ? '[]' : ''}.`) : []
    return [row, ...below]
  })
}

const cell = (text: string): string => text.replaceAll('|', '\\|').replaceAll('\n', ' ')
const anchor = (title: string): string => title.toLowerCase().replaceAll(' ', '-')

/** The schemas that have names: told once, linked to from everywhere. */
class Models {
  readonly #named = new Map<string, Schema>()

  typeOf(schema: Schema): string {
    if (schema.$id !== undefined) {
      this.#named.set(schema.$id, schema)
      return `[${schema.$id}](#${schema.$id.toLowerCase()})`
    }
    const { anyOf, items, patternProperties, properties, type } = schema
    if (schema.enum) return schema.enum.map((one) => `\`${one}\``).join(', ')
    if (schema.const !== undefined) return `\`${schema.const}\``
    if (anyOf) return anyOf.map((one) => this.typeOf(one)).join(' or ')
    if (items) return `list of ${this.typeOf(items)}`
    const [value] = Object.values(patternProperties ?? {})
    if (value) return `map to ${this.typeOf(value)}`
    if (properties) return 'object'
    return `${schema.format ?? type ?? 'any'}${rangeOf(schema)}`
  }

  /** Telling one may name others: until all are told. */
  text(): string {
    const told = new Map<string, string>()
    for (let open = this.#open(told); open.length > 0; open = this.#open(told)) {
      for (const [name, schema] of open) told.set(name, this.#one(name, schema))
    }
    return [...told]
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([, text]) => text)
      .join('\n')
  }

  #open(told: ReadonlyMap<string, string>): [string, Schema][] {
    return [...this.#named].filter(([name]) => !told.has(name))
  }

  #one(name: string, { $id: _, ...schema }: Schema): string {
    const what = schema.description === undefined ? '' : `${schema.description}.\n\n`
    if (!schema.properties) return `### ${name}\n\n${what}${this.typeOf(schema)}\n`
    const rows = rowsOf(schema.properties, schema.required ?? [], this, '')
    return `### ${name}\n\n${what}| Field | Type | What |\n| --- | --- | --- |\n${rows.join('\n')}\n`
  }
}

function rangeOf({ minimum, maximum, maxLength }: Schema): string {
  if (minimum !== undefined && maximum !== undefined) return ` ${minimum} to ${maximum}`
  if (minimum !== undefined) return ` from ${minimum}`
  if (maximum !== undefined) return ` to ${maximum}`
  return maxLength === undefined ? '' : `, at most ${maxLength} characters`
}
