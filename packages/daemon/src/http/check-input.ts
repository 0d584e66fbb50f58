/** Checks what came against the route's schemas and says what is wrong in words. Nothing is coerced, dropped or guessed in bodies. */
import { AppError } from '@dormouse/api/errors.ts'
import type { TSchema } from 'typebox'
import { Compile, type Validator } from 'typebox/compile'

const compiled = new WeakMap<TSchema, Validator>()

/** Compiled when first asked for: a start of the daemon need not wait for sixty schemas. */
function validatorOf(schema: TSchema): Validator {
  let validator = compiled.get(schema)
  if (!validator) {
    validator = Compile(schema)
    compiled.set(schema, validator)
  }
  return validator
}

// All that is wrong is listed before the first of it is told, at some microseconds each: no request is meant to hold nearly as many.
const VALUES_MAX = 10_000

/** Throws `invalid_request` naming each field that is wrong. `where` begins the sentence: "The body", "The query". */
export function checkInput(schema: TSchema, value: unknown, where: string): void {
  if (holdsMoreThan(VALUES_MAX, value)) throw new AppError('invalid_request', `${where} holds more than ${VALUES_MAX} values`)
  const validator = validatorOf(schema)
  if (validator.Check(value)) return
  const problems = problemsOf(schema, validator.Errors(value) as readonly SchemaError[], where)
  throw new AppError(
    'invalid_request',
    problems[0] ?? `${where} is not as it should be`,
    problems.length > 1 ? { detail: { problems } } : {},
  )
}

function holdsMoreThan(limit: number, value: unknown): boolean {
  const open = [value]
  let count = 0
  for (let next = open.pop(); next !== undefined; next = open.pop()) {
    if (typeof next !== 'object' || next === null) continue
    const inside: unknown[] = Array.isArray(next) ? next : Object.values(next)
    count += inside.length
    if (count > limit) return true
    for (const one of inside) if (typeof one === 'object' && one !== null) open.push(one)
  }
  return false
}

interface SchemaError {
  readonly keyword: string
  readonly schemaPath: string
  readonly instancePath: string
  readonly params: Readonly<Record<string, unknown>>
}

const MAX_PROBLEMS = 10

function problemsOf(schema: TSchema, errors: readonly SchemaError[], where: string): string[] {
  const sentences = new Set<string>()
  for (const error of errors) {
    const sentence = describe(schema, error, where)
    if (sentence !== undefined) sentences.add(sentence)
    if (sentences.size === MAX_PROBLEMS) break
  }
  return [...sentences]
}

function describe(root: TSchema, { keyword, schemaPath, instancePath, params }: SchemaError, where: string): string | undefined {
  const name = fieldName(instancePath)
  const it = name === '' ? where : `\`${name}\``
  const inside = (field: unknown) => `\`${name === '' ? '' : `${name}.`}${shown(field)}\``
  switch (keyword) {
    // Its neighbour `additionalProperties` tells the same of all fields at once.
    case 'boolean':
      return undefined
    case 'additionalProperties': {
      const fields = params.additionalProperties as readonly unknown[]
      const at = schemaAt(root, schemaPath)
      const known = Object.keys((at?.properties as object | undefined) ?? {})
      if (known.length === 0 && at?.patternProperties) return `${fields.map(inside).join(', ')} cannot be a key here: ${ruleOf(at)}`
      const list = known.length > 0 ? `: it takes ${known.join(', ')}` : ': it takes nothing'
      return `${it} has no field ${fields.map((field) => `\`${shown(field)}\``).join(', ')}${list}`
    }
    case 'required':
      return `${(params.requiredProperties as readonly string[]).map(inside).join(', ')} is missing`
    case 'minProperties':
      return `${it} must hold at least ${params.limit === 1 ? 'one field' : `${params.limit} fields`}`
    case 'maxProperties':
      return `${it} must hold at most ${params.limit} entries`
    case 'type':
      return `${it} must be ${KINDS[String(params.type)] ?? String(params.type)}`
    case 'enum':
      return `${it} must be one of ${(params.allowedValues as readonly unknown[]).join(', ')}`
    case 'const':
      return `${it} must be ${JSON.stringify(params.allowedValue)}`
    case 'minimum':
      return `${it} must be at least ${params.limit}`
    case 'maximum':
      return `${it} must be at most ${params.limit}`
    case 'minLength':
      return params.limit === 1 ? `${it} must not be empty` : `${it} must have at least ${params.limit} characters`
    case 'maxLength':
      return `${it} must have at most ${params.limit} characters`
    case 'minItems':
      return `${it} must have at least ${params.limit === 1 ? 'one entry' : `${params.limit} entries`}`
    case 'maxItems':
      return `${it} must have at most ${params.limit} entries`
    case 'format':
      return `${it} must be ${params.format === 'date-time' ? 'a time such as 2026-01-31T12:00:00Z' : `a ${String(params.format)}`}`
    case 'pattern':
      return `${it} does not fit: ${ruleOf(schemaAt(root, schemaPath), String(params.pattern))}`
    default:
      return `${it} is not as it should be`
  }
}

const KINDS: Readonly<Record<string, string>> = {
  string: 'a text',
  integer: 'a whole number',
  number: 'a number',
  boolean: 'true or false',
  object: 'an object',
  array: 'a list',
  null: 'null',
}

type Schema = Readonly<Record<string, unknown>>

/** The rule in words where the schema has them, else the pattern itself. */
function ruleOf(schema: Schema | undefined, pattern?: string): string {
  if (typeof schema?.description === 'string') return schema.description
  return pattern === undefined ? 'it has characters that are not allowed' : `it must match ${pattern}`
}

function schemaAt(root: TSchema, path: string): Schema | undefined {
  let at: unknown = root
  // A pattern property's own name may hold slashes; then the rule is told by its pattern.
  for (const part of path.split('/').slice(1)) {
    const key = part.replaceAll('~1', '/').replaceAll('~0', '~')
    at = typeof at === 'object' && at !== null && Object.hasOwn(at, key) ? (at as Record<string, unknown>)[key] : undefined
  }
  return at as Schema | undefined
}

/** `/network/ports/0/host_port` → `network.ports[0].host_port` */
const fieldName = (pointer: string): string =>
  pointer
    .split('/')
    .slice(1)
    .map((part) => shown(part.replaceAll('~1', '/').replaceAll('~0', '~')))
    .map((part, index) => (/^\d+$/.test(part) && index > 0 ? `[${part}]` : index > 0 ? `.${part}` : part))
    .join('')

/** A name that a caller made up, short and without control characters. */
const shown = (field: unknown): string => {
  const text = JSON.stringify(String(field)).slice(1, -1)
  return text.length > 64 ? `${text.slice(0, 64)}…` : text
}
