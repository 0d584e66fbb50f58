/**
 * Makes types of what Cloud Hypervisor's driver asks, and the facts that its tests hold requests to, from its published OpenAPI documents
 * (vmm/src/api/openapi/cloud-hypervisor.yaml of each release that is supported). Only what all of them have alike is taken.
 *
 *     node scripts/cloud-hypervisor-api.ts RELEASE=FILE RELEASE=FILE...
 */
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { parse } from 'yaml'

const OUT = join(import.meta.dirname, '../packages/daemon/src/hypervisors/cloud-hypervisor/published-api.ts')

const REQUESTS = [
  '/vm.info',
  '/vm.pause',
  '/vm.resume',
  '/vm.power-button',
  '/vm.snapshot',
  '/vm.restore',
  '/vm.add-disk',
  '/vm.remove-device',
  '/vm.resize-disk',
] as const
/** Of schemas that are large, what is used. */
const KEPT: Readonly<Record<string, readonly string[]>> = {
  VmConfig: ['cpus', 'memory', 'payload', 'rate_limit_groups', 'disks', 'net', 'vsock'],
  CpusConfig: ['boot_vcpus', 'max_vcpus'],
  NetConfig: ['id', 'mac'],
}

interface Schema {
  readonly type?: string
  readonly $ref?: string
  readonly enum?: readonly string[]
  readonly required?: readonly string[]
  readonly properties?: Readonly<Record<string, Schema>>
  readonly items?: Schema
  readonly additionalProperties?: Schema
}
interface Document {
  readonly info: { readonly version: string }
  readonly servers: readonly { readonly url: string }[]
  readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>>>>
  readonly components: { readonly schemas: Readonly<Record<string, Schema>> }
}
type Content = Readonly<Record<string, { readonly schema: Schema }>>
interface Operation {
  readonly requestBody?: { readonly content: Content }
  readonly responses: Readonly<Record<string, { readonly content?: Content }>>
}

const given = process.argv.slice(2).map((word) => {
  const [release = '', file = ''] = word.split('=')
  const text = readFileSync(file, 'utf8')
  return { release, sha256: createHash('sha256').update(text).digest('hex'), document: parse(text) as Document }
})
const [newest, ...others] = given.map(({ document }) => document)
if (newest === undefined) throw new Error('Name the documents: RELEASE=FILE, the newest first')

const nameOf = ({ $ref = '' }: Schema): string => $ref.slice($ref.lastIndexOf('/') + 1)
const jsonOf = (content: Content | undefined): Schema | undefined => content?.['application/json']?.schema

/** What all documents say of a schema: properties that differ are left out, and so are those that are not used. */
function commonSchema(name: string): Schema {
  const [own, ...rest] = [newest, ...others].map((document) => document?.components.schemas[name])
  if (own === undefined || rest.includes(undefined)) throw new Error(`Not all documents have ${name}`)
  const entries = Object.entries(own.properties ?? {}).filter(
    ([property, value]) =>
      (KEPT[name]?.includes(property) ?? true) &&
      rest.every((other) => isDeepStrictEqual(plain(other?.properties?.[property]), plain(value))),
  )
  if (own.properties === undefined && rest.some((other) => !isDeepStrictEqual(plain(other), plain(own)))) throw new Error(`${name} differs`)
  const properties = Object.fromEntries(entries)
  return {
    ...own,
    ...(own.properties === undefined ? {} : { properties, required: own.required?.filter((one) => one in properties) ?? [] }),
  }
}

/** Without words for people. */
const plain = (schema: Schema | undefined): unknown =>
  JSON.parse(JSON.stringify(schema ?? null), (key, value) => (key === 'description' ? undefined : value))

const schemas = new Map<string, Schema>()
function reach(schema: Schema | undefined): void {
  if (schema === undefined) return
  const name = nameOf(schema)
  if (name !== '' && !schemas.has(name)) {
    const found = commonSchema(name)
    schemas.set(name, found)
    reach(found)
  }
  for (const below of [...Object.values(schema.properties ?? {}), schema.items, schema.additionalProperties]) reach(below)
}

const requests = REQUESTS.map((path) => {
  const [own, ...rest] = [newest, ...others].map((document) => {
    const [[method, operation] = []] = Object.entries(document?.paths[path] ?? {})
    if (method === undefined || operation === undefined) throw new Error(`Not all documents have ${path}`)
    const answer = Object.entries(operation.responses).find(([status]) => status.startsWith('2'))?.[1]
    return { method: method.toUpperCase(), body: jsonOf(operation.requestBody?.content), answer: jsonOf(answer?.content) }
  })
  if (own === undefined || rest.some((other) => !isDeepStrictEqual(other, own))) throw new Error(`${path} differs`)
  reach(own.body)
  reach(own.answer)
  return { path, ...own }
})

function typeOf(schema: Schema): string {
  if (schema.$ref !== undefined) return nameOf(schema)
  if (schema.enum !== undefined) return schema.enum.map((one) => `'${one}'`).join(' | ')
  if (schema.type === 'array') return `readonly (${typeOf(schema.items ?? {})})[]`
  if (schema.properties !== undefined) return shapeOf(schema)
  if (schema.type === 'object') return `Readonly<Record<string, ${typeOf(schema.additionalProperties ?? {})}>>`
  return { string: 'string', integer: 'number', number: 'number', boolean: 'boolean' }[schema.type ?? ''] ?? 'unknown'
}

const shapeOf = ({ properties = {}, required = [] }: Schema): string =>
  `{\n${Object.entries(properties)
    .map(([name, schema]) => `readonly ${name}${required.includes(name) ? '' : '?'}: ${typeOf(schema)}`)
    .join('\n')}\n}`

const facts = {
  releases: given.map(({ release }) => release),
  version: newest.info.version,
  server: new URL(newest.servers[0]?.url ?? '').pathname,
  requests: Object.fromEntries(
    requests.map(({ path, method, body }) => [path, body === undefined ? { method } : { method, body: nameOf(body) }]),
  ),
  schemas: Object.fromEntries(
    [...schemas].map(([name, { enum: values, properties = {}, required = [] }]) => [
      name,
      values ?? Object.fromEntries(Object.keys(properties).map((one) => [one, required.includes(one) ? 'required' : 'optional'])),
    ]),
  ),
}
const used = [...schemas].sort(([one], [other]) => one.localeCompare(other))
const text = `/**
 * Made by scripts/cloud-hypervisor-api.ts from Cloud Hypervisor's published OpenAPI documents, and not edited by hand:
${given.map(({ release, sha256 }) => ` *  - ${release}: SHA-256 ${sha256}`).join('\n')}
 */
export const PUBLISHED = ${JSON.stringify(facts)} as const

/** What each request has in its body. */
export interface RequestBodies {
${requests.map(({ path, body }) => `readonly '${path}': ${body === undefined ? 'undefined' : typeOf(body)}`).join('\n')}
}

/** What each is answered with. */
export interface Answers {
${requests.map(({ path, answer }) => `readonly '${path}': ${answer === undefined ? 'undefined' : typeOf(answer)}`).join('\n')}
}

${used.map(([name, schema]) => (schema.properties === undefined ? `type ${name} = ${typeOf(schema)}` : `interface ${name} ${shapeOf(schema)}`)).join('\n\n')}
`
writeFileSync(OUT, text)
execFileSync(join(import.meta.dirname, '../node_modules/.bin/biome'), ['check', '--write', OUT], { stdio: 'inherit' })
